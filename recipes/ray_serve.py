"""Serve a model on many machines with Ray Serve: each replica has a copy of it, and answers as `quietstar serve` does.

    pip install 'quietstar[serve]' 'ray[serve]'
    serve run recipes.ray_serve:application model=runs/mine replicas=8 num_gpus=1 think=entropy:2.5
    serve run recipes.ray_serve:application model=runs/mine replicas=2 num_cpus=1       # a laptop

Besides `model`, `replicas` and what each of them takes (`num_cpus`, `num_gpus`), it takes the options of
`quietstar serve`, except those of address and processes, which are Ray's. Every machine needs the model at the same
path. A replica does not see the others: /metrics is that of the one that answers, and limits are those of each.
"""

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from quietstar.inference.loading import name_of
from quietstar.runs.options import make_parser, parse
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.run import load_served, make_engine, with_own_seed


def application(options: dict[str, str]) -> Application:
    """Return the application that `serve run` starts."""
    parser = make_parser(
        "ray_serve",
        "Serve a model with Ray Serve.",
        ServeArguments,
        positional={"model": "folder or hub name of a thinking model"},
        omitted=("host", "port", "workers", "seed"),
    )
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--num_cpus", type=float)
    parser.add_argument("--num_gpus", type=float)
    model = [options["model"]] if "model" in options else []
    argv = [*model, *(f"--{name}={value}" for name, value in options.items() if name != "model")]
    args, given = parse(parser, argv, ServeArguments, rest=True)
    args.host = "0.0.0.0"  # Ray's proxy is reached by any name

    def replica() -> FastAPI:
        own = with_own_seed(args)
        model, tokenizer = load_served(given["model"], own)
        engine, app = make_engine(model, tokenizer, own, own.model_name or name_of(given["model"]))
        engine.start()  # and it ends with the replica's process
        return app

    return (
        serve.deployment(serve.ingress(replica)())
        .options(
            name="quietstar",
            num_replicas=given["replicas"],
            ray_actor_options={name: given[name] for name in ("num_cpus", "num_gpus") if given[name] is not None},
            max_ongoing_requests=args.max_batch + args.max_queue,  # a replica has a queue of its own
        )
        .bind()
    )

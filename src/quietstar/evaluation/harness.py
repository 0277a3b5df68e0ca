"""lm-eval with thoughts: any of its tasks, by `quietstar evaluate --lm_eval` or by lm-eval's own command.

    python -m quietstar.evaluation run --model quietstar --model_args pretrained=DIR,think=entropy:2.5 --tasks X

That command is lm-eval's (EleutherAI/lm-evaluation-harness) with a registered model named `quietstar`; a script that
imports this module can use the name as well. The model thinks, as the policy says, at each token that is scored or
generated.
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quietstar.config import room_beside_thought
from quietstar.errors import DataError, MissingExtraError, SettingsError, reason
from quietstar.evaluation.hf_arguments import without_defaults
from quietstar.evaluation.report import Figure
from quietstar.evaluation.scoring import Continuation, Speaker, Stopwatch, score
from quietstar.evaluation.session import Evaluation
from quietstar.inference.loading import UseArguments, load_model
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.reporting.interval import Estimate, bootstrap, bootstrap_ratios, share_of
from quietstar.runs.processes import Processes

try:
    import lm_eval
    from lm_eval.api.registry import register_model
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, get_task_dict
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise MissingExtraError("lm_eval", "lm-eval", "tasks of lm-eval") from error

NUMBERS = (bool, int, float)
OF_NLL: dict[str, Callable[[Tensor], Tensor]] = {
    "perplexity": torch.exp,
    "word_perplexity": torch.exp,
    "byte_perplexity": torch.exp,
    "bits_per_byte": lambda nll: nll / math.log(2),
}
"""lm-eval's measures that are not means over texts, as functions of the nll of a text, a word or a byte"""


@register_model("quietstar")
class QuietStarLM(HFLM):
    """A thinking model for lm-eval.

    Args:
        pretrained: folder or hub name, or the model itself with its `tokenizer`.
        think: where to think; see `quietstar.policy`.
        thought_temperature: at which thoughts are sampled; 0 takes the likeliest tokens.
        thought_top_p: thought tokens are sampled from the likeliest that together reach this probability.
        n_ahead: tokens of a thought, start and end included; None is the model's.
        original: never think: a plain model, or the base model of a thinking one.
        dtype: of the loaded weights.
        device: auto, cpu, cuda, ...
        seed: of sampled thoughts.
        trust_remote_code: run code that comes with the model.
        kwargs: those of lm-eval's `hf` model, except those that change how a model is loaded.

    Raises:
        SettingsError: an argument is unknown, or would load something else than `pretrained`.

    If a launcher has started several processes, lm-eval gives each a share of the items.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        think: str = "always",
        thought_temperature: float = 0.0,
        thought_top_p: float = 1.0,
        n_ahead: int | None = None,
        original: bool = False,
        dtype: str = "auto",
        device: str | None = "auto",
        seed: int = 0,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        args = UseArguments(
            dtype=str(dtype),
            device=device or "auto",
            think=think,
            thought_temperature=float(thought_temperature),
            thought_top_p=float(thought_top_p),
            n_ahead=n_ahead,
            seed=seed,
            trust_remote_code=bool(trust_remote_code),
        )
        self.n_ahead, self.processes = n_ahead, Processes.launched(use_cpu=args.device == "cpu")
        model = pretrained
        tokenizer = kwargs.pop("tokenizer", None) if not isinstance(model, str) else None
        kwargs = without_defaults(kwargs, signature(HFLM.__init__).parameters)
        if isinstance(model, str):
            model, tokenizer = load_model(model, args, original=original)
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **kwargs)
        self._rank, self._world_size = self.processes.rank, self.processes.n
        self.thoughts: dict[str, Any] = {}
        if isinstance(model, QuietStarForCausalLM):
            self.thoughts = {"think": "never"} if original else {"think": think, **args.thought_settings}
        generator = torch.Generator(model.device).manual_seed(seed + self._rank)
        policy = ThinkPolicy.parse(think) if self.thoughts and not original else None
        how = (args.thought_temperature, args.thought_top_p, generator)
        self.speaker = Speaker(model, policy, *how, n_ahead=n_ahead)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        """Build the model from `--model_args` and lm-eval's own options; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Build the model from its arguments; lm-eval's own options, batch size and device, are the defaults.

        lm-eval passes its default device as if it had been asked for; a GPU is then used if there is one.
        """
        defaults = {"device": EvaluatorConfig().device}
        options = {k: v for k, v in (additional_config or {}).items() if v not in (None, defaults.get(k))}
        return cls(**{**options, **arg_dict})

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, concatenated."""
        return torch.cat([each.reshape(-1).to(tensor.device) for each in self.processes.gathered(tensor)])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Return the objects of all processes; None on processes other than `dst`."""
        found = self.processes.gathered(obj)
        return found if self.processes.rank == dst else None

    def barrier(self) -> None:
        """Wait for all processes."""
        self.processes.wait()

    @property
    def max_length(self) -> int:
        """Most tokens of a text: the model's context less a thought."""
        if self._max_length:
            return int(self._max_length)
        room = room_beside_thought(self.model.config, self.n_ahead)
        return int(super().max_length) if room is None else room

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether greedy decoding would write it."""
        sequences = []
        for _, context, continuation in requests:
            ids = [*context, *continuation][-(self.max_length + 1) :]
            first = len(ids) - len(continuation)
            if first < 1:
                raise SettingsError(
                    f"an answer has {len(continuation)} tokens, and the model's context is {self.max_length}; leave "
                    "that task out"
                )
            sequences.append(Continuation(ids=ids, first=first))
        batch_size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else 1)
        found = score(self.speaker, sequences, int(batch_size))
        answers = [(float(each.logprob.double().sum()), bool(each.is_likeliest.all())) for each in found]
        for (strings, _, _), answer in zip(requests, answers, strict=True):
            if strings is not None:
                self.cache_hook.add_partial("loglikelihood", strings, answer)
        return answers

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **how: Any) -> Tensor:
        """Return texts that are continued with thoughts."""
        return super()._model_generate(context, max_length, stop, **how, **self.thoughts)


def known_tasks(names: str, path: str | None) -> tuple[list[str], TaskManager]:
    """Return the names in a comma-separated list of tasks, and lm-eval's manager of tasks.

    Raises:
        SettingsError: a task is unknown.
        DataError: a task's file, data or metrics cannot be loaded.
    """
    split = [name.strip() for name in names.split(",") if name.strip()]
    try:
        manager = TaskManager(include_path=path)
        unknown = [name for name in split if not manager.match_tasks([name])]
        if not unknown:
            get_task_dict(split, manager)
    except Exception as error:
        raise DataError(
            f"lm-eval cannot load {', '.join(split)} ({reason(error)}); look at the task's file, data and metrics"
        ) from error
    if unknown:
        passed_over = f", and at files in {path} that are no YAML, which it passes over" if path else ""
        raise SettingsError(f"lm-eval knows no task {', '.join(unknown)}; see `lm-eval ls tasks`{passed_over}")
    return split, manager


def run_lm_eval(run: Evaluation, names: list[str], manager: TaskManager) -> dict[str, Any]:
    """Run lm-eval's tasks without thoughts and with them, and return lm-eval's own results by mode.

    Their figures are added to the evaluation's.
    """
    args = run.args
    found: dict[str, Any] = {}
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for mode in run.modes:
        model = QuietStarLM(
            run.model,
            tokenizer=run.tokenizer,
            batch_size=args.batch_size,
            think=args.think,
            thought_temperature=args.thought_temperature,
            thought_top_p=args.thought_top_p,
            n_ahead=args.n_ahead,
            original=mode != "thinking",
            device=str(run.model.device),
            seed=args.seed,
        )
        found[mode], samples[mode] = {}, {}
        for name in names:  # one by one, to time each
            watch = Stopwatch(run.model.device)
            answers = lm_eval.simple_evaluate(
                model,
                tasks=[name],
                task_manager=manager,
                limit=args.limit,
                bootstrap_iters=0,
                random_seed=args.seed,
                numpy_random_seed=args.seed,
                torch_random_seed=args.seed,
            )
            seconds = watch.seconds
            answers = run.processes.of_first(answers)  # the others get None
            kept = {key: answers[key] for key in ("results", "versions", "n-samples") if key in answers}
            found[mode][name] = kept | {"seconds": seconds}
            samples[mode] |= answers["samples"]
            n_items = sum(map(len, answers["samples"].values()))
            for task, rows in answers["samples"].items():
                add_figures(run.figures, task, mode, samples, seconds * len(rows) / n_items)
    return found


def add_figures(
    figures: list[Figure],
    task: str,
    mode: str,
    samples: dict[str, dict[str, list[dict[str, Any]]]],
    seconds: float,
) -> None:
    """Add a figure for each of a task's measures that has a value for each item."""
    rows = sorted(samples[mode][task], key=lambda row: row["doc_id"])
    base = sorted(samples["base"][task], key=lambda row: row["doc_id"]) if mode == "thinking" else None
    for measure in rows[0].get("metrics", []):
        if measure in OF_NLL:
            estimate, difference = _of_nll(measure, rows, base)
        elif all(isinstance(row.get(measure), NUMBERS) for row in rows):
            estimate, difference = _mean(measure, rows, base)
        else:
            continue
        figures.append(
            Figure(task=task, measure=measure, mode=mode, estimate=estimate, difference=difference, seconds=seconds)
        )


Rows = list[dict[str, Any]]


def _mean(measure: str, rows: Rows, base: Rows | None) -> tuple[Estimate, Estimate | None]:
    """Return the mean of a measure, and its difference from the base model's."""
    values = torch.tensor([float(row[measure]) for row in rows])
    is_share = bool(((values == 0) | (values == 1)).all())
    difference = None
    if base is not None:
        difference = bootstrap(values.double() - torch.tensor([float(row[measure]) for row in base]).double())
    return share_of(values) if is_share else bootstrap(values), difference


def _of_nll(measure: str, rows: Rows, base: Rows | None) -> tuple[Estimate, Estimate | None]:
    """Return a measure of all texts' nll, and its difference from the base model's; texts are resampled."""
    made_of = OF_NLL[measure]
    sides = [[_logprob_and_length(row[measure]) for row in side] for side in (rows, base) if side is not None]
    nll = -torch.tensor([[side[i][0] for side in sides] for i in range(len(rows))])
    lengths = torch.tensor([[length] for _, length in sides[0]])
    (estimate,) = bootstrap_ratios(nll[:, :1], lengths, made_of=made_of)
    if base is None:
        return estimate, None
    (difference,) = bootstrap_ratios(nll, lengths, made_of=lambda nll: made_of(nll[..., :1]) - made_of(nll[..., 1:]))
    return estimate, difference


def _logprob_and_length(value: Any) -> tuple[float, float]:
    """Return a text's log-probability and its number of words or bytes, from what lm-eval keeps of it."""
    return (float(value), 1.0) if isinstance(value, NUMBERS) else (float(value[0]), float(value[1]))

"""`quietstar evaluate`: measure how much a model's thoughts help."""

from quietstar.evaluation.arguments import RUN, VOTES, WHAT, EvaluateArguments
from quietstar.evaluation.run import evaluate
from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.runs.processes import Processes, part_ways


def parser() -> OneLineParser:
    """Return the parser of `quietstar evaluate`."""
    return make_parser(
        "quietstar evaluate",
        "Measure how well a model answers and predicts with its thoughts, compared with the same model without them.",
        EvaluateArguments,
        groups=(WHAT, THOUGHTS, VOTES, RUN, MODEL),
        config=True,
        positional={"model": "folder or hub name of a thinking model; with --original any model, also a GGUF file"},
    )


def main(argv: list[str]) -> None:
    """Parse the command line and evaluate."""
    args, given = parse(parser(), argv, EvaluateArguments, rest=True)
    evaluate(given["model"], args, config=given["config"])
    if Processes.launched().is_first:
        say(f"wrote {args.output_dir or 'runs'}")
    part_ways()

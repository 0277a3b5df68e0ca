"""`quietstar inspect`: record what a model thinks over a text, and measure whether it matters."""

from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.inference.speak import TEXT
from quietstar.inspection.arguments import RUN, WHAT_IF, InspectArguments
from quietstar.inspection.run import inspect
from quietstar.runs.options import OneLineParser, make_parser, parse, say


def parser() -> OneLineParser:
    """Return the parser of `quietstar inspect`."""
    return make_parser(
        "quietstar inspect",
        "Record what a model thinks over a text, and what other thoughts at the same positions would do.",
        InspectArguments,
        groups=(TEXT, THOUGHTS, WHAT_IF, RUN, MODEL),
        config=True,
        positional={"model": "folder or hub name of a thinking model"},
    )


def main(argv: list[str]) -> None:
    """Parse the command line and inspect."""
    args, given = parse(parser(), argv, InspectArguments, rest=True)
    folder = inspect(given["model"], args, config=given["config"])
    say(f"wrote {folder}" + (f"; open {folder / 'report.html'} in a browser" if args.report else ""))

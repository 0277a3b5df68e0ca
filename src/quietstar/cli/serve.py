"""`quietstar serve`: serve a thinking model over HTTP."""

from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.runs.options import OneLineParser, make_parser, parse, say
from quietstar.serving.arguments import LIMITS, SERVER, ServeArguments


def parser() -> OneLineParser:
    """Return the parser of `quietstar serve`."""
    return make_parser(
        "quietstar serve",
        "Serve a thinking model with OpenAI's API, and a page to try it at /. Ctrl-C stops the server.",
        ServeArguments,
        groups=(SERVER, LIMITS, THOUGHTS, MODEL),
        config=True,
        positional={"model": "folder or hub name of a thinking model"},
    )


def main(argv: list[str]) -> None:
    """Parse the command line and serve."""
    args, given = parse(parser(), argv, ServeArguments, rest=True)
    from quietstar.serving.run import serve

    serve(given["model"], args, say)

"""`quietstar serve`: a thinking model over HTTP."""

from quietstar.cli.options import make_parser, parse, say
from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.serving.arguments import LIMITS, SERVER, ServeArguments


def main(argv: list[str]) -> None:
    """Parse and serve."""
    parser = make_parser(
        "quietstar serve",
        "Serve a thinking model as OpenAI's clients ask for one, with a page to try it at /. Ctrl-C ends it.",
        ServeArguments,
        groups=(SERVER, LIMITS, THOUGHTS, MODEL),
        config=True,
        positional={"model": "folder or hub name of a thinking model"},
    )
    args, given = parse(parser, argv, ServeArguments, rest=True)
    from quietstar.serving.run import serve

    serve(given["model"], args, say)

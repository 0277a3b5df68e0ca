"""`quietstar generate`: continue a prompt, thinking before each token."""

from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.inference.speak import TEXT, GenerateArguments, speak
from quietstar.runs.options import OneLineParser, make_parser, parse


def parser() -> OneLineParser:
    """Return the parser of `quietstar generate`."""
    return make_parser(
        "quietstar generate",
        "Continue prompts, thinking before each token. If no prompt is given, each line of standard input is one.",
        GenerateArguments,
        groups=(TEXT, THOUGHTS, MODEL),
        positional={
            "model": "folder or hub name of a thinking model; with --original any model, also a GGUF file",
            "prompt?": "text to continue",
        },
    )


def main(argv: list[str]) -> None:
    """Parse the command line and generate."""
    args, given = parse(parser(), argv, GenerateArguments, rest=True)
    speak(given["model"], given["prompt"], args)

"""`quietstar generate`: continue a prompt, thinking before each token."""

from quietstar.cli.options import make_parser, parse
from quietstar.inference.loading import MODEL, THOUGHTS
from quietstar.inference.speak import TEXT, GenerateArguments, speak


def main(argv: list[str]) -> None:
    """Parse and speak."""
    parser = make_parser(
        "quietstar generate",
        "Continue prompts, thinking before each token. Without a prompt, each line of standard input is one.",
        GenerateArguments,
        groups=(TEXT, THOUGHTS, MODEL),
        positional={
            "model": "folder or hub name of a thinking model; with --original any model, also a GGUF file",
            "prompt?": "text to go on from",
        },
    )
    args, given = parse(parser, argv, GenerateArguments, rest=True)
    speak(given["model"], given["prompt"], args)

"""`quietstar convert`: checkpoints of the released code, in and out, and models out of GGUF files."""

from quietstar.cli.options import OneLineParser, say
from quietstar.interop.convert import convert

WRITTEN = {
    "original": "a checkpoint of the released code",
    "quietstar": "a checkpoint of ours",
    "plain": "a plain model: train it",
}


def main(argv: list[str]) -> None:
    """Parse and convert."""
    parser = OneLineParser(
        prog="quietstar convert",
        description="Turn a checkpoint of the released Quiet-STaR code into one of ours, or one of ours with a "
        "Mistral base into one that the released code reads; put a training checkpoint of shards together; unpack a "
        "GGUF file into an ordinary folder. Which of them is seen from the source.",
        allow_abbrev=False,
    )
    parser.add_argument("source", help="folder or hub name, such as ezelikman/quietstar-8-ahead, or GGUF file")
    parser.add_argument("target", help="folder to write; empty or not there yet")
    parser.add_argument(
        "--n_ahead",
        type=int,
        help="tokens of a thought, start and end included, which a checkpoint of the released code does not say; "
        "what its training calls N is N - 1 here (default: 8)",
    )
    parser.add_argument("--n_ahead_talk", type=int, help="true tokens each thought is judged by in training (4)")
    given = vars(parser.parse_args(argv))
    source, target = given.pop("source"), given.pop("target")
    kind = convert(source, target, **{name: value for name, value in given.items() if value is not None})
    say(f"wrote {target}, {WRITTEN[kind]}")

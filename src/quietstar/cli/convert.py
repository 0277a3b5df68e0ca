"""`quietstar convert`: convert checkpoints from and to the released code's format."""

from quietstar.interop.convert import convert
from quietstar.runs.options import OneLineParser, say

WRITTEN = {
    "original": "a checkpoint of the released code",
    "quietstar": "a quietstar checkpoint",
}


def parser() -> OneLineParser:
    """Return the parser of `quietstar convert`."""
    made = OneLineParser(
        prog="quietstar convert",
        description="Convert a checkpoint of the released Quiet-STaR code to a quietstar checkpoint, or a quietstar "
        "checkpoint with a Mistral base to one that the released code reads; merge a sharded training checkpoint. "
        "The source decides which of these is done.",
        allow_abbrev=False,
    )
    made.add_argument("source", help="folder or hub name, such as ezelikman/quietstar-8-ahead")
    made.add_argument("target", help="folder to write; new or empty")
    made.add_argument(
        "--n_ahead",
        type=int,
        help="tokens of a thought, start and end included, which a checkpoint of the released code does not record; "
        "the 8 of the authors' names is 8 here (default: 8)",
    )
    made.add_argument("--n_ahead_talk", type=int, help="true tokens predicted after each thought in training (4)")
    return made


def main(argv: list[str]) -> None:
    """Parse and convert."""
    given = vars(parser().parse_args(argv))
    source, target = given.pop("source"), given.pop("target")
    kind = convert(source, target, **{name: value for name, value in given.items() if value is not None})
    say(f"wrote {target}, {WRITTEN[kind]}")

"""`quietstar export`: plain models as GGUF files for llama.cpp, or as folders for any other engine."""

from quietstar.interop.export import AUTO, FORMATS, export
from quietstar.interop.gguf.write import TYPES
from quietstar.runs.options import OneLineParser, say


def parser() -> OneLineParser:
    """Return the parser of `quietstar export`."""
    made = OneLineParser(
        prog="quietstar export",
        description="Write a plain model, such as one that quietstar distill has taught, as a GGUF file for llama.cpp "
        "and what is built on it, or as a folder that transformers, vLLM and others load. A thinking model cannot be "
        "exported: distill it first.",
        allow_abbrev=False,
    )
    made.add_argument("source", help="plain model: folder, hub name or GGUF file")
    made.add_argument("target", help="file to write, which must end in .gguf, or folder to write, new or empty")
    made.add_argument("--to", required=True, choices=FORMATS, help="what to write")
    made.add_argument(
        "--dtype",
        default=AUTO,
        choices=(AUTO, *TYPES),
        help="of the matrices; auto is the model's own, of a GGUF file float32; q8_0, 8.5 bits a weight, is for GGUF "
        "only (default: auto)",
    )
    return made


def main(argv: list[str]) -> None:
    """Parse and export."""
    given = parser().parse_args(argv)
    export(given.source, given.target, to=given.to, dtype=given.dtype)
    say(f"wrote {given.target}")

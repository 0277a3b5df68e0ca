"""`quietstar env`: versions, devices, and which extras are installed."""

from quietstar.runs.environment import environment
from quietstar.runs.options import OneLineParser


def parser() -> OneLineParser:
    """Return the parser of `quietstar env`."""
    return OneLineParser(
        prog="quietstar env",
        description="Print versions, devices, and which extras are installed: what a report of a fault needs.",
        allow_abbrev=False,
    )


def main(argv: list[str]) -> None:
    """Print what a report of a fault needs."""
    parser().parse_args(argv)
    found = environment()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")

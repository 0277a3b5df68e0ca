"""`quietstar demo`: the whole method in minutes, on a CPU."""

from quietstar.demo.arguments import DemoArguments
from quietstar.demo.discover.arguments import DiscoverArguments
from quietstar.demo.discover.story import discover
from quietstar.demo.story import tell
from quietstar.runs.options import OneLineParser, make_parser, parse

SWITCH = "--discover"

STORY = (
    "A tiny base model learns a small language, Quiet-STaR teaches it to think, and a table shows how much better it "
    "answers with its thoughts. Every figure is measured in the run, on held-out problems."
)
DISCOVERY = (
    "Can the reward find a thought that pretraining has hardly shown? The language needs one scratch letter, which few "
    "lines spell out, and thoughts begin with something else. Arms with two advantages and without the policy loss "
    "start from the same base models; the share of right answers is measured over steps, on held-out problems."
)


def parser(is_discovery: bool = False) -> OneLineParser:
    """Return the parser of `quietstar demo`, or of `quietstar demo --discover`."""
    made = make_parser("quietstar demo", DISCOVERY if is_discovery else STORY, arguments(is_discovery))
    made.add_argument(
        SWITCH, action="store_true", help=f"can the reward find a thought? quietstar demo {SWITCH} --help"
    )
    return made


def arguments(is_discovery: bool) -> type:
    """Return the dataclass whose fields are the options."""
    return DiscoverArguments if is_discovery else DemoArguments


def main(argv: list[str]) -> None:
    """Parse the command line and run the demo, or with `--discover` the comparison of arms."""
    is_discovery = SWITCH in argv
    (args,) = parse(parser(is_discovery), argv, arguments(is_discovery))
    if is_discovery:
        discover(args)
    else:
        tell(args)

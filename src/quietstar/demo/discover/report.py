"""What `--discover` found, as a table and in sentences."""

from dataclasses import dataclass, field

from rich.table import Table

from quietstar.demo.discover.arguments import DiscoverArguments
from quietstar.demo.discover.world import World
from quietstar.demo.language import CHANCE
from quietstar.demo.report import percent
from quietstar.demo.watch import Line
from quietstar.reporting.tables import markdown

LABELS = {"positive": "positive", "leave_one_out": "leave_one_out", "no_policy": "no policy loss"}
BASE_LABELS = {"no_thoughts": "base, no thoughts", "spelled_out": "base, spelled out"}
HEADINGS = ("arm", "seed", "right", "95 % interval", "without", "scratch")
NOTE = (
    "right: share of right answers with thoughts; without: the same model without thoughts; scratch: share of thoughts "
    "that are the scratch letter. Without a policy loss, the two advantages are the same run."
)
FOUND = (
    "Found means: more right answers with thoughts than without them, before and after training, and more scratch "
    "letters than before and by chance; 95 % intervals do not overlap."
)


@dataclass
class Findings:
    """Everything that was measured. A share is the dictionary that `Share.to_dict` returns."""

    base: dict[int, dict[str, Line]] = field(default_factory=dict)
    """seed -> no_thoughts and spelled_out -> share of right answers"""
    curves: dict[str, dict[int, list[Line]]] = field(default_factory=dict)
    """arm -> seed -> step, and the shares own_thoughts, base_pass and scratch_letters, at each measured step"""
    diary: list[Line] = field(default_factory=list)
    """all lines of all trainings"""

    def seeds_found(self, arm: str) -> list[int]:
        """Return the seeds in which an arm ends with the thought found.

        Its answers with thoughts must be right more often than those of the base model and its own without thoughts,
        and its thoughts must be the scratch letter more often than chance: all by 95 % intervals that do not overlap.
        """
        found = []
        for seed, curve in self.curves[arm].items():
            first, last = curve[0], curve[-1]
            highest = max(self.base[seed]["no_thoughts"]["high"], last["base_pass"]["high"])
            is_right = last["own_thoughts"]["low"] > highest
            is_scratch = last["scratch_letters"]["low"] > max(CHANCE, first["scratch_letters"]["high"])
            found += [seed] if is_right and is_scratch else []
        return found


def introduction(world: World, args: DiscoverArguments) -> str:
    """Return a description of the language and of what is asked."""
    short, spelled = (world.language.line(world.known[0], spelled=spelled) for spelled in (False, True))
    return (
        f"A line of the language:       [bold]{short}[/]  (start, two moves, end)\n"
        f"its scratch letter spelled:   [bold]{spelled}[/]  (1 line of pretraining in {args.spelled_one_in})\n"
        f"{len(world.known)} problems for pretraining, {len(world.fresh)} to think about, "
        f"{len(world.held_out)} held out\n"
        f"A thought is one token; its start begins as {args.start_text}, its end as {args.end_text}"
    )


def rows(found: Findings) -> list[tuple[str, ...]]:
    """Return the rows of the table: each seed's base model, then each arm and seed at its last step."""
    made = [
        (BASE_LABELS[name], str(seed), *cells(shares[name]), "", "")
        for name in BASE_LABELS
        for seed, shares in found.base.items()
    ]
    for arm, curves in found.curves.items():
        for seed, curve in curves.items():
            last = curve[-1]
            also = [percent(last[name]["share"]) for name in ("base_pass", "scratch_letters")]
            made.append((LABELS[arm], str(seed), *cells(last["own_thoughts"]), *also))
    return made


def cells(share: Line) -> tuple[str, ...]:
    """Return a share and its interval."""
    return percent(share["share"]), f"{100 * share['low']:.1f} - {percent(share['high'])}"


def table(found: Findings) -> Table:
    """Return the table for the terminal."""
    n = next(iter(found.base.values()))["no_thoughts"]["n"]
    title = f"{n} held-out problems of each seed (chance is {percent(CHANCE)})"
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows(found):
        made.add_row(*row)
    return made


def markdown_table(found: Findings) -> str:
    """Return the same table in Markdown."""
    return markdown(HEADINGS, rows(found))


def sentences(found: Findings) -> list[str]:
    """Return what the table's columns are, and for each arm in how many runs the thought was found."""
    told = [NOTE]
    for arm, curves in found.curves.items():
        seeds = found.seeds_found(arm)
        which = f" (seed {', '.join(map(str, seeds))})" if seeds and len(seeds) < len(curves) else ""
        told.append(f"[bold]{LABELS[arm]}: the thought was found in {len(seeds)} of {len(curves)} runs{which}.[/]")
    return [*told, FOUND]

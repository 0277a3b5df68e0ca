"""Strategies side by side for one run, and which to choose."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.memory import MemoryUse, highest
from quietstar.scaling.shape import Shape, read_config, shape_of
from quietstar.scaling.step import Flops, Step, flops
from quietstar.scaling.strategies import Strategy, Traffic, held_by, strategies, traffic

GIB = 2**30

USABLE = 0.9
"""share of a GPU's memory that a step may fill: CUDA, its libraries and gaps between tensors take the rest"""

LEAST_FRACTION = 1 / 16
"""share of the positions below which a run hardly learns to think"""

LEAST_LENGTH = 128
"""tokens of a row that are not shortened further"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the step."""

    strategy: Strategy
    step: Step
    moment: MemoryUse
    """at which memory is fullest"""
    host: float
    """bytes of the host's memory for each GPU"""
    flops: Flops
    """of one GPU, for an optimizer step"""
    traffic: Traffic
    """of one GPU, for an optimizer step"""
    seconds: float | None
    """of an optimizer step, where rates were given; computing and receiving one after the other"""
    fits: bool

    @property
    def cost(self) -> tuple[float, float, float]:
        """What ways are ordered by: duration where it is known; otherwise arithmetic, then bytes."""
        return (self.seconds or 0.0, self.flops.total, self.traffic.total)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, the ways to run it, and a choice."""

    args: PlanArguments
    shape: Shape
    ways: list[Way]
    """of the run as it was asked for"""
    chosen: Way | None
    """the cheapest that fits; None where none does"""
    chosen_args: PlanArguments
    """the run that was chosen: as asked for, or eased; the one that comes nearest where none fits"""
    nearest: Way
    """the least memory that was found"""
    own: frozenset[str] = frozenset()
    """settings that are a thinking model's own, not given"""


def plan(args: PlanArguments) -> Plan:
    """Compare strategies for a run, and choose.

    Raises:
        CheckpointError: there is no such model.
        SettingsError: a setting does not fit the model.
        UnsupportedModelError: the model cannot be counted.
    """
    config = read_config(args.model, args.trust_remote_code)
    names = ("n_ahead", "n_ahead_talk", "n_passes")
    said = {name: getattr(config, name, None) for name in names if getattr(args, name) is None}
    own: dict[str, Any] = {name: value for name, value in said.items() if isinstance(value, int)}

    class Shapes(dict[bool, Shape]):
        def __missing__(self, adapted: bool) -> Shape:
            lora = replace(args, lora=True).lora_settings if adapted else None
            return self.setdefault(adapted, shape_of(config, args.model, lora))

    return replace(compare(replace(args, **own), Shapes()), own=frozenset(own))


def compare(args: PlanArguments, shapes: Mapping[bool, Shape]) -> Plan:
    """As `plan`, for a model whose sizes are known.

    Args:
        args: the run.
        shapes: of the model without adapters, and with them where they are asked for.
    """
    tried: list[tuple[PlanArguments, list[Way]]] = []
    chosen = None
    for eased in easings(args):
        ways = ways_of(eased, shapes[eased.lora])
        if eased.load_in_4bit > args.load_in_4bit:  # in shards it is untried: chosen only by who asks for it
            ways = [way for way in ways if not way.strategy.shards]
        tried.append((eased, ways))
        if chosen := _cheapest(*tried[-1], offloads=False):
            break
    if chosen is None:
        chosen = next(filter(None, (_cheapest(*each, offloads=True) for each in tried)), None)
    nearest = min(((eased, way) for eased, ways in tried for way in ways), key=lambda pair: pair[1].moment.total)
    eased, way = chosen or (nearest[0], None)
    return Plan(args=args, shape=shapes[args.lora], ways=tried[0][1], chosen=way, chosen_args=eased, nearest=nearest[1])


def _cheapest(args: PlanArguments, ways: list[Way], *, offloads: bool) -> tuple[PlanArguments, Way] | None:
    """Of those that fit."""
    fitting = [way for way in ways if way.fits and way.strategy.offloads == offloads]
    return (args, min(fitting, key=lambda way: way.cost)) if fitting else None


def ways_of(args: PlanArguments, shape: Shape) -> list[Way]:
    """Every strategy for these GPUs, without gradient checkpointing (where that is not asked for) and with it."""
    both = (True,) if args.gradient_checkpointing else (False, True)
    return [
        way_of(args, shape, strategy, checkpointing)
        for strategy in strategies(args.gpus, args.nodes)
        for checkpointing in both
    ]


def way_of(args: PlanArguments, shape: Shape, strategy: Strategy, checkpointing: bool) -> Way:
    """One strategy, with gradient checkpointing or without."""
    given = args.numbers(shape)
    step = replace(args.step(checkpointing), sharded=strategy.shards)
    accumulation = args.gradient_accumulation_steps
    held, host = held_by(shape, given, strategy, args.n_gpus, args.load_in_4bit, accumulation)
    moment = highest(shape, step, strategy.numbers(given), held)
    once, moved = (
        flops(shape, step),
        traffic(shape, step, given, strategy, args.n_gpus, accumulation, args.load_in_4bit),
    )
    arithmetic = Flops(**{name: value * accumulation for name, value in asdict(once).items()})
    seconds = None
    if args.tflops is not None and (args.bandwidth is not None or moved.total + moved.host == 0):
        seconds = arithmetic.total / (args.tflops * 1e12)
        seconds += (moved.total + moved.host) / (args.bandwidth * 1e9) if args.bandwidth else 0.0
    return Way(
        strategy=strategy,
        step=step,
        moment=moment,
        host=host,
        flops=arithmetic,
        traffic=moved,
        seconds=seconds,
        fits=moment.total <= USABLE * args.memory * GIB,
    )


def easings(args: PlanArguments) -> Iterator[PlanArguments]:
    """The run as asked for, then with less in memory at once: what changes least comes first.

    One row at a time; fewer positions that think, down to a quarter; adapters in place of all weights; fewer positions
    still; the weights beside adapters in 4 bits, at all positions again, then fewer; shorter rows.
    """
    yield args
    rows = args.per_device_train_batch_size
    if rows > 1:
        args = replace(
            args,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=args.gradient_accumulation_steps * rows,
        )
        yield args
    fractions = [args.think_fraction / 2**k for k in range(5) if args.think_fraction / 2**k >= LEAST_FRACTION]
    fractions = fractions or [args.think_fraction]
    few = [fraction for fraction in fractions if fraction >= args.think_fraction / 4]
    for some in (few, fractions[len(few) :]):
        for lora in dict.fromkeys((args.lora, True)):
            for fraction in some:
                eased = replace(args, think_fraction=fraction, lora=lora)
                if eased != args:
                    yield eased
    if not args.load_in_4bit:
        for fraction in fractions:
            yield replace(args, think_fraction=fraction, lora=True, load_in_4bit=True)
    length = args.max_length // 2
    while length >= LEAST_LENGTH:
        for four_bit in dict.fromkeys((args.load_in_4bit, True)):
            yield replace(args, think_fraction=min(fractions), lora=True, load_in_4bit=four_bit, max_length=length)
        length //= 2

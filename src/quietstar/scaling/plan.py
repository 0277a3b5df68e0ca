"""Comparison of strategies for a run, and the choice of one."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.memory import FLOAT, MemoryUse, highest
from quietstar.scaling.shape import Shape, read_config, shape_of
from quietstar.scaling.step import Flops, Step, flops
from quietstar.scaling.strategies import Strategy, Traffic, held_by, strategies, traffic

GIB = 2**30

USABLE = 0.9
"""fraction of a GPU's memory that a step may use; CUDA, its libraries and fragmentation take the rest"""

LEAST_FRACTION = 1 / 16
"""least think_fraction; below it a run hardly learns to think"""

LEAST_LENGTH = 128
"""least max_length that a plan proposes"""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run the step: a strategy, with or without gradient checkpointing."""

    strategy: Strategy
    step: Step
    moment: MemoryUse
    """moment of peak memory"""
    host: float
    """bytes of host memory for each GPU"""
    flops: Flops
    """of one GPU, for an optimizer step"""
    traffic: Traffic
    """of one GPU, for an optimizer step"""
    seconds: float | None
    """duration of an optimizer step without overlap of computing and receiving; None if rates were not given"""
    fits: bool

    @property
    def cost(self) -> tuple[float, float, float]:
        """Sort key of ways: duration if known, then arithmetic, then bytes received."""
        return (self.seconds or 0.0, self.flops.total, self.traffic.total)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, the ways to run it, and the choice."""

    args: PlanArguments
    shape: Shape
    ways: list[Way]
    """ways to run the requested settings"""
    chosen: Way | None
    """the cheapest way that fits; None if none does"""
    chosen_args: PlanArguments
    """settings of the chosen way, as requested or eased; of the nearest way if none fits"""
    nearest: Way
    """the way with the least memory"""
    own: frozenset[str] = frozenset()
    """settings that come from the thinking model's config"""
    curriculum: str | None = None
    """of the run; this plan is of the stage that takes most memory"""
    stages: tuple[Flops, ...] = ()
    """arithmetic of a step of each stage, in the nearest way"""


def plan(args: PlanArguments) -> Plan:
    """Compare strategies for a run, and choose one.

    Raises:
        CheckpointError: the model cannot be found.
        SettingsError: a setting does not fit the model.
        UnsupportedModelError: the model cannot be counted.
    """
    config = read_config(args.model, args.trust_remote_code)
    names = ("n_ahead", "n_ahead_talk", "n_passes")
    in_config = {name: getattr(config, name, None) for name in names if getattr(args, name) is None}
    own: dict[str, Any] = {name: value for name, value in in_config.items() if isinstance(value, int)}

    class Shapes(dict[bool, Shape]):
        def __missing__(self, adapted: bool) -> Shape:
            lora = replace(args, lora=True).lora_settings if adapted else None
            return self.setdefault(adapted, shape_of(config, args.model, lora))

    shapes = Shapes()
    if args.curriculum is not None:
        own = {name: value for name, value in own.items() if name == "n_passes"}
    found = [replace(compare(replace(each, **own), shapes), own=frozenset(own)) for each in args.stages]
    longest = max(found, key=lambda each: each.nearest.moment.total)
    stages = tuple(each.nearest.flops for each in found)
    return replace(longest, curriculum=args.curriculum, stages=stages) if args.curriculum else longest


def compare(args: PlanArguments, shapes: Mapping[bool, Shape]) -> Plan:
    """Compare strategies as `plan` does, given the sizes of the model without adapters (False) and with them (True)."""
    tried: list[tuple[PlanArguments, list[Way]]] = []
    chosen = None
    for eased in easings(args):
        ways = ways_of(eased, shapes[eased.lora])
        if eased.load_in_4bit > args.load_in_4bit:  # untested with sharding, so only on request
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
    """Return the cheapest way that fits, with its settings."""
    fitting = [way for way in ways if way.fits and way.strategy.offloads == offloads]
    return (args, min(fitting, key=lambda way: way.cost)) if fitting else None


def ways_of(args: PlanArguments, shape: Shape) -> list[Way]:
    """Return every strategy for these GPUs, with gradient checkpointing, and without it unless it is requested."""
    both = (True,) if args.gradient_checkpointing else (False, True)
    return [
        way_of(args, shape, strategy, checkpointing)
        for strategy in strategies(args.gpus, args.nodes)
        for checkpointing in both
    ]


def way_of(args: PlanArguments, shape: Shape, strategy: Strategy, checkpointing: bool) -> Way:
    """Return the memory, arithmetic and traffic of one strategy, with or without gradient checkpointing."""
    given = args.numbers(shape)
    step = replace(args.step(checkpointing), sharded=strategy.shards)
    accumulation = args.gradient_accumulation_steps
    held, host = held_by(shape, given, strategy, args.n_gpus, args.load_in_4bit, accumulation)
    if args.reference == "ema":  # the moving average, in float32; it waits beside the optimizer's states
        average = FLOAT * shape.n_trained / (args.n_gpus if strategy.shards else 1)
        on_host = strategy.offloads or args.ema_device == "cpu"
        held, host = (held, host + average) if on_host else (replace(held, optimizer=held.optimizer + average), host)
    moment = highest(shape, step, strategy.numbers(given), held)
    moved = traffic(shape, step, given, strategy, args.n_gpus, accumulation, args.load_in_4bit)
    arithmetic = Flops(**{name: value * accumulation for name, value in asdict(flops(shape, step)).items()})
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
    """Yield the run as requested, then with settings that need less memory, smallest changes first.

    These are: one sequence in a batch; a smaller think_fraction, down to a quarter; adapters instead of all weights; a
    still smaller think_fraction; frozen weights in 4 bits, again from the full think_fraction down; shorter sequences.
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

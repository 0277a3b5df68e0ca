"""The tables of docs/scaling.md: sizes, arithmetic, memory, durations and the choice for four published models.

python docs/scaling_tables.py
"""

from collections.abc import Iterator
from dataclasses import replace

from quietstar.reporting.tables import markdown
from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.plan import Plan, compare
from quietstar.scaling.shape import PUBLISHED, Shape, read_config, shape_of
from quietstar.scaling.tables import PARTS, cells, changes, described, gib, yes

RATES = {"tflops": 400.0, "bandwidth": 225.0}
"""what one GPU is assumed to reach: see the page"""
MACHINES = ((1, 24), (1, 80), (4, 24), (8, 80), (8, 141))
"""number of GPUs on one node, and memory of each in GiB"""


def tables() -> Iterator[str]:
    """Yield the tables in Markdown."""
    shapes = {
        name: {bool(lora): shape_of(read_config(name), name, lora) for lora in (None, {"r": 16})} for name in PUBLISHED
    }
    plans = [compare(PlanArguments(model=name, gpus=8, **RATES), shapes[name]) for name in PUBLISHED]
    headings = ("model", "n", "D", "V", "N", "N_m", "trained with --lora", "a", "r")
    yield markdown(headings, list(map(size_cells, plans, shapes.values())))
    headings = ("model", "checkpointing", "layers", "attention", "vocabulary", "mixing head", "total")
    yield markdown(headings, [row for found in plans for row in flop_cells(found)], n_left=2)
    for found in plans:
        yield f"{found.args.model}, 8 GPUs:\n"
        headings = ("strategy", "checkpointing", *PARTS, "total", "received a step", "time", "fits 80 GiB")
        yield markdown(headings, list(map(cells, found.ways)), n_left=2)
    rows = [(name, *(chosen(name, shapes[name], gpus, memory) for gpus, memory in MACHINES)) for name in PUBLISHED]
    yield markdown(("model", *(f"{gpus} x {memory} GiB" for gpus, memory in MACHINES)), rows, n_left=1 + len(MACHINES))


def size_cells(found: Plan, shapes: dict[bool, Shape]) -> tuple[str, ...]:
    """Return a model's sizes; a and r are for float32 weights under autocast."""
    shape = found.shape
    numbers = found.args.numbers(shape)
    kept = shape.kept(numbers.weights, autocast=numbers.autocast)
    counts = (shape.n_layers, shape.D, shape.V, shape.n_base, shape.n_matrices, shapes[True].n_trained)
    return (shape.name, *(f"{count:,}" for count in counts), f"{kept.layer:,.0f} B", f"{kept.rest:,.0f} B")


def flop_cells(found: Plan) -> Iterator[tuple[str, ...]]:
    """Yield the arithmetic of one forward and backward pass, in TFLOP, without and with gradient checkpointing."""
    accumulation = found.args.gradient_accumulation_steps
    for way in found.ways[:2]:
        flops = (way.flops.layers, way.flops.attention, way.flops.vocabulary, way.flops.mixing, way.flops.total)
        tflops = [f"{n / accumulation / 1e12:,.2f}" for n in flops]
        yield (found.shape.name, yes(way.step.checkpointing), *tflops)


def chosen(name: str, shapes: dict[bool, Shape], gpus: int, memory: float) -> str:
    """Describe the choice for a machine."""
    found = compare(replace(PlanArguments(model=name), gpus=gpus, memory=memory), shapes)
    if found.chosen is None:
        return f"nothing: needs at least {gib(found.nearest.moment.total)} GiB"
    options = [f"`{option}`" for option in changes(found.args, found.chosen_args)]
    return f"{', '.join([described(found.chosen), *options])}: {gib(found.chosen.moment.total)} GiB"


if __name__ == "__main__":
    print("\n".join(tables()))

"""The tables of docs/scaling.md: three published models, one recipe, and what to choose.

python docs/scaling_tables.py
"""

from collections.abc import Iterator
from dataclasses import replace

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.plan import Plan, compare
from quietstar.scaling.shape import PUBLISHED, Shape, read_config, shape_of
from quietstar.scaling.tables import PARTS, cells, changes, described, gib, yes

MACHINES = ((1, 24), (1, 80), (4, 24), (8, 80), (8, 141))
"""GPUs of one node, and GiB of each"""


def tables() -> Iterator[str]:
    """All of them, in Markdown."""
    shapes = {
        name: {bool(lora): shape_of(read_config(name), name, lora) for lora in (None, {"r": 16})} for name in PUBLISHED
    }
    plans = [compare(PlanArguments(model=name, gpus=8), shapes[name]) for name in PUBLISHED]
    yield markdown(
        ("model", "n", "D", "V", "N", "N_m", "trained with --lora", "a", "r"), map(size_cells, plans, shapes.values())
    )
    headings = ("model", "checkpointing", "layers", "attention", "vocabulary", "mixing head", "in all")
    yield markdown(headings, (row for found in plans for row in flop_cells(found)))
    for found in plans:
        yield f"{found.args.model}, 8 GPUs:"
        yield markdown(
            ("strategy", "checkpointing", *PARTS, "in all", "received a step", "fits 80 GiB"),
            ((*row[:-2], row[-1]) for row in map(cells, found.ways)),
        )
    yield markdown(
        ("model", *(f"{gpus} x {memory} GiB" for gpus, memory in MACHINES)),
        ((name, *(chosen(name, shapes[name], gpus, memory) for gpus, memory in MACHINES)) for name in PUBLISHED),
    )


def size_cells(found: Plan, shapes: dict[bool, Shape]) -> tuple[str, ...]:
    """A model's sizes; what it keeps is that of float32 weights under autocast."""
    shape = found.shape
    numbers = found.args.numbers(shape)
    kept = shape.kept(numbers.weights, autocast=numbers.autocast)
    counts = (shape.n_layers, shape.D, shape.V, shape.n_base, shape.n_matrices, shapes[True].n_trained)
    return (shape.name, *(f"{of:,}" for of in counts), f"{kept.layer:,.0f} B", f"{kept.rest:,.0f} B")


def flop_cells(found: Plan) -> Iterator[tuple[str, ...]]:
    """The arithmetic of one forward and backward pass, in TFLOP, without checkpointing and with it."""
    accumulation = found.args.gradient_accumulation_steps
    for way in found.ways[:2]:
        each = (way.flops.layers, way.flops.attention, way.flops.vocabulary, way.flops.mixing, way.flops.total)
        yield (
            found.shape.name,
            yes(way.step.checkpointing),
            *(f"{of / accumulation / 1e12:,.2f}" for of in each),
        )


def chosen(name: str, shapes: dict[bool, Shape], gpus: int, memory: float) -> str:
    """What to choose for so many GPUs."""
    found = compare(replace(PlanArguments(model=name), gpus=gpus, memory=memory), shapes)
    if found.chosen is None:
        return f"nothing: at least {gib(found.nearest.moment.total)} GiB"
    words = ", ".join([described(found.chosen), *(f"`{of}`" for of in changes(found.args, found.chosen_args))])
    return f"{words}: {gib(found.chosen.moment.total)} GiB"


def markdown(headings: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(line)} |" for line in (headings, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(headings)}", *lines[1:]])


if __name__ == "__main__":
    print("\n\n".join(tables()))

"""A plan as tables for a terminal and in words."""

from collections.abc import Iterator
from dataclasses import fields

from rich.console import Group
from rich.table import Table

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.memory import Moment
from quietstar.scaling.plan import GIB, USABLE, Plan, Way

PARTS = [of.name for of in fields(Moment) if of.name != "when"]
"""of the memory"""

GIVEN = (
    "dtype",
    "n_ahead",
    "n_ahead_talk",
    "n_passes",
    "think_fraction",
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
"""options of `quietstar train` that a command names where they are not its defaults"""

WAY_HEADINGS = ("strategy", "checkpointing", *PARTS, "in all", "received a step", "time", "fits")


def shown(found: Plan) -> Group:
    """What the terminal shows, but for the choice."""
    return Group(sizes(found), step_table(found), way_table(found))


def sizes(found: Plan) -> Table:
    """The model's sizes."""
    shape, table = found.shape, Table(title=f"{found.args.model}", title_justify="left", show_header=False)
    trained = "all of them" if not shape.lora else f"adapters of rank {shape.lora['r']}"
    rows = {
        "layers x hidden size D": f"{shape.n_layers} x {shape.D:,}",
        "vocabulary V": f"{shape.V:,}" + (", embeddings and LM head one matrix" if shape.is_tied else ""),
        "weights of the base model": f"{shape.n_base:,}, of them {shape.n_matrices:,} in the layers' matrices",
        "mixing head and thought embeddings": f"{shape.n_thoughts:,}",
        "trained": f"{shape.n_trained:,} ({trained})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def step_table(found: Plan) -> Table:
    """Tokens and arithmetic of one GPU's forward and backward pass, without gradient checkpointing and with it."""
    table = Table(title="One forward and backward pass on one GPU", title_justify="left")
    for heading in ("checkpointing", "tokens of text", "columns", "sampled", "last pass", "passed again", "TFLOP"):
        table.add_column(heading, justify="left" if heading == "checkpointing" else "right")
    accumulation = found.args.gradient_accumulation_steps
    for checkpointing in dict.fromkeys(way.step.checkpointing for way in found.ways):
        way = next(way for way in found.ways if way.step.checkpointing == checkpointing)
        step = way.step
        table.add_row(
            yes(checkpointing),
            f"{step.base_tokens:,}",
            f"{step.C:,}",
            f"{step.sampled_tokens:,}",
            "" if checkpointing else f"{step.last_tokens:,}",
            f"{step.base_tokens + step.whole_tokens:,}" if checkpointing else "",
            f"{way.flops.total / accumulation / 1e12:,.1f}",
        )
    return table


def way_table(found: Plan) -> Table:
    """Strategies side by side."""
    args = found.args
    gpus = f"{args.n_gpus} GPU{'s' * (args.n_gpus > 1)}" + (f" on {args.nodes} nodes" if args.nodes > 1 else "")
    table = Table(title=f"Memory of each of {gpus}, GiB, at its fullest moment", title_justify="left")
    for heading in WAY_HEADINGS:
        table.add_column(heading, justify="left" if heading in WAY_HEADINGS[:2] else "right")
    for way in found.ways:
        table.add_row(*cells(way))
    return table


def cells(way: Way) -> tuple[str, ...]:
    """A row of the table of strategies."""
    return (
        way.strategy.name,
        yes(way.step.checkpointing),
        *(gib(getattr(way.moment, part)) for part in PARTS),
        gib(way.moment.total),
        f"{way.traffic.total / 1e9:,.1f} GB" if way.traffic.total else "nothing",
        "" if way.seconds is None else f"{way.seconds:,.1f} s",
        yes(way.fits),
    )


def notes(found: Plan) -> Iterator[str]:
    """What the figures leave out, in this case."""
    args = found.args
    limit = USABLE * args.memory
    yield f"A step fits where it takes at most {limit:,.0f} of {args.memory:g} GiB: CUDA and gaps take the rest."
    if all(way.seconds is None for way in found.ways):
        yield "No duration: it takes --tflops, and --bandwidth where GPUs talk to each other or to their host."
    else:
        yield "Durations add computing and receiving; what overlaps makes a step shorter."
    if found.shape.keeps_scores:
        yield "This model's attention keeps scores or dense masks (eager, or with dropout): they are not counted here."


def choice(found: Plan) -> Iterator[str]:
    """What to choose, in words; where nothing fits, what would have to give."""
    args, way = found.args, found.chosen
    if way is None:
        near = found.nearest
        largest = max(PARTS, key=lambda part: getattr(near.moment, part))
        settings = " ".join(changes(args, found.chosen_args)) or "as asked for"
        yield (
            f"Nothing fits. The least is {gib(near.moment.total)} GiB ({described(near)}, {settings}), "
            f"{gib(getattr(near.moment, largest))} of it {largest}: it takes GPUs with more memory, "
            f"{'several of them' if args.n_gpus == 1 else 'more of them'}, or a smaller model."
        )
        return
    chosen = ", ".join([described(way), *changes(args, found.chosen_args)])
    when = ("at the " if way.moment.when.startswith("end") else "when ") + way.moment.when
    yield f"Choose {chosen}: {gib(way.moment.total)} GiB of {args.memory:g}, fullest {when}."
    if way.host:
        yield f"The host holds {gib(way.host)} GiB for each GPU."
    yield command(found.chosen_args, way)


def described(way: Way) -> str:
    """A way in words."""
    return f"{way.strategy.name} {'with' if way.step.checkpointing else 'without'} gradient checkpointing"


def changes(asked: PlanArguments, chosen: PlanArguments) -> Iterator[str]:
    """What was eased."""
    for name in ("per_device_train_batch_size", "think_fraction", "lora", "max_length"):
        before, after = getattr(asked, name), getattr(chosen, name)
        if before != after:
            yield f"--{name}" if after is True else f"--{name} {after:g}"


def command(chosen: PlanArguments, way: Way) -> str:
    """The command that trains so; the text's options are the user's."""
    start = "quietstar train"
    if way.strategy.recipe:
        start = f"accelerate launch --config_file recipes/accelerate/{way.strategy.recipe}"
        start += f" --num_processes {chosen.n_gpus}" + (f" --num_machines {chosen.nodes}" if chosen.nodes > 1 else "")
        start += " -m quietstar train"
    return " ".join([start, *flags(chosen, way)])


def flags(chosen: PlanArguments, way: Way) -> list[str]:
    """Options of `quietstar train` that differ from its defaults, the chosen ones included."""
    plain = PlanArguments()
    found = [f"--model {chosen.model}"]
    for name in GIVEN:
        if getattr(chosen, name) != getattr(plain, name):
            found.append(f"--{name} {getattr(chosen, name)}")
    for name in ("trust_remote_code", "lora", "load_in_4bit"):
        if getattr(chosen, name):
            found.append(f"--{name}")
    if chosen.lora and chosen.lora_r != plain.lora_r:
        found.append(f"--lora_r {chosen.lora_r}")
    if chosen.bf16 is False:
        found.append("--bf16 false")
    return [*found, "--gradient_checkpointing"] if way.step.checkpointing else found


def gib(n_bytes: float) -> str:
    """Bytes in GiB, with as many digits as are worth reading."""
    value = n_bytes / GIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 0.05 else "0"


def yes(is_so: bool) -> str:
    """A cell."""
    return "yes" if is_so else "no"

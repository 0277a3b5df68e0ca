"""A plan as tables for a terminal, and as text."""

from collections.abc import Iterator
from dataclasses import fields

from rich import box
from rich.console import Console, Group
from rich.table import Table

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.memory import MemoryUse
from quietstar.scaling.plan import GIB, USABLE, Plan, Way

PARTS = [part.name for part in fields(MemoryUse) if part.name != "when"]
"""parts of the memory"""

GIVEN = (
    "dtype", "n_ahead", "n_ahead_talk", "n_passes", "think_fraction", "max_length", "per_device_train_batch_size",
    "gradient_accumulation_steps",
)  # fmt: skip
"""options of `quietstar train` that a printed command contains if they differ from the defaults"""

LEAST_SHOWN = 0.01 * GIB
"""parts of the memory below this are printed as 0"""

WAY_HEADINGS = ("strategy", "checkpointing", *PARTS, "total", "received a step", "time", "fits")


def shown(found: Plan, width: int) -> Group:
    """Return the tables for a terminal with lines of at least 80 characters; the choice is printed separately."""
    first, last = WAY_HEADINGS[:2], WAY_HEADINGS[2 + len(PARTS) :]
    wide = [step_table(found), way_table(found, WAY_HEADINGS)]
    if all(Console(width=10 * width).measure(table).maximum <= width for table in wide):
        return Group(sizes(found), *wide)
    narrow = [step_table(found), way_table(found, (*first, *last)), way_table(found, (*first, *PARTS))]
    for table in narrow:
        table.box, table.padding = box.SIMPLE_HEAD, (0, 0)
        table.show_edge = table.pad_edge = False
    return Group(sizes(found), *narrow)


def sizes(found: Plan) -> Table:
    """Return a table of the model's sizes."""
    shape, table = found.shape, Table(title=f"{found.args.model}", title_justify="left", show_header=False)
    trained = "all weights" if not shape.lora else f"adapters of rank {shape.lora['r']}"
    rows = {
        "layers x hidden size D": f"{shape.n_layers} x {shape.D:,}",
        "vocabulary V": f"{shape.V:,}" + (", embeddings and LM head tied" if shape.is_tied else ""),
        "weights of the base model": f"{shape.n_base:,}, {shape.n_matrices:,} of them in the layers' matrices",
        "mixing head and thought embeddings": f"{shape.n_thoughts:,}",
        "trained": f"{shape.n_trained:,} ({trained})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def step_table(found: Plan) -> Table:
    """Return a table of tokens and arithmetic of one GPU's forward and backward pass, by gradient checkpointing."""
    table = Table(title="One forward and backward pass on one GPU", title_justify="left")
    for heading in ("checkpointing", "tokens of text", "columns", "sampled", "last pass", "recomputed", "TFLOP"):
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


def way_table(found: Plan, headings: tuple[str, ...]) -> Table:
    """Return a table that compares the strategies, with these columns."""
    args = found.args
    gpus = f"{args.n_gpus} GPU{'s' * (args.n_gpus > 1)}" + (f" on {args.nodes} nodes" if args.nodes > 1 else "")
    table = Table(title=f"Memory of each of {gpus}, GiB, at its peak", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in WAY_HEADINGS[:2] else "right")
    for way in found.ways:
        row = dict(zip(WAY_HEADINGS, cells(way), strict=True))
        table.add_row(*(row[heading] for heading in headings))
    return table


def cells(way: Way) -> tuple[str, ...]:
    """Return a row of the table of strategies."""
    return (
        way.strategy.name,
        yes(way.step.checkpointing),
        *(gib(part) if part >= LEAST_SHOWN else "0" for part in (getattr(way.moment, name) for name in PARTS)),
        gib(way.moment.total),
        f"{way.traffic.total / 1e9:,.1f} GB" if way.traffic.total else "nothing",
        "" if way.seconds is None else f"{way.seconds:,.1f} s",
        yes(way.fits),
    )


def notes(found: Plan) -> Iterator[str]:
    """Yield what the figures leave out, and options that were given without effect."""
    args = found.args

    if found.curriculum is not None:
        highest = max(each.total for each in found.stages)
        shares = ", ".join(f"{each.total / highest:.2f}" for each in found.stages)
        yield (
            f"The tables are of the stage with n_ahead {args.n_ahead} and n_ahead_talk {args.n_ahead_talk}, which "
            f"takes most memory. Steps of {found.curriculum} take {shares} times the arithmetic of the most expensive."
        )
    most = gib(USABLE * args.memory * GIB)
    yield f"A step fits if it needs at most {most} of {args.memory:g} GiB; CUDA and fragmentation take the rest."
    given = [f"--{name}" for name in ("tflops", "bandwidth") if getattr(args, name) is not None]
    timed = [way.seconds is not None for way in found.ways]
    if not any(timed):
        unused = f"; {' and '.join(given)} alone has no effect" if given else ""
        yield f"No durations: give --tflops, and --bandwidth for strategies that communicate{unused}."
    elif not all(timed):
        yield "No durations of strategies that communicate: give --bandwidth too."
    else:
        yield "Durations are the sum of computing and receiving; overlap makes steps shorter."
    if args.lora_r != PlanArguments().lora_r and not found.chosen_args.lora:
        yield f"--lora_r {args.lora_r} has no effect without --lora."
    if found.shape.keeps_scores:
        yield "This model's attention keeps scores or dense masks (eager, or with dropout), which are not counted."


def choice(found: Plan) -> Iterator[str]:
    """Yield the recommendation, or what to change if nothing fits."""
    args, way = found.args, found.chosen
    if way is None:
        near = found.nearest
        largest = max(PARTS, key=lambda part: getattr(near.moment, part))
        settings = " ".join(changes(args, found.chosen_args)) or "as requested"
        yield (
            f"Nothing fits. The least is {gib(near.moment.total)} GiB ({described(near)}, {settings}), "
            f"{gib(getattr(near.moment, largest))} of it {largest}. Use GPUs with more memory, "
            f"{'several GPUs' if args.n_gpus == 1 else 'more GPUs'}, or a smaller model."
        )
        return
    chosen = ", ".join([described(way), *changes(args, found.chosen_args)])
    when = ("at the " if way.moment.when.startswith("end") else "when ") + way.moment.when
    yield f"Choose {chosen}: {gib(way.moment.total)} GiB of {args.memory:g}, with the peak {when}."
    if way.host:
        yield f"It needs {gib(way.host)} GiB of host memory for each GPU."
    if args.nodes > 1:
        yield f"Run on each of the {args.nodes} nodes, with its own --machine_rank and the first node's address:"
    yield command(found, way)


def described(way: Way) -> str:
    """Describe a way."""
    return f"{way.strategy.name} {'with' if way.step.checkpointing else 'without'} gradient checkpointing"


def changes(asked: PlanArguments, chosen: PlanArguments) -> Iterator[str]:
    """Yield the options that differ from the requested ones."""
    for name in ("per_device_train_batch_size", "think_fraction", "lora", "load_in_4bit", "max_length"):
        before, after = getattr(asked, name), getattr(chosen, name)
        if before != after:
            yield f"--{name}" if after is True else f"--{name} {after}"


def command(found: Plan, way: Way) -> str:
    """Return the command for a way, without the options of the data."""
    chosen, start = found.chosen_args, "quietstar train"
    if way.strategy.recipe:
        start = f"accelerate launch --config_file recipes/accelerate/{way.strategy.recipe}"
        start += f" --num_processes {chosen.n_gpus}"
        if chosen.nodes > 1:
            start += f" --num_machines {chosen.nodes} --machine_rank 0 --main_process_ip FIRST_MACHINE"
        if chosen.bf16 is False:
            start += " --mixed_precision no"  # the recipes set bf16
        start += " -m quietstar train"
    return " ".join([start, *flags(found, way)])


def flags(found: Plan, way: Way) -> list[str]:
    """Return the options of `quietstar train` for a way that differ from the defaults and from the model's config."""
    chosen, plain = found.chosen_args, PlanArguments()
    options = [f"--model {chosen.model}"]
    options += [f"--curriculum {found.curriculum}"] if found.curriculum else []
    for name in GIVEN:
        if name in ("n_ahead", "n_ahead_talk") and found.curriculum:
            continue
        if getattr(chosen, name) != getattr(plain, name) and name not in found.own:
            options.append(f"--{name} {getattr(chosen, name)}")
    for name in ("trust_remote_code", "lora", "load_in_4bit"):
        if getattr(chosen, name):
            options.append(f"--{name}")
    if chosen.lora and chosen.lora_r != plain.lora_r:
        options.append(f"--lora_r {chosen.lora_r}")
    if chosen.bf16 is False:
        options.append("--bf16 false")
    return [*options, "--gradient_checkpointing"] if way.step.checkpointing else options


def gib(n_bytes: float) -> str:
    """Format bytes in GiB with useful digits."""
    value = n_bytes / GIB
    if 0 < value < 0.05:
        return f"{value:.1g}" if value >= 5e-4 else f"{value:.0e}"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}"


def yes(is_so: bool) -> str:
    """Format a boolean."""
    return "yes" if is_so else "no"

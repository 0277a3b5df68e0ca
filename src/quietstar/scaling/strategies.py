"""Ways to spread a step over GPUs: what each GPU holds, and what it sends and receives. Pure formulas."""

from dataclasses import dataclass

import torch

from quietstar.scaling.memory import FLOAT, Held, Numbers
from quietstar.scaling.shape import Shape
from quietstar.scaling.step import Step

ADAMW = 2
"""numbers of AdamW for each weight, in its precision"""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""of a weight in 4 bits with double quantization (arXiv 2305.14314, section 3): a scale of 8 bits for 64 weights, and
one of 32 bits for 256 scales"""

MAX_LIVE_PARAMETERS = 1e9
"""weights that ZeRO-3 keeps gathered at most, as DeepSpeed's stage3_max_live_parameters has it by default"""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How weights, gradients and optimizer states lie on GPUs."""

    name: str
    recipe: str | None
    """file under recipes/accelerate"""
    shards: bool = False
    """whether each GPU holds a share of everything, and layers are gathered when they run"""
    offloads: bool = False
    """whether shares lie in the host's memory"""
    averages: bool = False
    """whether each GPU holds everything, and gradients are averaged"""
    masters: bool = False
    """whether bfloat16 weights have float32 ones beside them (DeepSpeed)"""
    averages_once: bool = True
    """whether gradients of several batches are averaged and spread together, not those of each (DeepSpeed)"""

    def numbers(self, given: Numbers) -> Numbers:
        """The precision that layers run in: what is gathered is bfloat16 under bf16."""
        return Numbers(weights=torch.bfloat16, autocast=True) if self.shards and given.autocast else given


ONE = Strategy(name="one GPU", recipe=None)
DDP = Strategy(name="DDP", recipe="ddp.yaml", averages=True)
FSDP2 = Strategy(name="FSDP2", recipe="fsdp2.yaml", shards=True)
FSDP2_NODES = Strategy(name="FSDP2", recipe="fsdp2_nodes.yaml", shards=True)
ZERO3 = Strategy(name="ZeRO-3", recipe="zero3.yaml", shards=True, masters=True, averages_once=False)
FSDP2_OFFLOAD = Strategy(name="FSDP2, CPU offload", recipe="fsdp2_offload.yaml", shards=True, offloads=True)


def strategies(gpus: int, nodes: int) -> list[Strategy]:
    """Those that so many GPUs on each of so many nodes can use."""
    if gpus * nodes == 1:
        return [ONE, FSDP2_OFFLOAD]
    return [DDP, FSDP2_NODES if nodes > 1 else FSDP2, ZERO3, FSDP2_OFFLOAD]


def base_bytes(shape: Shape, size: int, four_bit: bool) -> float:
    """Of the base model's weights, so many bytes each; those of the layers' matrices in 4 bits where asked for."""
    if not four_bit:
        return float(shape.n_base * size)
    return shape.n_matrices * NF4_BITS / 8 + (shape.n_base - shape.n_matrices) * size


def held_by(
    shape: Shape, given: Numbers, strategy: Strategy, n_gpus: int, four_bit: bool = False, accumulation: int = 1
) -> tuple[Held, float]:
    """Bytes that one GPU holds, and those that its share of the host's memory does.

    Args:
        shape: the model.
        given: precision that the model is loaded and trained in.
        strategy: how it is spread.
        n_gpus: over how many.
        four_bit: whether the layers' frozen matrices are stored in 4 bits.
        accumulation: batches of an optimizer step.
    """
    trains = 0 if shape.lora else 1
    small = FLOAT * shape.n_small
    w, product = given.weight_size, given.product_size
    head, again = trains * FLOAT * shape.n_table, accumulation > 1
    if not strategy.shards:
        gradients = trains * w * shape.n_base + small
        table = trains * w * shape.n_table
        return (
            Held(
                weights=base_bytes(shape, w, four_bit) + small,
                optimizer=ADAMW * gradients,
                gradients=gradients if strategy.averages else 0.0,
                earlier_gradients=gradients if again else 0.0,
                last_gradients=gradients + (table if again else 0),
                layer_gradients=trains * product * shape.n_layers_all + FLOAT * shape.n_adapters,
                head_gradient=head,
                early_gradients=_early_gradients(shape, table, FLOAT, again),
                table_gradient=table,
            ),
            0.0,
        )
    # under bf16, trained weights are float32 in their shards, and gathered in bfloat16
    in_shards = FLOAT if trains and given.autocast else w
    share = (
        base_bytes(shape, in_shards + (2 if strategy.masters and trains and given.autocast else 0), four_bit) + small
    )
    gradients = trains * in_shards * shape.n_base + small
    table = trains * product * shape.n_table
    root = (shape.n_root + shape.n_thoughts) * product
    one_layer = base_bytes(shape, product, four_bit) - shape.n_root * product
    live = min(MAX_LIVE_PARAMETERS * product, one_layer) if strategy.masters else 0.0
    some_layers = min(one_layer, max(live, 2 * one_layer / shape.n_layers))
    on_gpu = 0.0 if strategy.offloads else 1.0 / n_gpus
    on_host = 1.0 / n_gpus if strategy.offloads else 0.0
    everything = share + (1 + ADAMW) * gradients
    # those of a batch before are whole until the last one's are spread, or shares
    keeps_whole = again and strategy.averages_once
    whole = product * shape.n_trained
    last = gradients * on_gpu + table * (1 if shape.is_tied else 2) + product * shape.n_thoughts
    if keeps_whole:
        last = max(last + table, whole + (table if accumulation > 2 else 0))
    return (
        Held(
            weights=share * on_gpu,
            optimizer=ADAMW * gradients * on_gpu,
            earlier_gradients=whole if keeps_whole else gradients * on_gpu if again else 0.0,
            last_gradients=last,
            layer_gradients=product * (trains * shape.n_layers_all + shape.n_adapters),
            head_gradient=head,
            early_gradients=_early_gradients(shape, table, product, keeps_whole),
            table_gradient=table,
            gathered=root + some_layers,
            gathered_again=root + one_layer,
        ),
        everything * on_host,
    )


def _early_gradients(shape: Shape, table: float, size: int, adds: bool) -> float:
    """Of LM head and mixing head, numbers of so many bytes, apart from those that they are added to as they come.

    Tied to the embeddings, the LM head's waits for the embeddings' own.
    """
    if adds:
        return table if shape.is_tied else 0.0
    return table + size * shape.n_thoughts


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one GPU receives for an optimizer step."""

    gathers: int
    """times that each layer is gathered in one forward and backward pass"""
    weights: float
    gradients: float
    host: float = 0.0
    """between GPU and host"""

    @property
    def total(self) -> float:
        """Between GPUs."""
        return self.weights + self.gradients


def gathers_of_a_layer(step: Step, n_layers: int) -> int:
    """How often FSDP2 gathers a layer in one forward and backward pass: forwards once for each pass of the trunk, and
    backwards once for each that has a gradient."""
    if step.C == 0:
        return 2
    if step.checkpointing:
        parts = step.n_parts(n_layers)
        return (1 + step.K + parts) + (1 + parts)
    passes = 1 + step.K + 1
    return 2 * passes


def traffic(
    shape: Shape,
    step: Step,
    given: Numbers,
    strategy: Strategy,
    n_gpus: int,
    accumulation: int = 1,
    four_bit: bool = False,
) -> Traffic:
    """What one GPU receives for an optimizer step of several batches.

    A ring of N GPUs moves (N - 1) / N of what is gathered or reduced through each; an all-reduce is both.
    """
    ring = (n_gpus - 1) / n_gpus
    small = FLOAT * shape.n_small
    if not strategy.shards:
        gradients = (0 if shape.lora else shape.n_base * given.weight_size) + small
        return Traffic(gathers=0, weights=0.0, gradients=2 * ring * gradients if strategy.averages else 0.0)
    product = given.product_size
    layers = base_bytes(shape, product, four_bit) - shape.n_root * product + shape.n_adapters * product
    root = (shape.n_root + shape.n_thoughts) * product
    gathers = gathers_of_a_layer(step, shape.n_layers)
    gradients = (0 if shape.lora else shape.n_base * product) + shape.n_small * product
    host = 0.0
    if strategy.offloads:
        host = (accumulation * (gathers * layers + root) + 2 * gradients) / n_gpus
    return Traffic(
        gathers=gathers,
        weights=ring * accumulation * (gathers * layers + root),
        gradients=ring * gradients * (1 if strategy.averages_once else accumulation),
        host=host,
    )

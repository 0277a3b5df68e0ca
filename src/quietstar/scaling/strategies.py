"""Strategies to distribute a step over GPUs: memory and traffic of each GPU. Pure formulas."""

from dataclasses import dataclass

import torch

from quietstar.scaling.memory import FLOAT, Held, Numbers
from quietstar.scaling.shape import Shape
from quietstar.scaling.step import Step

ADAMW = 2
"""states of AdamW for each weight, in its precision"""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""bits of a 4-bit weight with double quantization (arXiv 2305.14314, section 3): an 8-bit scale for 64 weights, and a
32-bit one for 256 scales"""

MAX_LIVE_PARAMETERS = 1e9
"""most weights that ZeRO-3 keeps gathered: DeepSpeed's default stage3_max_live_parameters"""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How weights, gradients and optimizer states are distributed over GPUs."""

    name: str
    recipe: str | None
    """file under recipes/accelerate"""
    shards: bool = False
    """whether each GPU holds a shard of everything, and layers are gathered when they run"""
    offloads: bool = False
    """whether shards are in the host's memory"""
    averages: bool = False
    """whether each GPU holds everything, and gradients are averaged"""
    masters: bool = False
    """whether bfloat16 weights have float32 master copies (DeepSpeed)"""
    averages_once: bool = True
    """whether gradients are reduced once for all accumulated batches, not after each batch (DeepSpeed)"""

    def numbers(self, given: Numbers) -> Numbers:
        """Return the precision that layers run in; under bf16, gathered weights are bfloat16."""
        return Numbers(weights=torch.bfloat16, autocast=True) if self.shards and given.autocast else given


ONE = Strategy(name="one GPU", recipe=None)
DDP = Strategy(name="DDP", recipe="ddp.yaml", averages=True)
FSDP2 = Strategy(name="FSDP2", recipe="fsdp2.yaml", shards=True)
FSDP2_NODES = Strategy(name="FSDP2", recipe="fsdp2_nodes.yaml", shards=True)
ZERO3 = Strategy(name="ZeRO-3", recipe="zero3.yaml", shards=True, masters=True, averages_once=False)
FSDP2_OFFLOAD = Strategy(name="FSDP2, CPU offload", recipe="fsdp2_offload.yaml", shards=True, offloads=True)


def strategies(gpus: int, nodes: int) -> list[Strategy]:
    """Return the strategies for this many GPUs on each node."""
    if gpus * nodes == 1:
        return [ONE, FSDP2_OFFLOAD]
    return [DDP, FSDP2_NODES if nodes > 1 else FSDP2, ZERO3, FSDP2_OFFLOAD]


def base_bytes(shape: Shape, size: int, four_bit: bool) -> float:
    """Return the bytes of the base model's weights of `size` bytes, the layers' matrices in 4 bits if `four_bit`."""
    if not four_bit:
        return float(shape.n_base * size)
    return shape.n_matrices * NF4_BITS / 8 + (shape.n_base - shape.n_matrices) * size


def held_by(
    shape: Shape, given: Numbers, strategy: Strategy, n_gpus: int, four_bit: bool = False, accumulation: int = 1
) -> tuple[Held, float]:
    """Return the bytes that one GPU holds under a strategy, and the bytes of host memory for it.

    The model is loaded and trained in the precision `given`; `accumulation` batches make an optimizer step.
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
    # under bf16, shards of trained weights are float32 and gathered in bfloat16
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
    # gradients of earlier batches are kept whole until the last batch's are reduced, or as shards
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
    """Return the bytes of the gradients of LM head and mixing head, unless they are added to existing ones.

    The gradient of a tied LM head is kept until that of the embeddings.
    """
    if adds:
        return table if shape.is_tied else 0.0
    return table + size * shape.n_thoughts


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one GPU receives for an optimizer step."""

    gathers: int
    """gathers of each layer in one forward and backward pass"""
    weights: float
    gradients: float
    host: float = 0.0
    """bytes between GPU and host"""

    @property
    def total(self) -> float:
        """Bytes received from other GPUs."""
        return self.weights + self.gradients


def gathers_of_a_layer(step: Step, n_layers: int) -> int:
    """Return how often FSDP2 gathers a layer in one forward and backward pass.

    It does so once for each forward pass of the trunk, and once for each backward pass.
    """
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
    """Return the bytes that one GPU receives in an optimizer step of several batches.

    In a ring of N GPUs, each receives (N - 1) / N of what is gathered or reduced; an all-reduce does both.
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

"""Counters of a running step: matrix products, and memory of live tensors."""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ATEN = torch.ops.aten
IN_PLACE = (ATEN.addmm_, ATEN.baddbmm_)


class Operations(TorchDispatchMode):
    """Floating-point operations of matrix products; fused attention is causal and counts half."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in IN_PLACE:
            self.total += 2 * math.prod(args[1].shape) * args[2].shape[-1]
        elif packet is ATEN._scaled_dot_product_flash_attention_for_cpu:
            self.total += 2 * math.prod(args[0].shape) * args[1].shape[2]
        elif packet is ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
            self.total += 5 * math.prod(args[1].shape) * args[2].shape[2]
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        return made

"""FSDP2 over CPU processes, for tests and soaks on machines without a GPU."""

from typing import Any


def shard_on_cpus() -> None:
    """Make Accelerate shard over CPU processes; without a GPU, it silently ignores FSDP."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import CPUOffloadPolicy

    if getattr(AcceleratorState, "shards_on_cpus", False):
        return
    begin = AcceleratorState.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if isinstance(fsdp_plugin.cpu_offload, CPUOffloadPolicy):  # pinned memory needs a GPU
                fsdp_plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = begin_sharded
    AcceleratorState.shards_on_cpus = True

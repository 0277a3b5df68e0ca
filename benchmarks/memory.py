"""Memory of a training step, measured and computed.

    python benchmarks/memory.py                       every case
    python benchmarks/memory.py --cases llama gpt2    only these
    python benchmarks/memory.py --output found.json   also write the figures as JSON

Each case runs on the CPU in a separate process with one thread: a model with random weights, AdamW (fused) with its
states, and a training step of A batches of full sequences. `measured` is the peak resident set minus the resident set
before the model is built, so Python, torch and the libraries do not count; a step of a tiny model before that triggers
lazy loading. Freed memory returns to the system at once (MALLOC_MMAP_THRESHOLD_), as the peak would otherwise be the
allocator's. `tensors` is the peak sum of the memory of all tensors in the step, counted by a dispatch mode in a
separate process. `computed` is the estimate of `quietstar plan` for one such device.
"""

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import weakref
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from memory_cases import CASES, Case, base_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig

from quietstar import QuietStarConfig, QuietStarForCausalLM
from quietstar.scaling.memory import MemoryUse, Numbers, highest
from quietstar.scaling.shape import shape_of
from quietstar.scaling.strategies import ONE, held_by
from quietstar.training.positions import draw_positions

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}
"""environment of glibc: freed memory returns to the system"""


class TensorPeak(TorchDispatchMode):
    """The peak sum of the memory of all live tensors, in bytes.

    Args:
        existing: tensors that exist already.
    """

    def __init__(self, existing: list[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, weakref.ref] = {}
        self.now = self.peak = 0
        for tensor in existing:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add_.Tensor and isinstance(args[1], Tensor) and args[0].dtype != args[1].dtype:
            self.peak = max(self.peak, self.now + args[1].numel() * args[0].element_size())  # a CPU makes a copy
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive or size == 0:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def thinking_model(case: Case, config: PreTrainedConfig) -> QuietStarForCausalLM:
    """Return the model of a case in training mode, its mixing head random (zeros would hide gradients of thoughts)."""
    base_lm = AutoModelForCausalLM.from_config(config, dtype=case.dtype)
    settings = {"n_ahead": case.n_ahead, "n_ahead_talk": case.n_ahead_talk, "n_passes": case.n_passes}
    adapters = {"branch_adapters" if case.frozen_base else "lora": case.lora}
    model = QuietStarForCausalLM(QuietStarConfig(base_config=config, **adapters, **settings), base_lm).train()
    if case.frozen_base:
        model.freeze_base()
    torch.nn.init.normal_(model.mixing_head.layers[-1].weight, std=0.02)
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def batch(case: Case, vocabulary: int) -> dict[str, Tensor]:
    """Return full sequences of random tokens."""
    input_ids = torch.randint(vocabulary, (case.batch, case.length), generator=torch.Generator().manual_seed(0))
    made = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids.clone()}
    if case.fraction < 1:
        made["think_at"] = draw_positions(input_ids, case.fraction, torch.Generator().manual_seed(0))
    return made


class Training:
    """A model, its optimizer, and a step of both."""

    def __init__(self, case: Case, config: PreTrainedConfig) -> None:
        torch.manual_seed(0)
        self.case, self.model, self.rows = case, thinking_model(case, config), batch(case, config.vocab_size)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        for parameter in trained:  # a step with zero gradients creates the states
            parameter.grad = torch.zeros_like(parameter)
        self._update()

    def step(self) -> None:
        """Run a step as the trainer does."""
        for _ in range(self.case.accumulation):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.case.bfloat16):
                loss = self.model(**self.rows, loss_only=True, use_cache=False).loss
            loss.backward()
        self._update()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> list[Tensor]:
        """Return weights, optimizer states and inputs."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [value for value in states if isinstance(value, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *tensors, *self.rows.values()]


def computed(case: Case) -> MemoryUse:
    """Return the peak by the formulas."""
    shape = shape_of(base_config(case.family), lora=case.lora)
    numbers = Numbers(weights=case.dtype, autocast=case.bfloat16)
    held, _ = held_by(shape, numbers, ONE, 1, accumulation=case.accumulation)
    return highest(shape, case.step, numbers, held, "cpu")


def measure_resident(case: Case) -> int:
    """Return this process's peak resident set minus that before the model, in bytes."""
    tiny = replace(case, batch=1, length=8, fraction=1.0)
    small = {"n_layer": 1} if case.family == "gpt2" else {"num_hidden_layers": 1}
    config = base_config(case.family, vocab_size=64, **small)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    Training(tiny, config).step()
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Training(case, base_config(case.family)).step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # kB on Linux


def measure_tensors(case: Case) -> int:
    """Return the peak memory of all tensors together, in bytes."""
    training = Training(case, base_config(case.family))
    with TensorPeak(training.tensors()) as peak:
        training.step()
    return peak.peak


MEASURES = {"resident": measure_resident, "tensors": measure_tensors}


def in_a_process(case: Case, measure: str) -> dict[str, Any]:
    """Run a measurement of a case in a separate process."""
    command = [sys.executable, __file__, "--job", json.dumps({"case": asdict(case), "measure": measure})]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= GIVE_BACK if measure == "resident" else {}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"error": (done.stderr.strip() or "no message").splitlines()[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def line(name: str, case: Case, found: dict[str, Any]) -> str:
    """Return a row of the table, in Markdown."""
    what = f"{case.batch} x {case.length}, {case.n_ahead}, {case.n_ahead_talk}, {case.n_passes}, {case.fraction:g}"
    what += f", {case.accumulation}"
    if "error" in found:
        return f"| {name} | {what} | {found['error']} | | | | |"
    resident, tensors, formulas = found["resident"], found["tensors"], found["computed"]
    return (
        f"| {name} | {what} | {resident / 1e6:,.0f} MB | {tensors / 1e6:,.0f} MB | {formulas / 1e6:,.0f} MB "
        f"| **{formulas / resident:.2f}** | {formulas / tensors:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help="names of cases (default: all)")
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.job:
        job = json.loads(options.job)
        print(json.dumps({"bytes": MEASURES[job["measure"]](Case(**job["case"]))}))
        return
    unknown = [name for name in options.cases or () if name not in CASES]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}; choose from {', '.join(CASES)}")
    print(f"{date.today()}, one thread, torch {torch.__version__}")
    print("| case | B x S, n_ahead, M, P, fraction, A | measured | tensors | computed | / measured | / tensors |")
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    results = {}
    for name in options.cases or CASES:
        case, found = CASES[name], {}
        for measure in MEASURES:
            result = in_a_process(case, measure)
            found |= {measure: result["bytes"]} if "bytes" in result else result
        found["computed"] = computed(case).total
        results[name] = found
        print(line(name, case, found), flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

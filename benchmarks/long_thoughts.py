"""What a token of a long thought costs, compared with a token of a short one.

    python benchmarks/long_thoughts.py                          all lengths, with and without gradient checkpointing
    python benchmarks/long_thoughts.py --n_ahead 34 130         only these lengths
    python benchmarks/long_thoughts.py --keep_graph never       sample all thoughts without gradient

Each length runs in a separate process with one thread: a small Llama (V 32,002, D 256, 6 layers) reads a text of 256
tokens, thinks at 4 positions in 4 passes, and learns (forward and backward, rewards alone, as RLP does). `ms a token`
is the CPU time of a step, less that of a plain step on the text, divided by its branch tokens. With several rounds the
lengths take turns; ratios are ratios of medians. `MB` is the peak sum of all live tensors in a step, as
benchmarks/memory.py counts it, without the model's weights and gradients, and `x plain` compares it with a plain step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from typing import Any

import torch
from memory import TensorPeak
from speed import base_config
from transformers import AutoModelForCausalLM

from quietstar import QuietStarConfig, QuietStarForCausalLM, think

N_AHEAD = (8, 34, 130, 514, 1026)
POSITIONS, PASSES, TEXT, TALK = 4, 4, 256, 1
KEEP_GRAPH = {"default": None, "always": 10**9, "never": 0}


class Step:
    """A training step on one text, with thoughts of one length."""

    def __init__(self, n_ahead: int, checkpointing: bool) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        config = base_config("cpu")
        self.base_lm = AutoModelForCausalLM.from_config(config)
        settings = QuietStarConfig(
            base_config=config,
            n_ahead=n_ahead,
            n_ahead_talk=TALK,
            n_passes=PASSES,
            advantage="leave_one_out",
            nll_weight=0.0,
            policy_weight=1.0,
        )
        self.model = QuietStarForCausalLM(settings, self.base_lm).train()
        torch.nn.init.normal_(self.model.mixing_head.layers[-1].weight, std=0.02)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.randint(config.vocab_size - 2, (1, TEXT))
        self.text = {"input_ids": ids, "labels": ids}
        self.think_at = torch.zeros_like(ids)
        self.think_at[:, (torch.arange(POSITIONS) + 1) * TEXT // (POSITIONS + 1)] = 1

    def think(self) -> None:
        """Run a step with thoughts."""
        self.model.zero_grad(set_to_none=True)
        self.model(**self.text, think_at=self.think_at, loss_only=True).loss.backward()

    def plain(self) -> None:
        """Run a step of the base model alone."""
        self.base_lm.zero_grad(set_to_none=True)
        self.base_lm(**self.text, use_cache=False).loss.backward()

    def peak(self, step: Any) -> int:
        """Return the peak bytes of tensors in a step, without weights and gradients."""
        step()
        held = [*self.model.parameters(), *(p.grad for p in self.model.parameters() if p.grad is not None)]
        self.model.zero_grad(set_to_none=True)
        with TensorPeak([]) as tensors:
            step()
        return tensors.peak - sum(p.numel() * p.element_size() for p in held[len(list(self.model.parameters())) :])


def branch_tokens(n_ahead: int) -> int:
    """Return the tokens of all branches."""
    return POSITIONS * PASSES * (n_ahead + TALK - 1)


def cpu_seconds(step: Any) -> float:
    """Return the CPU time of a step."""
    before = time.process_time()
    step()
    return time.process_time() - before


def measure(n_ahead: int, steps: int) -> dict[str, Any]:
    """Return seconds a step, with thoughts and plain, and peak bytes."""
    plain_memory = Step(n_ahead, checkpointing=False)
    found: dict[str, Any] = {"plain_bytes": plain_memory.peak(plain_memory.plain)}
    for name, checkpointing in (("seconds", False), ("checkpointed_seconds", True)):
        step = Step(n_ahead, checkpointing)
        found[name.replace("seconds", "bytes")] = step.peak(step.think)
        plain = statistics.median(cpu_seconds(step.plain) for _ in range(max(3, steps)))
        found[name] = [cpu_seconds(step.think) - plain for _ in range(steps)]
    return found


def report(found: dict[int, dict[str, Any]], first: int) -> str:
    """Return a table of all lengths."""
    lines = [
        f"{date.today()}, torch {torch.__version__}, one thread",
        "| n_ahead | branch tokens | ms a token | x | MB | x plain | checkpointing: ms a token | x | MB | x plain |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]

    def token(n: int, name: str) -> float:
        return 1e3 * statistics.median(found[n][name]) / branch_tokens(n)

    for n, values in found.items():
        cells = [f"{n}", f"{branch_tokens(n):,}"]
        for name in ("", "checkpointed_"):
            ms, size = token(n, f"{name}seconds"), values[f"{name}bytes"]
            cells += [f"{ms:.2f}", f"{ms / token(first, f'{name}seconds'):.2f}"]
            cells += [f"{size / 1e6:.0f}", f"{size / values['plain_bytes']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every length in a separate process, in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_ahead", type=int, nargs="+", default=N_AHEAD)
    parser.add_argument("--steps", type=int, default=3, help="steps of each length in a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep_graph", choices=KEEP_GRAPH, default="default", help="when sampling keeps its graph")
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if KEEP_GRAPH[options.keep_graph] is not None:
        think.GRAPH_AT_MOST = KEEP_GRAPH[options.keep_graph]
    if options.job:
        print(json.dumps(measure(options.job, options.steps)))
        return
    found: dict[int, dict[str, Any]] = {}
    for _ in range(options.rounds):
        for n in options.n_ahead:
            job = [sys.executable, __file__, "--job", str(n), "--steps", str(options.steps)]
            job += ["--keep_graph", options.keep_graph]
            values = json.loads(subprocess.run(job, check=True, capture_output=True, text=True).stdout)
            for name in ("seconds", "checkpointed_seconds"):
                values[name] = [*found.get(n, {}).get(name, []), *values[name]]
            found[n] = values
    print(report(found, first=34 if 34 in found else options.n_ahead[0]))


if __name__ == "__main__":
    main()

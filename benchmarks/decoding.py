"""Time of generating a token with a thought, compared with the base model's own cached decoding step.

    python benchmarks/decoding.py                                      every row (two minutes on two CPU cores)
    python benchmarks/decoding.py --batch 1 --prompt 128 --tokens 8    one row, quickly
    python benchmarks/decoding.py --device cuda                        Qwen3-0.6B's shape, random weights, bfloat16

`generate` of the base model and of the thinking model take turns in one process. A step is the time from one token to
the next, without the prompt's pass, and figures are medians over steps. A thought of n_ahead tokens takes n_ahead - 1
passes, so the target for a step is 1.15 x (n_ahead - 1) plain steps. Policies that never think show the cost of the
decision alone.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from speed import base_config
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from quietstar import QuietStarConfig, QuietStarForCausalLM

POLICIES = ("always", "entropy:0", "probability:0.5", "never", "entropy:99")


class Clock(StoppingCriteria):
    """Records the time of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Record the time, and never stop."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @property
    def steps(self) -> list[float]:
        """Seconds of every step except the prompt's."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def step_times(model: PreTrainedModel, prompts: torch.Tensor, n_tokens: int, **how: object) -> list[float]:
    """Return the seconds of each decoding step."""
    clock = Clock()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=n_tokens + 1,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
        **how,
    )
    return clock.steps


def build(device: str, n_ahead: int) -> QuietStarForCausalLM:
    """Return a thinking model of the benchmark's shape with a random mixing head."""
    torch.manual_seed(0)
    config = base_config(device)
    base_lm = AutoModelForCausalLM.from_config(config)
    model = QuietStarForCausalLM(QuietStarConfig(base_config=config, n_ahead=n_ahead), base_lm)
    torch.nn.init.normal_(model.mixing_head.layers[-1].weight)
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()


def measure(
    model: QuietStarForCausalLM,
    batch: int,
    length: int,
    n_tokens: int,
    rounds: int,
    policies: Sequence[str] = POLICIES,
) -> dict[str, float]:
    """Return the median milliseconds of a step, of the base model and with thoughts by each policy."""
    prompts = torch.randint(model.config.vocab_size, (batch, length), device=model.device)
    times: dict[str, list[float]] = {name: [] for name in ("base", *policies)}
    for number in range(rounds + 1):
        for name, seconds in times.items():
            thinking = name != "base"
            steps = step_times(
                model if thinking else model.base_lm, prompts, n_tokens, **({"think": name} if thinking else {})
            )
            seconds += steps if number else []  # the first round warms up
    return {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}


def table(found: Sequence[dict[str, float]], n_ahead: int) -> str:
    """Return the figures in Markdown."""
    heads = ("batch", "prompt", "base step, ms", *(f"think {name}" for name in POLICIES), f"always / {n_ahead - 1}")
    lines = [heads, ["---:"] * len(heads)]
    for row in found:
        times = [f"{row[name]:.1f} ({row[name] / row['base']:.2f} x)" for name in POLICIES]
        share = row["always"] / row["base"] / (n_ahead - 1)
        lines.append((f"{row['batch']:.0f}", f"{row['prompt']:.0f}", f"{row['base']:.1f}", *times, f"{share:.2f} x"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--tokens", type=int, default=12, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n_ahead", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, found = build(options.device, options.n_ahead), []
    for batch in options.batch:
        for length in options.prompt:
            print(f"batch {batch}, prompt {length}", file=sys.stderr, flush=True)
            row = measure(model, batch, length, options.tokens, options.rounds)
            found.append({"batch": batch, "prompt": length, **row})
    print(table(found, options.n_ahead))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

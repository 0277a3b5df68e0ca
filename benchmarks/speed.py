"""Time and memory of thinking, compared with a plain language-model step of the same base model.

    python benchmarks/speed.py                          every row of the CPU table (make bench: some of them)
    python benchmarks/speed.py --rows train score       only these rows
    python benchmarks/speed.py --device cuda            the GPU table: Qwen3-0.6B's shape, random weights
    python benchmarks/speed.py --backend dense          the same rows with dense masks
    python benchmarks/speed.py --profile --rows train   profile a row with torch.profiler
    python benchmarks/speed.py --malloc default         let malloc return freed memory to the system

Each row runs in a separate process, in which its steps and plain steps take turns, so that the load of a shared machine
affects both; ratios are ratios of medians. A second table has pairs of rows whose steps take turns. The plain step is
the base model alone: forward with labels and backward for rows that train, a forward pass for rows that score, in
float32 on a CPU and in the row's own precision on a GPU. On a CPU, the C library keeps freed memory
(MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_), for plain steps as well, to exclude the cost of page faults. Peak
memory is that of the whole process (CPU: peak resident set, Python and torch included, compared with a process that
only runs plain steps; GPU: peak allocation). `share` is the arithmetic that the method needs (see `needed_flops`),
divided by the time and by the rate of a large matrix product in the same process.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from quietstar import QuietStarConfig, QuietStarForCausalLM
from quietstar.attention import BACKENDS

SHAPES = {
    "cpu": dict(
        model_type="llama",
        vocab_size=32_002,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=688,
        max_position_embeddings=2048,
    ),
    "cuda": dict(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
}
"""base models: a small Llama, and Qwen3-0.6B's shape"""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    batch: int
    length: int
    n_ahead: int = 7
    """start, end and 5 sampled tokens; the released code counts this as 8"""
    n_ahead_talk: int = 4
    train: bool = True
    bfloat16: bool = False
    checkpointing: bool = False
    lengths: tuple[int, ...] = ()
    """length of each sequence if they differ; they are padded on the right"""
    answer: int = 0
    """score only this many tokens at the end; 0 scores every position"""
    layers: int = 0
    """number of layers if it differs from the shape's"""
    backend: str = "auto"
    masters: bool = False
    """on a GPU: float32 weights and bfloat16 autocast, as in `quietstar train`"""

    @property
    def text_lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, without padding."""
        return tuple(self.lengths) or (self.length,) * self.batch

    @property
    def columns(self) -> int:
        """Positions with thoughts in all sequences."""
        return sum(self.answer or length - self.train for length in self.text_lengths)


TRAIN = Row("train", 4, 128)
SCORE = Row("score every position", 1, 256, n_ahead_talk=1, train=False)
ROWS = {
    "cpu": {
        "train": TRAIN,
        "train-checkpointing": replace(TRAIN, what="train, gradient checkpointing", checkpointing=True),
        "train-bfloat16": replace(TRAIN, what="train, bfloat16 autocast", bfloat16=True),
        "train-256": replace(TRAIN, batch=2, length=256),
        "train-512": replace(TRAIN, batch=1, length=512),
        "train-11": replace(TRAIN, n_ahead=11),
        "train-ragged": replace(TRAIN, what="train, 128, 80, 64 and 48 tokens", lengths=(128, 80, 64, 48)),
        "train-deep": replace(TRAIN, what="train, 12 layers, checkpointing", layers=12, checkpointing=True),
        "score": SCORE,
        "score-answer": replace(SCORE, what="score an answer of 4 tokens", answer=4),
    },
    "cuda": {
        f"{backend}-{length}{'-float32' if masters else ''}": Row(
            "train, float32 weights" if masters else "train",
            1024 // length,
            length,
            n_ahead=8,
            bfloat16=True,
            backend=backend,
            masters=masters,
        )
        for length, backend, masters in (
            (512, "split", True),
            (512, "flex", True),
            (1024, "split", True),
            (1024, "flex", True),
            (512, "split", False),
            (512, "flex", False),
            (1024, "split", False),
            (1024, "flex", False),
            (512, "dense", False),
            (1024, "dense", False),
        )
    },
}
"""rows for a GPU fit into 80 GiB"""


PAIRS = {"cpu": (("train-11", "train"), ("train-512", "train"), ("train-ragged", "train")), "cuda": ()}
"""pairs of rows whose steps take turns"""

KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""environment of glibc"""


def base_config(device: str, layers: int = 0) -> PreTrainedConfig:
    """Return the base model's config."""
    shape = dict(SHAPES[device])
    if layers:
        shape["num_hidden_layers"] = layers
    return AutoConfig.for_model(shape.pop("model_type"), **shape)


def needed_flops(config: PreTrainedConfig, row: Row, n_passes: int = 2) -> float:
    """Return the floating-point operations that the method needs: 2 for each weight and token, 6 with gradient.

    Base tokens pass trunk and LM head once, start once for each column, the rest of a branch once for each pass. Each
    sampled token needs one row of logits. With gradient, half of the sampled tokens are reinforced.
    """
    D, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or D // heads
    projections = D * head_dim * (2 * heads + 2 * config.num_key_value_heads)
    trunk = config.num_hidden_layers * (projections + 3 * D * config.intermediate_size)
    head = config.vocab_size * D
    P = n_passes if row.train else 1
    K, L = row.n_ahead - 2, row.n_ahead + row.n_ahead_talk - 1
    base, columns = row.batch * row.length, row.columns
    branch = branch_tokens(row, n_passes)
    attention = config.num_hidden_layers * 2 * heads * head_dim * (row.length / 2 * (base + branch) + L / 2 * branch)
    sampled = columns * (1 + P * max(K - 1, 0)) * head
    if not row.train:
        return 2.0 * ((base + branch) * trunk + attention + sampled + columns * head)
    talk = P * sum(length - 1 - k for length in row.text_lengths for k in range(row.n_ahead_talk))
    reinforced = columns * P * K / 2
    return 6.0 * ((base + branch) * trunk + attention + (base + talk + reinforced) * head) + 2.0 * sampled


def branch_tokens(row: Row, n_passes: int = 2) -> int:
    """Return the tokens of all branches: start once for each column, the rest once for each pass."""
    P, L = n_passes if row.train else 1, row.n_ahead + row.n_ahead_talk - 1
    return row.columns * (1 + P * (L - 1))


class Bench:
    """A base model, a thinking model around it, and steps to time."""

    def __init__(self, row: Row, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.row, self.device = row, device
        self.dtype = torch.bfloat16 if device == "cuda" and not row.masters else torch.float32
        self.config = base_config(device, row.layers)
        with torch.device(device):
            self.base_lm: PreTrainedModel = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype)
            self.input_ids = torch.randint(self.config.vocab_size - 2, (row.batch, row.length))
            lengths = torch.tensor(row.text_lengths)[:, None]
            self.attention_mask = (torch.arange(row.length) < lengths).long()
        self.labels = self.input_ids.masked_fill(self.attention_mask == 0, -100)
        self.text = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "labels": self.labels}

    def thinking(self) -> QuietStarForCausalLM:
        """Return the thinking model with a random mixing head (zeros would hide gradients of thoughts)."""
        settings = QuietStarConfig(
            base_config=self.config, n_ahead=self.row.n_ahead, n_ahead_talk=self.row.n_ahead_talk
        )
        model = QuietStarForCausalLM(settings, self.base_lm).to(self.device).train(self.row.train)
        torch.nn.init.normal_(model.mixing_head.layers[-1].weight, std=0.02)
        if self.row.backend != "auto":
            model.set_attention_backend(self.row.backend)
        return model

    def plain(self) -> None:
        """Run a step of the base model alone."""
        if not self.row.train:
            with torch.no_grad():
                self.base_lm(input_ids=self.input_ids, use_cache=False)
            return
        self.base_lm.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.row.masters):
            loss = self.base_lm(**self.text, use_cache=False).loss
        loss.backward()

    def step(self, model: QuietStarForCausalLM) -> None:
        """Run a step of the thinking model."""
        row = self.row
        if not row.train:
            # logits after thoughts: at every position, or at those that predict the answer
            think_at = torch.ones_like(self.input_ids)
            think_at[:, -1] = not row.answer
            with torch.no_grad():
                model(self.input_ids, think_at=think_at, logits_to_keep=row.answer and row.answer + 1, use_cache=False)
            return
        if row.checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=row.bfloat16 and self.dtype == torch.float32):
            loss = model(**self.text, loss_only=True).loss
        loss.backward()
        if row.checkpointing:
            model.gradient_checkpointing_disable()

    def seconds(self, step: Callable[[], None]) -> float:
        """Return the seconds of a step."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Return the operations per second of a large matrix product."""
        n = 8192 if self.device == "cuda" else 2048
        a = torch.randn(n, n, device=self.device).to(dtype)
        return 2 * n**3 / statistics.median(self.seconds(lambda: a @ a) for _ in range(7))

    def peak_mb(self) -> float:
        """Return the peak memory so far, in MB."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux


def measure(row: Row, device: str, steps: int, threads: int) -> dict[str, Any]:
    """Measure a row in this process: seconds of its steps and of plain steps in between, peak memory, rates."""
    bench = Bench(row, device, threads)
    model = bench.thinking()
    bench.seconds(lambda: bench.step(model))
    bench.seconds(bench.plain)
    own, plain = [], []
    for _ in range(steps):
        own.append(bench.seconds(lambda: bench.step(model)))
        # plain steps for about a quarter of the row's time: a single one would be too noisy
        n_plain = max(4, min(20, round(own[-1] / 4 / (plain[-1] if plain else 0.3))))
        plain += [bench.seconds(bench.plain) for _ in range(n_plain)]
    peak = bench.peak_mb()
    rate = bench.matrix_rate(torch.bfloat16 if row.bfloat16 else torch.float32)
    needed = needed_flops(bench.config, row)
    return {"own": own, "plain": plain, "peak_mb": peak, "rate": rate, "flops": needed}


def measure_pair(row: Row, other: Row, device: str, steps: int, threads: int) -> dict[str, Any]:
    """Return the seconds of two rows' steps, which take turns in this process."""
    runs = []
    for each in (row, other):
        bench = Bench(each, device, threads)
        runs.append((bench, bench.thinking()))
    for bench, model in runs:
        bench.step(model)
    found: list[list[float]] = [[], []]
    for _ in range(max(steps, 3)):
        for seconds, (bench, model) in zip(found, runs, strict=True):
            seconds.append(bench.seconds(lambda bench=bench, model=model: bench.step(model)))
    return {"row": found[0], "other": found[1]}


def profile(row: Row, device: str, threads: int) -> str:
    """Return the shares of a step's time by operation, largest first."""
    bench = Bench(row, device, threads)
    model = bench.thinking()
    bench.step(model)
    with torch.profiler.profile() as recorded:
        bench.step(model)
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    times = sorted(((getattr(event, name), event.key) for event in recorded.key_averages()), reverse=True)
    total = sum(spent for spent, _ in times)
    lines = [
        f"| {key.removeprefix('aten::')} | {spent / 1e6:.2f} s | {spent / total:.1%} |" for spent, key in times[:16]
    ]
    return "\n".join([f"{row.what}: {total / 1e6:.2f} s", "| operation | time | share |", "|---|---|---|", *lines])


def measure_plain(row: Row, device: str, threads: int) -> dict[str, Any]:
    """Return the peak memory of plain steps alone."""
    bench = Bench(row, device, threads)
    for _ in range(4):
        bench.plain()
    return {"peak_mb": bench.peak_mb()}


def in_a_process(row: Row, options: argparse.Namespace, kind: str, other: Row | None = None) -> dict[str, Any]:
    """Run `measure`, `measure_plain` or `measure_pair` in a separate process."""
    job = json.dumps({"row": asdict(row), "kind": kind, "other": other and asdict(other)})
    command = [sys.executable, __file__, "--device", options.device, "--steps", str(options.steps)]
    command += ["--threads", str(options.threads), "--job", job]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(KEEP_FREED_MEMORY if options.malloc == "keep" else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        why = (done.stderr.strip() or "no message").splitlines()[-1]
        return {"error": why}
    return json.loads(done.stdout.splitlines()[-1])


def run_job(options: argparse.Namespace) -> None:
    """Run the job of a process started by `in_a_process`."""
    job = json.loads(options.job)
    row = Row(**job["row"])
    if job["kind"] == "row":
        found = measure(row, options.device, options.steps, options.threads)
    elif job["kind"] == "plain":
        found = measure_plain(row, options.device, options.threads)
    else:
        found = measure_pair(row, Row(**job["other"]), options.device, options.steps, options.threads)
    print(json.dumps(found))


def line(row: Row, found: dict[str, Any], plain_mb: float) -> str:
    """Return a row of the table, in Markdown."""
    size = f"{row.batch} x {row.length}, n_ahead {row.n_ahead}"
    backend = "" if row.backend == "auto" else f", {row.backend}"
    if "error" in found:
        return f"| {row.what}{backend} | {size} | {found['error']} | | | | | |"
    own, plain = statistics.median(found["own"]), statistics.median(found["plain"])
    spread = f"{min(found['own']):.3g} - {max(found['own']):.3g}"
    share = found["flops"] / own / found["rate"]
    return (
        f"| {row.what}{backend} | {size} | {own:.3g} s ({spread}) | {plain:.3g} s | **{own / plain:.3g}** "
        f"| {found['peak_mb']:,.0f} MB | **{found['peak_mb'] / plain_mb:.2f}** "
        f"| {share:.0%} of {found['rate'] / 1e9:,.0f} GFLOP/s |"
    )


def pair_line(name: str, other: str, rows: dict[str, Row], found: dict[str, Any], device: str) -> str:
    """Return a row of the table of pairs, in Markdown."""
    if "error" in found:
        return f"| {name} | {other} | {found['error']} | | |"
    a, b = rows[name], rows[other]
    flops = needed_flops(base_config(device, a.layers), a) / needed_flops(base_config(device, b.layers), b)
    seconds = statistics.median(found["row"]) / statistics.median(found["other"])
    return f"| {name} | {other} | **{seconds:.2f}** | {flops:.2f} | {branch_tokens(a) / branch_tokens(b):.2f} |"


def machine(options: argparse.Namespace) -> str:
    """Return a description of the machine."""
    name = platform.processor() or platform.machine()
    if options.device == "cuda":
        name = torch.cuda.get_device_name()
    elif Path("/proc/cpuinfo").is_file():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        name = names[0] if names else name
    return f"{date.today()}, {name}, {options.threads} threads, torch {torch.__version__}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", nargs="+", help="names of rows (default: all)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="for rows without a backend")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a row, after a warm-up step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--malloc", choices=("keep", "default"), default="keep", help="keep freed memory, or malloc's default"
    )
    parser.add_argument("--profile", action="store_true", help="print a profile instead of the table")
    parser.add_argument("--output", type=Path, help="also write all measurements here, as JSON")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        return run_job(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda was given, but there is no CUDA device; leave it out for the CPU table")
    rows = ROWS[options.device]
    if unknown := sorted(set(options.rows or []) - rows.keys()):
        parser.error(f"no row is named {', '.join(unknown)}; choose from {', '.join(rows)}")
    rows = {name: rows[name] for name in options.rows or rows}
    rows = {name: row if row.backend != "auto" else replace(row, backend=options.backend) for name, row in rows.items()}
    if options.profile:
        for row in rows.values():
            print(profile(row, options.device, options.threads), end="\n\n")
        return
    print(f"{machine(options)}: python benchmarks/speed.py {' '.join(sys.argv[1:])}\n")
    print("| row | size | time (lowest - highest) | plain step | times plain | peak memory | times plain | share |")
    print("|---|---|---|---|---|---|---|---|")
    results: dict[str, Any] = {}
    plain_mb: dict[Any, float] = {}
    for name, row in rows.items():
        key = (row.train, row.batch, row.length, row.layers)
        if key not in plain_mb:
            plain_mb[key] = in_a_process(row, options, "plain").get("peak_mb", float("nan"))
        results[name] = found = in_a_process(row, options, "row")
        found["plain_peak_mb"] = plain_mb[key]
        print(line(row, found, plain_mb[key]), flush=True)
    pairs = [pair for pair in PAIRS[options.device] if set(pair) <= rows.keys()]
    if pairs:
        print("\n| row | relative to | time | arithmetic | branch tokens |\n|---|---|---|---|---|")
    for name, other in pairs:
        results[f"{name} / {other}"] = found = in_a_process(rows[name], options, "pair", rows[other])
        print(pair_line(name, other, rows, found, options.device), flush=True)
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(options), "rows": results}, indent=1))


if __name__ == "__main__":
    main()

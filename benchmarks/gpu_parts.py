"""The parts of `gpu.py`, each a generator of figures.

To add a part, write a function of `Setting` that yields figures, and add it to PARTS. `--dry_run` runs it tiny, on a
CPU.
"""

import argparse
import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_setting import MARK, Setting, figure
from gpu_study import study
from gpu_training import lora_on_smollm2, memory, out_of_memory, qlora, resuming

HERE = Path(__file__).resolve().parent

PRECISIONS = {
    "float32": (torch.float32, False),
    "bfloat16 autocast": (torch.float32, True),
    "bfloat16 weights": (torch.bfloat16, False),
}
"""dtype of the weights, and whether autocast is on"""


def golden(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the error against losses recorded from the released code, on this device."""
    import tempfile

    from tests.golden import load_case

    files = sorted(file for file in (HERE.parent / "tests").glob("golden*/*.json") if not file.name.startswith("infer"))
    for name, (dtype, autocast) in PRECISIONS.items():
        worst, n = 0.0, 0
        for file in files[: 2 if setting.dry_run else None]:
            case = load_case(file.stem)
            with tempfile.TemporaryDirectory() as folder:
                model = case.load(Path(folder))
            model.base_lm.to(dtype)
            model = model.to(setting.device).train(case.settings["kind"] == "train")
            inputs = {key: value.to(setting.device) for key, value in case.inputs().items()}
            with torch.autocast(setting.device, torch.bfloat16, enabled=autocast):
                output = model(**inputs)
            expected = case.tensors.get("nll_loss", case.settings.get("nll_loss_with_labels"))
            worst, n = max(worst, abs(output.nll.item() / float(expected) - 1)), n + 1
        aim = 1e-4 if name == "float32" else 0.03
        yield figure(f"nll of {n} recorded cases, {name}", f"within {worst:.1e}", f"{aim:g}", worst <= aim)


def families(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the error of every family against the same model on a CPU in float32, which tests compare to a loop."""
    import quietstar.attention.split
    from tests.tiny import FAMILIES, random_thoughts, texts, tiny_model

    quietstar.attention.split.FEW_BRANCHES = 0
    names = list(FAMILIES)[: 2 if setting.dry_run else None]

    def outputs(family: str, device: str, backend: str, precision: str) -> dict[str, torch.Tensor]:
        dtype, autocast = PRECISIONS[precision]
        model = tiny_model(family, n_ahead=5, n_ahead_talk=3, n_passes=2, policy_weight=1.0)
        inputs = texts(8, 3, 5) | {"thoughts": random_thoughts(model, 3, 8, P=2)}
        model.base_lm.to(dtype)
        model.to(device).set_attention_backend(backend)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            output = model(**{key: value.to(device) for key, value in inputs.items()})
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(output.nll + output.policy_loss, list(named.values()), allow_unused=True)
        gradient = torch.cat([grad.flatten().float().cpu() for grad in gradients if grad is not None])
        return {"talk_nll": output.talk_nll.detach().float().cpu(), "gradient": gradient}

    true = {family: outputs(family, "cpu", "dense", "float32") for family in names}
    for precision in PRECISIONS:
        errors: dict[str, dict[str, float]] = {}
        for backend in ("dense", "split"):
            apart: dict[str, list[float]] = {"talk_nll": [], "gradient": []}
            for family in names:
                try:
                    found = outputs(family, setting.device, backend, precision)
                except Exception as error:
                    message = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                    yield figure(f"{family}, {backend}, {precision}", message, "runs", False)
                    continue
                for key, values in apart.items():
                    values.append(float((found[key] - true[family][key]).norm() / true[family][key].norm()))
            errors[backend] = {key: max(values, default=math.nan) for key, values in apart.items()}
        for key in ("talk_nll", "gradient"):
            dense, split = errors["dense"][key], errors["split"][key]
            limit = 1e-3 if precision == "float32" else 1.5 * dense + 0.01
            aim = "0.001" if precision == "float32" else "split at most 1.5 x dense"
            what = f"{key} of {len(names)} families, {precision}: relative error, the worst"
            yield figure(what, f"split {split:.1e}, dense {dense:.1e}", aim, split <= limit)


def speed(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield a training step's share of the rate of a large matrix product."""
    import gc

    import speed as table

    rows = table.ROWS["cuda"]
    if setting.dry_run:
        names = ("split-512", "dense-512")
        rows = {name: dataclasses.replace(rows[name], batch=1, length=16, bfloat16=False) for name in names}
        table.SHAPES["cpu"].update(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        table.Bench.matrix_rate = lambda *_: 1e9
    for name, row in rows.items():
        try:
            found = table.measure(row, setting.device, steps=3, threads=1)
        except Exception as error:
            yield figure(name, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}", "40 %", False)
        else:
            own, plain = statistics.median(found["own"]), statistics.median(found["plain"])
            share = found["flops"] / own / found["rate"]
            result = (
                f"**{share:.0%}** of {found['rate'] / 1e12:,.0f} TFLOP/s; {own * 1e3:,.0f} ms a step of "
                f"{row.batch} x {row.length} tokens, {own / plain:.1f} plain steps, {found['peak_mb'] / 1024:.1f} GiB"
            )
            is_aimed_at = row.backend != "dense" and not setting.dry_run
            yield figure(name, result, "40 %" if is_aimed_at else "", share >= 0.4 if is_aimed_at else None)
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def decoding(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the time of a token with a thought, relative to the base model's own step."""
    import decoding as script

    model = script.build(setting.device, 8)
    length, n_tokens = (8, 2) if setting.dry_run else (128, 12)
    for batch in (1, 2) if setting.dry_run else (1, 32):
        row = script.measure(model, batch, length, n_tokens, 1, ("always", "never"))
        share = row["always"] / row["base"] / 7
        times = f"{row['base']:.1f} ms; thinking {row['always']:.1f}, never {row['never']:.1f}"
        met = None if setting.dry_run else share <= 1.15
        what = f"base step, batch {batch}, prompt {length}"
        yield figure(what, f"{times}: **{share:.2f}** x 7 steps", "1.15 x 7 steps", met)


def kernels(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the results of `pytest -m gpu`."""
    root = HERE.parent
    marked = re.compile(r"^@pytest\.mark\.gpu\n(?:@.*\n)*def (test_\w+)", re.MULTILINE)
    files = sorted((root / "tests").rglob("test_*.py"))
    names = [f"{file}::{name}" for file in files for name in marked.findall(file.read_text(encoding="utf-8"))]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short"]
    command += ["-o", "addopts=", "-p", "no:cacheprovider"]
    for name in names[-1:] if setting.dry_run else reversed(names):
        done = subprocess.Popen([*command, name], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        last = ""
        for line in done.stdout:  # type: ignore[union-attr]
            print(line, end="", flush=True)
            last = line.strip() or last
        passed = done.wait() == 0 and (setting.dry_run or "passed" in last)
        yield figure(name.rpartition("::")[2], last, "all pass", passed)


def serve(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield tokens per second for 32 clients at once, for one after the other, and for one call of `generate`."""
    from gpu_serving import seconds_of

    n_clients, n_tokens = (3, 2) if setting.dry_run else (32, 16)
    how, seconds = seconds_of(setting.device, n_clients, n_tokens)
    rates = {way: n_clients * n_tokens / took for way, took in seconds.items()}
    result = ", ".join(f"{way} {rate:,.1f}" for way, rate in rates.items())
    times = rates["all at once"] / rates["one by one"]
    met = None if setting.dry_run else times >= 4
    yield figure(f"visible tokens/s, {n_clients} clients, {how}", f"{result}: **{times:.1f}** x one by one", "4 x", met)


@dataclass(frozen=True)
class Part:
    """A part, with its share of the time."""

    name: str
    run: Callable[[Setting], Iterator[dict[str, Any]]]
    seconds: float
    """time limit within 12 minutes"""
    says: str
    if_named: bool = False
    """whether it runs only if it is named"""


PARTS = (
    Part("golden", golden, 40, "the released code's losses"),
    Part("families", families, 50, "each family of base model compared with a CPU in float32"),
    Part("speed", speed, 170, "share of the matrix rate, Qwen3-0.6B's shape, n_ahead 8, M 4, P 2"),
    Part("memory", memory, 90, "peak memory of a training step compared with `quietstar plan`"),
    Part("resuming", resuming, 40, "random numbers on the GPU after resuming, bit by bit"),
    Part("out_of_memory", out_of_memory, 40, "a real out-of-memory error, with --auto_micro_batch"),
    Part("decoding", decoding, 60, "a token with a thought of n_ahead 8 compared with the base model's step"),
    Part("tests", kernels, 100, "`pytest -m gpu`: flex attention's kernels"),
    Part("lora_on_smollm2", lora_on_smollm2, 70, "the README's LoRA line on SmolLM2-135M"),
    Part("serve", serve, 40, "the server under 32 clients"),
    Part("qlora", qlora, 20, "one step over 4-bit weights"),
    Part("study", study, 540, "do thoughts pay? all arms on SmolLM2-135M, three seeds", if_named=True),
)
"""most valuable first"""


def main() -> None:
    """Run a part, and print each figure when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = vars(parser.parse_args())
    (part,) = [part for part in PARTS if part.name == options["part"]]
    del options["part"]
    for found in part.run(Setting(**options)):
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

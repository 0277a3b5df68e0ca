"""The part of `gpu.py` that runs `quietstar study`: do thoughts pay on a real model, beside every control?

It runs only if it is named: `python benchmarks/gpu.py --parts study --minutes 9 --smollm2 DIR --out gpu`. It needs the
package `datasets`. Whole seeds come first, so that a study that runs out of time has compared all arms with fewer
seeds; OUT/study has its reports, and the same command goes on with it. `--gsm8k DIR`, with the published train.jsonl
and test.jsonl, gives it 7,000 problems to train on; without it, the 400 of this repository.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_setting import Setting, figure

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "study" / "smollm2-gsm8k-gpu.yaml"
REPORT = 60.0
"""seconds kept for the report of what is there when time runs out"""
SPLITS = {"dataset": ("train", 0, 7000), "selection": ("train", 7000, 7064), "test": ("test", 0, 64)}
"""text of the study -> file of gsm8k, and its lines"""


def study(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the verdict, each difference with its interval, and the rate of training."""
    began = time.monotonic()
    if importlib.util.find_spec("datasets") is None:
        yield figure("study", "not run: the package datasets is not installed", "runs", False)
        return
    assert setting.out is not None
    folder = setting.out / "study"
    command = [sys.executable, "-m", "quietstar", "study", *_recipe(setting), f"--output_dir={folder}", "--resume"]
    command.append("--keep_models=False")
    try:
        subprocess.run(command, cwd=HERE.parent, timeout=max(1.0, setting.seconds - REPORT))
    except subprocess.TimeoutExpired:
        print("out of time: a report of the runs that were measured", flush=True)
        subprocess.run([*command, "--arms", "base"], cwd=HERE.parent, timeout=REPORT)
    found = json.loads((folder / "study.json").read_text())
    for sentence in found["verdict"]:
        yield figure("verdict", sentence)
    for each in found["differences"]:
        value, low, high = (each["estimate"][name] for name in ("value", "low", "high"))
        yield figure(
            f"{each['arm']} beside {each['control']}, {each['where']}, {each['n_seeds']} seeds",
            f"{value:+.4f} ({low:+.4f} to {high:+.4f})",
        )
    trained = [run for run in found["runs"] if run["n_steps"]]
    for arm in dict.fromkeys(run["arm"] for run in trained):
        runs = [run for run in trained if run["arm"] == arm]
        seconds = sum(run["train_seconds"] for run in runs) / len(runs)
        flops = runs[0]["n_steps"] * runs[0]["step_flops"]
        yield figure(
            f"training of {arm}, evaluations included",
            f"{runs[0]['n_steps']:,} steps of {runs[0]['step_flops'] / 1e12:.3g} TFLOP in {seconds:,.0f} s, "
            f"{flops / seconds / 1e12:,.1f} TFLOP/s",
        )
    n_runs = 1 + sum(len(found["recipe"]["seeds"]) if arm["kind"] != "untouched" else 1 for arm in _others(found))
    took = time.monotonic() - began
    is_whole = len(found["runs"]) == n_runs
    yield figure("runs measured", f"{len(found['runs'])} of {n_runs} in {took:,.0f} s", "all in 540 s", is_whole)


def _others(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [arm for name, arm in found["recipe"]["arms"].items() if name != "base"]


def _recipe(setting: Setting) -> list[str]:
    """Return the recipe, and the texts and the model that replace its own."""
    assert setting.out is not None
    if setting.dry_run:
        from tests.study.tiny_study import recipe_file

        texts = setting.out / "texts"
        texts.mkdir(exist_ok=True)
        return [str(recipe_file(texts, arms=["finetune-compute", "filler", "quietstar"], seeds=[0]))]
    options = [str(RECIPE)]
    if setting.smollm2 is not None:
        options.append(f"--model={setting.smollm2.resolve()}")
    if setting.gsm8k is not None:
        for name, (split, first, last) in SPLITS.items():
            lines = (setting.gsm8k / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            file = setting.out.resolve() / f"{name}.jsonl"
            file.write_text("".join(lines[first:last]), encoding="utf-8")
            options.append(f"--{name}={file}")
    return options

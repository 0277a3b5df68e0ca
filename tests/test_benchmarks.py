"""The benchmark runs, counts what the method needs, and refuses what it cannot run."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gpu
import pytest
import speed
import torch

from quietstar.scaling.memory import Numbers, highest
from quietstar.scaling.shape import shape_of
from quietstar.scaling.step import Step
from quietstar.scaling.strategies import ONE, held_by
from tests.processes import Command

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "speed.py"


def run(*options: str, script: str = "speed.py") -> str:
    """What a benchmark prints, run once."""
    short = ["--steps", "1"] if script == "speed.py" else ["--rounds", "1"]
    with Command(SCRIPT.with_name(script), "--threads", "1", *short, *options) as process:
        assert process.wait() == 0, process.stderr
        return process.stdout


@pytest.mark.long
def test_a_row_is_timed_beside_plain_steps(tmp_path: Path) -> None:
    said = run("--rows", "score-answer", "--output", str(tmp_path / "found.json"))
    assert "| score an answer of 4 tokens | 1 x 256, n_ahead 7 |" in said
    found = json.loads((tmp_path / "found.json").read_text())["rows"]["score-answer"]
    assert len(found["own"]) == 1
    assert len(found["plain"]) >= 3
    assert min(found["own"] + found["plain"]) > 0
    assert found["peak_mb"] > found["plain_peak_mb"] / 2 > 0


@pytest.mark.parametrize(
    ("options", "said"), [(("--rows", "fly"), "no row is named fly"), (("--device", "cuda"), "no CUDA device")]
)
def test_unknown_rows_and_missing_devices_are_refused(
    options: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["speed.py", *options])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        speed.main()
    assert said in capsys.readouterr().err


def test_the_arithmetic_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The issue's figure for the first row is 0.9 TFLOP, a plain step's share in it 0.04."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import speed

    row = speed.ROWS["cpu"]["train"]
    config = speed.base_config("cpu")
    needed = speed.needed_flops(config, row)
    assert 0.6e12 < needed < 0.9e12
    longer = speed.replace(row, n_ahead=row.n_ahead + 4)
    assert needed < speed.needed_flops(config, longer) < 2 * needed


def test_a_ragged_batch_needs_what_its_own_tokens_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import speed

    row, config = speed.ROWS["cpu"]["train"], speed.base_config("cpu")
    even = speed.replace(row, lengths=(128,) * 4)
    assert speed.needed_flops(config, even) == speed.needed_flops(config, row)
    ragged = speed.replace(row, lengths=(128, 64, 64, 2))
    assert speed.branch_tokens(ragged) / speed.branch_tokens(row) == (127 + 63 + 63 + 1) / (4 * 127)
    assert 0.5 < speed.needed_flops(config, ragged) / speed.needed_flops(config, row) < 0.6


@pytest.mark.slow
def test_decoding_is_timed_beside_the_base_models_step(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    said = run("--batch", "2", "--prompt", "8", "--tokens", "2", "--output", str(out), script="decoding.py")
    assert said.startswith("| batch | prompt | base step, ms | think always |")
    (row,) = json.loads(out.read_text())
    assert row["always"] > row["base"] > 0


@pytest.mark.slow
def test_scoring_is_timed_beside_the_base_model(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = run("--data", str(tmp_path / "gsm8k.jsonl"), "--items", "4", script="scoring.py")
    assert said.startswith("4 items of ")
    assert said.count("\n| plain") == 2


@pytest.mark.slow
def test_serving_is_timed_beside_generate(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    said = run("--clients", "2", "--tokens", "2", "--n_ahead", "3", "--output", str(out), script="serving.py")
    assert said.startswith("| 2 clients, 2 tokens each |")
    seconds = json.loads(out.read_text())["seconds"]
    assert set(seconds) == {"one by one", "all at once", "generate"}
    assert min(min(of) for of in seconds.values()) > 0


PRINTS = """
print('hello'); print('FIGURE {"what": "a | b", "found": "1", "aim": "2", "met": false}', flush=True)
"""


@pytest.mark.parametrize(
    ("then", "state", "why"),
    [("", "done", ""), ("raise ValueError('no')", "failed", "ValueError: no"), ("while 1: 1", "out of time", "")],
)
def test_a_part_keeps_the_figures_that_it_has(then: str, state: str, why: str, tmp_path: Path) -> None:
    report, outcome, log = gpu.Report(tmp_path, {"machine": "none"}), gpu.Outcome("mine", "what it says"), io.StringIO()
    report.outcomes.append(outcome)
    gpu.run_part(outcome, [sys.executable, "-c", PRINTS + then], 5.0, report, log)
    assert (outcome.state, outcome.why) == (state, why)
    assert not outcome.is_well
    assert log.getvalue().startswith("hello\n")
    report.write()
    (part,) = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert [figure["found"] for figure in part["figures"]] == ["1"]
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("machine none\n\n| part | what |")
    assert "|  | a \\| b | 1 | 2 | **no** |" in page


def test_parts_end_with_their_time_and_leave_the_rest_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import gpu_parts

    limits: dict[str, float] = {}

    def ended(outcome: gpu.Outcome, command: list[str], seconds: float, *_: object) -> None:
        limits[outcome.part] = seconds
        outcome.state = "done"

    monkeypatch.setattr(gpu, "run_part", ended)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--dry_run", "--minutes", "12", "--out", str(tmp_path)])
    assert gpu.main() == 0
    assert list(limits) == [part.name for part in gpu_parts.PARTS if not part.if_named]
    found = list(limits.values())
    assert found == sorted(found)  # those before took no time
    assert 715 < found[-1] <= 720
    assert sum(part.seconds for part in gpu_parts.PARTS if not part.if_named) == 720
    assert set(os.listdir(tmp_path)) == {"results.json", "gpu.md", "log.txt"}
    monkeypatch.setattr("sys.argv", ["gpu.py", "--out", str(tmp_path), "--parts", "fly"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no part is named fly; choose from golden" in capsys.readouterr().err


MISSING = ("datasets", "matplotlib", "bitsandbytes", "deepspeed", "lm_eval", "fastapi", "uvicorn", "playwright")
MISSING += ("pandas", "prometheus_client", "zstandard", "xdist", "pytest_timeout")
"""what GPU machines lack"""
WITHOUT = f"""
import importlib.machinery
find = importlib.machinery.PathFinder.find_spec
class Found:  # pytest takes it for an attribute of a class of its own, where a function would become a method
    def __call__(self, name, *args, **kwargs):
        return None if name.partition(".")[0] in {MISSING} else find(name, *args, **kwargs)
importlib.machinery.PathFinder.find_spec = Found()
"""


@pytest.mark.parametrize("name", speed.ROWS["cuda"])
def test_rows_of_a_gpu_fit_into_80_gib(name: str) -> None:
    row = speed.ROWS["cuda"][name]
    numbers = Numbers(weights=torch.float32 if row.masters else torch.bfloat16, autocast=row.masters)
    shape = shape_of(speed.base_config("cuda"))
    held, _ = held_by(shape, numbers, ONE, 1)
    step = Step(
        B=row.batch, S=row.length, n_ahead=row.n_ahead, M=row.n_ahead_talk, P=2, fraction=1.0, checkpointing=False
    )
    assert highest(shape, step, numbers, replace(held, optimizer=0.0)).total < 0.9 * 78 * 2**30


@pytest.mark.long
def test_a_study_that_runs_out_of_time_reports_what_it_has(tmp_path: Path) -> None:
    import gpu_study
    from gpu_setting import Setting

    setting = Setting(dry_run=True, out=tmp_path)
    (whole, *_) = [found for found in gpu_study.study(setting) if found["what"] == "runs measured"]
    assert whole["found"].startswith("4 of 4 in ")
    assert whole["met"]
    (tmp_path / "study" / "runs" / "quietstar" / "seed-0" / "measured.json").unlink()
    cut = list(gpu_study.study(replace(setting, seconds=0.0)))
    assert cut[-1]["found"].startswith("3 of 4 in ")
    assert not cut[-1]["met"]


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_part_of_a_gpus_quarter_of_an_hour_runs_tiny_on_a_cpu(tmp_path: Path) -> None:
    """Without the packages that GPU machines lack."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins that are hidden are still announced
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT.with_name("gpu.py")), "--dry_run", "--minutes", "20"]
    began = time.monotonic()
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=environment)
    assert time.monotonic() - began < 1230
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "log.txt").read_text()
    parts = {part["part"]: part for part in json.loads((tmp_path / "out" / "results.json").read_text())["parts"]}
    assert all(part["state"] == "done" and part["figures"] for part in parts.values())
    said = {name: part["figures"][0]["found"] + part["figures"][0]["what"] for name, part in parts.items()}
    assert "bitsandbytes is not installed" in said["qlora"]
    assert "directly on the engine (fastapi, uvicorn, prometheus_client not installed)" in said["serve"]

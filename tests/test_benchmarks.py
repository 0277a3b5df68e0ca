"""The benchmark runs, counts what the method needs, and refuses what it cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "speed.py"


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--threads", "1", "--steps", "1", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.slow
def test_a_row_is_timed_beside_plain_steps(tmp_path: Path) -> None:
    done = run("--rows", "score-answer", "--output", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert "| score an answer of 4 tokens | 1 x 256, n_ahead 7 |" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())["rows"]["score-answer"]
    assert len(found["own"]) == 1
    assert len(found["plain"]) >= 3
    assert min(found["own"] + found["plain"]) > 0
    assert found["peak_mb"] > found["plain_peak_mb"] / 2 > 0


def test_unknown_rows_and_missing_devices_are_refused() -> None:
    for options, said in ((("--rows", "fly"), "no row is named fly"), (("--device", "cuda"), "no CUDA device")):
        done = run(*options)
        assert done.returncode == 2
        assert said in done.stderr


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

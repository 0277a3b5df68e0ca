"""The benchmark runs, counts what the method needs, and refuses what it cannot run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import speed

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "speed.py"


def run(*options: str, script: str = "speed.py") -> subprocess.CompletedProcess:
    short = ["--steps", "1"] if script == "speed.py" else ["--rounds", "1"]
    return subprocess.run(
        [sys.executable, str(SCRIPT.with_name(script)), "--threads", "1", *short, *options],
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
    done = run("--batch", "2", "--prompt", "8", "--tokens", "2", "--output", str(out), script="decoding.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| batch | prompt | base step, ms | think always |")
    (row,) = json.loads(out.read_text())
    assert row["always"] > row["base"] > 0


@pytest.mark.slow
def test_scoring_is_timed_beside_the_base_model(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(12)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("--data", str(tmp_path / "gsm8k.jsonl"), "--items", "4", script="scoring.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 items of ")
    assert done.stdout.count("\n| plain") == 2


@pytest.mark.slow
def test_serving_is_timed_beside_generate(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = run("--clients", "2", "--tokens", "2", "--n_ahead", "3", "--output", str(out), script="serving.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| 2 clients, 2 tokens each |")
    seconds = json.loads(out.read_text())["seconds"]
    assert set(seconds) == {"one by one", "all at once", "generate"}
    assert min(min(of) for of in seconds.values()) > 0

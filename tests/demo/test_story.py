"""The whole demo: in seconds, too short to learn anything; and in full, where the thoughts carry the answers."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar import QuietStarForCausalLM
from quietstar.cli import main
from quietstar.demo import lessons, story
from quietstar.demo.arguments import DemoArguments
from quietstar.demo.language import Language, split_problems
from quietstar.demo.quiz import Quiz
from quietstar.demo.report import ROWS
from quietstar.demo.story import tell
from quietstar.errors import MissingExtraError, SettingsError
from quietstar.inspection.trace import Trace

FILES = ["log.jsonl", "metrics.json", "model.safetensors", "picture.png", "run.json", "table.md", "tokenizer.json"]
THOUGHTS = {"trace.jsonl", "summary.json", "summary.md", "report.html", "run.json"}
SHORT: dict[str, Any] = {
    "steps": 6,
    "batch_size": 16,
    "thought_steps": 3,
    "thought_batch_size": 8,
    "thought_learning_rate": 1e-2,
    "held_out": 0.02,
    "inspected": 3,
}

Told = tuple[Path, dict, str]


def told(folder: Path, **settings: object) -> Told:
    """The folder, what `tell` returns, and what it prints."""
    shown = io.StringIO()
    results = tell(DemoArguments(output_dir=str(folder), **(SHORT | settings)), Console(file=shown, width=100))
    return folder, results, shown.getvalue()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return told(tmp_path_factory.mktemp("short") / "run")


def test_a_run_leaves_its_files(short: Told) -> None:
    folder, results, _ = short
    assert set(FILES) <= {file.name for file in folder.iterdir()}
    assert {file.name for file in (folder / "thoughts").iterdir()} == THOUGHTS
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert results["settings"] == vars(DemoArguments(output_dir=str(folder), **SHORT))
    assert set(results["seconds"]) == {"base_model", "quiz", "quiet_star", "inspection", "files", "total_wall"}


def test_the_table_on_the_terminal_and_in_the_folder_has_the_figures(short: Told) -> None:
    folder, results, shown = short
    markdown = (folder / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(ROWS)
    for line, (name, title) in zip(markdown[2:], ROWS.items(), strict=True):
        figure = results["figures"][name]
        wanted = [title, str(figure["right"]), str(figure["n"]), f"{100 * figure['share']:.1f} %"]
        assert [cell.strip() for cell in line.split("|")][1:5] == wanted
        assert [cell.strip() for row in shown.splitlines() if title in row for cell in row.split("│")][1:5] == wanted
    assert all(row["question"] in shown for row in results["examples"])


def test_the_figures_are_those_of_the_model_in_the_folder(short: Told) -> None:
    """Loaded from the folder, the model gives the answers of the figures."""
    folder, results, _ = short
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, QuietStarForCausalLM)
    _, held_out = split_problems(0, SHORT["held_out"])
    quiz = Quiz(held_out, Language.sample(0), AutoTokenizer.from_pretrained(folder))
    own = quiz.with_thoughts(model)
    random_thoughts = quiz.random_thoughts(model.config.n_thought_tokens, 0)
    again = {
        "own_thoughts": own.right,
        "thoughts_are_ways": own.thoughts_are_ways,
        "base_pass": quiz.without_thoughts(model.base_lm).right,
        "random_thoughts": quiz.with_thoughts(model, random_thoughts).right,
    }
    figures = results["figures"]
    assert {name: share.to_dict() for name, share in again.items()} == {name: figures[name] for name in again}
    assert {figure["n"] for figure in figures.values()} == {len(held_out)}
    assert [row["thought"] for row in results["examples"]] == own.thoughts[: len(results["examples"])]


def test_the_log_has_a_line_for_each_step(short: Told) -> None:
    folder, results, _ = short
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    base = [line for line in lines if line["stage"] == "base"]
    thoughts = [line for line in lines if line["stage"] == "thoughts"]
    assert [line["step"] for line in base] == list(range(1, SHORT["steps"] + 1))
    assert [line["step"] for line in thoughts] == list(range(SHORT["thought_steps"] + 1))
    assert all("reward_mean" in line for line in thoughts[1:])
    # there are fewer held-out problems than the log measures on, so that its last line has the table's figures
    first, last, figures = thoughts[0], thoughts[-1], results["figures"]
    assert first["held_out_own_thoughts"] == first["held_out_base_pass"] == figures["base"]["share"]
    assert last["held_out_own_thoughts"] == figures["own_thoughts"]["share"]
    assert last["held_out_base_pass"] == figures["base_pass"]["share"]


def test_a_run_repeats_and_another_seed_is_another_run(short: Told, tmp_path: Path) -> None:
    _, results, _ = short
    _, again, _ = told(tmp_path / "again", picture=False)
    _, other, _ = told(tmp_path / "other", picture=False, seed=1)
    assert (again["figures"], again["examples"]) == (results["figures"], results["examples"])
    assert other["examples"] != results["examples"]


def test_untaught_thoughts_change_nothing(tmp_path: Path) -> None:
    """The mixing head starts at zero, so thoughts cannot help before training."""
    figures = told(tmp_path / "run", thought_steps=0)[1]["figures"]
    assert figures["own_thoughts"] == figures["random_thoughts"] == figures["base_pass"] == figures["base"]


@pytest.mark.parametrize("settings", [{"n_ahead": 2}, {"n_ahead": 3, "policy_weight": 0.0}, {"steps": 0}])
def test_other_settings_run_too(tmp_path: Path, settings: dict) -> None:
    folder, results, _ = told(tmp_path / "run", picture=False, **settings)
    n_tokens = settings.get("n_ahead", 6) - 2
    assert {len(row["thought"].replace("<pad>", "_")) for row in results["examples"]} == {n_tokens}
    assert not (folder / "picture.png").exists()


def test_neither_training_sees_a_held_out_problem_and_the_second_sees_no_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Lines(lessons.Lines):
        def __init__(self, lines: list[str], *args: Any) -> None:
            seen.append(lines)
            super().__init__(lines, *args)

    monkeypatch.setattr(lessons, "Lines", Lines)
    told(tmp_path / "run", picture=False, steps=1, thought_steps=1, held_out=0.2)
    _, held_out = split_problems(0, 0.2)
    corpus, unspelled = seen
    for lines in seen:
        assert {line.split("=")[0] for line in lines}.isdisjoint(held_out)
    assert sum("~" in line for line in corpus) == len(corpus) / 2
    assert not any("~" in line for line in unspelled)
    assert sorted(unspelled) == sorted(line for line in corpus if "~" not in line)


def never(*_: object, **__: object) -> None:
    raise AssertionError("this trains")


def test_a_run_is_left_alone(short: Told, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = short
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(story, "learn_language", never)
    assert main(["demo", "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "already has a run" in error
    assert "--overwrite" in error
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_run_is_overwritten_on_request(tmp_path: Path) -> None:
    folder, _, _ = told(tmp_path / "run", picture=False, steps=1, thought_steps=0)
    (folder / "stale").touch()
    _, results, _ = told(folder, picture=False, steps=2, thought_steps=0, overwrite=True)
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert not (folder / "stale").exists()


def test_a_missing_matplotlib_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(story, "learn_language", never)
    with pytest.raises(MissingExtraError, match=r"quietstar\[plot\]"):
        told(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": -1},
        {"batch_size": 0},
        {"thought_batch_size": 0},
        {"learning_rate": 0.0},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"n_ahead": 1},
        {"inspected": 0},
        {"policy_weight": -1.0},
    ],
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(SettingsError, match=f"{name} is {value}"):
        DemoArguments(**settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Return a trace of the demo's model, as in `make demo`: held-out problems, with thoughts after the question."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    tell(DemoArguments(output_dir=str(folder), picture=False))
    return Trace.load(folder / "thoughts")


def right(found: Trace, name: str | None) -> float:
    """Return the share of answers that are the likeliest token under an intervention."""
    columns = found.columns
    asked = [i for i, gain in enumerate(columns["gain"]) if gain is not None]
    tops = [columns["mixed_top_ids"][i][0] if name is None else columns[f"{name}_top_id"][i] for i in asked]
    assert len(asked) == DemoArguments().inspected
    return sum(top == columns["next_id"][i] for top, i in zip(tops, asked, strict=True)) / len(asked)


@pytest.mark.slow
def test_its_own_thoughts_carry_the_answer_and_no_others_do(found: Trace) -> None:
    assert right(found, None) > 0.95
    for name in ("random", "swapped", "filler", "removed", "truncated_0", "truncated_3"):
        assert right(found, name) < 0.3, name
    assert right(found, "shuffled") < 0.6


@pytest.mark.slow
def test_the_summary_says_so(found: Trace) -> None:
    summary = found.summary
    assert summary.gain is not None
    assert summary.content is not None
    assert summary.computation is not None
    assert summary.gain.low > 1
    assert summary.content.low > 1
    assert summary.computation.high < summary.content.low
    assert summary.sentences[0].startswith(
        "Thoughts help, and more than filler of the same length; with them, the model predicts this text better than "
        "before training. Over 100 positions, thoughts change"
    )
    assert "the content of thoughts is worth" in summary.sentences[1]
    assert summary.sentences[-1] == "All of their 4 tokens are needed for 90 % of the gain, on average."
    for each in summary.interventions:
        assert each.delta is not None
        assert each.delta.high < -1, each.name

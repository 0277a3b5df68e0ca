"""The story as a whole, told in seconds: too short to learn anything, and it says so."""

import io
import json
import sys

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar import QuietStarForCausalLM
from quietstar.demo import lessons, story
from quietstar.demo.language import Language, split_problems
from quietstar.demo.quiz import Quiz
from quietstar.demo.report import ROWS
from quietstar.demo.story import DemoArguments, tell
from quietstar.errors import MissingExtraError, SettingsError

SHORT = {
    "steps": 6,
    "batch_size": 16,
    "thought_steps": 3,
    "thought_batch_size": 8,
    "thought_learning_rate": 1e-2,
    "held_out": 0.02,
}


def told(folder, **settings):
    """What `tell` returns, and what it shows."""
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    results = tell(DemoArguments(output_dir=str(folder), **(SHORT | settings)), console)
    return results, shown.getvalue()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    return folder, *told(folder)


def test_a_run_leaves_its_files(short):
    folder, results, _ = short
    names = {file.name for file in folder.iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "metrics.json", "table.md", "log.jsonl"}
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert results["settings"] == vars(DemoArguments(output_dir=str(folder), **SHORT))
    assert set(results["seconds"]) == {"base_model", "quiz", "quiet_star", "files", "total_wall"}


def test_the_table_on_the_terminal_and_in_the_folder_has_the_figures(short):
    folder, results, shown = short
    markdown = (folder / "table.md").read_text().splitlines()
    assert len(markdown) == 2 + len(ROWS)
    for line, (name, title) in zip(markdown[2:], ROWS.items(), strict=True):
        figure = results["figures"][name]
        wanted = [title, str(figure["right"]), str(figure["n"]), f"{100 * figure['share']:.1f} %"]
        assert [cell.strip() for cell in line.split("|")][1:5] == wanted
        assert [cell.strip() for row in shown.splitlines() if title in row for cell in row.split("│")][1:5] == wanted
    assert all(row["question"] in shown for row in results["examples"])


def test_the_saved_model_gives_the_figures_again(short):
    folder, results, _ = short
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, QuietStarForCausalLM)
    seed = results["settings"]["seed"]
    _, held_out = split_problems(seed, SHORT["held_out"])
    quiz = Quiz(held_out, Language.draw(seed), tokenizer)
    own = quiz.with_thoughts(model)
    random_thoughts = quiz.random_thoughts(model.config.n_thought_tokens, seed)
    again = {
        "own_thoughts": own.right,
        "thoughts_are_ways": own.thoughts_are_ways,
        "base_pass": quiz.without_thoughts(model.base_lm).right,
        "random_thoughts": quiz.with_thoughts(model, random_thoughts).right,
    }
    assert {name: share.to_dict() for name, share in again.items()} == {
        name: results["figures"][name] for name in again
    }
    assert [row["thought"] for row in results["examples"]] == own.thoughts[: len(results["examples"])]


def test_the_log_has_a_line_for_each_step(short):
    folder, results, _ = short
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = {stage: [line["step"] for line in lines if line["stage"] == stage] for stage in ("base", "thoughts")}
    assert steps == {
        "base": list(range(1, SHORT["steps"] + 1)),
        "thoughts": list(range(SHORT["thought_steps"] + 1)),
    }
    assert all("reward_mean" in line for line in lines if line["stage"] == "thoughts" and line["step"])
    # fewer problems are held out here than the log measures on, so its ends are the table's figures
    first, last = lines[SHORT["steps"]], lines[-1]
    figures = results["figures"]
    assert first["held_out_own_thoughts"] == first["held_out_base_pass"] == figures["base"]["share"]
    assert last["held_out_own_thoughts"] == figures["own_thoughts"]["share"]
    assert last["held_out_base_pass"] == figures["base_pass"]["share"]


def test_a_run_repeats_and_another_seed_is_another_run(short, tmp_path):
    _, results, _ = short
    keys = ("figures", "examples")
    assert {key: told(tmp_path / "again", picture=False)[0][key] for key in keys} == {key: results[key] for key in keys}
    assert told(tmp_path / "other", picture=False, seed=1)[0]["examples"] != results["examples"]


def test_without_quiet_star_thoughts_change_nothing(tmp_path):
    results, _ = told(tmp_path / "run", thought_steps=0)
    figures = results["figures"]
    assert figures["base"] == figures["base_pass"] == figures["random_thoughts"] == figures["own_thoughts"]


@pytest.mark.parametrize("settings", [{"n_ahead": 2}, {"n_ahead": 3, "policy_weight": 0.0}, {"steps": 0}])
def test_other_settings_run_too(tmp_path, settings):
    results, _ = told(tmp_path / "run", picture=False, **settings)
    n_tokens = settings.get("n_ahead", 6) - 2
    assert {len(row["thought"].replace("<pad>", "_")) for row in results["examples"]} == {n_tokens}
    assert not (tmp_path / "run" / "picture.png").exists()


def test_neither_training_sees_a_held_out_problem_and_the_second_sees_no_spelling(tmp_path, monkeypatch):
    seen = []

    class Lines(lessons.Lines):
        def __init__(self, lines, tokenizer):
            seen.append(lines)
            super().__init__(lines, tokenizer)

    monkeypatch.setattr(lessons, "Lines", Lines)
    told(tmp_path / "run", picture=False, steps=1, thought_steps=1, held_out=0.2)
    _, held_out = split_problems(0, 0.2)
    corpus, unspelled = seen
    for lines in seen:
        assert {line.split("=")[0] for line in lines}.isdisjoint(held_out)
    assert sum("~" in line for line in corpus) == len(corpus) / 2
    assert not any("~" in line for line in unspelled)
    assert sorted(unspelled) == sorted(line for line in corpus if "~" not in line)


def never(*_, **__):
    raise AssertionError("this trains")


def test_a_folder_that_holds_a_run_is_left_alone(short, monkeypatch):
    folder, _, _ = short
    before = {file: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(story, "learn_language", never)
    with pytest.raises(SettingsError, match="--overwrite") as raised:
        told(folder)
    assert "\n" not in str(raised.value)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_a_run_is_overwritten_where_that_is_asked_for(tmp_path):
    folder = tmp_path / "run"
    told(folder, picture=False, steps=1, thought_steps=0)
    (folder / "stale").touch()
    results, _ = told(folder, picture=False, steps=2, thought_steps=0, overwrite=True)
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert not (folder / "stale").exists()


def test_a_missing_matplotlib_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(story, "learn_language", never)
    with pytest.raises(MissingExtraError, match=r"quietstar\[plot\]"):
        told(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": -1}, ["steps", "-1", "0"]),
        ({"thought_batch_size": 0}, ["thought_batch_size", "0", "1"]),
        ({"learning_rate": 0.0}, ["learning_rate", "0"]),
        ({"held_out": 1.0}, ["held_out", "1.0", "0.9"]),
        ({"n_ahead": 1}, ["n_ahead", "1", "2"]),
        ({"policy_weight": -1.0}, ["policy_weight", "-1"]),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(SettingsError) as raised:
        DemoArguments(**settings)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)

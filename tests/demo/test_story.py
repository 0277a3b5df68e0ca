"""The story leaves what it promises behind, and every figure in it was measured."""

import builtins
import json
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar.cli import main
from quietstar.demo.language import Language, build_tokenizer, split_problems
from quietstar.demo.quiz import Quiz
from quietstar.demo.story import DemoArguments, tell
from quietstar.errors import MissingExtraError, SettingsError

FILES = ["log.jsonl", "metrics.json", "model.safetensors", "picture.png", "run.json", "table.md", "tokenizer.json"]


def short(folder: Path, **settings: object) -> DemoArguments:
    given = {"steps": 3, "thought_steps": 2, "batch_size": 8, "n_ahead": 4, "held_out": 0.02}
    return DemoArguments(output_dir=str(folder), **{**given, **settings})


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    return tell(short(folder), Console(quiet=True)), folder


def test_the_folder_holds_all_of_it(told: tuple[dict, Path]) -> None:
    results, folder = told
    assert set(FILES) <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "metrics.json").read_text()) == results
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["stage"] == "thoughts"] == [0, 1, 2]


def test_the_figures_are_those_of_the_model_in_the_folder(told: tuple[dict, Path]) -> None:
    """Asked again, from the folder alone, the model answers as the figures say."""
    results, folder = told
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    _, held_out = split_problems(0, 0.02)
    quiz = Quiz(held_out, Language.draw(0), tokenizer)
    figures = results["figures"]
    assert figures["own_thoughts"]["right"] == quiz.with_thoughts(model).right.right
    assert figures["base_pass"]["right"] == quiz.without_thoughts(model.base_lm).right.right
    for figure in figures.values():
        assert figure["n"] == len(held_out) == results["n_problems"]["held_out"]
        assert figure["low"] <= figure["share"] <= figure["high"]


def test_untaught_thoughts_change_nothing(tmp_path: Path) -> None:
    """The mixing head begins at zero: no figure can say that thoughts help before they were taught."""
    figures = tell(short(tmp_path / "run", thought_steps=0, picture=False), Console(quiet=True))["figures"]
    assert figures["own_thoughts"] == figures["random_thoughts"] == figures["base_pass"] == figures["base"]


def test_a_run_is_left_alone(told: tuple[dict, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = told
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["demo", "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "holds a run already" in error
    assert "--overwrite" in error
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_missing_matplotlib_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"quietstar\[plot\]"):
        tell(short(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings", [{"steps": -1}, {"n_ahead": 1}, {"batch_size": 0}, {"held_out": 0.0}, {"learning_rate": 0.0}]
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(SettingsError, match=f"{name} is {value}"):
        DemoArguments(**settings)


def test_the_tokenizer_knows_every_line() -> None:
    tokenizer, language = build_tokenizer(), Language.draw(1)
    line = language.line("czzzyy", spelled=True)
    assert tokenizer.decode(tokenizer(line)["input_ids"]) == line

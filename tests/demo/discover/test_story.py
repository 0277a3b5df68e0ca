"""All of --discover, with too few steps to find anything."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from quietstar import QuietStarForCausalLM
from quietstar.cli import main
from quietstar.demo.discover import story
from quietstar.demo.discover.arguments import ARMS, DiscoverArguments
from quietstar.demo.discover.report import BASE_LABELS, LABELS
from quietstar.demo.discover.story import discover, end_as
from quietstar.demo.discover.world import MOVES
from quietstar.demo.language import build_tokenizer
from quietstar.demo.lessons import Course, learn_language
from quietstar.errors import MissingExtraError, SettingsError

SHORT: dict[str, Any] = {
    "steps": 4,
    "batch_size": 16,
    "thought_steps": 3,
    "thought_batch_size": 8,
    "thought_learning_rate": 1e-2,
    "measure_every": 2,
    "n_seeds": 2,
    "held_out": 0.02,
    "spelled_one_in": 4,
}


def found(folder: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    """What `discover` returns, and what it prints."""
    shown = io.StringIO()
    results = discover(DiscoverArguments(output_dir=str(folder), **(SHORT | settings)), Console(file=shown, width=140))
    return results, shown.getvalue()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("short") / "run"
    return folder, *found(folder)


def test_a_run_leaves_its_files(short: tuple[Path, dict[str, Any], str]) -> None:
    folder, results, shown = short
    texts = {f"{kind}{name}.txt" for kind in ("", "noise-") for name in ("train", "selection", "test")}
    assert {file.name for file in folder.iterdir()} == texts | {
        "fresh",
        "log.jsonl",
        "metrics.json",
        "picture.png",
        "run.json",
        "table.md",
    }
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(results))
    assert all(label in shown for label in (*LABELS.values(), *BASE_LABELS.values()))
    rows = (folder / "table.md").read_text().splitlines()[2:]
    assert len(rows) == (len(BASE_LABELS) + len(ARMS)) * SHORT["n_seeds"]


def test_every_arm_begins_where_its_base_model_is_and_is_measured_to_the_end(
    short: tuple[Path, dict[str, Any], str],
) -> None:
    _, results, _ = short
    assert set(results["curves"]) == set(ARMS)
    for curves in results["curves"].values():
        assert set(curves) == set(results["base"]) == {0, 1}
        for seed, curve in curves.items():
            assert [line["step"] for line in curve] == [0, 2, 3]
            # The mixing head starts at zero.
            assert curve[0]["own_thoughts"] == curve[0]["base_pass"] == results["base"][seed]["no_thoughts"]
    first = [curves[0][0] for curves in results["curves"].values()]
    assert [line["scratch_letters"] for line in first] == [first[0]["scratch_letters"]] * len(ARMS)


def test_without_a_policy_loss_all_advantages_are_one(short: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    """So that one arm without it stands for both."""
    _, results, _ = short
    same, _ = found(tmp_path / "off", policy_weight="0", picture=False, arms=["leave_one_out", "positive"])
    for seed, curve in results["curves"]["no_policy"].items():
        for arm in ("leave_one_out", "positive"):
            assert same["curves"][arm][seed] == curve


def test_an_arm_is_the_same_alone(short: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    _, results, _ = short
    alone, _ = found(tmp_path / "alone", picture=False, arms=["leave_one_out"], n_seeds=1, seed=1)
    assert alone["curves"]["leave_one_out"][1] == results["curves"]["leave_one_out"][1]


def test_start_and_end_begin_as_different_characters(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(MOVES)
    course = Course(output_dir=str(tmp_path), seed=0, steps=0, batch_size=1, learning_rate=1e-3)
    base_lm = learn_language(course, [], tokenizer, story.Watch("", [], story.progress_bar(Console()), "", 0))
    args = DiscoverArguments()
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, **args.method_settings("positive"))
    end_as(model, tokenizer.convert_tokens_to_ids(args.end_text))
    embeddings = base_lm.get_input_embeddings().weight
    for vector, text in (
        (model.thought_embeddings.start, args.start_text),
        (model.thought_embeddings.end, args.end_text),
    ):
        assert torch.equal(vector, embeddings[tokenizer.convert_tokens_to_ids(text)])


def never(*_: object, **__: object) -> None:
    raise AssertionError("this trains")


def test_an_earlier_run_is_left_alone(
    short: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = short
    monkeypatch.setattr(story, "learn_language", never)
    assert main(["demo", "--discover", "--output_dir", str(folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "already has a run" in error
    with pytest.raises(SettingsError, match="already has a run"):
        found(folder)


def test_a_missing_matplotlib_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(story, "learn_language", never)
    with pytest.raises(MissingExtraError, match=r"quietstar\[plot\]"):
        found(tmp_path / "run")


def test_the_command_runs_and_lists_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    more = ["--arms", "no_policy", "--n_seeds", "1", "--no_picture", "--output_dir", str(tmp_path / "run")]
    assert main(["demo", "--discover", *words, *more]) == 0
    assert (tmp_path / "run" / "table.md").exists()
    for command, option in ((["demo", "--help"], "--inspected"), (["demo", "--discover", "--help"], "--arms")):
        with pytest.raises(SystemExit):
            main(command)
        shown = capsys.readouterr().out
        assert option in shown
        assert "--discover" in shown

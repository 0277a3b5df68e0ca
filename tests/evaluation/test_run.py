"""`quietstar evaluate`, from its options to a folder of results."""

import json
import shutil
from pathlib import Path

import pytest

from quietstar.cli import main
from quietstar.errors import SettingsError
from quietstar.evaluation.run import refuse_changed
from quietstar.runs.folders import MARKER
from tests.tiny_tokenizer import thinking_folders

GSM8K = [{"question": f"{n} + {n}?", "answer": f"so #### {2 * n}"} for n in range(1, 13)]
SHORT = ["--cot_tokens", "5", "--answer_tokens", "3", "--votes", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinking model, a plain one, and a few questions."""
    where = thinking_folders(tmp_path_factory.mktemp("models"), {"max_position_embeddings": 512}, n_ahead=4)
    (where / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    (where / "text.txt").write_text("Some text of which the perplexity is measured. " * 20)
    return where


def run(folder: Path, out: Path, *options: str, model: str = "thinking") -> int:
    """Return the command's exit code."""
    given = [
        str(folder / model),
        "--output_dir",
        str(out),
        "--data",
        f"gsm8k={folder / 'gsm8k.jsonl'}",
        "--tasks",
        "gsm8k",
    ]
    try:
        return main(["evaluate", *given, *options])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def test_everything_at_once(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Direct answers, votes, perplexity and a sweep, in one folder; the terminal shows the same table as Markdown."""
    out = tmp_path / "out"
    options = [
        "--perplexity",
        str(folder / "text.txt"),
        "--cot",
        *SHORT,
        "--think",
        "entropy:3",
        "--sweep",
        "--limit",
        "4",
    ]
    assert run(folder, out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    found = {(each["task"], each["measure"], each["mode"]): each for each in results["results"]}
    assert set(found) == {
        ("gsm8k", measure, mode)
        for measure in ("answer_probability", "exact_match", "majority_of_2")
        for mode in ("base", "thinking")
    } | {("text.txt", "nll, nats a token", mode) for mode in ("base", "thinking")}
    for (_, measure, mode), each in found.items():
        estimate = each["estimate"]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["n"] == 4
        assert each["seconds"] > 0
        assert each["samples_per_second"] == pytest.approx(4 / each["seconds"], rel=0.01)
        if mode == "thinking":
            base = found[each["task"], measure, "base"]["estimate"]["value"]
            assert each["difference"]["value"] == pytest.approx(estimate["value"] - base, abs=1e-5)
    assert results["settings"]["seed"] == 0
    assert results["versions"]["torch"]
    assert len(results["sweep"]["gsm8k"]) == 9
    for name in ("results.md", "sweep.png", "perplexity.png", "gsm8k-thinking.jsonl", "gsm8k-cot-base.jsonl"):
        assert (out / name).stat().st_size > 0, name
    screen = capfd.readouterr().err
    for cell in ("answer_probability", "majority_of_2", "with", "(perplexity", "A gain over the same model"):
        assert cell in screen
        assert cell in (out / "results.md").read_text()


def test_thoughts_are_as_long_as_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    """Every figure is that of a model whose config says so."""
    shutil.copytree(folder / "thinking", folder / "longer", dirs_exist_ok=True)
    config = json.loads((folder / "longer" / "config.json").read_text())
    (folder / "longer" / "config.json").write_text(json.dumps(config | {"n_ahead": 7}))
    options = ["--limit", "3", "--cot", *SHORT, "--perplexity", str(folder / "text.txt"), "--thought_temperature", "1"]
    found = []
    for model, more in (("thinking", ["--n_ahead", "7"]), ("longer", [])):
        assert run(folder, tmp_path / model, *options, *more, model=model) == 0
        results = json.loads((tmp_path / model / "results.json").read_text())["results"]
        found.append([(each["measure"], each["mode"], each["estimate"]) for each in results])
    assert found[0] == found[1]


@pytest.mark.parametrize("think", ["always", "entropy:3"])
def test_lengths_of_thoughts_are_swept(folder: Path, tmp_path: Path, think: str) -> None:
    """Each point is what an evaluation with that n_ahead measures; the table has a row for it."""
    options, out = ["--limit", "4", "--think", think, "--perplexity", str(folder / "text.txt")], tmp_path / "out"
    assert run(folder, out, *options, "--sweep_n_ahead", "7, 2,4") == 0
    found = json.loads((out / "results.json").read_text())["sweep_n_ahead"]
    assert set(found) == {"gsm8k", "text.txt"}
    assert [point["n_ahead"] for point in found["gsm8k"]] == [None, 2, 4, 7]
    assert "answer_probability" in found["gsm8k"][0]
    for n_ahead, task, text in zip((2, 4, 7), found["gsm8k"][1:], found["text.txt"][1:], strict=True):
        assert run(folder, tmp_path / str(n_ahead), *options, "--n_ahead", str(n_ahead)) == 0
        results = json.loads((tmp_path / str(n_ahead) / "results.json").read_text())["results"]
        alone = {each["measure"]: each for each in results if each["mode"] == "thinking"}
        share = alone["answer_probability"]["share_thought"]
        assert task["answer_probability"] == alone["answer_probability"]["estimate"]
        assert task["answer_difference"] == alone["answer_probability"]["difference"]
        assert text["nll"] == alone["nll, nats a token"]["estimate"]
        assert text["nll_difference"]["value"] == pytest.approx(alone["nll, nats a token"]["difference"]["value"])
        assert text["answer_probability"] is None
        assert task["passes"] == pytest.approx(n_ahead - 1 if think == "always" else 1 + share * (n_ahead - 1))
    for name in ("gsm8k", "text.txt"):
        assert found[name][0]["passes"] == 1
        assert found[name][0]["nll_difference"]["value"] == 0
    table = (out / "results.md").read_text()
    assert "## gsm8k by length of thoughts" in table
    assert table.count("| no thoughts | 1 |") == 2
    assert (out / "sweep_n_ahead.png").stat().st_size > 0


def test_a_plain_model_and_a_thinking_ones_base_are_original(folder: Path, tmp_path: Path) -> None:
    """They equal each other, and the mode `base`."""
    values = []
    for model, options in (("base", ["--original"]), ("thinking", ["--original"]), ("thinking", [])):
        out = tmp_path / f"{model}{len(options)}"
        assert run(folder, out, *options, model=model) == 0
        results = json.loads((out / "results.json").read_text())["results"]
        values.append(results[0]["estimate"])
        assert results[0]["mode"] == ("original" if options else "base")
    assert values[0] == values[1] == values[2]


def test_an_earlier_evaluation_is_compared_with(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Item by item; other items, or other kinds of answers, are refused before long work."""
    before, options = tmp_path / "before", ["--limit", "4", "--cot", *SHORT]
    assert run(folder, before, *options, "--original", model="base") == 0
    assert run(folder, tmp_path / "after", *options, "--baseline", str(before)) == 0
    results = json.loads((tmp_path / "after" / "results.json").read_text())["results"]
    old = {each["measure"]: each for each in json.loads((before / "results.json").read_text())["results"]}
    for each in results:
        gained = each["estimate"]["value"] - old[each["measure"]]["estimate"]["value"]
        assert each["beside_baseline"]["value"] == pytest.approx(gained, abs=1e-6)
    assert "vs baseline" in (tmp_path / "after" / "results.md").read_text()
    assert "vs baseline" not in (before / "results.md").read_text()
    for wrong, says in ((["--limit", "5"], "no answer to item 5"), (["--baseline", str(folder)], "no results.json")):
        assert run(folder, tmp_path / "wrong", "--baseline", str(before), *wrong) == 2
        assert says in capfd.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_answers_are_of_weights_and_not_of_a_name(tmp_path: Path) -> None:
    """Models are compared by name if a run has no digest of its weights."""
    settings = {"seed": 0, "perplexity": "./a.txt", "baseline": "runs/a"}
    before = {"model": "./m/", "weight_digest": "x", "settings": settings}
    (tmp_path / MARKER).write_text(json.dumps(before))
    spelled = {
        "model": "m",
        "weight_digest": "x",
        "settings": settings | {"perplexity": "a.txt", "baseline": "runs/a/"},
    }
    refuse_changed(tmp_path, spelled)
    with pytest.raises(SettingsError, match=r"model with other weights \('./m/'\) than 'm' has now"):
        refuse_changed(tmp_path, spelled | {"weight_digest": "y"})
    with pytest.raises(SettingsError, match="answers with seed 0, now it is 1"):
        refuse_changed(tmp_path, spelled | {"settings": settings | {"seed": 1}})
    del before["weight_digest"]
    (tmp_path / MARKER).write_text(json.dumps(before))
    refuse_changed(tmp_path, spelled | {"model": "./m/"})
    with pytest.raises(SettingsError, match=r"answers with model './m/', now it is 'm'"):
        refuse_changed(tmp_path, spelled)


def test_a_stopped_run_is_resumed_and_not_mixed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Existing answers are kept; another setting is refused by name."""
    out = tmp_path / "out"
    options = ["--cot", *SHORT, "--limit", "3"]
    assert run(folder, out, *options, "--resume") == 0  # there is nothing yet: it begins
    whole = {name: (out / name).read_text() for name in ("gsm8k-cot-base.jsonl", "gsm8k-cot-thinking.jsonl")}
    for name, lines in whole.items():
        (out / name).write_text("".join(lines.splitlines(keepends=True)[:1]))
    assert run(folder, out, *options) == 2
    assert "already has a run" in capfd.readouterr().err
    for other, name in (
        (["--seed", "3"], "seed"),
        (["--votes", "3"], "votes"),
        (["--think", "never"], "think"),
        (["--n_ahead", "3"], "n_ahead"),
    ):
        assert run(folder, out, *options, "--resume", *other) == 2
        assert f"holds answers with {name}" in capfd.readouterr().err
    assert run(folder, out, *options, "--resume", "--batch_size", "2") == 0
    for name, lines in whole.items():
        now = [json.loads(line) for line in (out / name).read_text().splitlines()]
        before = [json.loads(line) for line in lines.splitlines()]
        for line in [*now, *before]:
            del line["seconds"]
        assert now == before


def test_other_questions_are_not_mixed_in(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """At the same path or another one."""
    options = ["--cot", *SHORT, "--limit", "2"]
    assert run(folder, tmp_path / "out", *options) == 0
    (tmp_path / "b.jsonl").write_text('{"question": "5 * 5?", "answer": "#### 25"}\n' * 2)
    assert run(folder, tmp_path / "out", *options, "--resume", "--data", f"gsm8k={tmp_path / 'b.jsonl'}") == 2
    assert "question 1 that belongs to other data" in capfd.readouterr().err


def test_overwriting_deletes_nothing_that_is_read_or_before_all_is_checked(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Neither the model, nor an earlier run if the new one cannot start."""
    (folder / "thinking" / "run.json").write_text("{}")
    assert run(folder, folder / "thinking", "--overwrite") == 2
    assert "which this run reads" in capfd.readouterr().err
    assert (folder / "thinking" / "model.safetensors").exists()
    out = tmp_path / "out"
    assert run(folder, out, "--limit", "2") == 0
    before = (out / "results.json").read_text()
    for wrong in (["--max_length", "2"], ["--cot", "--cot_tokens", "600"], ["--lm_eval", "local_chance"]):
        assert run(folder, out, "--limit", "2", "--overwrite", *wrong) == 2
        assert (out / "results.json").read_text() == before


def test_results_that_cannot_be_written_are_one_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Existing files do not change."""
    out = tmp_path / "out"
    assert run(folder, out, "--limit", "2") == 0
    (out / "gsm8k-base.jsonl").unlink()
    (out / "gsm8k-base.jsonl").mkdir()
    assert run(folder, out, "--limit", "2", "--resume") == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"results cannot be written to {out}" in said
    assert "continue with --resume" in said
    assert (out / "results.json").is_file()


REFUSED = {
    "no task": (["--tasks", "gsm9k"], "choose from gsm8k"),
    "data of another task": (["--data", "csqa=x.jsonl"], "but not the task"),
    "data without a file": (["--data", "gsm8k"], "give a task and a file"),
    "no file": (["--data", "gsm8k=nowhere.jsonl"], "does not exist"),
    "limit": (["--limit", "0"], "at least 1"),
    "batch_size": (["--batch_size", "0"], "at least 1"),
    "max_length": (["--max_length", "1000"], "context 512"),
    "policy": (["--think", "often"], "choose from"),
    "sweep of nothing": (["--sweep"], "single threshold"),
    "sweep without thoughts": (["--sweep", "--think", "entropy:2", "--original"], "needs a model that thinks"),
    "n_ahead": (["--n_ahead", "1"], "n_ahead is 1; give a whole number of at least 2"),
    "n_ahead beyond the context": (
        ["--n_ahead", "512"],
        "n_ahead is 512, and the model's context 512; give at most 511",
    ),
    "n_ahead and max_length": (
        ["--n_ahead", "300"],
        "a thought 300, and the model's context 512; give a max_length of",
    ),
    "n_ahead of no thoughts": (["--n_ahead", "4", "--original"], "n_ahead was given, but with original"),
    "lengths": (["--sweep_n_ahead", "2,1"], "sweep_n_ahead is '2,1'; give whole numbers of at least 2"),
    "lengths that are none": (["--sweep_n_ahead", "2,many"], "sweep_n_ahead is '2,many'; give whole numbers"),
    "lengths without thoughts": (["--sweep_n_ahead", "2", "--original"], "sweep_n_ahead needs a model that thinks"),
    "lengths beyond the context": (["--sweep_n_ahead", "2,300"], "a thought 300, and the model's context 512"),
    "perplexity of nothing": (["--perplexity", "nowhere.txt"], "cannot be read"),
    "temperature": (["--cot_temperature", "-1"], "at least 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(
    what: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Exit code 2."""
    options, says = REFUSED[what]
    assert run(folder, tmp_path / "out", *options) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("quietstar evaluate: ")
    assert says in said
    assert not (tmp_path / "out").exists()


def test_nothing_to_evaluate(folder: Path, capfd: pytest.CaptureFixture) -> None:
    """There is a warning."""
    assert main(["evaluate", str(folder / "thinking")]) == 2
    assert "nothing to evaluate" in capfd.readouterr().err

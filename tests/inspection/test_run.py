"""`quietstar inspect`, from a model's folder to its output files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar.cli import main
from quietstar.errors import SettingsError
from quietstar.inspection.trace import Trace
from tests.tiny_tokenizer import thinking_folders

TEXT = "What is 2 and 2? It is 4."


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = thinking_folders(tmp_path_factory.mktemp("models"), base={"max_position_embeddings": 64}, n_ahead=5)
    (where / "text.txt").write_text(TEXT)
    return where


def inspect(here: Path, out: Path, *words: str) -> int:
    return main(["inspect", str(here / "thinking"), *words, "--output_dir", str(out)])


def test_a_text_is_traced(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert inspect(here, out, "--text", str(here / "text.txt"), "--thought", "so") == 0
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "trace.jsonl",
        "summary.json",
        "summary.md",
        "report.html",
    }
    found = Trace.load(out)
    assert "".join(found.columns["piece"]) == TEXT
    assert found.model == "thinking"
    assert found.settings["thought"] == "so"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sentences"] == found.summary.sentences
    shown = " ".join(capsys.readouterr().out.split())
    assert " ".join(found.summary.sentences[0].split()) in shown
    assert all(sentence in (out / "summary.md").read_text() for sentence in found.summary.sentences)
    assert "<!doctype html>" in (out / "report.html").read_text().lower()


def test_figures_and_parquet_where_asked_for(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--prompt", TEXT, "--figures", "--format", "parquet", "--report", "false", "--interventions", "none"]
    assert inspect(here, out, *words) == 0
    assert {path.name for path in out.iterdir()} == {
        "run.json",
        "trace.parquet",
        "summary.json",
        "summary.md",
        "figures",
    }
    names = {path.stem for path in (out / "figures").iterdir()}
    assert names == {"text_weight", "text_reward", "text_gain", "distributions"}
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".pdf"}


@pytest.mark.parametrize("think", ["always", "every:2"])
def test_what_is_written_is_traced_with_the_thoughts_that_it_had(here: Path, tmp_path: Path, think: str) -> None:
    out = tmp_path / "out"
    words = ["--temperature", "1", "--thought_temperature", "1", "--think", think, "--seed", "3"]
    assert inspect(here, out, "--prompt", "What is", "--generate", "6", *words) == 0
    found = Trace.load(out).columns
    model = AutoModelForCausalLM.from_pretrained(here / "thinking").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "thinking")
    ids = tokenizer("What is", return_tensors="pt")["input_ids"]
    torch.manual_seed(3)
    again = model.generate(
        ids,
        max_new_tokens=6,
        do_sample=True,
        top_k=0,
        thought_temperature=1.0,
        think=think,
        output_thoughts=True,
        pad_token_id=2,
    )
    assert found["token_id"] == again.sequences[0].tolist()
    first = ids.shape[1] - 1
    assert found["thought"][:first] == [False] * first
    for t, reason in enumerate(again.thoughts.reason[0]):
        assert found["reason"][first + t] == reason
        step = again.thoughts[0, t]
        assert found["thought"][first + t] == step.thought
        if step.thought:
            assert found["thought_ids"][first + t] == step.tokens
            assert found["mixing_weight"][first + t] == pytest.approx(step.mixing_weight, abs=1e-3)
            assert found["mixed_top_ids"][first + t] == [token for token, _ in step.mixed]


def test_thoughts_are_as_long_as_they_are_asked_for(here: Path, tmp_path: Path) -> None:
    """Of a text that is read, and of one that is written; what is shown is what was used."""
    for what in (["--text", str(here / "text.txt")], ["--prompt", TEXT, "--generate", "4"]):
        out = tmp_path / what[0].removeprefix("--")
        assert inspect(here, out, *what, "--n_ahead", "9") == 0
        found = Trace.load(out)
        assert found.settings["n_ahead"] == 9
        assert {len(thought) for thought in found.columns["thought_ids"] if thought is not None} == {7}
        assert '"n_ahead":9' in (out / "report.html").read_text().replace('": ', '":')


def test_a_long_text_is_cut_into_windows_that_leave_room_for_a_thought(here: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("abcdefghij" * 20)
    assert inspect(here, tmp_path / "out", "--text", str(tmp_path / "long.txt"), "--limit", "130") == 0
    found = Trace.load(tmp_path / "out").columns
    assert len(found["row"]) == 130
    assert max(found["position"]) == 64 - 5 - 3 - 1
    assert "".join(found["piece"]) == "abcdefghij" * 13


@pytest.mark.parametrize(
    ("run", "longest"), [({"data": {"max_length": 16}}, 16), ({"data": {"max_length": 999}}, 59), ({"data": [3]}, 59)]
)
def test_windows_are_as_long_as_in_training(here: Path, tmp_path: Path, run: dict, longest: int) -> None:
    shutil.copytree(here / "thinking", tmp_path / "thinking")
    (tmp_path / "thinking" / "run.json").write_text(json.dumps(run))
    assert inspect(tmp_path, tmp_path / "out", "--text", str(here / "text.txt"), "--interventions", "none") == 0
    rows = Trace.load(tmp_path / "out").columns["row"]
    assert max(rows.count(row) for row in set(rows)) == min(longest, len(TEXT))


def test_rows_of_a_file_are_texts_of_their_own(here: Path, tmp_path: Path) -> None:
    texts = ["What is", "", "It is. " * 3]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ("--text", str(tmp_path / "some.jsonl"), "--interventions", "none")
    for limit, read in ((None, ["What is", "It is. " * 3]), (10, ["What is", "It "]), (7, ["What is"])):
        out = tmp_path / f"out-{limit}"
        assert inspect(here, out, *words, *([] if limit is None else ["--limit", str(limit)])) == 0
        found = Trace.load(out).columns
        pieces = [
            "".join(p for p, r in zip(found["piece"], found["row"], strict=True) if r == n) for n in range(len(read))
        ]
        assert pieces == read


@pytest.mark.parametrize("more", [["--n_ahead_talk", "20"], ["--thought", "b" * 30]])
def test_windows_leave_room_for_all_that_is_read_after_them(here: Path, tmp_path: Path, more: list[str]) -> None:
    (tmp_path / "long.txt").write_text("abcdefghij" * 10)
    assert inspect(here, tmp_path / "out", "--text", str(tmp_path / "long.txt"), *more) == 0
    found = Trace.load(tmp_path / "out").columns
    branch = 5 + 20 - 1 if more[0] == "--n_ahead_talk" else 30 + 2
    assert max(found["position"]) == 64 - branch - 1


def test_obstacles_are_reported_before_the_work(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("quietstar.inspection.run.load_model", None)
    assert inspect(here, tmp_path / "file" / "out", "--prompt", "a") == 2
    assert "which is a file; give another folder" in capsys.readouterr().err


def test_without_a_name_the_folder_is_named_after_the_model(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here / "thinking")
    try:
        assert main(["inspect", ".", "--prompt", "a"]) == 0
        assert Trace.load("runs/thinking-inspection").model == "thinking"
    finally:
        shutil.rmtree("runs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "text and prompt both name the text to read, and neither was given; give one of them"),
        (["--prompt", "a", "--text", "b"], "both were given"),
        (["--text", "no-such.txt"], "no-such.txt cannot be read: No such file or directory; give a readable text file"),
        (["--prompt", " "], "the prompt is empty; give a text to read"),
        (["--text", "b", "--generate", "3"], "generate was given without a prompt to continue; add --prompt"),
        (["--prompt", "a", "--generate", "2", "--limit", "9"], "limit was given with generate, which reads the whole"),
        (["--prompt", "a", "--top_p", "0.5"], "top_p was given, but a temperature of 0 samples nothing; give a"),
        (
            ["--prompt", "a", "--temperature", "1"],
            "temperature was given without generate, so nothing is generated",
        ),
        (["--text", ""], "text is empty; give a text file to read"),
        (["--prompt", "a", "--generate", "-1"], "generate is -1; give a number of at least 0"),
        (["--prompt", "a", "--generate", "100"], "a prompt of 1 tokens and 100 to write are 101"),
        (
            ["--prompt", "a", "--generate", "50", "--n_ahead_talk", "12"],
            "takes up to 16 more; the model's context is 64",
        ),
        (
            ["--prompt", "a", "--n_ahead", "61"],
            "take up to 64 tokens, and the model's context is 64; give a smaller n_a",
        ),
        (["--prompt", "a", "--n_ahead", "0"], "n_ahead is 0; give a whole number of at least 2"),
        (["--prompt", "a", "--n_ahead_talk", "1000"], "take up to 1004 tokens, and the model's context is 64; give a"),
        (["--prompt", "a", "--thought", "b" * 62], "take up to 64 tokens, and the model's context is 64; give a"),
        (["--prompt", "a", "--thought", ""], "thought is '', but it has no tokens"),
        (["--prompt", "a\udcff"], r"prompt is not valid Unicode: character 2 is '\udcff'; give text in UTF-8"),
        (["--prompt", "a", "--thought", "\udcff"], r"thought is not valid Unicode: character 1 is '\udcff'"),
        (["--prompt", "a", "--filler", "\udcff"], r"filler is not valid Unicode: character 1 is '\udcff'"),
        (["--prompt", "a", "--filler", "hm"], "filler is 'hm', which is 2 tokens to the tokenizer; give a text of"),
        (
            ["--prompt", "a", "--filler", "b", "--interventions", "removed"],
            "filler is not among the interventions; add",
        ),
        (["--prompt", "a", "--max_length", "60"], "the model's context is 64: give at most 56"),
        (["--prompt", "a", "--max_length", "1"], "max_length is 1; give a number of at least 2"),
        (["--prompt", "a", "--limit", "0"], "limit is 0; give a number of at least 1"),
        (["--prompt", "a", "--format", "csv"], "format is 'csv'; choose from jsonl, parquet"),
        (["--prompt", "a", "--interventions", "removd"], "interventions is 'removd'; choose from removed, filler"),
        (["--prompt", "a", "--interventions", "none", "removed"], "give none alone, or leave it out"),
        (["--prompt", "a", "--think", "now"], "choose from always, never"),
        (["--prompt", "a", "--top_k", "0"], "top_k is 0; give a whole number of at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0; give a number of at least 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert inspect(here, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_without_consent(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert inspect(here, out, "--prompt", "a b") == 0
    before = (out / "trace.jsonl").read_bytes()
    assert inspect(here, out, "--prompt", "c d") == 2
    assert "already has a run" in capsys.readouterr().err
    assert (out / "trace.jsonl").read_bytes() == before
    assert inspect(here, out, "--prompt", "c d", "--overwrite") == 0
    assert (out / "trace.jsonl").read_bytes() != before
    text = out / "text.txt"
    text.write_text("mine")
    assert inspect(here, out, "--text", str(text), "--overwrite") == 2
    assert text.read_text() == "mine"


def test_a_generated_text_is_reported_as_such(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each token was chosen by the predictions that are compared, so a gain means nothing."""
    out = tmp_path / "out"
    assert inspect(here, out, "--prompt", "What is", "--generate", "40", "--temperature", "0.5", "--top_p", "0.9") == 0
    found = Trace.load(out)
    assert found.is_own
    assert found.summary.sentences[0].startswith("The model generated this text")
    assert "Thoughts help" not in capsys.readouterr().out
    said = {"prompt": "What is", "generate": 40, "temperature": 0.5, "top_p": 0.9, "dtype": "float32", "top_k": 5}
    assert found.settings.items() >= said.items()
    assert found.settings["model"] == str(here / "thinking")
    assert json.loads((out / "run.json").read_text())["arguments"]["model"] == str(here / "thinking")
    assert not Trace.load(out).summary.content_share
    assert inspect(here, tmp_path / "other", "--prompt", TEXT) == 0
    assert not Trace.load(tmp_path / "other").is_own


def test_a_config_inside_the_folder_is_not_deleted(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert inspect(here, out, "--prompt", "a b") == 0
    (out / "mine.yaml").write_text("top_k: 3\n")
    assert inspect(here, out, "--prompt", "a b", "--overwrite", "--config", str(out / "mine.yaml")) == 2
    assert "which this run reads; give another output_dir" in capsys.readouterr().err
    assert (out / "mine.yaml").exists()
    monkeypatch.chdir(tmp_path)  # the default folder
    assert main(["inspect", str(here / "thinking"), "--prompt", "a b"]) == 0
    mine = tmp_path / "runs" / "thinking-inspection" / "mine.yaml"
    mine.write_text("top_k: 3\n")
    words = ["--prompt", "a b", "--overwrite", "--config", str(mine)]
    assert main(["inspect", str(here / "thinking"), *words]) == 2
    assert mine.exists()


def test_tokens_that_the_model_lacks_are_reported(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer may know more than its model."""
    other = tmp_path / "other"
    shutil.copytree(here / "thinking", other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<eggs>"])
    tokenizer.save_pretrained(other)
    for what, words in (
        ("the text", ["--prompt", "two <eggs>"]),
        ("the prompt", ["--prompt", "two <eggs>", "--generate", "2"]),
        ("thought", ["--prompt", "two", "--thought", "<eggs>"]),
        ("filler", ["--prompt", "two", "--filler", "<eggs>"]),
    ):
        assert main(["inspect", str(other), *words, "--output_dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"{what} has token 259, and the model has 259 embeddings; give the tokenizer that belongs to it" in error
    assert main(["generate", str(other), "two <eggs>"]) == 2
    assert "a prompt has token 259" in capsys.readouterr().err


def test_a_plain_model_is_refused(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(here / "base"), "--prompt", "a", "--output_dir", str(tmp_path / "out")]) == 2
    assert "is a plain model that does not think" in capsys.readouterr().err


def test_in_python(here: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(here / "thinking").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "thinking")
    found = model.inspect([TEXT, "Another one."], tokenizer, thought="so")
    assert set(found.columns["row"]) == {0, 1}
    assert found.settings["thought"] == "so"
    written = model.inspect("What is", tokenizer, generate=4)
    assert len(written) == len(tokenizer("What is")["input_ids"]) + 4
    assert sum(written.columns["thought"]) == 4


def test_what_is_written_repeats_with_the_seed_and_leaves_random_numbers_alone(here: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(here / "thinking").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "thinking")
    found = []
    for process_seed, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(process_seed)
        before = torch.random.get_rng_state()
        trace = model.inspect("What is", tokenizer, generate=4, thought_temperature=1.0, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(trace.columns["thought_ids"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("how", [{"generate": -2}, {"max_length": 0}, {"max_length": -3}])
def test_impossible_lengths_in_python(here: Path, how: dict) -> None:
    model = AutoModelForCausalLM.from_pretrained(here / "thinking").eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "thinking")
    with pytest.raises(SettingsError, match="give numbers of at least 0 and 2"):
        model.inspect("What is", tokenizer, **how)
    with pytest.raises(SettingsError, match="max_length was given with generate"):
        model.inspect("What is", tokenizer, generate=3, max_length=5)
    with pytest.raises(SettingsError, match="texts contain something that is not a string"):
        model.inspect([3], tokenizer)  # type: ignore[list-item]
    with pytest.raises(SettingsError, match="inspect has no setting intervention; did you mean interventions"):
        model.inspect("What is", tokenizer, intervention="filler")

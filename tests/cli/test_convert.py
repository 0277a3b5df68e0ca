"""`quietstar convert`: both directions from the command line, and its errors of one line."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from quietstar import QuietStarForCausalLM
from tests.cli import call, files_of, lines_of, no_progress_bars
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with a thinking model in `ours` and a plain one in `base`."""
    no_progress_bars()
    monkeypatch.chdir(tmp_path)
    tiny_model("mistral", n_ahead=5, base=dict(vocab_size=len(byte_tokenizer()))).save_pretrained("ours")
    byte_tokenizer().save_pretrained("ours")
    tiny_folder(tmp_path / "base")
    return tmp_path


def test_out_and_in_again(place, capfd, caplog):
    assert call("convert", "ours", "theirs") == 0
    assert lines_of(capfd, caplog) == ["wrote theirs, a checkpoint of the released code"]
    assert call("convert", "theirs", "again", "--n_ahead", 5, "--n_ahead_talk", 2) == 0
    assert lines_of(capfd, caplog)[-1] == "wrote again, a quietstar checkpoint"
    again = AutoModelForCausalLM.from_pretrained("again")
    assert isinstance(again, QuietStarForCausalLM)
    assert (again.config.n_ahead, again.config.n_ahead_talk) == (5, 2)


@pytest.mark.parametrize("words", ["convert ours theirs", "convert theirs again", "export bare again --to plain"])
def test_a_model_without_a_tokenizer_is_told(place, capfd, caplog, words):
    for file in place.glob("ours/tokenizer*"):
        file.unlink()
    model = tiny_model("mistral", n_ahead=8)
    model.save_original("theirs")
    model.base_lm.save_pretrained("bare")
    _, source, target, *_ = words.split()
    if target == "theirs":
        shutil.rmtree(target)
    caplog.clear()
    assert call(*words.split()) == 0
    told, wrote = lines_of(capfd, caplog)
    assert told == f"{source} has no tokenizer that can be read, so {target} has none; save the model's own there"
    assert wrote.startswith(f"wrote {target}")
    assert not list(Path(target).glob("tokenizer*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ours base", "base is not empty; give a new or empty folder"),
        ("ours ours", "ours is not empty"),
        ("ours new --n_ahead 4", "ours has its own settings; leave n_ahead out"),
        ("base new", "it is not a checkpoint of the released code"),
        ("base new --n_ahead 1", "n_ahead is 1; give a whole number of at least 2"),
        ("base new --n_ahead x", "invalid int value: 'x'"),
        ("no/such new", "no/such"),
        ("ours", "the following arguments are required: target"),
        ("", "the following arguments are required: source, target"),
        ("ours new --n_ahed 4", "unrecognized arguments: --n_ahed 4; did you mean --n_ahead?"),
        ("ours new third", "unrecognized arguments: third"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(place, capfd, caplog, words, expected):
    before = files_of(place), sorted(place.rglob("*"))
    assert call("convert", *words.split()) == 2
    (line,) = lines_of(capfd, caplog)
    assert line.startswith("quietstar convert: ")
    assert expected in line
    assert (files_of(place), sorted(place.rglob("*"))) == before


def test_every_option_has_a_help_text(capsys):
    assert call("convert", "--help") == 0
    said = capsys.readouterr().out
    for name in ("source", "target", "--n_ahead", "--n_ahead_talk"):
        assert f"\n  {name} " in said, name

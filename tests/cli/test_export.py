"""`quietstar export`: from the command line, and its errors of one line."""

import pytest

from quietstar.base.gguf.header import read_header
from tests.cli import call, lines_of, no_progress_bars
from tests.interop.gguf.conftest import plain_model
from tests.tiny_tokenizer import ascii_tokenizer


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory with a plain model in `plain`."""
    no_progress_bars()
    monkeypatch.chdir(tmp_path)
    plain_model("llama").save_pretrained("plain")
    ascii_tokenizer().save_pretrained("plain")


def test_there_and_back(tmp_path, capfd, caplog):
    assert call("export", "plain", "m.gguf", "--to", "gguf", "--dtype", "float16") == 0
    assert lines_of(capfd, caplog)[-1] == "wrote m.gguf"
    assert read_header(tmp_path / "m.gguf").architecture == "llama"
    assert call("export", "m.gguf", "again", "--to", "plain") == 0
    assert (tmp_path / "again" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("plain m.gguf", "the following arguments are required: --to"),
        ("plain m.gguf --to onnx", "invalid choice: 'onnx' (choose from"),
        ("plain m --to gguf", "m does not end in .gguf"),
        ("plain m.gguf --to gguf --dtype q4_0", "invalid choice: 'q4_0'"),
        ("no/such m.gguf --to gguf", "no/such"),
        ("plain m.gguf --to gguf --dtyp q8_0", "unrecognized arguments: --dtyp q8_0; did you mean --dtype?"),
    ],
)
def test_what_cannot_be_is_one_line(capfd, caplog, words, expected):
    assert call("export", *words.split()) == 2
    (line,) = lines_of(capfd, caplog)
    assert line.startswith("quietstar export: ")
    assert expected in line

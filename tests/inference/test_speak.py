"""`quietstar generate`: reads prompts, writes text token by token, and optionally shows thoughts."""

import io
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch

from quietstar import QuietStarForCausalLM
from quietstar.cli import main
from quietstar.errors import DataError, QuietStarError
from quietstar.inference.speak import GenerateArguments, read_prompts, speak
from tests.tiny_tokenizer import byte_tokenizer, thinking_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinking model that writes lower-case letters, and the base model it was made from."""
    tokenizer = byte_tokenizer()
    banned = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) not in ascii_lowercase]
    return thinking_folders(tmp_path_factory.mktemp("models"), n_ahead=5, suppressed_token_ids=banned)


def spoken(folder: Path, prompt: str | None = "one two", name: str = "thinking", **how: object) -> str:
    """Return the output."""
    out = io.StringIO()
    speak(str(folder / name), prompt, GenerateArguments(max_new_tokens=6, **how), out)
    return out.getvalue()


def test_a_prompt_is_continued_as_generate_does(folder: Path) -> None:
    """The prompt, its continuation, and a newline."""
    model = QuietStarForCausalLM.from_pretrained(folder / "thinking")
    tokenizer = byte_tokenizer()
    ids = tokenizer("one two", return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=2)[0])
    assert spoken(folder) == expected + "\n"
    assert spoken(folder, think="never") != expected + "\n"


def test_thoughts_stand_before_their_tokens(folder: Path) -> None:
    """They do not change the text."""
    shown = spoken(folder, show_thoughts=True)
    assert shown.count("⟨") == shown.count("⟩") == 6
    parts = [part.partition("⟩") for part in shown.split("⟨")]
    assert all(len(thought) == 3 for thought, _, _ in parts[1:])
    assert parts[0][0] + "".join(said for _, _, said in parts[1:]) == spoken(folder)


def test_thoughts_are_as_long_as_they_are_asked_for(folder: Path) -> None:
    """The text is that of a model whose config says so; 2 leaves start and end alone."""
    model = QuietStarForCausalLM.from_pretrained(folder / "thinking")
    tokenizer = byte_tokenizer()
    ids = tokenizer("one two", return_tensors="pt")["input_ids"]
    for n_ahead in (2, 8):
        model.config.n_ahead = n_ahead
        expected = tokenizer.decode(model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=2)[0])
        assert spoken(folder, n_ahead=n_ahead) == expected + "\n"
        shown = spoken(folder, n_ahead=n_ahead, show_thoughts=True)
        assert {len(part.partition("⟩")[0]) for part in shown.split("⟨")[1:]} == {n_ahead - 2}


def test_a_file_and_standard_input_hold_a_prompt_in_each_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is continued as if it were alone."""
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    both = spoken(folder, None, prompts_file=str(tmp_path / "prompts.txt"))
    assert both == spoken(folder, "one") + "\n" + spoken(folder, "two")
    monkeypatch.setattr("sys.stdin", piped(b"one\ntwo\n"))
    assert spoken(folder, None) == both


def piped(given: bytes) -> io.TextIOWrapper:
    """Standard input from a pipe."""
    return io.TextIOWrapper(io.BytesIO(given))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("from_file", [True, False])
def test_prompts_are_the_lines_and_nothing_else(mark: bytes, from_file: bool, tmp_path: Path) -> None:
    """Without a byte-order mark, and split at newlines only, not at form feeds or Unicode separators."""
    prompts = ["one\u2028two", "a\x0b\x0c\x1c\x85b", "c\rd", "last"]
    written = mark + "\r\n".join(prompts).encode()
    (tmp_path / "prompts.txt").write_bytes(written)
    file = str(tmp_path / "prompts.txt") if from_file else None
    assert list(read_prompts(None, file, piped(written))) == prompts


def test_a_line_has_the_number_that_an_editor_shows(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("one\u2028\x0ctwo\nthree\n\nfive".encode())
    with pytest.raises(DataError, match=r"line 3 of .*prompts.txt is empty"):
        list(read_prompts(None, str(tmp_path / "prompts.txt"), piped(b"")))


def test_sampling_repeats_with_its_seed_and_strings_stop_it(folder: Path) -> None:
    """As in `generate`."""
    assert spoken(folder, temperature=1.0) == spoken(folder, temperature=1.0) != spoken(folder, temperature=1.0, seed=1)
    free = spoken(folder).strip()
    stop = free[-4:-2]
    assert spoken(folder, stop=[stop]).strip() == free[: free.index(stop, 7) + 2]


def test_a_plain_model_speaks_as_it_is(folder: Path) -> None:
    """The same from its own folder as from the thinking model, whose suppressed tokens it may write."""
    assert spoken(folder, name="base", original=True) == spoken(folder, original=True)


REFUSED = {
    "an empty prompt": (["thinking", " "], "the prompt is empty"),
    "no model": (["nowhere", "x"], "there is no model"),
    "a plain model": (["base", "x"], "does not think"),
    "a long prompt": (["thinking", "x" * 130], "context is 128"),
    "a long thought": (["thinking", "x", "--n_ahead", "128"], "n_ahead is 128, and the model's context 128; give at m"),
    "a prompt and a thought": (
        ["thinking", "x" * 9, "--n_ahead", "120"],
        "a thought 120, but the model's context is 128",
    ),
    "no start and end": (["thinking", "x", "--n_ahead", "1"], "n_ahead is 1; give a whole number of at least 2"),
    "half a token": (["thinking", "x", "--n_ahead", "2.5"], "invalid int value: '2.5'"),
    "a length of no thoughts": (["thinking", "x", "--original", "--n_ahead", "4"], "n_ahead was given, but with orig"),
    "no policy": (["thinking", "x", "--think", "maybe"], "choose from"),
    "temperature": (["thinking", "x", "--temperature", "-1"], "at least 0"),
    "top_p": (["thinking", "x", "--top_p", "0"], "above 0"),
    "thought_top_p": (["thinking", "x", "--thought_top_p", "2"], "at most 1"),
    "max_new_tokens": (["thinking", "x", "--max_new_tokens", "0"], "at least 1"),
    "device": (["thinking", "x", "--device", "abacus"], "cannot be used"),
    "no file": (["thinking", "--prompts_file", "nowhere.txt"], "cannot be read"),
    "file and prompt": (["thinking", "x", "--prompts_file", "nowhere.txt"], "both given"),
    "thoughts of none": (["thinking", "x", "--original", "--show_thoughts"], "no thoughts"),
    "a wrong option": (["thinking", "x", "--temprature", "1"], "did you mean --temperature"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_line(what: str, folder: Path, capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    """With exit code 2, and what to do."""
    (model, *rest), says = REFUSED[what]
    try:
        code = main(["generate", str(folder / model), *rest])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("quietstar generate: ")
    assert says in said


def test_a_file_without_a_prompt_is_refused(tmp_path: Path) -> None:
    """A file that is empty, has an empty line, or is not text."""
    for content, says in ((b"\n", "has no prompts"), (b"a\n\nb", "line 2 of"), (b"a\n\xff", "byte 1 of line 2")):
        (tmp_path / "prompts.txt").write_bytes(content)
        with pytest.raises(QuietStarError, match=says):
            list(read_prompts(None, str(tmp_path / "prompts.txt"), piped(b"")))


def test_the_device_and_dtype_are_the_users(folder: Path) -> None:
    """In bfloat16 on a CPU, too."""
    assert torch.get_default_dtype() == torch.float32
    assert spoken(folder, dtype="bfloat16", device="cpu").startswith("one two")


@pytest.mark.parametrize(
    ("name", "how", "room"),
    [("thinking", {}, 124), ("thinking", {"n_ahead": 8}, 121), ("base", {"original": True}, 129)],
)
def test_a_text_ends_where_the_context_is_full(folder: Path, name: str, how: dict, room: int, caplog) -> None:
    """A text may have one token more than the model can read beside a thought: nothing follows the last one."""
    for n_prompt in (room - 6, room - 5):
        caplog.clear()
        text = spoken(folder, "x" * n_prompt, name, **how)
        if name == "thinking":  # The other writes bytes that are no characters.
            assert len(text.rstrip("\n")) == min(n_prompt + 6, room)
        cut = "the text ends after 5 of 6 tokens: there the model's context of 128 tokens is full"
        assert [line.startswith(cut) for line in caplog.messages] == [True] * (n_prompt == room - 5)


def test_a_text_that_ends_by_itself_where_the_context_is_full_is_whole(folder: Path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("quietstar.inference.speak.eos_ids", lambda *_: range(300))
    spoken(folder, "x" * 119)
    assert caplog.messages == []

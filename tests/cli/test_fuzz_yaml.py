"""Untrusted YAML files: whatever they contain, commands report one line and run no code."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.cli.train import CLASSES
from quietstar.runs.options import LONGEST, from_yaml, make_parser
from tests.cli import call, no_progress_bars
from tests.elsewhere import only_our_errors

PARSER = make_parser("quietstar train", "Teach.", *CLASSES, config=True)
OPTIONS = [action.dest for action in PARSER._actions if action.dest not in ("help", "config")]
TAGS = [
    "python/object/apply:os.system ['touch WITNESS']",
    "python/name:os.system",
    "python/module:os",
    "python/tuple [1]",
]
TAGS += [
    "python/object/new:type [x, [], {}]",
    "int x",
    "int ''",
    "float ''",
    "bool x",
    "timestamp x",
    "binary é",
    "set [a]",
]
BAD = {
    "a key twice": ("n_ahead: 4\nn_ahead: 5", "'n_ahead' is given twice"),
    "a key twice inside": ("lr_scheduler_kwargs: {a: 1, a: 2}", "'a' is given twice"),
    "too long": ("# " + "x" * LONGEST, f"is longer than {LONGEST} bytes"),
    "too deep": ("seed: " + "[" * 30_000, "is not valid YAML"),
    "many digits": ("seed: " + "9" * 5000, "is not valid YAML"),
    "many hexadecimal digits": ("seed: 0x" + "f" * 5000, "has seed int of thousands of digits, which"),
    "many digits of a key": ("? 0x" + "f" * 5000 + "\n: 1", "has unknown option int of thousands of digits"),
    "base sixty": ("seed: 1" + ":59" * 20_000, "has seed int of thousands of digits, which"),
    "no day": ("seed: 2001-02-31", "is not valid YAML: day is out of range"),
    "a null byte": ('model: "a\\0b"', "which is not a valid value of an option"),
    "half a character": ('model: "\\ud800"', "which is not a valid value of an option"),
    "lists in a list": ("lora_target_modules: [[a, b]]", "which is not a valid value of an option"),
    "bytes": ("model: !!binary AAAA", "which is not a valid value of an option"),
    "a set": ("model: !!set {a, b}", "which is not a valid value of an option"),
    "a date in a mapping": ("lr_scheduler_kwargs: {a: 2001-01-01}", "which is not a valid value of an option"),
    "two documents": ("seed: 1\n---\nseed: 2", "is not valid YAML"),
    "a list for a key": ("? [a]\n: 1", "is not valid YAML"),
    "UTF-16": ("seed: 1".encode("utf-16"), "is not valid YAML"),
    "null bytes": (b"\0\0\0", "is not valid YAML"),
} | {f"tag {tag}": (f"model: !!{tag}", "is not valid YAML") for tag in TAGS}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    "words", [["train"], ["evaluate", "no-model"], ["inspect", "no-model"]], ids=lambda words: words[0]
)
def test_invalid_files_are_refused(words: list[str], kind: str, tmp_path: Path, capfd, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    text, said = BAD[kind]
    file = tmp_path / "options.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert call(*words, "--config", file) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"quietstar {words[0]}: config {file} ")
    assert err.count("\n") == 1
    assert len(err) < 600
    if words == ["train"]:  # the others lack some of these options
        assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["options.yaml"], "nor did a tag run anything"


PLAIN = (
    "|~|true|no|1|-1|1e999|.nan|-.inf|0x1F|1_000|2001-01-01|1:30|'a b'|'--seed'|'%s%n{x}'|../..|/dev/null|@x|-|é|%|`"
)
NESTED = "[]|{}|[1, 2]|{a: 1}|[--seed, 1]|[[1]]|{a: {b: [c]}}|!!str 1|!!int '3'|? x|- x|&a x|*a"
ODD = ["'\n\n'", '"\\u2028"', "|\n  a\n  b", "9" * 40]
SCALARS = st.sampled_from([*PLAIN.split("|"), *NESTED.split("|"), *ODD])
LINES = st.tuples(st.sampled_from(OPTIONS), SCALARS).map(lambda pair: f"{pair[0]}: {pair[1]}\n")
FILES = st.lists(LINES, min_size=1, max_size=3).map(lambda lines: "".join(lines).encode()) | st.binary(max_size=30)


@given(content=FILES)
@settings(max_examples=200)
def test_flags_or_one_line_come_of_whatever_is_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("yaml") / "options.yaml"
    file.write_bytes(content)
    flags = only_our_errors(lambda: from_yaml(str(file), PARSER))
    assert flags is None or all(isinstance(flag, str) and "\0" not in flag for flag in flags)  # type: ignore[attr-defined]


@given(
    content=FILES,
    words=st.sampled_from(
        [["train", "--model", "no-model", "--dataset", "no.txt"], ["evaluate", "no-model"], ["inspect", "no-model"]]
    ),
)
@settings(max_examples=100)
def test_a_command_says_one_line_whatever_is_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, words: list[str]
) -> None:
    """The model does not exist, so that a valid file leads to an error, too."""
    no_progress_bars()
    file = tmp_path_factory.mktemp("yaml") / "options.yaml"
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(file.parent)
        said: list[str] = []
        patch.setattr("sys.stderr.write", said.append)
        assert call(*words, "--config", file) == 2
    *warnings, last = "".join(said).removesuffix("\n").split("\n")
    assert last.startswith(f"quietstar {words[0]}: ")
    assert all(line.startswith("[transformers] ") for line in warnings)

"""Texts come from the requested rows, and errors are one line."""

import json
from pathlib import Path

import pytest

from quietstar.errors import DataError, MissingExtraError, SettingsError
from quietstar.training.data.datasets import DataArguments, load_texts
from quietstar.training.data.template import fill_template
from quietstar.training.data.text_files import TextFiles
from quietstar.training.data.texts import is_stream
from tests.elsewhere import with_images

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")

GSM8K = Path(__file__).parents[2] / "data" / "gsm8k" / "train.jsonl"
ROWS = [{"question": f"q{i}", "answer": f"a{i}", "n": i} for i in range(12)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Put Arrow files of these tests into pytest's temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    path.mkdir()
    return path


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def column(texts):
    assert isinstance(texts, TextFiles) or texts.column_names == ["text"]
    return [row["text"] for row in texts]


def load(dataset, *, seed=0, **settings):
    train, held_out = load_texts(DataArguments(dataset=str(dataset), **{"eval_size": 0} | settings), seed)
    return column(train), held_out and column(held_out)


def refused(words, dataset, error=DataError, **settings):
    """Loading fails with a single line that has all of `words`."""
    with pytest.raises(error) as raised:
        load(dataset, **settings)
    message = str(raised.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("extension", [".txt", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_file_gives_its_texts(folder, extension, streaming):
    texts = [f"text {i}" for i in range(5)]
    path = folder / f"a{extension}"
    if extension == ".txt":
        path.write_text("\n".join(texts))
    elif extension == ".jsonl":
        jsonl(path, [{"text": text} for text in texts])
    elif extension == ".json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    else:
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    assert load(path, streaming=streaming) == (texts, None)


def test_folder_and_glob_reach_nested_files(folder):
    jsonl(folder / "a.jsonl", [{"text": "one"}])
    jsonl(folder / "deep [1]" / "er" / "b*.jsonl", [{"text": "two"}])
    jsonl(folder / ".hidden" / "c.jsonl", [{"text": "never"}])
    (folder / "README.md").write_text("what this is")
    assert sorted(load(folder)[0]) == ["one", "two"]
    assert sorted(load(folder / "**" / "*.jsonl")[0]) == ["one", "two"]
    assert load(folder / "*.jsonl")[0] == ["one"]


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [("line", ["a", "b", "", "c"]), ("paragraph", ["a\nb", "c"]), ("document", ["a\nb\n\nc"])],
)
def test_txt_is_cut_by_line_paragraph_or_document(folder, sample_by, texts):
    (folder / "a.txt").write_text("a\nb\n\nc")
    assert load(folder / "a.txt", sample_by=sample_by)[0] == texts


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_rows_and_training_rows_are_disjoint_and_all(folder, streaming):
    texts = [f"text {i}" for i in range(50)]
    path = jsonl(folder / "a.jsonl", [{"text": text} for text in texts])
    train, held_out = load(path, eval_size=8, streaming=streaming, seed=3)
    assert len(held_out) == 8
    assert sorted(train + held_out) == sorted(texts)
    assert (train, held_out) == load(path, eval_size=8, streaming=streaming, seed=3)


def test_another_seed_holds_out_other_rows(folder):
    path = jsonl(folder / "a.jsonl", [{"text": f"text {i}"} for i in range(50)])
    assert load(path, eval_size=8, seed=3)[1] != load(path, eval_size=8, seed=4)[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_eval_dataset_is_used_instead_of_held_out_texts(folder, streaming):
    path = jsonl(folder / "a.jsonl", [{"text": f"text {i}"} for i in range(5)])
    other = jsonl(folder / "b.jsonl", [{"text": "x"}, {"text": "y"}])
    train, held_out = load(path, eval_dataset=other, eval_size=64, streaming=streaming)
    assert (len(train), held_out) == (5, ["x", "y"])


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_must_leave_something_to_train_on(folder, streaming):
    path = jsonl(folder / "a.jsonl", [{"text": "x"}] * 5)
    refused(["5 texts", "64", "--eval_size", "below 5"], path, eval_size=64, streaming=streaming)
    refused(["--eval_size"], path, eval_size=5, streaming=streaming)
    assert len(load(path, eval_size=4, streaming=streaming)[0]) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_template_fills_columns_and_the_shell_writes_its_newlines(folder, streaming):
    path = jsonl(folder / "a.jsonl", [*ROWS[:2], {"question": None, "answer": "x", "n": 1}])
    texts, _ = load(path, template=r"Q: {question}\n\t{{{n:02d}}} A: {answer}", streaming=streaming)
    assert texts == ["Q: q0\n\t{00} A: a0", "Q: q1\n\t{01} A: a1", None]


def test_template_reaches_into_nested_columns(folder):
    rows = [{"question": {"stem": "why?", "choices": [{"text": "so"}]}, "text": "not this"}]
    path = jsonl(folder / "a.jsonl", rows)
    assert load(path, template="{question[stem]} {question[choices][0][text]}")[0] == ["why? so"]
    refused(["{question}", "dict", "column[key]"], path, template="{question}")
    refused(["{question[stam]}", "has all values of template"], path, template="{question[stam]}")


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_rows_are_not_opened(folder, streaming):
    """An image may be anywhere, also at a URL; its path is ordinary text."""
    with_images(folder / "a.parquet", [{"text": "a b"}] * 3)
    assert load(folder, streaming=streaming) == (["a b"] * 3, None)
    assert load(folder, streaming=streaming, template="{image[path]}")[0] == ["nowhere.png"] * 3
    refused(["{image}", "the value is a dict"], folder, streaming=streaming, template="{text} {image}")


def test_template_takes_a_column_name_with_a_dot():
    assert fill_template("{meta.title}!", {"meta.title": "x"}, "rows") == "x!"


@pytest.mark.parametrize("streaming", [False, True])
def test_text_column_is_the_named_one_or_the_only_one_of_strings(folder, streaming):
    path = jsonl(folder / "a.jsonl", ROWS[:1])
    assert load(path, text_column="answer", streaming=streaming)[0] == ["a0"]
    refused(["question, answer, n", "--text_column", "--template"], path, streaming=streaming)
    refused(["'body'", "question, answer, n", "--text_column"], path, text_column="body", streaming=streaming)
    refused(["'n'", "has 0 (Number), not text", "--text_column"], path, text_column="n", streaming=streaming)
    other = jsonl(folder / "b.jsonl", [{"n": 1, "body": "x"}])
    assert load(other, streaming=streaming)[0] == ["x"]


@pytest.mark.parametrize("streaming", [False, True])
def test_missing_texts_are_kept_as_none_and_numbers_are_refused(folder, streaming):
    path = jsonl(folder / "a.jsonl", [{"text": "x"}, {"text": None}, {"text": ""}])
    assert load(path, streaming=streaming)[0] == ["x", None, ""]
    mixed = jsonl(folder / "b.jsonl", [{"text": "x"}, {"text": 5}])
    refused(["'text'", "b.jsonl, line 2", "has 5 (Number), not text"], mixed, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_with_different_columns(folder, streaming):
    jsonl(folder / "a.jsonl", [{"text": "x"}])
    jsonl(folder / "b.jsonl", [{"text": "y", "more": 1}, {"more": 2}])
    assert load(folder, streaming=streaming)[0] == ["x", "y", None]


def test_parquet_files_with_different_columns(folder):
    for name, rows in (("a", [{"text": "x"}]), ("b", [{"text": "y", "more": 1}])):
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    refused(["texts", "same columns"], folder, streaming=False)


def test_a_stream_that_does_not_know_its_columns(monkeypatch):
    rows = [{"body": "x", "n": 1}, {"body": "y", "more": 1}, {"n": 2}]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: stream)
    train, held_out = load_texts(DataArguments(dataset="a/b", eval_size=1), 0)
    assert list(held_out) == [{"text": "x"}]
    assert list(train) == [{"text": "y"}, {"text": None}]
    refused(["'n'", "int"], "a/b", text_column="n")
    refused(["body, n", "--text_column"], "a/b", text_column="nobody")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_empty_files_are_reported(folder, name, streaming):
    (folder / name).write_text("[]" if name == "a.json" else "")
    refused([name, "is empty", "--dataset"], folder / name, streaming=streaming, eval_size=4)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("eval_size", [0, 1])
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', ["line 2 of", "is not JSON"]),
        ("a.jsonl", b'{"text": "x"}\n["x"]', ["line 2", "not an object"]),
        ("a.jsonl", '{"text": "x"}\n{"text": "caf\xe9"}\n'.encode("latin-1"), ["byte 14 of line 2 is 0xE9", "UTF-8"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud800"}', ["line 2", "half a character"]),
        ("a.json", b'[{"text": "x"}, 5]', ["item 2", "not an object"]),
        ("a.json", b'[{"text": "x"},\n{"text": "y"} 5]', ["is not JSON", "(line 2, character 15)"]),
        ("a.txt", b"fine\n\xe9", ["byte 1 of line 2 is 0xE9"]),
        ("a.txt", b"\xff\xfe\n", ["UTF-16"]),
        ("a.parquet", b"text", ["cannot be read", "extension"]),
    ],
)
def test_broken_files_are_named_with_the_reason(folder, name, content, words, streaming, eval_size):
    (folder / name).write_bytes(content)
    refused([name, *words], folder / name, streaming=streaming, eval_size=eval_size)


def test_paths_that_do_not_exist(folder):
    refused(["no.txt", "no file or folder"], folder / "no.txt")
    refused(["*.txt", "no file or folder"], folder / "*.txt")
    refused(["./nowhere", "no file or folder"], "./nowhere")


def test_files_of_the_wrong_extension(folder):
    (folder / "a.csv").write_text("text\nx\n")
    refused(["a.csv", ".csv", ".txt, .jsonl, .json, .parquet", "pass a file"], folder / "a.csv")
    refused(["texts", ".csv", "pass a folder"], folder)
    (folder / "b.txt").write_text("x")
    refused([".csv, .txt", "**"], folder)
    refused([".csv, .txt", "pass a glob"], folder / "*")


def test_mixed_and_empty_folders(folder):
    refused(["texts", "no data files"], folder)
    (folder / "a.txt").write_text("x")
    jsonl(folder / "b.jsonl", ROWS)
    refused([".jsonl, .txt", "the same extension"], folder)


def test_unknown_splits(folder):
    path = jsonl(folder / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    refused(["'test'", "'train'", "--split"], path, split="test")
    refused(["dataset_config", "'main'", "local"], path, dataset_config="main")
    assert load(path, split="train[:1]")[0] == ["x"]
    refused(["train[:1]", "--split", "--streaming false"], path, split="train[:1]", streaming=True)


def hub(monkeypatch, answer):
    def load_dataset(*args, **kwargs):
        raise answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_no_network_names_the_local_way(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(["'no-one/nothing'", "hub cannot be reached", "--dataset FILE_OR_FOLDER"], "no-one/nothing")


@pytest.mark.parametrize(
    "answer", [ConnectionError("x"), TimeoutError("x"), datasets.exceptions.DatasetNotFoundError("no\nsuch")]
)
def test_hub_that_does_not_answer_or_does_not_know(monkeypatch, answer):
    hub(monkeypatch, answer)
    refused(["'a/b'", "reached or does not have it", "--dataset FILE_OR_FOLDER"], "a/b")


def test_hub_without_the_split_or_the_configuration(monkeypatch):
    hub(monkeypatch, ValueError("Unknown split \"x\". Should be one of ['train', 'test']."))
    refused(["'a/b'", "--split", "['train', 'test']"], "a/b", split="x")
    hub(monkeypatch, ValueError("Bad split: x. Available splits: ['train']"))
    refused(["'a/b'", "give another --split:", "['train']"], "a/b", split="x")
    hub(monkeypatch, ValueError("Config name is missing.\nPlease pick one among ['main', 'socratic']"))
    refused(["'a/b'", "--dataset_config", "['main', 'socratic']"], "a/b")
    hub(monkeypatch, RuntimeError("Dataset scripts are no longer supported"))
    refused(["'a/b'", "scripts", "--dataset FILE_OR_FOLDER"], "a/b")


def test_hub_datasets_are_streamed_and_files_are_not_unless_asked(monkeypatch, folder):
    asked = []

    def load_dataset(name, *args, streaming, **kwargs):
        asked.append((name, streaming))
        rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    path = jsonl(folder / "a.jsonl", [{"text": "x"}, {"text": "y"}])
    datasets.Dataset.from_dict({"text": ["x"]}).to_parquet(folder / "a.parquet")
    for streaming in (None, True, False):
        load_texts(DataArguments(dataset="a/b", eval_size=1, streaming=streaming), 0)
        load_texts(DataArguments(dataset=str(folder / "a.parquet"), eval_size=1, streaming=streaming), 0)
        texts, _ = load_texts(DataArguments(dataset=path, eval_size=1, streaming=streaming), 0)
        assert is_stream(texts) == bool(streaming)
    expected = [
        ("a/b", True),
        ("parquet", False),
        ("a/b", True),
        ("parquet", True),
        ("a/b", False),
        ("parquet", False),
    ]
    assert asked == expected


def test_the_datasets_library_is_asked_for_by_its_extra(monkeypatch, folder):
    path = jsonl(folder / "a.jsonl", [{"text": "x"}])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused(["quietstar[data]"], path, error=MissingExtraError)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 1}, ["max_length", "1", "2 or more"]),
        ({"eval_size": -1}, ["eval_size", "-1"]),
        ({"shuffle_block": 0}, ["shuffle_block", "0", "order"]),
        ({"sample_by": "word"}, ["'word'", "line, paragraph, document"]),
        ({"text_column": "a", "template": "{a}"}, ["text_column", "template"]),
        ({"template": "{a"}, ["'{a'", "does not parse"]),
        ({"template": "no columns"}, ["'no columns'", "names no column"]),
        ({"template": "{}"}, ["'{}'", "names no column"]),
        ({"eval_split": "test"}, ["'test'", "--eval_dataset"]),
        ({"dataset": "a/b", "eval_dataset": "a/b"}, ["'a/b'", "--eval_split"]),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(SettingsError) as raised:
        DataArguments(**settings)
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)


def test_template_with_an_unknown_column(folder):
    path = jsonl(folder / "a.jsonl", ROWS)
    refused(["quest", "question, answer, n", "template"], path, template="Q: {quest}")


def test_gsm8k_by_template():
    args = DataArguments(dataset=str(GSM8K), template=r"Q: {question}\nA: {answer}", eval_size=20)
    train, held_out = load_texts(args, 0)
    assert not is_stream(train)
    assert (len(train), len(held_out)) == (40, 20)
    assert all(text.startswith("Q: ") and "\nA: " in text and "\n#### " in text for text in held_out["text"])
    assert set(train["text"]).isdisjoint(held_out["text"])

"""Items of tasks, read from files exactly as written."""

import gzip
import json
from pathlib import Path

import pytest

from quietstar.errors import DataError
from quietstar.evaluation.tasks import TASKS, load_items
from tests.elsewhere import refused
from tests.text.test_files import zst

GSM8K = {"question": "How many on 2021-03-04?\u2028And then?", "answer": "Some.\n#### 18"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_files_in_any_encoding_hold_the_same_items(name: str, encoding: str, tmp_path: Path) -> None:
    rows = [GSM8K, {**GSM8K, "question": "Why?"}]
    text = (
        json.dumps(rows) if ".json." in f"{name}." else "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    items = load_items(TASKS["gsm8k"], str(tmp_path / name))
    assert [(item.index, item.question, item.answer) for item in items] == [
        (0, GSM8K["question"], " 18"),
        (1, "Why?", " 18"),
    ]


@pytest.mark.parametrize("name", ["test.jsonl", "test.json.gz", "test.jsonl.zst"])
def test_a_folder_may_hold_the_split_compressed(name: str, tmp_path: Path) -> None:
    data = json.dumps(GSM8K).encode()
    compress = {".gz": gzip.compress, ".zst": zst}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(data))
    assert [item.answer for item in load_items(TASKS["gsm8k"], str(tmp_path))] == [" 18"]


@pytest.mark.parametrize(
    ("row", "says"),
    [({"question": "x", "answer": 18}, "its answer is 18, not text"), ({**GSM8K, "question": 2.5}, "question is 2.5,")],
)
def test_numbers_are_refused_as_questions_and_answers(row: dict, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    refused(lambda: load_items(TASKS["gsm8k"], str(tmp_path / "a.jsonl")), says, DataError)


def test_values_of_choices_are_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"goal": "which?", "sol1": 18.50, "sol2": true, "label": 1}\n')
    (item,) = load_items(TASKS["piqa"], str(file))
    assert item.text == "Q: which?\n(A) 18.50\n(B) true\nA: B\n"

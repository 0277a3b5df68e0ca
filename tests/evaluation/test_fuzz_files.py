"""Untrusted files of questions and answers: they give items and answers, or one of our errors."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.errors import CheckpointError, SettingsError
from quietstar.evaluation.baseline import Baseline
from quietstar.evaluation.ledger import LINE, Ledger
from quietstar.evaluation.run import refuse_changed
from quietstar.evaluation.tasks import TASKS, Item, load_items
from quietstar.evaluation.voting import digest
from quietstar.runs.folders import MARKER
from tests.elsewhere import only_our_errors, refused

ANSWER = {
    "index": 0,
    "item": "0f",
    "gold": "4",
    "answer": None,
    "right": False,
    "votes": ["4"],
    "texts": ["x"],
    "seconds": 1.5,
}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"question": "2 + 2?", "answer": "It is.\n#### 4"},
    "csqa": {"question": "where?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "B"},
    "piqa": {"goal": "to do", "sol1": "x", "sol2": "y", "label": 1},
    "siqa": {"context": "so", "question": "why?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"},
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", " ", "A", "#### 5", "\ud800", "\u2028\n", "0"]),
    lambda of: (
        st.lists(of, max_size=3)
        | st.dictionaries(st.sampled_from(["label", "text", "stem", "choices", "x\ny"]), of, max_size=3)
    ),
    max_leaves=5,
)
LINES = st.one_of(
    st.binary(max_size=20),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 20_000, b"1" * 5000, b'{"a":' * 9000, b"\xff", b"\0", b"{}", b"null"]),
)


def changes(fields: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """These fields, some of them changed, added or removed."""
    names = st.sampled_from([*fields, "x\ny", "__class__"])
    taken = st.sets(st.sampled_from(list(fields)), max_size=1)
    return st.tuples(st.dictionaries(names, VALUES, max_size=2), taken).map(
        lambda drawn: {name: value for name, value in (fields | drawn[0]).items() if name not in drawn[1]}
    )


@given(first=changes(ANSWER) | LINES, second=changes(ANSWER) | LINES)
@settings(max_examples=150)
def test_whatever_is_in_a_file_of_answers(tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any) -> None:
    """All values that are read have the types that a run expects."""
    path = tmp_path_factory.mktemp("answers") / "a.jsonl"
    lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in (first, second)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    ledger = only_our_errors(lambda: Ledger(path))
    answers = ledger.answers if isinstance(ledger, Ledger) else {}
    for index, answer in answers.items():
        assert answer["index"] == index
        assert all(isinstance(answer[name], kind) for name, kind in LINE.items())
    assert math.isfinite(sum(answer["right"] for answer in answers.values()))


@pytest.mark.parametrize("name", LINE)
@pytest.mark.parametrize("value", [[], {}, [1]], ids=str)
def test_answers_of_wrong_types_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(ANSWER) + "\n" + json.dumps(ANSWER | {name: value if name not in ("votes", "texts") else 3}) + "\n"
    )
    refused(lambda: Ledger(path), "line 2 of", CheckpointError)


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"a diary without an end of line", None),
        (json.dumps(ANSWER).encode(), json.dumps(ANSWER).encode() + b"\n"),
        (json.dumps(ANSWER).encode() + b'\n{"index": 1, "texts": ["}', json.dumps(ANSWER).encode() + b"\n"),
        (b'{"ind', b""),
    ],
)
def test_the_end_of_a_file_is_taken_away_only_where_it_is_a_torn_answer(
    tmp_path: Path, content: bytes, left: bytes | None
) -> None:
    """The file is refused, and does not change."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    if left is None:
        refused(lambda: Ledger(path), "line 1 of .* is not an answer", CheckpointError)
    else:
        Ledger(path)
    assert path.read_bytes() == (content if left is None else left)


@given(line=changes({"index": 0, "item": "", "exact_match": True}) | LINES)
@settings(max_examples=60)
def test_whatever_an_earlier_evaluation_has(tmp_path_factory: pytest.TempPathFactory, line: Any) -> None:
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "results.json").write_text("{}")
    if not isinstance(line, bytes):
        line = json.dumps(line | {"item": digest(Item(0, "x", "4"))}).encode()
    (folder / "gsm8k-base.jsonl").write_bytes(line + b"\n")
    values = only_our_errors(lambda: Baseline(folder).values([Item(0, "x", "4")], "gsm8k", "exact_match"))
    assert values is None or bool(values.isfinite().all())


@pytest.mark.parametrize(
    "text", ["[]", '"x"', "{}", '{"settings": []}', '{"model": "m", "settings": "x"}', "[" * 20_000]
)
def test_whatever_a_run_that_is_resumed_says_of_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / MARKER).write_text(text)
    refused(
        lambda: refuse_changed(tmp_path, {"model": "m", "settings": {}}),
        "does not belong to an evaluation",
        SettingsError,
    )


@pytest.mark.parametrize("task", ROWS)
def test_whatever_is_in_a_file_of_questions(task: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("items")

    @given(rows=st.lists(changes(ROWS[task]) | LINES, max_size=3), ending=st.sampled_from(["jsonl", "json"]))
    @settings(max_examples=80)
    def search(rows: list[Any], ending: str) -> None:
        lines = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in rows]
        file = path / f"test.{ending}"
        file.write_bytes(b"\n".join(lines) if ending == "jsonl" else b"[" + b",".join(lines) + b"]")
        items = only_our_errors(lambda: load_items(TASKS[task], str(file)))
        for item in items if isinstance(items, list) else []:
            item.text.encode()

    search()
    (path / "good.jsonl").write_text(json.dumps(ROWS[task]))
    assert len(load_items(TASKS[task], str(path / "good.jsonl"))) == 1

"""Tasks: questions with answers in the paper's zero-shot format, from the hub or from files.

    Q: {question}            Q: {question}
    A: 18                    (A) {choice}
                             ...
                             A: C

The answer ends with a newline, which is scored, too.
"""

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from quietstar.errors import DataError, SettingsError, first_line, need, reason, shown
from quietstar.text.files import COMPRESSED, as_written, json_values, kind_of
from quietstar.text.rows import as_stored
from quietstar.text.unicode import half_character

MARKER = "\nA:"
"""the text right before an answer"""

LETTERS = "ABCDE"
"""letters of the choices"""

FILES = (".jsonl", ".json", ".parquet")
"""suffixes of local files; JSON files may also be compressed, with .gz or .zst after it"""


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its answer."""

    index: int
    """index in the dataset, from 0"""
    question: str
    """text up to the marker, without it"""
    answer: str
    """text between the marker and the newline, with its leading space"""

    @property
    def text(self) -> str:
        """The text to score."""
        return f"Q: {self.question}{MARKER}{self.answer}\n"


@dataclass(frozen=True, slots=True)
class Task:
    """Where to find the items of a task, and how to convert a row to an item."""

    name: str
    path: str
    """name on the hub"""
    config: str | None
    split: str
    read: Callable[[dict[str, Any]], tuple[str, str]]
    """row -> question and answer"""
    columns: tuple[str, ...]
    """columns that a row must have"""
    numeric: bool = False
    """whether the answer is a number; a letter otherwise"""
    revision: str | None = None
    """revision of the hub's dataset, if its main one is a script"""


def _gsm8k(row: dict[str, Any]) -> tuple[str, str]:
    if not isinstance(row["answer"], str):
        raise ValueError(f"its answer is {shown(row['answer'])}, not text")
    answer = row["answer"].split("####")[-1].rstrip("\n")
    if not any(character.isdigit() for character in answer):
        raise ValueError(f"its answer {answer!r} has no number")
    return row["question"], answer


def _letters(question: str, choices: list[str], labels: list[str] | None = None) -> str:
    labels = labels or [chr(ord("A") + i) for i in range(len(choices))]
    return "\n".join(
        [question, *(f"({label}) {as_written(text)}" for label, text in zip(labels, choices, strict=True))]
    )


def _csqa(row: dict[str, Any]) -> tuple[str, str]:
    """Read both layouts: {stem, choices: [{label, text}]}, and question with {label: [...], text: [...]}."""
    if isinstance(row["question"], dict):
        question, choices = row["question"]["stem"], row["question"]["choices"]
    else:
        question, choices = row["question"], row["choices"]
    if isinstance(choices, dict):
        labels, texts = list(choices["label"]), list(choices["text"])
    else:
        labels, texts = [each["label"] for each in choices], [each["text"] for each in choices]
    if row["answerKey"] not in labels or not set(labels) <= set(LETTERS):
        raise ValueError(f"its answer {row['answerKey']!r} or its labels {labels} are not among {LETTERS}")
    return _letters(question, texts, labels), " " + row["answerKey"]


def _piqa(row: dict[str, Any]) -> tuple[str, str]:
    return _letters(row["goal"], [row["sol1"], row["sol2"]]), " " + {"0": "A", "1": "B"}[str(row["label"])]


def _siqa(row: dict[str, Any]) -> tuple[str, str]:
    question = f"{row['context']} {row['question']}"
    return _letters(question, [row[f"answer{letter}"] for letter in "ABC"]), " " + {"1": "A", "2": "B", "3": "C"}[
        str(row["label"])
    ]


PARQUET = "refs/convert/parquet"

TASKS = {
    task.name: task
    for task in (
        Task("gsm8k", "openai/gsm8k", "main", "test", _gsm8k, ("question", "answer"), numeric=True),
        Task("csqa", "tau/commonsense_qa", None, "validation", _csqa, ("question", "answerKey")),
        Task("piqa", "ybisk/piqa", None, "validation", _piqa, ("goal", "sol1", "sol2", "label"), revision=PARQUET),
        Task(
            "siqa",
            "allenai/social_i_qa",
            None,
            "validation",
            _siqa,
            ("context", "question", "answerA", "answerB", "answerC", "label"),
            revision=PARQUET,
        ),
    )
}


def find_task(name: str, otherwise: str = "") -> Task:
    """Return the task of that name.

    Raises:
        SettingsError: it does not exist; the message ends with `otherwise`.
    """
    if name not in TASKS:
        raise SettingsError(f"unknown task {name!r}; choose from {', '.join(TASKS)}{otherwise}")
    return TASKS[name]


def parse_data(pairs: list[str], option: str = "data") -> dict[str, str]:
    """Parse `gsm8k=PATH csqa=PATH`, the values of an option, into task -> path.

    Raises:
        SettingsError: a pair is malformed, or its task is unknown.
    """
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise SettingsError(f"{option} is {pair!r}; give a task and a file, such as gsm8k=test.jsonl")
        found[find_task(name).name] = path
    return found


def load_items(
    task: Task, path: str | None = None, limit: int | None = None, option: str = "--data {}=FILE"
) -> list[Item]:
    """Load the first `limit` items of a task, from a local file or from the hub.

    `option` is how to name a file, for a message.

    Raises:
        DataError: the file cannot be read, or has an invalid row.
        MissingExtraError: the hub or a Parquet file is to be read, but datasets is not installed.
    """
    rows = _from_hub(task, option) if path is None else _from_file(task, Path(path).expanduser())
    items = []
    for index, row in enumerate(rows):
        if limit is not None and index == limit:
            break
        where = f"row {index + 1} of {path or task.path}"
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}; give one object per row, as in {task.name}")
        if missing := [column for column in task.columns if column not in row]:
            raise DataError(
                f"{where} has no column {', '.join(missing)} (it has {', '.join(map(shown, row))}); give {task.name} "
                f"with {', '.join(task.columns)}"
            )
        try:
            question, answer = task.read(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} is not a valid {task.name} item: {reason(error)}; fix the file") from error
        if not isinstance(question, str):
            raise DataError(f"{where} is not a valid {task.name} item: its question is {shown(question)}, not text")
        if not question.strip() or not answer.strip():
            raise DataError(f"{where} has an empty question or answer; remove it")
        if half_character(question + answer) is not None:
            raise DataError(f"{where} is not valid Unicode; fix or remove it")
        items.append(Item(index=index, question=question, answer=answer))
    if not items:
        raise DataError(f"{path or task.path} has no items; give a file of {task.name} with at least one")
    return items


def _from_file(task: Task, path: Path) -> Iterator[Any]:
    if path.is_dir():
        names = [f"{task.split}{ending}{packed}" for ending in FILES for packed in ("", *COMPRESSED)]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise DataError(f"folder {path} has no {task.split} file ({', '.join(FILES)}); give the file itself")
        path = found[0]
    if not path.is_file():
        raise DataError(f"file {path} does not exist; give a file of {task.name} ({', '.join(FILES)})")
    kind = kind_of(path)
    if kind not in FILES or (kind == ".parquet" and path.suffix.lower() != kind):
        raise DataError(f"{path} has an unknown suffix; give a file with one of {', '.join(FILES)}")
    if kind == ".parquet":
        datasets = _datasets()
        try:
            # the loader interprets a path as a glob pattern
            yield from as_stored(datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train"))
        except Exception as error:
            why = first_line(error.__cause__ or error)
            raise DataError(f"{path} is not a valid Parquet file: {why}; give another file") from error
        return
    yield from (value for _, value in json_values(path))


def _from_hub(task: Task, option: str) -> Any:
    datasets = _datasets()
    try:
        return as_stored(datasets.load_dataset(task.path, task.config, split=task.split, revision=task.revision))
    except Exception as error:
        raise DataError(
            f"{task.name} cannot be loaded from the hub ({task.path}): {first_line(error)}; give a local "
            f"file instead: {option.format(task.name)}"
        ) from error


def _datasets() -> ModuleType:
    return need("datasets", "data", "tasks from the hub or from Parquet files")

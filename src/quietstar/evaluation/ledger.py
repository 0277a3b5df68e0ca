"""Answers to questions in a file, written to disk one by one, so that a killed run can resume."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quietstar.errors import CheckpointError
from quietstar.runs.folders import write_whole
from quietstar.runs.processes import ALONE, Processes

LINE: dict[str, Any] = {
    "index": int,
    "item": str,
    "gold": str,
    "answer": str | None,
    "right": bool,
    "votes": list,
    "texts": list,
    "seconds": int | float,
}
"""fields of a line, and their types"""
_LINE_BEGINS = b'{"index": '


class Ledger:
    """Finished answers, one JSON line each, on disk before the next question is asked.

    Lines that the file already has are kept. If there are several processes, each must open the ledger, and writes to
    its own file NAME.rank-N.jsonl. These are merged into NAME.jsonl when all are done, or when the ledger is opened
    again.
    """

    def __init__(self, path: Path, processes: Processes = ALONE) -> None:
        self.path = path
        self.processes = processes
        self.answers: dict[int, dict[str, Any]] = {}
        """question's index -> its line"""
        if self.processes.is_first:
            for file in (path, *self._parts()):
                self.answers |= {answer["index"]: answer for answer in self._read(file)}
            self._merge()
        self.answers = self.processes.of_first(self.answers)

    @property
    def own_path(self) -> Path:
        """The file to which this process writes."""
        rank, n = self.processes.rank, self.processes.n
        return self.path if n == 1 else self.path.with_name(f"{self.path.stem}.rank-{rank}{self.path.suffix}")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.rank-*{self.path.suffix}"))

    def _merge(self) -> None:
        if parts := self._parts():
            write_whole(self.path, "".join(_line(self.answers[index]) for index in sorted(self.answers)))
        for path in parts:
            path.unlink()

    def gather(self) -> None:
        """Give every process the answers of all, and merge the files; every process must call this."""
        for answers in self.processes.gathered(self.answers):
            self.answers |= answers
        if self.processes.is_first:
            self._merge()

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the answers in a file, then remove an incomplete last line, which a killed run leaves behind.

        Raises:
            CheckpointError: a line is not an answer.
        """
        if not path.is_file():
            return
        *lines, last = path.read_bytes().split(b"\n")
        is_incomplete = _LINE_BEGINS.startswith(last[: len(_LINE_BEGINS)]) and not _is_json(last)
        for number, line in enumerate([*lines, *([last] if last and not is_incomplete else [])], start=1):
            try:
                answer = json.loads(line)
                if wrong := [name for name, kind in LINE.items() if not isinstance(answer[name], kind)]:
                    raise TypeError(*wrong)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise CheckpointError(f"line {number} of {path} is not an answer; delete that file") from error
            yield answer
        if last:
            with path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines))
                if not is_incomplete:
                    file.seek(0, os.SEEK_END)
                    file.write(last + b"\n")

    def add(self, answer: dict[str, Any]) -> None:
        """Write an answer and flush it to disk."""
        with self.own_path.open("ab") as file:
            file.write(_line(answer).encode())
            file.flush()
            os.fsync(file.fileno())
        self.answers[answer["index"]] = answer


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _line(answer: dict[str, Any]) -> str:
    return json.dumps(answer, ensure_ascii=False) + "\n"

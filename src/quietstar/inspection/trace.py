"""A trace: what was thought at each position of a text, what it did, and what other thoughts would have done."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from quietstar.errors import DataError, SettingsError, first_line, need
from quietstar.inspection import schema
from quietstar.inspection.findings import Summary
from quietstar.inspection.summary import summarize
from quietstar.reporting.tables import finite
from quietstar.runs.folders import MARKER, claim, versions

if TYPE_CHECKING:
    import pandas

FORMATS = ("jsonl", "parquet")
STEM = "trace"
"""name of a trace's file, before its format"""


@dataclass
class Trace:
    """Records of positions, column by column; see `quietstar.inspection.schema`."""

    columns: dict[str, list[Any]]
    """values by column, one for each position"""
    labels: dict[str, str]
    """what each intervention is, in words, by its name"""
    model: str
    """what it was called"""
    settings: dict[str, Any] = field(default_factory=dict)
    """how it was made"""
    versions: dict[str, str] = field(default_factory=versions)
    """of what its figures depend on"""
    made: str = ""
    """when"""
    is_own: bool = False
    """whether the model wrote the text, which then follows by its own predictions"""

    def __len__(self) -> int:
        return len(self.columns["row"])

    def __repr__(self) -> str:
        n = sum(self.columns["thought"])
        return f"Trace of {self.model}: {len(self)} positions, {n} thoughts\n" + "\n".join(self.summary.sentences)

    def _repr_html_(self) -> str:
        """In a notebook: the report, in a frame of its own."""
        document = html.escape(self.html(), quote=True)
        style = "width:100%;height:720px;border:0"
        return f'<iframe srcdoc="{document}" sandbox="allow-scripts allow-downloads" style="{style}"></iframe>'

    @cached_property
    def summary(self) -> Summary:
        """Whether the thoughts matter."""
        return summarize(self.columns, self.labels, is_own=self.is_own)

    def records(self) -> Iterator[dict[str, Any]]:
        """Position by position."""
        names = list(self.columns)
        return (dict(zip(names, values, strict=True)) for values in zip(*self.columns.values(), strict=True))

    def to_pandas(self) -> "pandas.DataFrame":
        """A table with a row for each position.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return need("pandas", "inspect", "a trace as a table").DataFrame(self.columns)

    def html(self) -> str:
        """The report: one HTML document that needs nothing else."""
        from quietstar.inspection.payload import payload_of
        from quietstar.inspection.report import report_html

        return report_html(payload_of(self))

    def write(self, folder: str | Path, format: str = "jsonl", *, overwrite: bool = False) -> Path:
        """Write the trace into a folder, for `load`.

        Args:
            folder: a new or an empty one; it is made.
            format: of the records: jsonl (one in each line) or parquet.
            overwrite: empty a folder that holds a trace or another run of ours.

        Returns:
            the records' file.

        Raises:
            SettingsError: there is no such format, or the folder cannot be made or holds something.
            MissingExtraError: Parquet is wanted and pyarrow is not installed.
        """
        check_format(format)
        return self.write_records(claim(folder, self.about, overwrite=overwrite), format)

    def write_records(self, folder: Path, format: str) -> Path:
        """Write the records alone into a folder that is ours already; the file."""
        path = folder / f"{STEM}.{format}"
        if format == "parquet":
            _write_parquet(self.columns, path)
        else:
            with path.open("w", encoding="utf-8") as file:
                for record in self.records():
                    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Trace":
        """Read the trace of a folder that `quietstar inspect` wrote.

        Raises:
            DataError: there is none, or it is none.
            MissingExtraError: it is Parquet and pyarrow is not installed.
        """
        folder = Path(folder)
        found = [path for name in FORMATS if (path := folder / f"{STEM}.{name}").is_file()]
        if len(found) != 1:
            held = "both" if found else "neither"
            raise DataError(
                f"{folder} holds {held} of {STEM}.jsonl and {STEM}.parquet; give a folder of quietstar inspect"
            )
        path = found[0]
        columns = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        columns = schema.with_later_columns(columns)
        schema.check(columns, str(path))
        about = _read_about(folder / MARKER)
        labels = {name: str(about.get("labels", {}).get(name, name)) for name in schema.interventions_in(list(columns))}
        return cls(
            columns=columns,
            labels=labels,
            model=str(about.get("model", folder.name)),
            settings=about.get("settings", {}),
            versions=about.get("versions", {}),
            made=str(about.get("made", "")),
            is_own=about.get("is_own") is True,
        )

    @property
    def about(self) -> dict[str, Any]:
        """What stands in run.json beside the records."""
        return {name: getattr(self, name) for name in ("model", "made", "settings", "labels", "versions", "is_own")}


def check_format(format: str) -> None:
    """Raise where records cannot be written so."""
    if format not in FORMATS:
        raise SettingsError(f"format is {format!r}; choose from {', '.join(FORMATS)}")
    if format == "parquet":
        need_parquet()


def need_parquet() -> ModuleType:
    """pyarrow, or MissingExtraError."""
    return need("pyarrow.parquet", "inspect", "traces as Parquet")


def _write_parquet(columns: dict[str, list[Any]], path: Path) -> None:
    arrow = need_parquet()
    types = {"int": arrow.int64(), "float": arrow.float64(), "bool": arrow.bool_(), "text": arrow.string()}
    types |= {f"{name}s": arrow.list_(types[name]) for name in ("int", "float", "text")}
    fields = [
        arrow.field(name, types[column.type], nullable=column.optional)
        for name, column in schema.schema_of(schema.interventions_in(list(columns))).items()
    ]
    arrow.parquet.write_table(arrow.table(columns, schema=arrow.schema(fields)), path)


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    arrow = need_parquet()
    try:
        return arrow.parquet.read_table(path).to_pydict()
    except Exception as error:  # pyarrow raises many: at times outside of Python's calendar, say
        raise DataError(f"{path} is no Parquet file of a trace: {first_line(error)}") from error


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; give a file of quietstar inspect") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {path} is no JSON: {error}") from error
        if not isinstance(record, dict) or (columns and record.keys() != columns.keys()):
            raise DataError(f"line {number} of {path} is no record like those before it; give a file as it was written")
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return columns


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = finite(json.loads(path.read_text(encoding="utf-8")))
        json.dumps(about, ensure_ascii=False).encode()  # raises at halves of characters
    except (OSError, ValueError, RecursionError):
        return {}  # the records alone are a trace
    parts = ("settings", "labels", "versions")
    if not isinstance(about, dict) or not all(isinstance(about.get(name, {}), dict) for name in parts):
        return {}
    return about

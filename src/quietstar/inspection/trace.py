"""A trace: the thoughts at each position of a text, their effects, and the effects of interventions."""

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
"""stem of a trace's file name"""


@dataclass
class Trace:
    """What a model thought at each position of some texts; docs/inspection.md has the columns of its records."""

    columns: dict[str, list[Any]]
    """values by column, one for each position"""
    labels: dict[str, str]
    """description of each intervention, by name"""
    model: str
    """name of the model"""
    settings: dict[str, Any] = field(default_factory=dict)
    """settings of the trace"""
    versions: dict[str, str] = field(default_factory=versions)
    """versions of the packages that its figures depend on"""
    made: str = ""
    """when it was made"""
    is_own: bool = False
    """whether the model generated the text, which then agrees with its own predictions"""

    def __len__(self) -> int:
        return len(self.columns["row"])

    def __repr__(self) -> str:
        n = sum(self.columns["thought"])
        return f"Trace of {self.model}: {len(self)} positions, {n} thoughts\n" + "\n".join(self.summary.sentences)

    def _repr_html_(self) -> str:
        """Return the report in a frame, for a notebook."""
        document = html.escape(self.html(), quote=True)
        style = "width:100%;height:720px;border:0"
        return f'<iframe srcdoc="{document}" sandbox="allow-scripts allow-downloads" style="{style}"></iframe>'

    @cached_property
    def summary(self) -> Summary:
        """Effects of the thoughts and of interventions."""
        return summarize(self.columns, self.labels, is_own=self.is_own)

    def records(self) -> Iterator[dict[str, Any]]:
        """Iterate over the records of positions: dictionaries of column -> value."""
        names = list(self.columns)
        return (dict(zip(names, values, strict=True)) for values in zip(*self.columns.values(), strict=True))

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each position.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return need("pandas", "inspect", "a trace as a table").DataFrame(self.columns)

    def html(self) -> str:
        """Return the report as one self-contained HTML document."""
        from quietstar.inspection.payload import payload_of
        from quietstar.inspection.report import report_html

        return report_html(payload_of(self))

    def write(self, folder: str | Path, format: str = "jsonl", *, overwrite: bool = False) -> Path:
        """Write the trace into a new or empty folder, for `load`, and return the path of the records.

        The format is jsonl (one record on each line) or parquet. `overwrite` empties a folder that contains a trace or
        another run of quietstar.

        Raises:
            SettingsError: the format is unknown, or the folder cannot be created or is not empty.
            MissingExtraError: Parquet is requested and pyarrow is not installed.
        """
        check_format(format)
        return self.write_records(claim(folder, self.about, overwrite=overwrite), format)

    def write_records(self, folder: Path, format: str) -> Path:
        """Write only the records, into a folder that is claimed already, and return their path."""
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
            DataError: the folder has no valid trace.
            MissingExtraError: it is Parquet and pyarrow is not installed.
        """
        folder = Path(folder)
        paths = [path for name in FORMATS if (path := folder / f"{STEM}.{name}").is_file()]
        if len(paths) != 1:
            raise DataError(
                f"{folder} has {'both' if paths else 'neither'} of {STEM}.jsonl and {STEM}.parquet; give a folder of "
                "quietstar inspect"
            )
        path = paths[0]
        columns = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
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
        """The contents of run.json, next to the records."""
        return {name: getattr(self, name) for name in ("model", "made", "settings", "labels", "versions", "is_own")}


def check_format(format: str) -> None:
    """Raise SettingsError or MissingExtraError if records cannot be written in a format."""
    if format not in FORMATS:
        raise SettingsError(f"format is {format!r}; choose from {', '.join(FORMATS)}")
    if format == "parquet":
        need_parquet()


def need_parquet() -> ModuleType:
    """Return pyarrow, or raise MissingExtraError."""
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
    except Exception as error:  # pyarrow raises many kinds, for example for dates outside Python's calendar
        raise DataError(f"{path} is not a Parquet file of a trace: {first_line(error)}") from error


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
            raise DataError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(record, dict) or (columns and record.keys() != columns.keys()):
            raise DataError(f"line {number} of {path} has other keys than those before it; give an unmodified file")
        for name, value in record.items():
            columns.setdefault(name, []).append(value)
    return columns


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about = finite(json.loads(path.read_text(encoding="utf-8")))
        json.dumps(about, ensure_ascii=False).encode()  # raises on lone surrogates
    except (OSError, ValueError, RecursionError):
        return {}  # records without run.json are a trace too
    parts = ("settings", "labels", "versions")
    if not isinstance(about, dict) or not all(isinstance(about.get(name, {}), dict) for name in parts):
        return {}
    return about

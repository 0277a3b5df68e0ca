"""Texts to learn from: rows of a hub dataset or of local files, turned into a single column of strings.

Everything that a user can get wrong about data is said here in one line. What becomes of the texts (tokens,
windows, batches) is in `data`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from quietstar.errors import DataError, QuietStarError
from quietstar.extras import need
from quietstar.rows import as_stored
from quietstar.training.shards import TextShards
from quietstar.training.template import fill_template, template_columns

if TYPE_CHECKING:
    from datasets import Dataset

    from quietstar.training.data import DataArguments

LOADERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Extensions of local files, and the loader of the datasets library that reads each."""

BESIDE_DATA = ("", ".md")
"""Extensions that a folder of data may hold besides: README.md, LICENSE."""

NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "requests", "urllib3", "aiohttp", "fsspec")
LOCAL_WAY = "pass local files instead: --dataset FILE_OR_FOLDER (.txt, .jsonl, .json, .parquet)"


def load_texts(args: DataArguments, seed: int) -> tuple[Dataset | TextShards, Dataset | None]:
    """Load the texts to train on and those to evaluate on.

    Of a dataset in memory or on disk, the held-out rows are drawn by `seed`; of a stream, they are its first
    rows. Either way no row is in both.

    Args:
        args: what to load.
        seed: decides which rows are held out.

    Returns:
        The training texts and the held-out ones (None for `eval_size` 0), each with the single column "text",
        whose values are strings or None. A stream's come as TextShards.

    Raises:
        DataError: the texts cannot be had as asked for.
        MissingExtraError: the datasets library is not installed.
    """
    texts = _texts_of(args.dataset, args.split, args.dataset_config, args)
    streamed = is_stream(texts)
    if args.eval_dataset is not None:
        config = args.dataset_config if args.eval_dataset == args.dataset else None
        split = args.eval_split or ("train" if is_local(args.eval_dataset) else args.split)
        held_out = _texts_of(args.eval_dataset, split, config, args)
        if is_stream(held_out):
            held_out, _ = _first_texts(held_out, args.eval_size, args.eval_dataset)
            if not len(held_out):
                raise DataError("eval_size is 0 and the eval_dataset is streamed: pass the --eval_size to read")
        return TextShards(texts) if streamed else texts, held_out
    if args.eval_size == 0:
        return TextShards(texts) if streamed else texts, None
    if streamed:
        first, rest = _first_texts(texts, args.eval_size, args.dataset)
        with readable(args.dataset):
            n_left = sum(1 for _ in islice(rest, 1))
        _check_some_left(len(first) + n_left, args)
        return rest, first
    _check_some_left(len(texts), args)
    parts = texts.train_test_split(test_size=args.eval_size, shuffle=True, seed=seed)
    return parts["train"], parts["test"]


def is_stream(texts: Any) -> bool:
    """Whether `texts` is read as it goes: it has no length."""
    return not hasattr(texts, "__len__")


def is_local(name: str) -> bool:
    """Whether a `dataset` names files of this machine and not a dataset of the hub."""
    return (
        os.path.exists(os.path.expanduser(name))
        or any(wildcard in name for wildcard in "*?[")
        or name.lower().endswith(tuple(LOADERS))
        or name.startswith((".", "/", "~"))
    )


def find_files(name: str) -> tuple[str, list[str]]:
    """Find the files that a local `dataset` names.

    Args:
        name: a file, a folder (searched with the folders in it, hidden ones excepted) or a glob (`**` for any
            depth).

    Returns:
        The loader that reads them and their paths, sorted.

    Raises:
        DataError: there is no such path, or its files are not all of one extension that can be read.
    """
    path = Path(name).expanduser()
    allowed = f"of one extension among {', '.join(LOADERS)}"
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
        files = [file for file in files if file.suffix.lower() not in BESIDE_DATA]
        advice = f"pass a folder with files {allowed}, or a glob such as {os.path.join(name, '**', '*.jsonl')}"
    elif path.exists():
        files = [path]
        advice = f"pass a file {allowed}"
    else:
        files = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
        advice = f"pass a glob that matches files {allowed}"
        if not files:
            raise DataError(f"no file or folder is named, or matches, {name!r}: check the path")
    extensions = sorted({file.suffix.lower() for file in files})
    if len(extensions) != 1 or extensions[0] not in LOADERS:
        found = ", ".join(extension or "no extension" for extension in extensions) or "no data files"
        raise DataError(f"{name!r} holds {found}: {advice}")
    return LOADERS[extensions[0]], sorted(str(file.resolve()) for file in files)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _templated(row: Mapping[str, Any], template: str, source: str) -> dict[str, str | None]:
    return {"text": fill_template(template, row, source)}


def _picked(row: Mapping[str, Any], column: str, source: str) -> dict[str, str | None]:
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"column {column!r} of {source!r} holds {type(value).__name__} in a row, not text: "
            "pass a column of strings as --text_column, or a --template"
        )
    return {"text": value}


def pick_column(wanted: str | None, columns: list[str], of_strings: list[str], source: str) -> str:
    """Choose the column that holds the text.

    Args:
        wanted: the `text_column` given, or None to choose "text", or else the only column of strings.
        columns: all columns there are.
        of_strings: those of them that hold strings.
        source: the dataset's name, for the message.

    Raises:
        DataError: there is no such column, or no one column to choose.
    """
    there_are = f"its columns are {', '.join(columns)}"
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{source!r} has no column {wanted!r}, {there_are}: pass one of them as --text_column")
        return wanted
    if "text" in columns:
        return "text"
    if len(of_strings) == 1:
        return of_strings[0]
    raise DataError(
        f"{source!r} has no column 'text' and not one single column of strings, {there_are}: "
        "pass one of them as --text_column, or a --template"
    )


def _texts_of(source: str, split: str, config: str | None, args: DataArguments) -> Any:
    """Load a dataset and reduce it to its column of texts."""
    with readable(source):
        rows = as_stored(_load_rows(source, split, config, args))
        features, columns = rows.features, rows.column_names
        # A stream may know its columns only once it is read.
        first = next(iter(rows), None) if not features else {}
        if first is None or (not is_stream(rows) and not len(rows)):
            raise _empty(source)
    if features:
        of_strings = [name for name in columns if getattr(features[name], "dtype", "") in ("string", "large_string")]
    else:
        columns = list(first)
        of_strings = [name for name, value in first.items() if isinstance(value, str)]
    if args.template is not None:
        missing = [name for name in template_columns(args.template) if name not in columns]
        if missing:
            raise DataError(
                f"template {args.template!r} names {', '.join(missing)}, which {source!r} does not have: "
                f"its columns are {', '.join(columns)}"
            )
        to_text: Any = partial(_templated, template=args.template, source=source)
    else:
        column = pick_column(args.text_column, columns, of_strings, source)
        if not is_stream(rows) and column in of_strings:
            rows = rows.select_columns([column])
            return rows if column == "text" else rows.rename_column(column, "text")
        to_text = partial(_picked, column=column, source=source)
    text = _datasets().Features({"text": _datasets().Value("string")})
    if is_stream(rows):
        # A later file of a stream may bring columns that the first does not have: they go as well.
        return rows.map(to_text, remove_columns=columns).select_columns(["text"])
    with readable(source):
        return rows.map(to_text, remove_columns=columns, features=text)


def _load_rows(source: str, split: str, config: str | None, args: DataArguments) -> Any:
    load_dataset = _datasets().load_dataset
    streaming = args.streaming if args.streaming is not None else not is_local(source)
    if not is_local(source):
        return load_dataset(source, config, split=split, streaming=streaming)
    if config is not None:
        raise DataError(f"dataset_config is {config!r} and {source!r} is local: leave --dataset_config out")
    if split.split("[")[0] != "train":
        raise DataError(
            f"split {split!r} of {source!r} is unknown: local files have the split 'train' only, "
            "pass the files of another split as --dataset and leave --split out"
        )
    loader, files = find_files(source)
    options = {"sample_by": args.sample_by} if loader == "text" else {}
    # The loader takes paths as patterns, and would not find a file with a bracket in its name.
    patterns = [glob.escape(file) for file in files]
    return load_dataset(loader, data_files=patterns, split=split, streaming=streaming, **options)


def _first_texts(texts: Any, n: int, source: str) -> tuple[Any, TextShards]:
    """The first `n` texts of a stream, as a dataset in memory, and the stream without them."""
    datasets = _datasets()
    with readable(source):
        read, rest = TextShards(texts).hold_out(n)
    features = datasets.Features({"text": datasets.Value("string")})
    return datasets.Dataset.from_dict({"text": read}, features=features), rest


def _check_some_left(n_texts: int, args: DataArguments) -> None:
    if n_texts == 0:
        raise _empty(args.dataset)
    if n_texts <= args.eval_size:
        raise DataError(
            f"{args.dataset!r} gives {n_texts} texts and {args.eval_size} are to be held out, none is left "
            f"to train on: pass an --eval_size below {n_texts}, or 0"
        )


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Say in one line of DataError why `source` cannot be read, whatever the libraries below raise."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        raise _read_error(source, error) from error


def _read_error(source: str, error: Exception) -> DataError:
    cause = error.__cause__ or error
    message = str(error)
    if isinstance(error, StopIteration) or "SchemaInference" in type(cause).__name__ or "no data" in message:
        return _empty(source)
    if type(error) is ValueError and "split" in message.lower():
        slices = " (a slice needs --streaming false)" if "[" in message.split("Available")[0] else ""
        return DataError(
            f"{source!r} does not have the split asked for, pass another --split{slices}: {_one_line(error)}"
        )
    if type(error) is ValueError and "config" in message.lower():
        return DataError(f"{source!r} needs a --dataset_config: {_one_line(error)}")
    if is_local(source):
        return DataError(
            f"{source!r} cannot be read ({_one_line(cause)}): check that each file is what its extension "
            "says, in UTF-8, and that all have the same columns"
        )
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK_LIBRARIES:
        return DataError(
            f"dataset {source!r} is no local path, and the hub could not be reached or has no such dataset "
            f"({_one_line(error)}): check the name and the network, or {LOCAL_WAY}"
        )
    return DataError(f"dataset {source!r} of the hub cannot be read ({_one_line(cause)}): {LOCAL_WAY}")


def _empty(source: str) -> DataError:
    return DataError(f"{source!r} is empty: pass a --dataset with at least one row of text")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _datasets() -> ModuleType:
    return need("datasets", "data", "reading texts from the hub or from files")

"""Loading of texts: rows of a hub dataset or of local files, reduced to a single column of strings.

Every error in the user's data becomes a one-line message here. `windows` and `stream` cut texts into sequences.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from quietstar.errors import DataError, QuietStarError, reason
from quietstar.text.rows import as_stored
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.columns import Columns, TextOf, pick_column
from quietstar.training.data.files import LOADERS, find_files, is_local
from quietstar.training.data.local import datasets_library, load_files, look_at
from quietstar.training.data.template import template_columns
from quietstar.training.data.text_files import TextFiles, column_of, each_text

if TYPE_CHECKING:
    from datasets import Dataset


NETWORK_LIBRARIES = ("huggingface_hub", "httpx", "requests", "urllib3", "aiohttp", "fsspec")
LOCAL_WAY = f"pass local files instead: --dataset FILE_OR_FOLDER ({', '.join(LOADERS)})"


def load_texts(args: DataArguments, seed: int) -> tuple[Dataset | TextFiles, Dataset | None]:
    """Load the texts to train on and those to evaluate on.

    The held-out rows of a dataset in memory or on disk are sampled by `seed`; those of a stream are its first rows. No
    row is in both.

    Returns:
        The training texts and the held-out ones (None for `eval_size` 0), each with the single column "text" of strings
        or None, or "messages" of conversations in JSON. A stream is returned as TextFiles.

    Raises:
        DataError: the texts cannot be loaded.
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
                raise DataError("eval_size is 0, but the eval_dataset is streamed; give the number of texts to read")
        return TextFiles(texts) if streamed else texts, held_out
    if args.eval_size == 0:
        return TextFiles(texts) if streamed else texts, None
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
    """Return whether `texts` is a stream, which has no length."""
    return not hasattr(texts, "__len__")


def _texts_of(source: str, split: str, config: str | None, args: DataArguments) -> Any:
    """Return a dataset of only its text column; unless it is a stream, some text must not be None."""
    texts = _column_of_texts(source, split, config, args)
    is_whole = not is_stream(texts) and len(texts) > 0
    if args.template is not None and is_whole and all(text is None for text in each_text(texts)):
        raise DataError(f"no row of {source!r} has all values of template {args.template!r}: check the names in it")
    return texts


def _column_of_texts(source: str, split: str, config: str | None, args: DataArguments) -> Any:
    if not is_local(source):
        streaming = args.streaming is not False
        with readable(source):
            rows = datasets_library().load_dataset(source, config, split=split, streaming=streaming)
        return _texts_of_rows(rows, source, args)
    if config is not None:
        raise DataError(f"dataset_config is {config!r}, but {source!r} is local: leave --dataset_config out")
    if split.split("[")[0] != "train":
        raise DataError(
            f"split {split!r} of {source!r} is unknown: local files only have the split 'train'; give the files of "
            "another split as --dataset and leave --split out"
        )
    loader, files = find_files(source)
    streaming = bool(args.streaming)
    if loader == "parquet":
        # the loader takes paths as patterns, so brackets in names must be escaped
        patterns = [glob.escape(file) for file in files]
        with readable(source):
            rows = datasets_library().load_dataset(loader, data_files=patterns, split=split, streaming=streaming)
        return _texts_of_rows(rows, source, args)
    datasets_library()  # fail before long work
    wanted = [] if args.text_column is None else [args.text_column]
    if args.template is not None:
        wanted = template_columns(args.template)
    with readable(source):
        columns = look_at(files, loader, args.sample_by, wanted, at_all=not streaming)
        if columns is None:
            raise _empty(source)
        to_text = _text_of(columns, source, args)
        return load_files(files, loader, args.sample_by, to_text, split, streaming=streaming, source=source)


def _text_of(columns: Columns, source: str, args: DataArguments) -> TextOf:
    """Return the function from a row to its text; DataError if its column does not exist or is not unique."""
    if args.template is None:
        column = pick_column(args.text_column, columns, source)
        return TextOf(column=column, holds_messages=column in columns.of_lists)
    missing = [name for name in template_columns(args.template) if name not in columns.names]
    if missing:
        raise DataError(
            f"template {args.template!r} names {', '.join(missing)}, which {source!r} does not have: use its columns, "
            f"{', '.join(columns.names)}"
        )
    return TextOf(template=args.template)


def _texts_of_rows(rows: Any, source: str, args: DataArguments) -> Any:
    """Return rows from the datasets library with only their text column."""
    with readable(source):
        rows = as_stored(rows)
        first = next(iter(rows), None)
    if first is None:
        raise _empty(source)
    # a stream may know its columns only after reading begins
    columns = _columns_of(rows, first)
    to_text = _text_of(columns, source, args)
    if args.template is None and not is_stream(rows) and to_text.column in columns.of_strings:
        rows = rows.select_columns([to_text.column])
        return rows if to_text.column == "text" else rows.rename_column(to_text.column, "text")
    made = partial(_in_column, to_text=to_text, source=source)
    features = datasets_library().Features({to_text.name: datasets_library().Value("string")})
    if is_stream(rows):
        # later files of a stream may have more columns than the first; drop them as well
        known = features if to_text.holds_messages else None  # tells `column_of` the column
        return rows.map(made, remove_columns=columns.names, features=known).select_columns([to_text.name])
    with readable(source):
        return rows.map(made, remove_columns=columns.names, features=features)


def _columns_of(rows: Any, first: Mapping[str, Any]) -> Columns:
    """Return the columns of a dataset from its features, or from its first row if it has none."""
    if not rows.features:
        return Columns.of({name: {type(value)} for name, value in first.items()})
    dtypes = {name: getattr(feature, "dtype", "") for name, feature in rows.features.items()}
    of_strings = [name for name, dtype in dtypes.items() if dtype in ("string", "large_string")]
    of_lists = [name for name in dtypes if isinstance(first[name], list)]
    return Columns(list(rows.column_names), of_strings, of_lists)


def _in_column(row: Mapping[str, Any], to_text: TextOf, source: str) -> dict[str, str | None]:
    return {to_text.name: to_text(row, source)}


def _first_texts(texts: Any, n: int, source: str) -> tuple[Any, TextFiles]:
    """Return the first `n` texts of a stream as a dataset in memory, and the stream without them."""
    datasets = datasets_library()
    with readable(source):
        read, rest = TextFiles(texts).hold_out(n)
    name = column_of(texts)
    features = datasets.Features({name: datasets.Value("string")})
    return datasets.Dataset.from_dict({name: read}, features=features), rest


def _check_some_left(n_texts: int, args: DataArguments) -> None:
    if n_texts == 0:
        raise _empty(args.dataset)
    if n_texts <= args.eval_size:
        raise DataError(
            f"{args.dataset!r} has {n_texts} texts, and holding out {args.eval_size} leaves none to train on; give an "
            f"--eval_size below {n_texts}, or 0"
        )


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn whatever the libraries raise while reading `source` into a one-line DataError."""
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:
        if isinstance(error.__cause__, QuietStarError):  # wrapped by the datasets library
            raise error.__cause__ from error
        raise _read_error(source, error) from error


def _read_error(source: str, error: Exception) -> DataError:
    cause = error.__cause__ or error
    message = str(error)
    if isinstance(error, StopIteration) or "SchemaInference" in type(cause).__name__ or "no data" in message:
        return _empty(source)
    if type(error) is ValueError and "split" in message.lower():
        slices = " (a slice needs --streaming false)" if "[" in message.split("Available")[0] else ""
        return DataError(f"{source!r} does not have this split; give another --split{slices}: {reason(error)}")
    if type(error) is ValueError and "config" in message.lower():
        return DataError(f"{source!r} needs a --dataset_config: {reason(error)}")
    if is_local(source):
        return DataError(
            f"{source!r} cannot be read ({reason(cause)}): check that each file has the format of its extension, in "
            "UTF-8, and that all have the same columns"
        )
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK_LIBRARIES:
        return DataError(
            f"dataset {source!r} is not a local path, and the hub cannot be reached or does not have it "
            f"({reason(error)}): check the name and the network, or {LOCAL_WAY}"
        )
    return DataError(f"dataset {source!r} on the hub cannot be read ({reason(cause)}): {LOCAL_WAY}")


def _empty(source: str) -> DataError:
    return DataError(f"{source!r} is empty; give a --dataset with at least one row of text")

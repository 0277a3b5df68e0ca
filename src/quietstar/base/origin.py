"""What a model was made of, and under which licence: from its card, or from the header of its GGUF file."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import validate_repo_id

from quietstar.base.gguf.header import read_header
from quietstar.base.sources import find_source

CARD = "README.md"
"""file with the card of a model"""
OURS = "<!-- Written by quietstar. Remove this line, and the next run leaves the card as it is. -->"
"""a line of cards that this package wrote, and may write again"""


@dataclass(frozen=True)
class Origin:
    """The model that a model was made of."""

    name: str
    on_hub: str | None = None
    """its name on a hub, if it is known"""
    license: str | None = None
    """as the hub names it"""
    license_name: str | None = None
    """of a licence that the hub has no name for, which is "other" there"""


def origin_of(name: str) -> Origin:
    """Return what is known of a model by its folder, hub name or GGUF file; nothing of it stops a run.

    A model that this package made was made of the one that its card names.
    """
    with suppress(Exception):
        if name:
            return _origin_of(name)
    return Origin(Path(name).name or "a model without a name")


def _origin_of(name: str) -> Origin:
    source = find_source(name)
    if source.gguf_file:
        fields = read_header(source.file).fields
        return Origin(_title(fields.get("general.name", Path(name).stem)), license=_word(fields.get("general.license")))
    folder, on_hub = Path(name), None
    card = folder / CARD
    if not folder.exists():
        on_hub = hub_name(name)
        with suppress(Exception):  # offline, for instance
            card = Path(hf_hub_download(name, CARD))
    licence = named = None
    with suppress(Exception):  # no card, or one that cannot be read
        text = card.read_text(encoding="utf-8")
        fields = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
        on_hub = on_hub or (_word(fields.get("base_model")) if OURS in text else None)
        licence, named = (_word(fields.get(name)) for name in ("license", "license_name"))
    return Origin(on_hub or _title(folder.resolve().name), on_hub, licence, named)


def _word(value: object) -> str | None:
    """Return a field that should be one word, or None."""
    return _title(value) if isinstance(value, str) else None


def _title(value: object) -> str:
    return " ".join(str(value).split())


def hub_name(name: str) -> str | None:
    """Return a name if it can be one on a hub, and is no path."""
    if Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".parquet", ".txt", ".csv", ".gz", ".zst"):
        return None
    with suppress(ValueError):
        validate_repo_id(name)
        return name
    return None

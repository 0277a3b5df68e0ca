"""What a model was made of, and under which licence: from its card, or from the header of its GGUF file."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download
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


def origin_of(name: str) -> Origin:
    """Return what is known of a model by its folder, hub name or GGUF file.

    A model that this package made was made of the one that its card names.
    """
    source = find_source(name)
    if source.gguf_file:
        fields = read_header(source.file).fields
        title, licence = fields.get("general.name", Path(name).stem), fields.get("general.license")
        return Origin(str(title), license=licence and str(licence))
    folder, on_hub = Path(name), None
    card = folder / CARD
    if not folder.exists():
        on_hub = hub_name(name)
        with suppress(Exception):  # offline, for instance
            card = Path(hf_hub_download(name, CARD))
    with suppress(OSError, ValueError, yaml.YAMLError):  # no card, or one without valid fields
        found = ModelCard.load(card)
        on_hub = on_hub or (found.data.get("base_model") if OURS in found.text else None)
        return Origin(on_hub or folder.resolve().name, on_hub, found.data.get("license"))
    return Origin(on_hub or folder.resolve().name, on_hub)


def hub_name(name: str) -> str | None:
    """Return a name if it can be one on a hub, and is no path."""
    if Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".parquet", ".txt", ".csv"):
        return None
    with suppress(ValueError):
        validate_repo_id(name)
        return name
    return None

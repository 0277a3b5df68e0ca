"""The header of a GGUF file: its metadata, and the names, shapes and offsets of its tensors.

The file is untrusted. Every length in it is compared with the file's size before use; the readers that load the model
do not check this, and never finish on some damaged files.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quietstar.errors import CheckpointError, first_line, need, shown

VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
FLOAT32 = 0
"""type of a float32 tensor"""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""scalar types -> their codes in `struct`"""
MOST_DIMENSIONS = 4
ARCHITECTURE, N_PARTS, ALIGNMENT = "general.architecture", "split.count", "general.alignment"
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
TOKENIZER, PRE_TOKENIZER = "tokenizer.ggml.model", "tokenizer.ggml.pre"
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
ADD_BOS, CHAT_TEMPLATE = "tokenizer.ggml.add_bos_token", "tokenizer.chat_template"
KINDS = {
    **dict.fromkeys((ARCHITECTURE, TOKENIZER, PRE_TOKENIZER, CHAT_TEMPLATE), str),
    **dict.fromkeys((N_PARTS, ALIGNMENT, ADD_BOS), int),
    **dict.fromkeys((TOKENS, TOKEN_TYPES), list),
}
"""fields that are read here, and their Python types"""


@dataclass(frozen=True)
class GGUFHeader:
    """The metadata of a GGUF file, and the shapes of its tensors."""

    file: Path
    fields: Mapping[str, Any]
    """all metadata, by the names in the file"""
    shapes: Mapping[str, tuple[int, ...]]
    """shape of each tensor, as in the file: the fastest dimension first"""
    floats_at: Mapping[str, int]
    """byte at which each float32 tensor begins"""

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp."""
        return str(self.fields[ARCHITECTURE])

    @property
    def tokens(self) -> list[str]:
        """The string of each token id; empty if the file has no tokenizer."""
        return self.fields.get(TOKENS) or []

    def of_model(self, name: str) -> Any:
        """Return a field of the model's architecture, or None if the file does not have it."""
        return self.fields.get(f"{self.architecture}.{name}")

    def floats(self, name: str) -> Tensor | None:
        """Read a one-dimensional float32 tensor from the file, or return None if there is none of that name."""
        if name not in self.floats_at or len(shape := self.shapes[name]) != 1:
            return None
        with self.file.open("rb") as opened:
            opened.seek(self.floats_at[name])
            return torch.frombuffer(bytearray(opened.read(4 * shape[0])), dtype=torch.float32)

    @property
    def n_weights(self) -> int:
        """Total number of weights in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_header(file: str | Path) -> GGUFHeader:
    """Read the header of a GGUF file.

    Raises:
        CheckpointError: it cannot be read, is damaged or truncated, or is one part of several.
        MissingExtraError: the package gguf is not installed.
    """
    file = Path(file)
    sizes = need("gguf", "gguf", "models in GGUF files").GGML_QUANT_SIZES
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _read(file, _Cursor(data), {int(kind): size for kind, size in sizes.items()})
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read the GGUF file {file} ({first_line(error)}); download it again, or give another one"
        ) from error
    if (n_parts := header.fields.get(N_PARTS, 1)) != 1:
        raise CheckpointError(
            f"{file} is one of {shown(n_parts)} parts of a model; merge them with llama.cpp: llama-gguf-split --merge"
        )
    return header


class _Cursor:
    """A position in a file of little-endian values."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def advance(self, n_bytes: int) -> int:
        """Move past the next `n_bytes` bytes, and return where they begin."""
        begin = self.at
        if n_bytes > len(self.data) - begin:
            raise ValueError(f"the file ends at byte {len(self.data):,}, inside its header")
        self.at += n_bytes
        return begin

    def values(self, kind: str, n: int) -> tuple[Any, ...]:
        begin = self.advance(n * struct.calcsize(f"<{kind}"))
        return struct.unpack_from(f"<{n}{kind}", self.data, begin)

    def value(self, kind: str) -> Any:
        return self.values(kind, 1)[0]

    def string(self) -> str:
        n_bytes = self.value("Q")
        begin = self.advance(n_bytes)
        return self.data[begin : begin + n_bytes].decode()

    def field(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.value(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"a value has type {kind}, which does not exist")
        item_kind, n = self.value("I"), self.value("Q")
        if item_kind in SCALARS:
            return list(self.values(SCALARS[item_kind], n))
        if item_kind != STRING:
            raise ValueError(f"an array has values of type {item_kind}, which is not supported")
        return [self.string() for _ in range(n)]


def _read(file: Path, cursor: _Cursor, sizes: Mapping[int, tuple[int, int]]) -> GGUFHeader:
    """Read a header from its beginning; `sizes` has the numbers and the bytes of a block by tensor type."""
    magic, version = bytes(cursor.values("B", 4)), cursor.value("I")
    if magic != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    if version not in VERSIONS:
        raise ValueError(f"it has version {version}; supported are {VERSIONS[0]} and {VERSIONS[1]}")
    n_tensors, n_fields = cursor.values("Q", 2)
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.string()
        if name in fields:
            raise ValueError(f"it has {shown(name)} twice")
        fields[name] = cursor.field(cursor.value("I"))
    if ARCHITECTURE not in fields:
        raise ValueError(f"it has no {ARCHITECTURE}")
    for name, kind in KINDS.items():
        if name in fields and not isinstance(fields[name], kind):
            raise ValueError(f"its {name} is {shown(fields[name])}")
    if not all(isinstance(token, str) for token in fields.get(TOKENS, [])):
        raise ValueError(f"its {TOKENS} are not all strings")
    shapes: dict[str, tuple[int, ...]] = {}
    floats_at: dict[str, int] = {}
    n_bytes = 0  # in all tensors
    for _ in range(n_tensors):
        name, n_dimensions = cursor.string(), cursor.value("I")
        if name in shapes or n_dimensions > MOST_DIMENSIONS:
            raise ValueError(f"tensor {shown(name)} occurs twice, or has {n_dimensions} dimensions")
        shape = cursor.values("Q", n_dimensions)
        kind, begin = cursor.value("I"), cursor.value("Q")
        if kind not in sizes:
            raise ValueError(f"tensor {shown(name)} has type {kind}, which the package gguf does not know")
        block, block_bytes = sizes[kind]
        n_bytes = max(n_bytes, begin + math.prod(shape) // block * block_bytes)
        shapes[name] = shape
        if kind == FLOAT32:
            floats_at[name] = begin
    if (alignment := fields.get(ALIGNMENT, 32)) < 1:
        raise ValueError(f"its {ALIGNMENT} is {alignment}")
    begin = -(-cursor.at // alignment) * alignment
    if begin + n_bytes > len(cursor.data):
        raise ValueError(f"it has {len(cursor.data):,} bytes, but its tensors need {begin + n_bytes:,}")
    if not shapes:
        raise ValueError("it has no weights")
    return GGUFHeader(file, fields, shapes, {name: begin + at for name, at in floats_at.items()})

"""Whatever weights and their index hold, only our own errors come out, and no file outside the folder is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quietstar.base.untrusted import read_index
from quietstar.errors import CheckpointError
from tests.base.untrusted.models import LOADERS, VALUES
from tests.elsewhere import only_our_errors, refused

OUTSIDE = [
    "../base/model.safetensors",
    "../../../etc/passwd",
    "/etc/passwd",
    "a/../../b.safetensors",
    "..\\b.safetensors",
]
OUTSIDE += ["", ".", "..", "model.pkl", "\0.bin", "no-such-file.safetensors", "config.json"]


def as_shards(folder: Path) -> dict[str, Any]:
    """The weights of a folder in two files; their index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    return {"metadata": {"total_size": 0}, "weight_map": weight_map}


@pytest.fixture(scope="module")
def sharded(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All three folders with their weights in two files each, and the indexes of those."""
    where = Path(shutil.copytree(folders, tmp_path_factory.mktemp("sharded") / "models"))
    return where, {kind: as_shards(where / kind) for kind in LOADERS}


@pytest.mark.parametrize("kind", ["thinking", "base", "original"])
def test_whatever_an_index_says(sharded: tuple[Path, dict[str, Any]], kind: str) -> None:
    where, indexes = sharded
    file = where / kind / "model.safetensors.index.json"
    file.write_text(json.dumps(indexes[kind]))
    LOADERS[kind](file.parent)

    @given(data=st.data())
    @settings(max_examples=25)
    def search(data: st.DataObject) -> None:
        index = json.loads(json.dumps(indexes[kind]))
        part = data.draw(st.sampled_from([index, index["metadata"], index["weight_map"]]))
        name = data.draw(st.sampled_from([*part, "new", "lm_head.weight"]))
        part[name] = data.draw(st.sampled_from(OUTSIDE) | VALUES)
        file.write_text(json.dumps(index))
        only_our_errors(lambda: LOADERS[kind](file.parent))

    search()
    for text in ("", "[]", "{", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 20_000, '{"metadata": {}}'):
        file.write_text(text)
        refused(lambda: LOADERS[kind](file.parent))


@pytest.mark.parametrize("kind", ["thinking", "base", "original"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_stays_in_its_folder(sharded: tuple[Path, dict[str, Any]], kind: str, name: str) -> None:
    where, indexes = sharded
    file = where / kind / "model.safetensors.index.json"
    weight_map = indexes[kind]["weight_map"]
    one = next(tensor for tensor in weight_map if "embedding" in tensor or "embed_tokens" in tensor)
    file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | {one: name}}))
    refused(lambda: LOADERS[kind](file.parent), error=CheckpointError)
    if name != "no-such-file.safetensors":
        refused(lambda: read_index(file), "not a file of this folder", CheckpointError)


@pytest.mark.parametrize("kind", ["thinking", "base", "original"])
def test_whatever_is_in_the_weights(folders: Path, tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    whole = (folders / kind / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")

    @given(data=st.data())
    @settings(max_examples=25)
    def search(data: st.DataObject) -> None:
        content = bytearray(whole)
        if data.draw(st.booleans()):
            del content[data.draw(st.sampled_from([0, 1, 7, 8, 9, length - 1, length, len(content) - 1])) :]
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, length))  # in the header; the values of a tensor are not checked
            content[at : at + data.draw(st.integers(0, 3))] = data.draw(
                st.binary(max_size=3) | st.sampled_from([b"9" * 30])
            )
        folder = tmp_path_factory.mktemp("weights")
        (folder / "config.json").write_bytes((folders / kind / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(bytes(content))
        only_our_errors(lambda: LOADERS[kind](folder))

    search()

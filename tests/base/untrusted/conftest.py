"""Folders of models, to be spoilt."""

import shutil
from pathlib import Path

import pytest

from quietstar import QuietStarForCausalLM
from tests.base.untrusted.models import Copied
from tests.tiny_tokenizer import byte_tokenizer, thinking_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model in `base`, a thinking one in `thinking` and one of the released code in `original`."""
    where = thinking_folders(tmp_path_factory.mktemp("models"), n_ahead=4)
    QuietStarForCausalLM.from_pretrained(where / "thinking").save_original(where / "original", byte_tokenizer())
    return where


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Copied:
    """A copy of one of the folders, the same one when asked again."""

    def copy(name: str) -> Path:
        if not (tmp_path / name).exists():
            shutil.copytree(folders / name, tmp_path / name)
        return tmp_path / name

    return copy

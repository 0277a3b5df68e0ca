"""The notebooks run as they stand, offline, and are kept without outputs."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from quietstar.base.sources import find_source
from quietstar.errors import CheckpointError

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra: dev)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: dev)")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
SECONDS = 400
"""for a cell; a whole notebook takes under three minutes on two cores"""


def read(notebook: Path) -> Any:
    return nbformat.read(notebook, as_version=4)


def test_there_are_four() -> None:
    assert [notebook.name[0] for notebook in NOTEBOOKS] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(notebook: Path) -> None:
    cells = [cell for cell in read(notebook).cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_links_lead_somewhere(notebook: Path) -> None:
    text = "".join(cell.source for cell in read(notebook).cells if cell.cell_type == "markdown")
    for name in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert (notebook.parent / name).exists(), name


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "smollm2-135m" in notebook.read_text():
        try:
            find_source("smollm2-135m")
        except CheckpointError as error:
            pytest.skip(str(error))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    where = {"metadata": {"path": str(notebook.parent)}}
    nbclient.NotebookClient(read(notebook), timeout=SECONDS, resources=where).execute()

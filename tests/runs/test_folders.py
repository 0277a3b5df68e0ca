"""Nothing in a folder is overwritten without `--overwrite`."""

import json
from pathlib import Path

import pytest

from quietstar.errors import SettingsError
from quietstar.runs.folders import MARKER, check_output_folder, claim


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def a_run(tmp_path) -> Path:
    """A folder with a quietstar run."""
    folder = claim(tmp_path / "run", {"seed": 1})
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "weights").write_text("trained for days")
    return folder


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder with other files."""
    (tmp_path / "foreign" / "deep").mkdir(parents=True)
    (tmp_path / "foreign" / "deep" / "thesis.txt").write_text("years of work")
    return tmp_path / "foreign"


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_or_empty_folder_becomes_ours(tmp_path, there, overwrite):
    folder = tmp_path / "some" / "run"
    if there:
        folder.mkdir(parents=True)
    assert claim(str(folder), {"seed": 1, "path": Path("x")}, overwrite=overwrite) == folder
    assert list(contents(folder)) == [MARKER]
    assert json.loads((folder / MARKER).read_text()) == {"seed": 1, "path": "x"}


def test_a_run_is_left_alone(a_run):
    before = contents(a_run)
    for refuse in (lambda: claim(a_run, {"seed": 2}), lambda: check_output_folder(a_run)):
        with pytest.raises(SettingsError, match="already has a run; give another folder, or --overwrite"):
            refuse()
        assert contents(a_run) == before


def test_overwrite_empties_a_run(a_run):
    claim(a_run, {"seed": 2}, overwrite=True)
    assert contents(a_run) == {MARKER: json.dumps({"seed": 2}, indent=2) + "\n"}


def test_resume_keeps_all_and_writes_the_settings_anew(a_run):
    claim(a_run, {"seed": 2}, resume=True)
    assert contents(a_run)["checkpoint-3/weights"] == "trained for days"
    assert json.loads((a_run / MARKER).read_text()) == {"seed": 2}


@pytest.mark.parametrize("asked", [{}, {"overwrite": True}, {"resume": True}, {"overwrite": True, "resume": True}])
def test_foreign_files_are_always_left_alone(foreign, asked):
    before = contents(foreign)
    for refuse in (lambda: claim(foreign, {}, **asked), lambda: check_output_folder(foreign, **asked)):
        with pytest.raises(
            SettingsError,
            match=r"output_dir .*foreign (is not empty, and not created by quietstar|has no run to resume)",
        ):
            refuse()
        assert contents(foreign) == before


@pytest.mark.parametrize("asked", [{}, {"overwrite": True}, {"resume": True}])
def test_a_file_is_refused(tmp_path, asked):
    file = tmp_path / "run"
    file.write_text("years of work")
    for refuse in (lambda: claim(file, {}, **asked), lambda: check_output_folder(file, **asked)):
        with pytest.raises(SettingsError, match="is a file; give a folder"):
            refuse()
        assert file.read_text() == "years of work"


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_folder_cannot_be_resumed(tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(SettingsError, match="has no run to resume; leave that option out"):
        claim(folder, {}, resume=True)
    assert folder.exists() == there


@pytest.mark.parametrize("state", ["new", "empty", "run", "foreign"])
def test_asking_first_touches_nothing(tmp_path, a_run, foreign, state):
    folder = {"new": tmp_path / "new", "empty": tmp_path / "empty", "run": a_run, "foreign": foreign}[state]
    if state == "empty":
        folder.mkdir()
    before = sorted(tmp_path.rglob("*")), contents(tmp_path)
    for asked in ({}, {"overwrite": True}, {"resume": True}):
        try:
            check_output_folder(folder, **asked)
            said = None
        except SettingsError as error:
            said = str(error)
        assert (sorted(tmp_path.rglob("*")), contents(tmp_path)) == before
        fine = {"new": [0, 1], "empty": [0, 1], "run": [1, 2], "foreign": []}[state]
        assert (said is None) == (len(asked) + bool(asked.get("resume")) in fine)


def test_a_link_to_a_run_is_not_followed_when_it_is_emptied(a_run, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(a_run)
    before = contents(a_run)
    try:
        claim(link, {"seed": 2}, overwrite=True)
    except SettingsError:
        assert contents(a_run) == before
    else:
        assert list(contents(a_run)) == [MARKER], "emptied, and claimed, through the link"


def test_a_folder_that_cannot_be_is_refused_before_work_and_after(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for refuse in (lambda folder: claim(folder, {}), check_output_folder):
        with pytest.raises(SettingsError, match=r"would be inside .*file, which is a file; give another folder"):
            refuse(tmp_path / "file" / "run")
        with pytest.raises(SettingsError, match="cannot be used: File name too long; give another folder"):
            refuse(tmp_path / ("a" * 300))
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SettingsError, match=r"no permission to write to .*; give another"):
        check_output_folder(tmp_path / "new" / "run")
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SettingsError, match="cannot be used: No space left on device"):
        claim(tmp_path / "run", {})

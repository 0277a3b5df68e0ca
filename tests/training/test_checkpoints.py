"""Incomplete checkpoints are recognised, whatever they look like, and the last complete one is never deleted."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar.errors import CheckpointError, SettingsError
from quietstar.training.checkpoints import (
    MARKER,
    complete_checkpoints,
    keep_latest,
    name_of,
    publish,
    read_marker,
    remove,
    step_of,
    to_resume,
)


def made(run: Path, step: int) -> Path:
    """A complete checkpoint of two files."""
    written = run / "temporary"
    (written / "shards").mkdir(parents=True)
    (written / "weights").write_bytes(b"weights")
    (written / "shards" / "one").write_bytes(b"1")
    publish(written, run / name_of(step), {"step": step})
    return run / name_of(step)


def test_a_published_checkpoint_is_whole(tmp_path):
    checkpoint = made(tmp_path, 12)
    assert read_marker(checkpoint)["step"] == 12
    assert read_marker(checkpoint)["files"] == {"weights": 7, "shards/one": 1}
    assert complete_checkpoints(tmp_path) == [checkpoint]


@pytest.mark.parametrize(
    ("lost", "told"),
    [("weights", "'weights' is missing"), ("shards/one", "'shards/one' is missing"), (MARKER, f"it has no {MARKER}")],
)
def test_a_file_that_is_missing_is_named(tmp_path, lost, told, caplog):
    checkpoint = made(tmp_path, 3)
    (checkpoint / lost).unlink()
    with pytest.raises(CheckpointError, match=f"checkpoint-3 is not a complete checkpoint: {told}"):
        read_marker(checkpoint)
    assert complete_checkpoints(tmp_path) == []
    assert caplog.text == ""
    assert complete_checkpoints(tmp_path, report=True) == []
    assert f"checkpoint-3 is skipped: {told}" in caplog.text


def test_deleting_a_link_to_a_checkpoint_keeps_the_checkpoint(tmp_path):
    elsewhere = made(tmp_path / "archive", 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-3").symlink_to(elsewhere)
    latest = made(tmp_path / "run", 6)
    keep_latest(tmp_path / "run", 1)
    assert list((tmp_path / "run").iterdir()) == [latest]
    assert read_marker(elsewhere)["step"] == 3


def test_a_file_of_another_size_is_named(tmp_path):
    checkpoint = made(tmp_path, 3)
    (checkpoint / "weights").write_bytes(b"weig")
    with pytest.raises(CheckpointError, match="'weights' has 4 of 7 bytes"):
        read_marker(checkpoint)


def test_an_incomplete_checkpoint_of_the_same_name_is_replaced(tmp_path):
    checkpoint = made(tmp_path, 3)
    (checkpoint / "weights").unlink()
    assert read_marker(made(tmp_path, 3))


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.data())
def test_any_damaged_marker_raises_checkpoint_error(tmp_path_factory, data):
    checkpoint = made(tmp_path_factory.mktemp("run"), 1)
    marker = json.loads((checkpoint / MARKER).read_text())
    kind = data.draw(st.sampled_from(["bytes", "any", "field", "file"]))
    if kind == "bytes":
        raw = (checkpoint / MARKER).read_bytes()
        at = data.draw(st.integers(0, len(raw)))
        (checkpoint / MARKER).write_bytes(raw[:at] + data.draw(st.binary(max_size=8)) + raw[at + 2 :])
    else:
        value = data.draw(JSON)
        if kind == "field":
            marker[data.draw(st.sampled_from([*marker, "other"]))] = value
        elif kind == "file":
            name = data.draw(st.text(max_size=300) | st.sampled_from(["../../x", "/etc/passwd", "a/../../b", "\0"]))
            marker["files"][name] = value
        else:
            marker = value
        (checkpoint / MARKER).write_text(json.dumps(marker))
    try:
        found = read_marker(checkpoint)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert {"weights": 7, "shards/one": 1}.items() <= found["files"].items() or kind != "file"


def test_other_folders_are_kept(tmp_path):
    for name in ("checkpoint-x", "checkpoint--3", "checkpoint-", "other-3", "checkpoint-²"):
        (tmp_path / name).mkdir()
        assert step_of(tmp_path / name) == -1
    made(tmp_path, 5)
    keep_latest(tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 6


@settings(max_examples=60)
@given(
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=6, unique=True),
    torn=st.sets(st.integers(0, 5)),
    n=st.integers(1, 4),
)
def test_the_latest_complete_checkpoints_are_kept(tmp_path_factory, steps, torn, n):
    run = tmp_path_factory.mktemp("run")
    for i, step in enumerate(steps):
        checkpoint = made(run, step)
        if i in torn:
            (checkpoint / MARKER).unlink()
    whole = sorted((step for i, step in enumerate(steps) if i not in torn), reverse=True)
    keep_latest(run, n)
    left = {step_of(path) for path in run.iterdir()}
    assert set(whole[:n]) <= left
    if whole:
        assert left - set(whole[:n]) == {step for step in steps if step > whole[0]}  # torn ones after it: evidence
    else:
        assert left == set(steps)


def test_the_best_checkpoint_is_kept_too(tmp_path):
    best = made(tmp_path, 1)
    for step in (2, 3):
        made(tmp_path, step)
    keep_latest(tmp_path, 1, also=str(best))
    assert sorted(step_of(path) for path in tmp_path.iterdir()) == [1, 3]


def test_a_new_run_does_not_save_among_the_checkpoints_of_another(tmp_path):
    saves, resumes = (SimpleNamespace(save_strategy="steps", resume=resume) for resume in (False, True))
    assert to_resume(tmp_path, None, saves) is None
    assert to_resume(tmp_path, None, resumes) is None
    made(tmp_path, 4)
    told = "has checkpoint-4 of an earlier run; resume from it .*, or give another output_dir"
    with pytest.raises(SettingsError, match=told):
        to_resume(tmp_path, None, saves)
    assert to_resume(tmp_path, False, SimpleNamespace(save_strategy="no", resume=False)) is None
    assert to_resume(tmp_path, True, saves) == tmp_path / "checkpoint-4"
    assert to_resume(tmp_path, None, resumes) == tmp_path / "checkpoint-4"


def test_a_limit_of_none_or_zero_keeps_all(tmp_path):
    for step in (1, 2, 3):
        made(tmp_path, step)
    keep_latest(tmp_path, None)
    keep_latest(tmp_path, 0)
    assert len(complete_checkpoints(tmp_path)) == 3


def test_deleting_begins_with_the_marker(tmp_path, monkeypatch):
    checkpoint = made(tmp_path, 1)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quietstar.training.checkpoints.shutil.rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        remove(checkpoint)
    assert (checkpoint / "weights").exists()
    assert complete_checkpoints(tmp_path) == []

"""A teacher says what the thinking model predicts at every label; a cache says the same again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, SettingsError
from quietstar.learn import IGNORED
from quietstar.taught import target_of
from quietstar.training.distillation.arguments import DistillArguments
from quietstar.training.distillation.teacher import Teacher
from tests.tiny_tokenizer import thinking_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinking_folders(tmp_path_factory.mktemp("models"), n_ahead=4)


def teacher(folders: Path, **how: Any) -> Teacher:
    return Teacher(str(folders / "thinking"), DistillArguments(**how), torch.device("cpu"))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 200, (3, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, IGNORED)}


def where(inputs: dict[str, Tensor]) -> Tensor:
    return torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED) != IGNORED


def logprob(found: Teacher, inputs: dict[str, Tensor], seed: int = 0) -> Tensor:
    """[n, V] at the labels of a batch."""
    target = target_of(found.lesson(inputs, seed), where(inputs))
    return target.logprob(slice(0, int(where(inputs).sum()))).T


def test_it_predicts_with_greedy_thoughts_what_the_model_predicts(folders: Path) -> None:
    inputs, model = batch(), QuietStarForCausalLM.from_pretrained(folders / "thinking").eval()
    with torch.no_grad():
        expected = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    found = logprob(teacher(folders), inputs)
    torch.testing.assert_close(found, expected[where(inputs)].log_softmax(-1), atol=1e-4, rtol=1e-4)
    never = logprob(teacher(folders, teacher_think="never"), inputs)
    with torch.no_grad():
        base = model.base_lm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(never, base[where(inputs)].log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert float((found - never).abs().max()) > 0.1


def test_several_thoughts_are_averaged_and_follow_from_the_seed(folders: Path) -> None:
    inputs = batch()
    three = teacher(folders, teacher_passes=3)
    found = logprob(three, inputs, seed=1)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)))
    assert torch.equal(found, logprob(three, inputs, seed=1))
    assert float((found - logprob(three, inputs, seed=2)).abs().max()) > 0.01
    hidden = three.lesson(inputs, 1).hidden
    assert hidden is not None
    assert hidden.shape == (3, 3, 9, 32)
    each = [three.model.base_lm.lm_head(hidden[:, p])[where(inputs)].softmax(-1) for p in range(3)]
    torch.testing.assert_close(found.exp(), sum(each) / 3, atol=1e-5, rtol=1e-4)
    assert float((each[0] - each[1]).detach().abs().max()) > 0.01


def test_its_nll_is_that_of_the_text(folders: Path) -> None:
    inputs = batch()
    lesson = teacher(folders, objective="fast", teacher_passes=2).lesson(inputs, 4)
    assert lesson.nll is not None
    predicted = logprob(teacher(folders, teacher_passes=2), inputs, seed=4)
    labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)[where(inputs)]
    torch.testing.assert_close(lesson.nll[where(inputs)], -predicted.gather(1, labels[:, None])[:, 0])
    assert not bool(lesson.nll[~where(inputs)].any())


def test_a_cache_is_asked_instead_of_the_model(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, how = batch(), dict(cache=str(tmp_path / "cache"), cache_tokens=5, teacher_passes=2)
    first = teacher(folders, **how).lesson(inputs, 7)
    again = teacher(folders, **how)
    monkeypatch.setattr(Teacher, "spoken", None)
    second = again.lesson(inputs, 8)
    for name in ("tokens", "logprob", "rest"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.tokens is not None
    assert first.tokens.shape == (3, 9, 5)
    rows = {name: value[[2, 0], : 9 if name else 0] for name, value in inputs.items()}  # other rows, in another batch
    other = again.lesson(rows, 9)
    assert other.rest is not None
    assert first.rest is not None
    assert torch.equal(other.rest, first.rest[[2, 0]])


def test_what_is_cached_has_almost_all_of_the_mass(folders: Path, tmp_path: Path) -> None:
    inputs = batch()
    lesson = teacher(folders, cache=str(tmp_path / "cache"), cache_tokens=5).lesson(inputs, 0)
    assert lesson.logprob is not None
    assert lesson.rest is not None
    mass = lesson.logprob.exp().sum(-1) + lesson.rest.exp()
    torch.testing.assert_close(mass[where(inputs)], torch.ones(int(where(inputs).sum())))


def test_caches_of_other_teachers_and_other_folders_are_refused(folders: Path, tmp_path: Path) -> None:
    how = dict(cache=str(tmp_path / "cache"), cache_tokens=5)
    teacher(folders, **how).lesson(batch(), 0)
    with pytest.raises(SettingsError, match=r"was made with cache_tokens 5; give the same, or another folder"):
        teacher(folders, **(how | {"cache_tokens": 6}))
    with pytest.raises(SettingsError, match=r"was made with teacher_think always"):
        teacher(folders, **how, teacher_think="never")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for text in (None, "[", "[]"):
        if text is not None:
            (tmp_path / "mine" / "cache.json").write_text(text)
        with pytest.raises(SettingsError, match="is a file, or has other things in it; give a new folder"):
            teacher(folders, cache=str(tmp_path / "mine"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="is a file, or has other things in it; give a new folder"):
        teacher(folders, cache=str(tmp_path / "file"))


@pytest.mark.parametrize("damage", ["", "x" * 40])
def test_a_damaged_file_of_a_cache_is_named(folders: Path, tmp_path: Path, damage: str) -> None:
    found = teacher(folders, cache=str(tmp_path / "cache"))
    found.lesson(batch(), 0)
    file = next((tmp_path / "cache").rglob("*.safetensors"))
    file.write_text(damage)
    with pytest.raises(CheckpointError, match=r"of the cache is damaged; delete it, and the teacher is asked again"):
        found.lesson(batch(), 0)

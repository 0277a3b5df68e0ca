"""Labels that a column predicts, with holes, padding and text that ends."""

import torch
from torch import Tensor

from quietstar.learn import IGNORED, Labels


def look_ahead(labels: Tensor, is_column: Tensor, n_ahead_talk: int, mask: Tensor | None = None) -> Labels:
    return Labels.look_ahead(labels=labels, is_column=is_column, n_ahead_talk=n_ahead_talk, attention_mask=mask)


def everywhere(labels: Tensor) -> Tensor:
    return torch.ones_like(labels, dtype=torch.bool)


def test_labels_look_ahead_over_holes_and_past_the_end() -> None:
    row = torch.tensor([[5, 6, IGNORED, 7]])
    labels = look_ahead(row, everywhere(row), 2)
    assert labels.ahead.tolist() == [[[6, -100], [-100, 7], [7, -100], [-100, -100]]]
    assert labels.base.tolist() == [[True, False, True, False]]
    assert labels.talk.tolist() == [[[True, False], [False, True], [True, False], [False, False]]]
    assert not labels.complete.any()
    counts = labels.count()
    assert (int(counts.base), counts.talk.tolist(), int(counts.complete)) == (2, [2, 1], 0)


def test_only_columns_have_labels_after_a_thought() -> None:
    row = torch.tensor([[5, 6, 7, 8]])
    labels = look_ahead(row, torch.tensor([[False, True, False, False]]), 2)
    assert labels.talk.sum((0, 1)).tolist() == [1, 1]
    assert labels.complete.tolist() == [[False, True, False, False]]
    assert labels.base.tolist() == [[True, True, True, False]], "the base pass predicts everywhere"


def test_padding_in_front_of_a_text_predicts_nothing() -> None:
    """Not the text's first token, nor one further on; a masked token inside the text predicts what follows it."""
    row = torch.tensor([[IGNORED, IGNORED, 5, 6, 7]])
    mask = torch.tensor([[0, 0, 1, 0, 1]])
    labels = look_ahead(row, everywhere(row), 3, mask)
    nothing = [IGNORED] * 3
    assert labels.ahead.tolist() == [[nothing, nothing, [6, 7, -100], [7, -100, -100], nothing]]

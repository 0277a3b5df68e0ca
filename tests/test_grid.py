"""The grid's geometry against its definition in a sentence, counted out one token at a time."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quietstar import ThoughtGrid
from quietstar.grid import default_position_ids


@dataclass(frozen=True)
class Place:
    """A token of the base pass (column None) or of a branch (step 0 is start)."""

    index: int
    column: int | None = None
    branch: tuple[int, int] | None = None
    """pass and number of the column"""
    step: int | None = None


@st.composite
def grids(draw: st.DrawFn, holes: bool = True) -> tuple[ThoughtGrid, Tensor]:
    """A grid and its think_at [B, S]: any padding (holes inside a row too), any columns."""
    B, S = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    n_passes, n_ahead, n_ahead_talk = draw(st.integers(1, 3)), draw(st.integers(2, 4)), draw(st.integers(1, 3))
    rows = st.lists(st.booleans(), min_size=S, max_size=S)
    if holes:
        mask = torch.tensor(draw(st.lists(rows, min_size=B, max_size=B)))
    else:
        lengths = draw(st.lists(st.integers(1, S), min_size=B, max_size=B))
        left = draw(st.booleans())
        index = torch.arange(S)
        mask = torch.stack([index >= S - n if left else index < n for n in lengths])
    think_at = torch.tensor(draw(st.lists(rows, min_size=B, max_size=B)))
    grid = ThoughtGrid.grow(think_at, mask.long(), n_passes=n_passes, branch_length=n_ahead + n_ahead_talk - 1)
    return grid, think_at


def base_sight(grid: ThoughtGrid, window: int | None = None) -> Tensor:
    """[B, S, S]: which base token (last) each base token sees; one with nothing to see sees itself."""
    index = torch.arange(grid.n_base)
    distance = index[:, None] - index[None, :]
    seen = (distance >= 0) & grid.base_mask[:, None, :] & (distance < (window or grid.n_base))
    return seen | (~seen.any(dim=-1, keepdim=True) & (distance == 0))


def whole_sight(grid: ThoughtGrid, window: int | None = None) -> Tensor:
    """[B, T, T]: what every token of the base pass and of all branches sees, row by row."""
    branches = grid.sees(range(grid.branch_length), window)
    base = torch.nn.functional.pad(base_sight(grid, window), (0, branches.shape[1]))
    return torch.cat([base, branches], dim=1)


def whole_position_ids(grid: ThoughtGrid) -> Tensor:
    """[B, T], row by row"""
    branches = grid.to_rows(grid.branch_position_ids(range(grid.branch_length)), dim=2).flatten(1)
    return torch.cat([grid.base_position_ids, branches], dim=1)


def sight_in_one_row(grid: ThoughtGrid, steps: range, window: int | None = None) -> Tensor:
    """[Q x P x C, B x S + L x P x C]: what those steps see, texts and branches of all rows one after the other."""
    Q, L, P, C = len(steps), steps.stop, grid.n_passes, grid.n_columns
    of_row = torch.nn.functional.one_hot(grid.rows, grid.batch_size).bool()[..., None]
    base = (grid.sees_base(steps, window)[:, :, None] & of_row).flatten(2)  # [Q or 1, C, B x S]
    same_branch = torch.eye(P * C, dtype=torch.bool).view(P, C, 1, P, C)
    own = grid.sees_own_branch(steps, window).transpose(1, 2)[:, None, :, :, None, None] & same_branch
    base = base[:, None].expand(Q, P, C, -1)
    return torch.cat([base.flatten(0, 2), own.reshape(Q * P * C, L * P * C)], dim=1)


def step_size(grid: ThoughtGrid) -> int:
    """Tokens of a step of all branches of a row, row by row."""
    return grid.n_passes * max(grid.per_row)


windows = st.one_of(st.none(), st.integers(1, 9))


def columns_of(grid: ThoughtGrid, b: int) -> list[int]:
    return grid.columns[grid.rows == b].tolist()


def places(grid: ThoughtGrid, b: int) -> list[Place | None]:
    """Every token of row b in the order of the grid: the base, then step by step all passes of all columns; None
    where the row has fewer columns than another."""
    base = [Place(index=i) for i in range(grid.n_base)]
    columns = columns_of(grid, b)
    columns += [None] * (max(grid.per_row) - len(columns))
    branches = [
        None if i is None else Place(index=i + step + 1, column=i, branch=(p, n), step=step)
        for step in range(grid.branch_length)
        for p in range(grid.n_passes)
        for n, i in enumerate(columns)
    ]
    return base + branches


def sees(query: Place, key: Place, real: list[bool], window: int | None) -> bool:
    """Base tokens up to one's column that are no padding, one's own branch up to oneself, within the window."""
    if window is not None and query.index - key.index >= window:
        return False
    if key.column is None:
        return real[key.index] and key.index <= (query.index if query.column is None else query.column)
    # what grows on padding is itself not to be seen
    return key.branch == query.branch and key.step <= query.step and real[key.column]


def sight_by_hand(grid: ThoughtGrid, b: int, window: int | None) -> Tensor:
    """[T, T] of row b; whoever sees nothing sees itself."""
    tokens, real = places(grid, b), grid.base_mask[b].tolist()
    seen = torch.tensor(
        [[bool(query and key and sees(query, key, real, window)) for key in tokens] for query in tokens]
    )
    return seen | (~seen.any(1, keepdim=True) & torch.eye(len(tokens), dtype=torch.bool))


@given(grids(), windows)
def test_sight_is_what_the_definition_says(made: tuple[ThoughtGrid, Tensor], window: int | None) -> None:
    grid, _ = made
    whole = whole_sight(grid, window)
    for b in range(grid.batch_size):
        assert torch.equal(whole[b], sight_by_hand(grid, b, window))


@given(grids(), windows)
def test_every_token_sees_something(made: tuple[ThoughtGrid, Tensor], window: int | None) -> None:
    grid, _ = made
    assert whole_sight(grid, window).any(-1).all()
    assert sight_in_one_row(grid, range(grid.branch_length), window).any(-1).all()


@given(grids(), windows, st.data())
def test_sight_of_some_steps_is_those_rows_of_the_whole(
    made: tuple[ThoughtGrid, Tensor], window: int | None, data: st.DataObject
) -> None:
    grid, _ = made
    stop = data.draw(st.integers(1, grid.branch_length))
    steps = range(data.draw(st.integers(0, stop - 1)), stop)
    first, last = (grid.n_base + step * step_size(grid) for step in (steps.start, steps.stop))
    rows = whole_sight(grid, window)[:, first:last]
    assert torch.equal(grid.sees(steps, window), rows[..., :last])
    assert not rows[..., last:].any()


@given(grids(holes=False), windows)
def test_what_is_seen_lies_as_far_back_in_positions_as_in_indices(
    made: tuple[ThoughtGrid, Tensor], window: int | None
) -> None:
    """Position ids count the same distances as the window does, padded rows included."""
    grid, _ = made
    positions, sight = whole_position_ids(grid), whole_sight(grid, window)
    for b in range(grid.batch_size):
        real = grid.base_mask[b]
        index = torch.tensor([place.index if place else 0 for place in places(grid, b)])
        grown_on = [place and (place.index if place.column is None else place.column) for place in places(grid, b)]
        kept = torch.tensor([i is not None and bool(real[i]) for i in grown_on])
        distance = (positions[b][:, None] - positions[b][None, :])[kept][:, kept]
        seen = sight[b][kept][:, kept]
        assert (distance[seen] >= 0).all()
        assert torch.equal(distance, (index[:, None] - index[None, :])[kept][:, kept])
        assert window is None or (distance[seen] < window).all()


@given(grids())
def test_columns_are_the_chosen_positions(made: tuple[ThoughtGrid, Tensor]) -> None:
    grid, think_at = made
    assert grid.n_columns == int(think_at.sum())
    assert grid.per_row == think_at.sum(1).tolist()
    assert (grid.rows.diff() >= 0).all()
    for b in range(grid.batch_size):
        assert columns_of(grid, b) == think_at[b].nonzero().flatten().tolist()


@given(grids(), st.integers(0, 1))
def test_rows_hold_their_own_columns_and_give_them_back(made: tuple[ThoughtGrid, Tensor], dim: int) -> None:
    """Row by row, with nothing where a row has fewer; and back."""
    grid, _ = made
    values = 1.0 + torch.arange(3 * grid.n_columns).reshape(3, -1)
    values = (values if dim == 1 else values.T).contiguous().requires_grad_()
    by_row = grid.to_rows(values, dim)
    N = max(grid.per_row)
    assert by_row.shape == ((grid.batch_size, 3, N) if dim == 1 else (grid.batch_size, N, 3))
    for b, count in enumerate(grid.per_row):
        own, rest = by_row.movedim(dim + 1, -1)[b].split([count, N - count], dim=1)
        assert torch.equal(own, values.movedim(dim, -1)[:, grid.rows == b])
        assert (rest == 0).all()
    back = grid.from_rows(by_row, dim)
    assert torch.equal(back, values)
    back.sum().backward()
    assert (values.grad == 1).all()


@given(grids())
def test_position_ids_count_on_from_the_column(made: tuple[ThoughtGrid, Tensor]) -> None:
    grid, _ = made
    ids = whole_position_ids(grid)
    for b in range(grid.batch_size):
        of_base = grid.base_position_ids[b].tolist()
        expected = [
            0 if not place else of_base[place.index] if place.column is None else of_base[place.column] + place.step + 1
            for place in places(grid, b)
        ]
        assert ids[b].tolist() == expected
    steps = range(1, grid.branch_length)
    assert torch.equal(grid.branch_position_ids(steps), grid.branch_position_ids(range(grid.branch_length))[1:])


@given(grids(holes=False))
def test_positions_begin_at_the_first_real_token(made: tuple[ThoughtGrid, Tensor]) -> None:
    grid, _ = made
    for mask, ids in zip(grid.base_mask, default_position_ids(grid.base_mask), strict=True):
        assert ids[mask].tolist() == list(range(int(mask.sum())))
        assert (ids >= 0).all()


def test_given_position_ids_are_kept() -> None:
    position_ids = torch.tensor([[7, 8, 9]])
    grid = ThoughtGrid.grow(torch.tensor([[0, 1, 0]]), torch.ones(1, 3), position_ids, n_passes=1, branch_length=2)
    assert whole_position_ids(grid).tolist() == [[7, 8, 9, 9, 10]]


@given(grids(), st.integers(0, 3))
def test_gathering_looks_ahead_of_each_column(made: tuple[ThoughtGrid, Tensor], ahead: int) -> None:
    grid, _ = made
    B, S = grid.batch_size, grid.n_base
    values = torch.arange(B * S * 2).reshape(B, S, 2)
    gathered = grid.gather_columns(values, ahead)
    for n, (b, column) in enumerate(zip(grid.rows.tolist(), grid.columns.tolist(), strict=True)):
        assert torch.equal(gathered[n], values[b, min(column + ahead, S - 1)])


@given(grids(), st.integers(0, 2))
def test_scattering_what_was_gathered_gives_it_back(made: tuple[ThoughtGrid, Tensor], n_trailing: int) -> None:
    """At the columns; everywhere else there is nothing, however many columns other rows have."""
    grid, think_at = made
    B, P, S = grid.batch_size, grid.n_passes, grid.n_base
    trailing = (2, 3)[:n_trailing]
    values = 1 + torch.arange(B * P * S * 6).reshape(B, P, S, 6)[..., :1].reshape(B, P, S, *[1] * n_trailing)
    values = values.expand(B, P, S, *trailing)
    gathered = grid.gather_columns(values.transpose(1, 2)).transpose(0, 1)
    assert gathered.shape == (P, grid.n_columns, *trailing)
    back = grid.scatter_columns(gathered)
    chosen = think_at.reshape(B, 1, S, *[1] * n_trailing)
    assert torch.equal(back, values * chosen)


def test_gathering_from_the_last_tokens_only() -> None:
    """With a cache, values exist for the newest tokens, and columns count from the beginning."""
    grid = ThoughtGrid.grow(torch.tensor([[0, 0, 0, 1, 1]]), torch.ones(1, 5), n_passes=1, branch_length=2)
    assert grid.gather_columns(torch.tensor([[30, 40]])).tolist() == [30, 40]
    assert grid.gather_columns(torch.tensor([[30, 40]]), ahead=1).tolist() == [40, 40]


@pytest.mark.parametrize("chosen", [0, 1])
def test_nowhere_and_everywhere_are_grids_too(chosen: int) -> None:
    grid = ThoughtGrid.grow(torch.full((2, 3), chosen), torch.ones(2, 3), n_passes=2, branch_length=3)
    T = 3 + 3 * 2 * 3 * chosen
    assert whole_sight(grid).shape == (2, T, T)
    assert whole_position_ids(grid).shape == (2, T)
    assert grid.scatter_columns(torch.ones(2, 6 * chosen)).sum() == 12 * chosen


@given(grids(), windows, st.integers(1, 9))
def test_parts_are_the_columns_of_the_whole(made: tuple[ThoughtGrid, Tensor], window: int | None, n: int) -> None:
    grid, _ = made
    parts = list(grid.parts(n))
    assert len(parts) == n if grid.n_columns else not parts
    columns = [column for some, *_ in parts for column in range(grid.n_columns)[some]]
    assert columns[: grid.n_columns] == list(range(grid.n_columns))
    assert len(columns) == max(n, grid.n_columns) if parts else not columns
    steps = range(grid.branch_length)
    for some, text, part in parts:
        assert torch.equal(part.rows + text.start, grid.rows[some])
        assert min(part.per_row[0], part.per_row[-1]) > 0
        assert torch.equal(part.sees_base(steps, window), grid.sees_base(steps, window)[:, some])
        assert torch.equal(part.sees_own_branch(steps, window), grid.sees_own_branch(steps, window)[..., some])
        assert torch.equal(part.branch_position_ids(steps), grid.branch_position_ids(steps)[..., some])

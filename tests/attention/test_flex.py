"""Flex attention equals dense masks: on a CPU uncompiled, on a GPU with its kernels."""

from itertools import product

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from quietstar import QuietStarForCausalLM, ThoughtGrid
from quietstar.attention import BACKENDS, attention_backend, flex
from quietstar.attention.sight import Sight
from quietstar.attention.two_parts import two_part_attention
from quietstar.errors import SettingsError
from tests.test_grid import sight_in_one_row
from tests.tiny import random_thoughts, texts, tiny_model

FAMILIES = ["llama", "qwen2-window", "mistral-window", "gemma2", "gpt2"]
"""full attention, windows in some layers, a window everywhere, soft caps, learned positions"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let flex attention run on a CPU, also for a few branches and with gradients; record its calls."""
    made: list[int] = []
    attend = flex.flex_over_branches

    def counted(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        made.append(query.shape[2])
        return attend(query, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(flex, "_check_device", lambda *_: None)
    monkeypatch.setattr(flex, "flex_over_branches", counted)
    # torch's plain formulas, without its compiler: they have a backward pass that a CPU is otherwise refused
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    return made


@pytest.mark.parametrize(("family", "left", "n_passes"), [*product(FAMILIES, [False, True], [2]), ("llama", True, 1)])
def test_it_attends_as_dense_masks_do(family: str, left: bool, n_passes: int, calls: list[int]) -> None:
    """Outputs and gradients, sampling and given thoughts, at every position and at some."""
    model = thinking(family)
    found = both(model, texts(10, 3, left=left), n_passes)
    assert len(calls) >= 2 * model.config.base_config.num_hidden_layers
    for of, (dense, other) in found.items():
        torch.testing.assert_close(other, dense, rtol=1e-3, atol=1e-3, msg=lambda text, of=of: f"{of}: {text}")


def thinking(family: str) -> QuietStarForCausalLM:
    """Return a tiny model for texts of a few blocks."""
    model = tiny_model(family, n_ahead=5, n_ahead_talk=3, base={"max_position_embeddings": 512})
    if family == "gemma2":
        model.base_lm.set_attn_implementation("eager")  # applies the softcap
    return model


def both(model: QuietStarForCausalLM, inputs: dict[str, Tensor], n_passes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the outputs of the dense and the flex backend for the same texts."""
    inputs = {name: values.to(model.device) for name, values in inputs.items()}
    real = inputs["attention_mask"].bool()
    thoughts = random_thoughts(model, *real.shape, P=n_passes).to(model.device)
    think_at = (torch.arange(real.shape[1], device=model.device) % 3 == 1).expand_as(real)
    watched = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.endswith(("start_embedding", "0.self_attn.k_proj.weight", "0.attn.c_attn.weight"))
    }
    assert len(watched) == 2
    found = []
    for backend in ("dense", "flex"):
        model.attention = attention_backend(backend, model.base_lm)
        given = model(**inputs, thoughts=thoughts)
        gradients = torch.autograd.grad(given.nll, list(watched.values()))
        with torch.no_grad():
            own = model(**inputs, n_passes=n_passes)
            some = model(**inputs, think_at=think_at, n_passes=n_passes)
        found.append(
            {
                "given thoughts": given.logits[real].detach(),
                "sampled thoughts": own.thoughts,
                "after them": own.logits[real],
                "at some positions": some.logits[real],
                **dict(zip(watched, gradients, strict=True)),
            }
        )
    return {name: (found[0][name], found[1][name]) for name in found[0]}


def test_it_attends_as_dense_masks_do_under_gradient_checkpointing(calls: list[int]) -> None:
    model = tiny_model("qwen2-window", n_ahead=4, n_ahead_talk=2)
    model.train()
    model.gradient_checkpointing_enable()
    inputs, thoughts = texts(10, 6), random_thoughts(model, 2, 10, P=2)
    gradients = []
    for backend in ("dense", "flex"):
        model.attention = attention_backend(backend, model.base_lm)
        nll = model(**inputs, thoughts=thoughts).nll
        gradients.append(
            torch.autograd.grad(nll, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        )
    assert calls
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)


def grid_of(S: int, P: int, L: int, device: str = "cpu") -> ThoughtGrid:
    """Two rows padded on either side, one with a hole; some columns are on masked tokens, one at the start."""
    mask = torch.ones(2, S)
    mask[0, -3:] = mask[1, :4] = mask[1, S // 2] = 0
    think_at = torch.rand(2, S, generator=torch.Generator().manual_seed(0)) < 0.7
    think_at[:, 0] = True
    return ThoughtGrid.grow(think_at.to(device), mask.to(device), n_passes=P, branch_length=L)


CASES = [
    dict(S=9, P=2, steps=range(1)),
    dict(S=9, P=2, steps=range(5), window=3),
    dict(S=40, P=2, steps=range(2, 5), G=3, d=24),
    dict(S=40, P=1, steps=range(4, 6), window=12, softcap=2.0, d=8, d_value=20),
    dict(S=150, P=2, steps=range(3), window=20, sinks=True),
    dict(S=150, P=1, steps=range(6), softcap=3.0, sinks=True),
]


@pytest.mark.parametrize("case", CASES)
def test_it_attends_in_two_parts_all_the_same(case: dict, calls: list[int]) -> None:
    """Outputs and gradients of any heads, windows, soft caps and sinks."""
    check_against_two_parts(**case)
    assert calls == []


def check_against_two_parts(
    *,
    S: int,
    P: int,
    steps: range,
    window: int | None = None,
    J: int = 2,
    G: int = 2,
    d: int = 16,
    d_value: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    device: str = "cpu",
) -> None:
    """Random queries, keys and values over a grid: the same outputs and gradients."""
    torch.manual_seed(0)
    grid = grid_of(S, P, steps.stop, device)
    n = P * grid.n_columns
    n_queries, n_own = len(steps) * n, steps.stop * n
    d_value = d_value or d
    shapes = [(1, J * G, n_queries, d), (2, J, S, d), (2, J, S, d_value), (1, J, n_own, d), (1, J, n_own, d_value)]
    given = [torch.randn(shape, device=device, requires_grad=True) for shape in [*shapes, (J * G,)][: 5 + sinks]]
    query, key, value, own_key, own_value = given[:5]
    by_branch = (x[0].unflatten(1, (-1, P, grid.n_columns)).permute(0, 3, 2, 1, 4) for x in (own_key, own_value))
    own = list(zip(*(each.split([1, steps.stop - 1], 3) for each in by_branch), strict=True))  # they come in pieces
    bent = dict(scaling=0.3, softcap=softcap, sinks=given[5] if sinks else None)
    sight = Sight.over(grid, steps, window, S)
    block_mask = flex.branch_block_mask(grid, steps, window, S)
    found = []
    for out in (
        two_part_attention(query, (key, value), own, sight, **bent),
        ATTEND(query, (key, value), own, block_mask, (P, grid.n_columns), **bent),
    ):
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
        found.append([out, *torch.autograd.grad((out * weights).sum(), given)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


ATTEND = flex.flex_over_branches


@pytest.mark.parametrize(
    ("S", "P", "steps", "window"),
    [
        (9, 2, range(1), None),
        (9, 2, range(3), 2),
        (30, 3, range(2, 5), None),
        (30, 3, range(4), 7),
        (300, 2, range(1, 4), None),
        (300, 1, range(2), 40),
    ],
)
def test_it_sees_what_the_grid_shows(S: int, P: int, steps: range, window: int | None) -> None:
    grid = grid_of(S, P, steps.stop)
    block_mask = flex.branch_block_mask(grid, steps, window, S)
    assert torch.equal(in_grid_order(block_mask, grid, steps, S), sight_in_one_row(grid, steps, window))


def in_grid_order(block_mask: BlockMask, grid: ThoughtGrid, steps: range, n_kept: int) -> Tensor:
    """A block mask shows exactly the grid's sight [Q x P x C, B x S + L x P x C], ordered by step."""
    P, C, Q, L, n_text = grid.n_passes, grid.n_columns, len(steps), steps.stop, grid.batch_size * n_kept
    shown = create_mask(block_mask.mask_mod, 1, None, *block_mask.seq_lengths, device="cpu")[0, 0]
    base, own = shown[:, :n_text], shown[:, -(-n_text // flex.BLOCK) * flex.BLOCK :][:, : L * P * C]
    assert shown.sum() == base[: Q * P * C].sum() + own[: Q * P * C].sum()
    base = base[: Q * P * C].unflatten(0, (P * C, Q)).transpose(0, 1).flatten(0, 1)
    own = own[: Q * P * C].unflatten(1, (P * C, L)).unflatten(0, (P * C, Q)).permute(1, 0, 3, 2)
    return torch.cat([base, own.flatten(2, 3).flatten(0, 1)], dim=1)


@pytest.mark.parametrize(("P", "steps", "window"), [(2, range(1, 4), None), (1, range(2), 40), (2, range(1), 200)])
def test_no_block_is_left_out_or_shown_in_full_that_should_not_be(P: int, steps: range, window: int | None) -> None:
    """Blocks are those that torch finds from every score, plus a few empty ones."""
    ours = flex.branch_block_mask(grid_of(600, P, steps.stop), steps, window, 600)
    torchs = create_block_mask(ours.mask_mod, 1, None, *ours.seq_lengths, device="cpu")
    ours_partial, our_full = (
        blocks(ours.kv_num_blocks, ours.kv_indices),
        blocks(ours.full_kv_num_blocks, ours.full_kv_indices),
    )
    partial, full = (
        blocks(torchs.kv_num_blocks, torchs.kv_indices),
        blocks(torchs.full_kv_num_blocks, torchs.full_kv_indices),
    )
    assert full.any() == (window is None)
    assert torch.equal(our_full, full)
    assert bool((ours_partial >= partial).all())
    assert not (ours_partial & our_full).any()
    assert int(ours_partial.sum()) <= 1.1 * int(partial.sum())


def blocks(n: Tensor | None, indices: Tensor | None) -> Tensor:
    """Return the blocks that a block mask lists, as [1, R, T] bool."""
    assert n is not None
    assert indices is not None
    listed = torch.arange(indices.shape[-1]) < n[..., None]
    return torch.zeros_like(listed).scatter(-1, indices.long(), listed)[:, 0]


def test_base_tokens_that_are_forgotten_are_not_seen() -> None:
    """A layer with a window that keeps its last keys only: branches at the end."""
    grid = ThoughtGrid.grow(torch.arange(20).expand(2, -1) >= 19, torch.ones(2, 20), n_passes=2, branch_length=3)
    steps, window, n_kept = range(1, 3), 6, 7
    block_mask = flex.branch_block_mask(grid, steps, window, n_kept)
    whole = sight_in_one_row(grid, steps, window)
    kept = torch.arange(whole.shape[1]) % 20 >= 20 - n_kept
    kept[40:] = True
    assert torch.equal(in_grid_order(block_mask, grid, steps, n_kept), whole[:, kept])


@pytest.mark.slow
def test_few_kernels_serve_many_lengths(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One compiled kernel serves lengths, windows and batches of any size; scale and softcap are its constants."""
    from torch._dynamo.testing import CompileCounterWithBackend

    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(torch_flex.flex_attention, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex, "_flex_attention", lambda _: compiled)
    for S, window, steps in product((200, 300), (None, 30), (range(1, 2), range(2, 4))):
        check_against_two_parts(S=S, P=2, steps=steps, window=window)
    assert counter.frame_count <= 3
    for softcap in (2.0, 3.0):
        check_against_two_parts(S=40, P=2, steps=range(2), softcap=softcap, sinks=True)
    assert counter.frame_count <= 6
    torch._dynamo.reset()


def test_few_branches_and_dropout_attend_as_with_split(calls: list[int]) -> None:
    model, inputs = tiny_model(n_ahead=4), texts(8)
    model.attention = attention_backend("flex", model.base_lm)
    model.attention.few_branches = 8
    with torch.no_grad():
        model(**inputs)
    assert calls == []
    model.attention.few_branches = 0
    for layer in model.base_lm.model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.base_lm.train()
    with torch.no_grad():
        model(**inputs)
    assert calls == []


def test_other_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    refusal = "'flex' runs on CUDA devices only, but the model is on cpu; move the model first, or choose split"
    with pytest.raises(SettingsError, match=refusal):
        attention_backend("flex", model.base_lm)
    with pytest.raises(SettingsError, match=refusal):
        model.set_attention_backend("flex")
    assert model(**texts(4)).logits.isfinite().all()
    with monkeypatch.context() as elsewhere:  # as a model that is moved afterwards
        elsewhere.setattr(flex, "_check_device", lambda *_: None)
        model.attention = attention_backend("flex", model.base_lm)
    with pytest.raises(SettingsError, match="but the tensors are on cpu"):
        model(**texts(4))


def test_it_has_a_name() -> None:
    assert BACKENDS["flex"] is flex.FlexAttention
    assert flex.FlexAttention.name == "flex"


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and -m gpu")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_its_kernels_attend_as_dense_masks_do(family: str) -> None:
    """Lengths within one block and over several, one after the other in one process."""
    model = thinking(family).cuda()
    for lengths, n_passes in (((40, 17), 2), ((150, 90), 1), ((201,), 2)):
        for of, (dense, other) in both(model, texts(*lengths, left=True), n_passes).items():
            torch.testing.assert_close(other, dense, rtol=5e-3, atol=5e-3, msg=lambda text, of=of: f"{of}: {text}")


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("case", [*CASES, dict(S=300, P=2, steps=range(2, 9), G=3, J=4, d=96, window=100)])
def test_its_kernels_attend_in_two_parts_all_the_same(case: dict) -> None:
    check_against_two_parts(**case, device="cuda")


@pytest.mark.gpu
@on_a_gpu
def test_its_kernels_take_bfloat16() -> None:
    model = thinking("llama").to("cuda", torch.bfloat16)
    dense, other = both(model, texts(60, 33), n_passes=2)["given thoughts"]
    assert (other - dense).float().abs().mean() < 0.05 * dense.float().abs().mean()

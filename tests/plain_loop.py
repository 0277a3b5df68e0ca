"""The method in its plainest form: one ordinary sequence for every row, pass and column.

Nothing here shares code with the grid, its attention, think, talk or learn. Each branch is appended to the real
tokens before it and the base model reads the whole as one unpadded sequence, without mask, positions or cache.
Legend: B examples, S tokens in a row, P passes, M true tokens after each thought, K sampled tokens of a thought.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu
from transformers import PreTrainedModel

from quietstar import QuietStarForCausalLM, QuietStarOutput


@dataclass
class Plain:
    """What method.md names, 0 where there is no label or no token; everything keeps its gradient."""

    logits: Tensor
    """[B, S, V] after one thought of the first pass, k = 0"""
    base_nll: Tensor
    """[B, S]"""
    talk_nll: Tensor
    """[B, P, S, M]"""
    mixing_weight: Tensor
    """[B, P, S, M], where a label is predicted"""
    thought_logprob: Tensor
    """[B, P, S, K], of thoughts that a label follows"""
    reward: Tensor
    """[B, P, S]"""
    advantage: Tensor
    """[B, P, S]"""
    nll: Tensor
    policy_loss: Tensor


def states(base_lm: PreTrainedModel, embeds: Tensor) -> Tensor:
    """[n, D] embeddings of one ordinary sequence -> [n, D] last hidden states."""
    return base_lm.base_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]


def own_logits(base_lm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """[n, D] -> [n, V] by the base model's own forward, its trunk's answer exchanged for these states."""

    def exchange(module: object, arguments: object, outputs: object) -> object:
        outputs.last_hidden_state = hidden[None]
        return outputs

    hook = base_lm.base_model.register_forward_hook(exchange)
    try:
        return base_lm(inputs_embeds=hidden[None, :1].detach(), use_cache=False).logits[0].float()
    finally:
        hook.remove()


def mixing_weight(model: QuietStarForCausalLM, without: Tensor, after: Tensor) -> Tensor:
    """[n, D] states without and with a thought -> [n, 1]."""
    first, second, third = (model.mixing_head.layers[index] for index in (0, 2, 4))
    inner = relu(torch.cat([without, after], dim=-1) @ first.weight.T + first.bias)
    return relu(inner @ second.weight.T + second.bias) @ third.weight.T


def plain_loop(
    model: QuietStarForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    thoughts: Tensor,
    n_ahead_talk: int,
) -> Plain:
    """Think, talk and learn with given thoughts [B, P, S, K], -1 after an end; a row's real tokens stand together."""
    base_lm, config = model.base_lm, model.config
    embed = base_lm.get_input_embeddings()
    start = config.embedding_scale * model.thought_embeddings.start_embedding[None]
    end = config.embedding_scale * model.thought_embeddings.end_embedding[None]
    (B, S), (P, K), M = input_ids.shape, (thoughts.shape[1], thoughts.shape[3]), n_ahead_talk

    logits: dict[tuple, Tensor] = {}
    base_nll: dict[tuple, Tensor] = {}
    talk_nll: dict[tuple, Tensor] = {}
    weights: dict[tuple, Tensor] = {}
    logprob: dict[tuple, Tensor] = {}
    end_logit: dict[tuple, Tensor] = {}
    written = {index: [token for token in thoughts[index].tolist() if token >= 0] for index in _indices((B, P, S))}
    for b in range(B):
        real = attention_mask[b].nonzero().flatten().tolist()
        assert real == list(range(real[0], real[0] + len(real)))
        words = embed(input_ids[b, real])
        h_base = states(base_lm, words)
        said: dict[tuple, Tensor] = {("base", n): h_base[n] for n in range(len(real))}
        for p in range(P):
            for n, i in enumerate(real):
                truth = words[n + 1 : n + M]
                thought = embed(torch.tensor(written[b, p, i], dtype=torch.long))
                length = len(thought)
                branch = states(base_lm, torch.cat([words[: n + 1], start, thought, end, truth]))[n + 1 :]
                said |= {("sampling", p, n, j): branch[j] for j in range(length)}
                if model.end_head is not None:
                    layer = model.end_head.layer
                    end_logit |= {(b, p, i, j): branch[j] @ layer.weight[0] + layer.bias[0] for j in range(length + 1)}
                h_thought = branch[length + 1 :]  # the end token is the first to predict
                without = h_base[n : n + len(h_thought)]
                w = mixing_weight(model, without, h_thought)
                mixed = (1 - w) * without + w * h_thought
                said |= {("mixed", p, n, k): mixed[k] for k in range(len(mixed))}
                weights |= {(b, p, i, k): w[k, 0] for k in range(len(w))}
        said = dict(zip(said, own_logits(base_lm, torch.stack(list(said.values()))), strict=True))

        def label(n: int, row: int = b, real: list[int] = real) -> int:
            return int(labels[row, real[n]]) if n < len(real) else -100

        for n, i in enumerate(real):
            if label(n + 1) != -100:
                base_nll[b, i] = -said["base", n].log_softmax(-1)[label(n + 1)]
            logits[b, i] = said["mixed", 0, n, 0]
            for p in range(P):
                for k in range(M):
                    if label(n + 1 + k) != -100:
                        talk_nll[b, p, i, k] = -said["mixed", p, n, k].log_softmax(-1)[label(n + 1 + k)]
                if (b, p, i) not in {index[:3] for index in talk_nll}:
                    continue
                for j, token in enumerate(written[b, p, i]):
                    over = (said["sampling", p, n, j] / config.reinforce_temperature).log_softmax(-1)
                    logprob[b, p, i, j] = over[token]
                if model.end_head is not None:
                    length = len(written[b, p, i])
                    for j in range(min(length + 1, K)):
                        p_end = torch.sigmoid(end_logit[b, p, i, j] / config.reinforce_temperature)
                        decided = p_end.log() if j == length else (1 - p_end).log()
                        logprob[b, p, i, j] = logprob.get((b, p, i, j), 0.0) + decided
    weights = {index: weights[index] for index in talk_nll}

    reward, advantage = torch.zeros(B, P, S), torch.zeros(B, P, S)
    policy_terms = []
    for b in range(B):
        for i in range(S):
            gains = [
                sum(
                    float(base_nll[b, i + k].detach() - talk_nll[b, p, i, k].detach())
                    for k in range(M)
                    if (b, p, i, k) in talk_nll
                )
                - config.length_price * len(written[b, p, i]) * ((b, p, i, 0) in talk_nll)
                for p in range(P)
            ]
            for p in range(P):
                reward[b, p, i] = gains[p]
                advantage[b, p, i] = max(0.0, gains[p] - (sum(gains) / P if P > 1 else 0.0))
                if all((b, p, i, k) in talk_nll for k in range(M)):
                    nothing = torch.zeros(())
                    policy_terms += [-advantage[b, p, i] * logprob.get((b, p, i, j), nothing) for j in range(K)]
    talk_means = [
        torch.stack([value for key, value in talk_nll.items() if key[-1] == k]).mean()
        for k in range(M)
        if any(key[-1] == k for key in talk_nll)
    ]
    share = config.base_loss_weight
    nll = share * torch.stack(list(base_nll.values())).mean() + (1 - share) / M * sum(talk_means)
    return Plain(
        logits=_filled((B, S), logits),
        base_nll=_filled((B, S), base_nll),
        talk_nll=_filled((B, P, S, M), talk_nll),
        mixing_weight=_filled((B, P, S, M), weights),
        thought_logprob=_filled((B, P, S, K), logprob),
        reward=reward,
        advantage=advantage,
        nll=nll,
        policy_loss=torch.stack(policy_terms).mean() if policy_terms else torch.zeros(()),
    )


def _filled(shape: tuple[int, ...], entries: dict[tuple, Tensor]) -> Tensor:
    """A tensor of that shape from scalars or vectors by index, 0 elsewhere."""
    if not entries:
        return torch.zeros(shape)
    nothing = torch.zeros_like(next(iter(entries.values())))
    flat = [entries.get(index, nothing) for index in _indices(shape)]
    return torch.stack(flat).reshape(*shape, *nothing.shape)


def _indices(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [tuple(index.tolist()) for index in torch.cartesian_prod(*map(torch.arange, shape))]


def mismatches(output: QuietStarOutput, plain: Plain, real: Tensor) -> dict[str, float]:
    """Fields of a model's output that differ from the loop's, with how many tolerances they differ by.

    Args:
        output: with labels, for the same thoughts.
        plain: of the same inputs, padded in the same way.
        real: [B, S] tokens that are not padding; nothing is compared elsewhere.
    """
    at = real.bool()
    scale = float(plain.logits.detach().abs().max())
    tolerance = 1e-4 * scale + 1e-4  # of logits, and of whatever is made from them
    found = {}
    for name in Plain.__dataclass_fields__:
        ours, theirs = getattr(output, name).detach(), getattr(plain, name).detach()
        if ours.shape != theirs.shape:
            found[name] = float("inf")
            continue
        if name in ("logits", "base_nll"):
            ours, theirs = ours[at], theirs[at]
        elif theirs.dim() > 0:
            ours, theirs = ours.transpose(1, 2)[at], theirs.transpose(1, 2)[at]
        difference = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
        if not difference <= tolerance:
            found[name] = difference / tolerance
    return found


@torch.no_grad()
def greedy_thought(model: QuietStarForCausalLM, tokens: Tensor) -> list[int]:
    """The likeliest thought after these tokens [n], one token at a time, each by reading everything anew."""
    embed = model.base_lm.get_input_embeddings()
    start = model.config.embedding_scale * model.thought_embeddings.start_embedding[None]
    sequence, thought, lasting = torch.cat([embed(tokens), start]), [], 1.0
    for _ in range(model.config.n_ahead - 2):
        if model.end_head is not None:
            lasting *= float((-model.end_head(states(model.base_lm, sequence)[-1])).sigmoid())
            if lasting <= 0.5:  # of all thoughts that would be sampled, half have ended by now
                break
        thought.append(int(own_logits(model.base_lm, states(model.base_lm, sequence)[-1:]).argmax()))
        sequence = torch.cat([sequence, embed(torch.tensor(thought[-1:]))])
    return thought

"""What a forward pass is asked for: arguments that fit each other and the model, with defaults filled in."""

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from quietstar.base.draws import Generators
from quietstar.base.ids import check_tensor
from quietstar.base.rope import check_cached
from quietstar.base.trunk import Text, check_reach
from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.grid import ThoughtGrid, default_position_ids
from quietstar.journal import Journal
from quietstar.learn import IGNORED, NO_ROLLOUT, Counts, Labels, Rollout
from quietstar.output import check_thoughts
from quietstar.policy import Decider, ThinkPolicy
from quietstar.think import Sampling, Thoughts, check_sampling

IGNORED_ARGUMENTS = frozenset(
    {"token_type_ids", "cache_position", "num_items_in_batch", "tokenizer", "assistant_tokenizer"}
)
"""arguments that generation and trainers pass to the forward of every model"""

_CANNOT = "{} was asked for, which a thinking model does not return; leave it out"
REFUSED = {
    "inputs_embeds": (None, "inputs_embeds were given; give input_ids, as thoughts are read and written as tokens"),
    "output_attentions": (False, _CANNOT.format("output_attentions")),
    "output_router_logits": (False, _CANNOT.format("output_router_logits")),
    "return_dict": (True, _CANNOT.format("a tuple (return_dict=False)")),
}
"""arguments of other models' forward -> the value that is allowed, as is None, and the message that refuses others"""


@dataclass(slots=True, kw_only=True)
class Request:
    """Arguments of one forward pass.

    Legend: B examples, Q new tokens, P thoughts of each position, M true tokens after each thought.
    """

    config: QuietStarConfig
    text: Text
    policy: ThinkPolicy
    """chooses among the positions where a thought would count"""
    sampling: Sampling
    n_ahead: int
    """tokens of a thought, start and end included"""
    labels: Tensor | None = None
    """[B, Q]"""
    thoughts: Tensor | None = None
    """[B, P, Q, K] to think instead of sampling"""
    think_at: Tensor | None = None
    """[B, Q]: where thoughts are allowed; None allows them everywhere"""
    journal: Journal | None = None
    """follows the rows of a call of `generate`"""
    n_passes: int = 1
    """P"""
    n_ahead_talk: int = 1
    """M"""
    kept: slice | Tensor = field(default_factory=lambda: slice(None))
    """positions whose logits are returned"""
    counts: Counts | None = None
    """denominators of the losses; None counts the labels of this batch"""
    rollout: Rollout = NO_ROLLOUT
    is_training: bool = False
    loss_only: bool = False
    use_cache: bool = False
    output_hidden_states: bool = False

    @classmethod
    def of(
        cls,
        base_lm: PreTrainedModel,
        config: QuietStarConfig,
        *,
        is_training: bool,
        suppressed: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        thoughts: Tensor | None,
        think_at: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        logits_to_keep: int | Tensor | None,
        n_ahead: int | None,
        n_passes: int | None,
        n_ahead_talk: int | None,
        thought_temperature: float | None,
        thought_top_p: float | None,
        think: str | Decider | ThinkPolicy | None,
        journal: Journal | None,
        generator: Generators,
        counts: Counts | None,
        rollout: Rollout | None,
        loss_only: bool,
        output_hidden_states: bool | None,
        ignored: dict[str, Any],
    ) -> Self:
        """Check the arguments of `QuietStarForCausalLM.forward`, see there, and fill in what was left to the model.

        Raises:
            SettingsError: arguments do not fit each other or the model.
        """
        _check_ignored(ignored)
        if input_ids is None:
            raise SettingsError("input_ids are missing; give [B, S] token ids")
        _check_shapes(input_ids, attention_mask=attention_mask, labels=labels, think_at=think_at, thoughts=thoughts)
        check_tensor(base_lm, input_ids, "input_ids")
        if labels is not None:
            check_tensor(base_lm, labels, "labels", IGNORED)
        if cache is not None and past_key_values is not None:
            raise SettingsError("cache and past_key_values were both given; they are one thing: give cache")
        cache = past_key_values if cache is None else cache
        if labels is not None and cache is not None:
            raise SettingsError("labels and a cache were both given; give the whole text with labels")
        for name, value in {"n_passes": n_passes, "n_ahead_talk": n_ahead_talk}.items():
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give a whole number of at least 1")
        thought_top_p = 1.0 if thought_top_p is None else thought_top_p
        check_sampling(thought_temperature, thought_top_p)
        if thought_temperature is None:
            thought_temperature = config.thought_temperature if is_training else 0.0
        if thoughts is not None:
            check_thoughts(thoughts, config.vocab_size, may_end=config.learn_to_end)
            n_passes = thoughts.shape[1]
        if rollout is not None:
            _check_rollout(rollout, labels, thoughts)
        text = _text(input_ids, attention_mask, position_ids, cache)
        if journal is not None and journal.all_ids is not None:
            text.past_ids = journal.all_ids[:, : -text.n_new]
        request = cls(
            config=config,
            is_training=is_training,
            text=text,
            labels=labels,
            thoughts=thoughts,
            think_at=think_at,
            policy=journal.policy if journal is not None else ThinkPolicy.parse("always" if think is None else think),
            journal=journal,
            sampling=Sampling(
                temperature=thought_temperature, top_p=thought_top_p, suppressed=suppressed, generator=generator
            ),
            n_ahead=_resolve_n_ahead(config, n_ahead, thoughts),
            n_passes=n_passes or (config.n_passes if is_training and labels is not None else 1),
            n_ahead_talk=n_ahead_talk or (config.n_ahead_talk if labels is not None else 1),
            kept=logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-(logits_to_keep or 0), None),
            counts=counts,
            rollout=NO_ROLLOUT if rollout is None else rollout,
            loss_only=loss_only,
            use_cache=labels is None if use_cache is None else use_cache,
            output_hidden_states=bool(
                config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
        )
        S = text.attention_mask.shape[1]
        check_reach(base_lm, S, request.branch_length)
        check_cached(base_lm, text.position_ids, S - text.n_new)
        return request

    @property
    def branch_length(self) -> int:
        """L = n_ahead + M - 1, the tokens of a branch."""
        return self.n_ahead + self.n_ahead_talk - 1

    @property
    def is_decoding(self) -> bool:
        """Whether thoughts are wanted after the last token of each row alone, and nothing is learned."""
        # `generate` keeps the last logit only (logits_to_keep=1), also while it reads a prompt
        only_last = self.text.n_new == 1 or (isinstance(self.kept, slice) and self.kept.start == -1)
        nothing_given = self.labels is None and self.thoughts is None and self.n_passes == self.n_ahead_talk == 1
        return only_last and nothing_given and not torch.is_grad_enabled()

    def may_think(self) -> Tensor:
        """Return [B, Q] bool: where a logit or a loss needs a thought, and think_at allows one.

        If there are labels but none to predict, one thought is written that counts nowhere: processes that share a
        model must all make the same passes, whatever their rows look like.
        """
        visible = self.text.attention_mask[:, -self.text.n_new :].bool()
        if self.labels is None:
            may_think = torch.zeros_like(visible)
            may_think[:, self.kept] = visible[:, self.kept]
        else:
            # a label counts wherever it stands, also after a token that is masked
            labelled = self.labels_ahead(torch.ones_like(visible)).talk.any(-1)
            may_think = labelled if self.loss_only else visible | labelled
        if self.think_at is not None:
            may_think = may_think & self.think_at.bool()
        if self.labels is not None and not may_think.any() and (self.think_at is None or self.think_at.any()):
            may_think = torch.zeros_like(may_think)
            may_think.view(-1)[visible.flatten().int().argmax()] = True
        return may_think

    def labels_ahead(self, is_column: Tensor) -> Labels:
        """Return the labels that branches at these positions [B, Q] predict."""
        assert self.labels is not None
        return Labels.look_ahead(self.labels, is_column, self.n_ahead_talk, self.text.attention_mask)

    def given_thoughts(self, grid: ThoughtGrid) -> Thoughts | None:
        """Return the thoughts that were given, at a grid's columns; None if there are none.

        Raises:
            SettingsError: they are to be learned from, and one has a token that cannot be sampled.
        """
        if self.thoughts is None:
            return None
        tokens = grid.gather_columns(self.thoughts.transpose(1, 2)).transpose(0, 1)
        suppressed = self.sampling.suppressed
        if self.labels is not None and suppressed is not None:
            unlikely = tokens[torch.isin(tokens, suppressed.to(tokens))]
            if unlikely.numel():
                raise SettingsError(
                    f"thoughts hold token {int(unlikely[0])}, which is suppressed and has no probability to learn "
                    "from; give thoughts without it"
                )
        return Thoughts(tokens)


def _check_rollout(rollout: Rollout, labels: Tensor | None, thoughts: Tensor | None) -> None:
    if labels is None:
        raise SettingsError("a rollout was given without labels, and is what losses compare with; give both")
    if rollout.kl_weight and rollout.reference_logprob is None:
        raise SettingsError(f"kl_weight is {rollout.kl_weight} in a rollout without reference_logprob; give both")
    of_thoughts = {"logprob": rollout.logprob, "reference_logprob": rollout.reference_logprob}
    for name, given in of_thoughts.items():
        if given is not None and (thoughts is None or given.shape != thoughts.shape):
            wanted = "the thoughts that it belongs to, too" if thoughts is None else f"the shape {list(thoughts.shape)}"
            raise SettingsError(f"{name} in a rollout is {list(given.shape)}; give {wanted}")
    if rollout.reference_nll is not None and rollout.reference_nll.shape != labels.shape:
        raise SettingsError(
            f"reference_nll in a rollout is {list(rollout.reference_nll.shape)}; give the shape {list(labels.shape)}"
        )


def _check_ignored(ignored: dict[str, Any]) -> None:
    for name, (allowed, message) in REFUSED.items():
        if ignored.get(name) is not None and ignored[name] is not allowed:
            raise SettingsError(message)
    given = {name for name, value in ignored.items() if value is not None}
    if unknown := sorted(given - IGNORED_ARGUMENTS - REFUSED.keys()):
        raise SettingsError(f"forward does not know the argument {', '.join(unknown)}; see its docstring")


def _resolve_n_ahead(config: QuietStarConfig, n_ahead: int | None, thoughts: Tensor | None) -> int:
    """Return the tokens of a thought: as many as were asked for, or as thoughts that are given have."""
    resolved = config.resolve_n_ahead(n_ahead)
    if thoughts is None:
        return resolved
    given = thoughts.shape[-1] + 2
    if n_ahead is not None and n_ahead != given:
        raise SettingsError(
            f"n_ahead is {n_ahead}, and thoughts of {given - 2} tokens were given, {given} with start and end; leave "
            "n_ahead out"
        )
    return given


def _check_shapes(input_ids: Tensor, **others: Tensor | None) -> None:
    given = {name: value for name, value in {"input_ids": input_ids, **others}.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise SettingsError(f"{name} is of type {type(value).__name__}; give a tensor")
    shape = tuple(input_ids.shape)
    if len(shape) != 2 or 0 in shape:
        raise SettingsError(f"input_ids is {list(shape)}; give [B, S] with at least one token")
    if (mask := given.get("attention_mask")) is not None and mask.dim() != 2:
        raise SettingsError(f"attention_mask is {list(mask.shape)}; give [B, S], 0 at padding")
    for name in ("labels", "think_at"):
        if name in given and tuple(given[name].shape) != shape:
            raise SettingsError(f"{name} is {list(given[name].shape)}; give the shape of input_ids, {list(shape)}")
    if (thoughts := given.get("thoughts")) is not None and (thoughts.dim() != 4 or thoughts.shape[::2] != shape):
        raise SettingsError(f"thoughts are {list(thoughts.shape)}; give [B, P, S, K] for input_ids {list(shape)}")


def _text(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None) -> Text:
    B, Q = input_ids.shape
    cache = DynamicCache() if cache is None else cache
    n_past = int(cache.get_seq_length())
    if attention_mask is None:
        attention_mask = input_ids.new_ones(B, n_past + Q)
    if tuple(attention_mask.shape) != (B, n_past + Q):
        raise SettingsError(
            f"attention_mask is {list(attention_mask.shape)}; give {[B, n_past + Q]}, of all tokens read so far"
        )
    all_position_ids = default_position_ids(attention_mask.bool())
    if position_ids is not None:
        all_position_ids = torch.cat([all_position_ids[:, :n_past], position_ids.expand(B, -1)], dim=1)
    return Text(input_ids=input_ids, attention_mask=attention_mask, position_ids=all_position_ids, cache=cache)

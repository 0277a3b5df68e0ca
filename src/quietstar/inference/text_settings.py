"""How commands and the server choose the tokens of a text: by their options, and by nothing else.

A base model's generation_config may ask for penalties, beams or sampling of its own. `model.generate` in Python obeys
it, as for every Hugging Face model. Commands keep what it says of tokens that end a text, fill it up or never enter it,
and what changes no token; all else is set aside.
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
    | {"max_length"}  # max_new_tokens goes before it
)
"""settings that change no token, or only where nobody says how many there are to be"""
OPTIONS = frozenset({"do_sample", "temperature", "top_p", "max_new_tokens"})
"""settings that commands have options for"""
WITH_AN_ASSISTANT = ("assistant", "num_assistant", "target_lookbehind", "is_assistant")
"""beginnings of settings that matter where another model guesses ahead, as no command lets it"""
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
"""values that ask for nothing, where it is not None alone"""


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """Settings of a model's generation_config that commands and the server do not follow, with their values."""
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
    """Log one line about settings that are not followed, where there are any."""
    if asked := set_aside(model):
        given = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        logger.warning(
            "the model's generation_config asks for %s, which is set aside: only the options given here decide how "
            "tokens are chosen (model.generate in Python follows it)",
            given[:300],
        )


def text_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float = 1.0
) -> dict[str, Any]:
    """Arguments of `generate` that choose tokens by these options alone.

    Args:
        model: writes, with thoughts or without.
        tokenizer: says with the model's generation_config what ends a text.
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn among the likeliest that together reach this probability.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends: dict[str, Any] = {"eos_token_id": sorted(eos_ids(model, tokenizer)) or None, "pad_token_id": pad}
    never = suppressed_ids(model, tokenizer)
    ends["suppress_tokens"] = never or None
    neutral = {name: NEUTRAL.get(name) for name in set_aside(model)}
    if temperature == 0:
        return {**neutral, **ends, "do_sample": False, **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))}
    return {**neutral, **ends, "do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


def suppressed_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that no text has: by a thinking model's config, the generation_config, and as the tokenizer lacks them."""
    own = getattr(model.config, "suppressed", ())
    asked = getattr(model.generation_config, "suppress_tokens", None) or ()
    return sorted({*own, *asked, *padding_ids(model, tokenizer)})


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a text, by the model's generation_config and the tokenizer."""
    found: list[int] = []
    for given in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        found += given if isinstance(given, list) else [given] if given is not None else []
    return frozenset(found)

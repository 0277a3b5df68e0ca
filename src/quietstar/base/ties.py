"""Tied embeddings and LM heads, and configs that agree with the weights about it."""

from transformers import PreTrainedModel


def is_tied(base_lm: PreTrainedModel) -> bool:
    """Whether a language model's embeddings and LM head share one matrix."""
    return base_lm.get_input_embeddings().weight is base_lm.get_output_embeddings().weight


def say_whether_tied(base_lm: PreTrainedModel) -> None:
    """Set `tie_word_embeddings` in a language model's config to what holds for its weights.

    With a wrong config, both matrices are saved and one is lost on loading, or every load warns.
    """
    tied, config = is_tied(base_lm), base_lm.config
    if config.get_text_config().tie_word_embeddings == tied:
        return
    for each in (config, config.get_text_config()):
        each.tie_word_embeddings = tied
    base_lm.all_tied_weights_keys = base_lm.get_expanded_tied_weights_keys(all_submodels=True)

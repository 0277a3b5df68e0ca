"""Embeddings and LM head that are one matrix, and configs that say so exactly where it is true."""

from transformers import PreTrainedModel


def is_tied(base_lm: PreTrainedModel) -> bool:
    """Whether a language model's embeddings and LM head are one matrix."""
    return base_lm.get_input_embeddings().weight is base_lm.get_output_embeddings().weight


def say_whether_tied(base_lm: PreTrainedModel) -> None:
    """Have a language model's config say whether embeddings and LM head are one matrix, as they are.

    Where the config says otherwise, both are saved and one of them is lost in loading, or there are warnings for ever.
    """
    tied, config = is_tied(base_lm), base_lm.config
    if config.get_text_config().tie_word_embeddings == tied:
        return
    for each in (config, config.get_text_config()):
        each.tie_word_embeddings = tied
    base_lm.all_tied_weights_keys = base_lm.get_expanded_tied_weights_keys(all_submodels=True)

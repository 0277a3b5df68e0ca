"""How base models are found, checked and given their first thought, and that the check notices what it should."""

import logging
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from quietstar import QuietStarForCausalLM
from quietstar.base.loading import evaluating, load_base
from quietstar.errors import CheckpointError, SettingsError, UnsupportedModelError
from tests.tiny import tiny_base


def tokenizer_of(*words: str) -> PreTrainedTokenizerFast:
    """One word a token, by its place; anything else makes no token."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("mode", [True, False])
def test_a_model_is_in_its_mode_again_after_evaluating_even_after_an_error(mode: bool) -> None:
    model = torch.nn.Dropout().train(mode)
    with suppress(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert model.training == mode


# ---------------------------------------------------------------------- the first thought


def test_start_and_end_begin_as_three_dashes() -> None:
    base_lm = tiny_base()
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer_of("so", "it", "---", "goes"))
    expected = base_lm.get_input_embeddings().weight[2]
    for side in ("start", "end"):
        torch.testing.assert_close(getattr(model.thought_embeddings, side), expected)
        torch.testing.assert_close(getattr(model.thought_embeddings, f"{side}_embedding"), expected / 100)


def test_another_text_begins_as_its_first_token() -> None:
    base_lm = tiny_base()
    tokenizer = tokenizer_of("so", "it", "---", "goes")
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, initial_thought_text="goes so")
    torch.testing.assert_close(model.thought_embeddings.start, base_lm.get_input_embeddings().weight[3])


def test_a_text_without_a_token_is_refused() -> None:
    with pytest.raises(SettingsError, match="initial_thought_text ' '"):
        QuietStarForCausalLM.from_base(tiny_base(), tokenizer=tokenizer_of("so"), initial_thought_text=" ")


def test_the_base_models_own_tokenizer_is_found(tmp_path: Path) -> None:
    base_lm = tiny_base()
    base_lm.save_pretrained(tmp_path)
    tokenizer_of("so", "---").save_pretrained(tmp_path)
    model = QuietStarForCausalLM.from_base(tmp_path)
    torch.testing.assert_close(model.thought_embeddings.start, base_lm.get_input_embeddings().weight[1])


def test_without_a_tokenizer_the_mean_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    base_lm = tiny_base()
    with caplog.at_level(logging.WARNING, logger="quietstar"):
        model = QuietStarForCausalLM.from_base(base_lm)
    assert "no tokenizer" in caplog.text
    torch.testing.assert_close(model.thought_embeddings.start, base_lm.get_input_embeddings().weight.mean(0))


# ---------------------------------------------------------------------- from_base


def test_the_base_model_is_used_as_it_is() -> None:
    base_lm = tiny_base()
    before = {name: tensor.clone() for name, tensor in base_lm.state_dict().items()}
    model = QuietStarForCausalLM.from_base(base_lm)
    assert model.base_lm is base_lm
    assert model.config.base_config is base_lm.config
    assert base_lm.state_dict().keys() == before.keys()
    assert all(torch.equal(base_lm.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("training", [False, True])
def test_training_or_not_stays_as_it_was(training: bool) -> None:
    model = QuietStarForCausalLM.from_base(tiny_base().train(training))
    assert model.training is training
    assert model.base_lm.training is training


def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="n_ahaed is not a setting"):
        QuietStarForCausalLM.from_base(tiny_base(), n_ahaed=4)


# ---------------------------------------------------------------------- loading


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "no-such-organisation/no-such-model"):
        with pytest.raises(CheckpointError, match=r"there is no model .* here: give a folder") as refusal:
            QuietStarForCausalLM.from_base(name)
        assert "\n" not in str(refusal.value)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        QuietStarForCausalLM.from_base(tmp_path)


@pytest.mark.slow  # transformers imports every family to list them in its message
def test_a_folder_of_an_encoder_decoder(tmp_path: Path) -> None:
    config = AutoConfig.for_model("t5", vocab_size=61, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as refusal:
        QuietStarForCausalLM.from_base(tmp_path)
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------------- the check bites


def test_a_mistyped_folder_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no model .* here: did you mean .*/mine\?"):
        load_base(tmp_path / "mime")


def test_a_run_that_has_not_ended_names_its_checkpoint(tmp_path: Path) -> None:
    for step in (4, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "complete.json").touch()
    (tmp_path / "checkpoint-99").mkdir()
    with pytest.raises(CheckpointError, match=r"is of a run that has not ended; give its checkpoint '.*checkpoint-12'"):
        load_base(tmp_path)

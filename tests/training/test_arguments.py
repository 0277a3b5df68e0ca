"""Arguments: the paper's recipe unless told otherwise, and nothing impossible gets past them."""

import dataclasses
import math

import pytest
import torch
from transformers import TrainingArguments

from quietstar import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.arguments import GROUPS, METHOD_SETTINGS
from quietstar.training.model import thinking_model
from quietstar.training.model_arguments import ModelArguments
from tests.tiny import tiny_base, tiny_model
from tests.tiny_tokenizer import byte_tokenizer


def arguments(**settings) -> QuietStarTrainingArguments:
    return QuietStarTrainingArguments(**({"use_cpu": True} | settings))


def test_defaults_are_the_papers_recipe():
    args = arguments()
    assert args.learning_rate == 1e-6
    assert args.optim.startswith("adamw")
    assert args.get_warmup_steps(100) == 20
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert args.weight_decay == 1e-3
    assert args.max_grad_norm == 1.0
    assert args.max_steps == 100
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 8
    assert args.think_fraction == 1
    config = thinking_model(tiny_base(), args).config
    assert (config.n_passes, config.n_ahead_talk, config.n_ahead) == (2, 4, 8)
    assert (config.policy_weight, config.base_loss_weight) == ("balanced:0.1", 0.5)
    assert (config.thought_temperature, config.reinforce_temperature) == (1.0, 1.0)
    assert DataArguments().max_length == 256
    assert ModelArguments().model == "mistralai/Mistral-7B-v0.1"
    assert DataArguments().dataset == "open-web-math/open-web-math"


def test_a_broken_set_up_shows_at_once():
    """Evaluation before the first step and every eval_steps, and no loss that hides."""
    args = arguments()
    assert args.eval_on_start
    assert (args.eval_strategy, args.eval_steps) == ("steps", 50)
    assert not args.logging_nan_inf_filter


def test_every_setting_of_the_method_reaches_the_config():
    given = dict(
        n_ahead=5,
        n_ahead_talk=3,
        learn_to_end=True,
        length_price=0.2,
        n_passes=4,
        mixing="thought",
        thought_source="sampled",
        filler_text="hm",
        thought_temperature=0.7,
        reinforce_temperature=2.0,
        advantage="centered",
        policy_weight=10.0,
        nll_weight=0.5,
        base_loss_weight=0.3,
        initial_thought_text="hm",
    )
    assert given.keys() == set(METHOD_SETTINGS)
    assert all(hasattr(QuietStarConfig, name) for name in METHOD_SETTINGS)
    config = thinking_model(tiny_base(), arguments(**given)).config
    assert {name: getattr(config, name) for name in given} == given


def test_the_shortest_thoughts_are_no_longer_than_the_models():
    """Whether its n_ahead is an argument, the default, or its own."""
    told = "n_ahead_min is 6, above n_ahead 5; give 2 to 5"
    with pytest.raises(SettingsError, match=told):
        arguments(n_ahead=5, n_ahead_min=6)
    with pytest.raises(SettingsError, match=told):
        thinking_model(tiny_model(n_ahead=5), arguments(n_ahead_min=6))
    assert thinking_model(tiny_model(n_ahead=12), arguments(n_ahead_min=10)).config.n_ahead == 12


def test_only_thoughts_of_different_lengths_have_a_price():
    with pytest.raises(SettingsError, match=r"length_price is 0.5, and this model's thoughts are all equally long"):
        thinking_model(tiny_base(), arguments(length_price=0.5))
    with pytest.raises(SettingsError, match=r"length_price is 0.5.*--learn_to_end, for a model that is given thoughts"):
        thinking_model(tiny_model(), arguments(length_price=0.5))
    for model in (thinking_model(tiny_base(), arguments(learn_to_end=True)), tiny_model(learn_to_end=True)):
        assert thinking_model(model, arguments(length_price=0.5)).config.length_price == 0.5


def test_a_setting_that_is_not_given_leaves_the_model_as_it_is():
    model = thinking_model(tiny_base(), arguments(n_ahead=5, policy_weight=3.0))
    again = thinking_model(model, arguments(n_passes=4))
    assert again is model
    assert (model.config.n_ahead, model.config.policy_weight, model.config.n_passes) == (5, 3.0, 4)


def test_a_filler_follows_its_text():
    tokenizer = byte_tokenizer()
    model = thinking_model(tiny_base(vocab_size=259), arguments(thought_source="filler", filler_text="a"), tokenizer)
    first = model.config.filler_token_id
    assert first == tokenizer("a", add_special_tokens=False)["input_ids"][0]
    assert thinking_model(model, arguments(), tokenizer).config.filler_token_id == first
    changed = thinking_model(model, arguments(filler_text="b"), tokenizer)
    assert changed.config.filler_token_id == tokenizer("b", add_special_tokens=False)["input_ids"][0] != first


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(QuietStarTrainingArguments)])
def test_every_argument_has_a_help_text(name):
    field = QuietStarTrainingArguments.__dataclass_fields__[name]
    text = field.metadata.get("help", "")
    assert not field.init or len(text) > 10
    inherited = name in TrainingArguments.__dataclass_fields__
    assert inherited or getattr(text, "group", None) in GROUPS


IMPOSSIBLE = [
    ("think_fraction", 1.5),
    ("think_fraction", -0.1),
    ("think_fraction", math.nan),
    ("think_tokens", 0),
    ("think", "sometimes"),
    ("reference", "best"),
    ("ema_decay", 1.5),
    ("ema_decay", math.nan),
    ("ema_device", "cuda"),
    ("kl_weight", -1.0),
    ("kl_weight", math.inf),
    ("policy_epochs", 0),
    ("clip_ratio", -0.1),
    ("clip_ratio", 1.0),
    ("thoughts_shown", -1),
    ("per_device_train_batch_size", 0),
    ("per_device_eval_batch_size", 0),
    ("gradient_accumulation_steps", 0),
    ("learning_rate", -1.0),
    ("learning_rate", math.nan),
    pytest.param("max_steps", 0),
    pytest.param("max_steps", -5),
    pytest.param("weight_decay", -1.0),
    pytest.param("seed", -1),
    pytest.param("seed", 2**32),
    ("n_ahead", 1),
    ("n_ahead_min", 1),
    ("n_ahead_min", 2.5),
    ("n_ahead_min", 9),
    ("n_ahead_talk", 0),
    ("n_passes", 0),
    ("length_price", -0.1),
    ("policy_weight", -1.0),
    ("advantage", "best"),
    ("mixing", "both"),
    ("thought_source", "noise"),
    ("filler_text", ""),
    ("nll_weight", -1.0),
    ("base_loss_weight", 1.5),
    ("reinforce_temperature", 0.0),
    ("initial_thought_text", ""),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE, ids=lambda value: str(value))
def test_impossible_values_are_refused_by_name_and_value(name, value):
    with pytest.raises(SettingsError) as caught:
        thinking_model(tiny_base(), arguments(**{name: value}))
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert str(value) in message
    assert "give" in message or "choose" in message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (dict(kl_weight=0.1), "kl_weight is 0.1, and there is no moving average; add --reference ema"),
        (dict(ema_decay=0.9), "ema_decay is 0.9, and there is no moving average; add --reference ema"),
        (dict(kl_weight=0.1, reference="ema", thought_source="filler"), "filler thoughts have no policy loss"),
        (dict(ema_device="cpu"), "ema_device is cpu, and there is no moving average; add --reference ema"),
        (
            dict(clip_ratio=0.2),
            "the first step of a set of thoughts is never clipped; give a policy_epochs of at least 2",
        ),
        (dict(think_tokens=3, think_fraction=0.5), "both say at how many positions to think: leave one out"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings, told):
    with pytest.raises(SettingsError, match=told):
        arguments(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(lora_r=0),
        dict(lora_r=-1),
        dict(lora_alpha=0),
        dict(lora_dropout=1.0),
        dict(lora_dropout=-0.1),
        dict(merge=True),
        dict(freeze_base=True),
        dict(branch_adapters=True, original=True),
        dict(freeze_base=True, original=True, lora=False),
        dict(dtype="int8"),
    ],
    ids=str,
)
def test_impossible_adapters_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        ModelArguments(**({"lora": "merge" not in settings} | settings))


def test_adapters_are_what_peft_takes():
    assert ModelArguments().adapter_settings() == {}
    given = ModelArguments(lora=True, lora_r=3, lora_alpha=5, lora_dropout=0.1, lora_target_modules=["q_proj"])
    settings = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.1, "target_modules": ["q_proj"]}
    assert given.adapter_settings() == {"lora": settings}
    assert "target_modules" not in ModelArguments(lora=True).adapter_settings()["lora"]
    both = ModelArguments(lora=True, branch_adapters=True).adapter_settings()
    assert both["branch_adapters"] == both["lora"]


@pytest.mark.parametrize(
    ("metric", "lowest"),
    [
        ("eval_base_nll", True),
        ("talk_nll_0", True),
        ("eval_nll", True),
        ("loss", True),
        ("eval_drift", True),
        ("eval_gain", False),
        ("eval_gsm8k_exact_match", False),
    ],
)
def test_the_best_model_has_the_lowest_nll_and_the_highest_share_of_right_answers(metric, lowest):
    best = dict(load_best_model_at_end=True, metric_for_best_model=metric, eval_steps=50, save_steps=50)
    assert arguments(**best).greater_is_better is not lowest
    assert dataclasses.replace(arguments(**best)).greater_is_better is not lowest
    assert arguments(**best, greater_is_better=lowest).greater_is_better is lowest


def test_bfloat16_where_a_gpu_can():
    assert arguments().bf16 is False
    assert arguments(bf16=True).bf16 is True
    expected = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert QuietStarTrainingArguments().bf16 == expected


def test_arguments_can_be_written_down_and_read_again():
    args = arguments(n_ahead=5, think_fraction=0.5, lr_scheduler_type="linear")
    written = {name: value for name, value in args.to_dict().items() if args.__dataclass_fields__[name].init}
    again = QuietStarTrainingArguments(**written)
    assert again.to_dict() == args.to_dict()


@pytest.mark.parametrize("name", ["learning_rate", "head_learning_rate"])
@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf")])
def test_a_rate_is_a_number_of_at_least_0(tmp_path, name, rate):
    with pytest.raises(SettingsError, match=f"{name} is .*; give a number of at least 0"):
        QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **{name: rate})

"""The stages of a curriculum, as options give them."""

from typing import Any

import pytest

from quietstar.errors import SettingsError
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.curriculum import CurriculumArguments, check_curriculum, stages_of
from quietstar.training.model_arguments import ModelArguments


def arguments(**settings: Any) -> QuietStarTrainingArguments:
    return QuietStarTrainingArguments(output_dir="nowhere", use_cpu=True, **settings)


def test_each_stage_has_its_own_lengths_steps_and_rate() -> None:
    curriculum = CurriculumArguments(
        curriculum="16:8, 12:4,8:4", curriculum_steps="150,100,50", curriculum_learning_rates="2e-6,1e-6,1e-6"
    )
    found = [
        (stage.name, stage.n_ahead, stage.n_ahead_talk, stage.max_steps, stage.learning_rate)
        for stage in stages_of(curriculum, arguments())
    ]
    assert found == [("stage-1", 16, 8, 150, 2e-6), ("stage-2", 12, 4, 100, 1e-6), ("stage-3", 8, 4, 50, 1e-6)]
    assert stages_of(curriculum, arguments())[0].words == (
        "stage 1 of 3: n_ahead 16, n_ahead_talk 8, 150 steps at a learning rate of 2e-06"
    )


def test_one_number_is_for_all_stages_and_none_is_the_runs() -> None:
    curriculum = CurriculumArguments(curriculum="6:3,4:2", curriculum_steps="7")
    found = stages_of(curriculum, arguments(learning_rate=3e-5, max_steps=9))
    assert [(stage.max_steps, stage.learning_rate) for stage in found] == [(7, 3e-5), (7, 3e-5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curriculum": "16:8,12"}, r"curriculum has stage '12'; give n_ahead:n_ahead_talk of each"),
        ({"curriculum": "16:8,"}, r"curriculum has stage ''"),
        ({"curriculum": "8:-4"}, r"curriculum has stage '8:-4'"),
        ({"curriculum": "1:4"}, r"n_ahead is 1"),
        ({"curriculum": "8:0"}, r"n_ahead_talk of at least 1"),
        (
            {"curriculum": "8:4,6:2", "curriculum_steps": "1,2,3"},
            r"one number of steps above 0, or 2 with commas",
        ),
        ({"curriculum": "8:4", "curriculum_steps": "1.5"}, r"curriculum_steps is '1.5'"),
        ({"curriculum": "8:4", "curriculum_steps": "0"}, r"curriculum_steps is '0'"),
        ({"curriculum": "8:4", "curriculum_learning_rates": "nan"}, r"curriculum_learning_rates is 'nan'"),
        ({"curriculum": "8:4", "curriculum_learning_rates": "inf"}, r"curriculum_learning_rates is 'inf'"),
        ({"curriculum_steps": "5"}, r"curriculum_steps is '5', and there is no curriculum"),
        ({"curriculum_keep_optimizer": True}, r"curriculum_keep_optimizer is True, and there is no curriculum"),
    ],
)
def test_impossible_stages_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        CurriculumArguments(**options)


@pytest.mark.parametrize(
    ("model", "data", "training", "message"),
    [
        ({}, {}, {"n_ahead": 8}, "n_ahead is 8, and the curriculum gives lengths"),
        ({}, {}, {"n_ahead_min": 3}, "n_ahead_min is 3"),
        ({"original": True}, {}, {}, "original does not go with a curriculum"),
        ({}, {}, {"max_steps": -1}, "max_steps is -1, and the stages of a curriculum have steps"),
        ({}, {"eval_size": 0}, {}, "on held-out text, and there is none"),
        ({}, {}, {"eval_strategy": "no"}, "on held-out text, and there is none"),
        ({}, {}, {"metric_for_best_model": "eval_gsm8k_exact_match"}, "a curriculum chooses models by eval_talk_nll_0"),
        (
            {},
            {},
            {"save_strategy": "no"},
            "save_strategy no was given, and a curriculum needs checkpoints",
        ),
        ({}, {}, {"eval_delay": 5.0}, "eval_delay is 5.0, and a stage chooses among its evaluations; leave it out"),
        (
            {},
            {},
            {"metric_for_best_model": "eval_talk_nll_0", "greater_is_better": True},
            "the best model of a stage has the lowest nll",
        ),
        ({}, {}, {"resume_from_checkpoint": "x/checkpoint-3"}, "names a checkpoint of one stage; give --resume"),
    ],
)
def test_options_that_do_not_go_with_stages(
    model: dict[str, Any], data: dict[str, Any], training: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_curriculum(
            ModelArguments(**model), DataArguments(**data), arguments(**training), CurriculumArguments(curriculum="8:4")
        )


def test_a_learning_rate_of_0_is_the_runs_own_business() -> None:
    (stage,) = stages_of(CurriculumArguments(curriculum="8:4"), arguments(learning_rate=0.0))
    assert stage.learning_rate == 0


def test_an_optimizer_that_is_not_saved_cannot_be_kept() -> None:
    keeps = CurriculumArguments(curriculum="8:4", curriculum_keep_optimizer=True)
    with pytest.raises(SettingsError, match="save_only_model was given, and a curriculum needs checkpoints"):
        check_curriculum(ModelArguments(), DataArguments(), arguments(save_only_model=True), keeps)

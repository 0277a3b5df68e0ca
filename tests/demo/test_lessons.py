"""Both trainings follow their course: no steps leave a model as it was, and a seed repeats."""

import torch
from transformers import TrainerCallback

from quietstar import QuietStarForCausalLM
from quietstar.demo.language import build_tokenizer
from quietstar.demo.lessons import SIZE, Course, learn_language, learn_to_think

LINES = ["cxzyyx=h", "cxzyyx=~aekd~h"]
TOKENIZER = build_tokenizer()


def course(steps: int, folder: str = "unused") -> Course:
    return Course(output_dir=folder, seed=0, steps=steps, batch_size=2, learning_rate=1e-2)


def test_a_course_repeats_and_moves_the_weights(tmp_path):
    fresh, once, again = (
        learn_language(course(steps, str(tmp_path)), LINES, TOKENIZER, TrainerCallback()).lm_head.weight
        for steps in (0, 2, 2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(fresh, once)


def test_a_base_model_has_the_layers_asked_for():
    models = [learn_language(course(0), LINES, TOKENIZER, TrainerCallback(), **kind) for kind in ({}, {"n_layers": 1})]
    assert [len(model.model.layers) for model in models] == [SIZE["num_hidden_layers"], 1]


def test_a_thinking_model_is_trained_in_place(tmp_path):
    base_lm = learn_language(course(0), LINES, TOKENIZER, TrainerCallback())
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=TOKENIZER, n_ahead=3, n_ahead_talk=1)
    for steps, moves in ((0, False), (2, True)):
        before = model.mixing_head.layers[4].weight.clone()
        lesson = course(steps, str(tmp_path))
        learn_to_think(lesson, model, LINES[:1], TOKENIZER, TrainerCallback(), clip_heads_apart=True)
        assert torch.equal(model.mixing_head.layers[4].weight, before) is not moves

"""Answers are marked right or wrong by the language, and a thought only acts through the mixing head."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quietstar import QuietStarForCausalLM
from quietstar.demo.language import DASH, END, LETTERS, Language, build_tokenizer, every_problem
from quietstar.demo.quiz import Quiz
from quietstar.reporting.interval import Share
from tests.tiny import loud

PROBLEMS = every_problem()[::97]


@pytest.fixture
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def quiz(tokenizer):
    return Quiz(PROBLEMS, Language.sample(0), tokenizer)


@pytest.fixture
def base_lm(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    base_lm = LlamaForCausalLM(config)
    loud(base_lm)
    return base_lm


class Reciter(torch.nn.Module):
    """A stand-in for a model that knows the language: it writes given lines."""

    def __init__(self, lines, tokenizer):
        super().__init__()
        self.lines = torch.tensor(tokenizer(lines)["input_ids"])
        self.n_tokens = len(tokenizer)

    def forward(self, input_ids, logits_to_keep):
        following = self.lines[:, input_ids.shape[1], None]
        return type("Output", (), {"logits": torch.nn.functional.one_hot(following, self.n_tokens).float()})

    def generate(self, input_ids, max_new_tokens, **_):
        return self.lines[:, : input_ids.shape[1] + max_new_tokens]


def test_a_model_that_knows_the_lines_is_right(quiz, tokenizer):
    language = Language.sample(0)
    short = Reciter([language.line(problem, spelled=False) for problem in PROBLEMS], tokenizer)
    spelled = Reciter([language.line(problem, spelled=True) for problem in PROBLEMS], tokenizer)
    for answers in (quiz.without_thoughts(short), quiz.spelled_out(spelled)):
        assert answers.right == Share(len(PROBLEMS), len(PROBLEMS))
        assert answers.letters == quiz.answers


def test_a_model_of_another_language_is_marked_by_what_it_gets_right(quiz, tokenizer):
    other = Language.sample(1)
    wanted = sum(other.answer(problem) == answer for problem, answer in zip(PROBLEMS, quiz.answers, strict=True))
    spelled = Reciter([other.line(problem, spelled=True) for problem in PROBLEMS], tokenizer)
    assert quiz.spelled_out(spelled).right == Share(wanted, len(PROBLEMS))


def test_lines_that_end_early_are_wrong(quiz, tokenizer):
    reciter = Reciter([problem + "=" + DASH + "ab" + END for problem in PROBLEMS], tokenizer)
    assert quiz.spelled_out(reciter).right.right == 0


def test_an_answer_is_a_letter_even_where_a_dash_is_likelier(quiz, base_lm, tokenizer):
    with torch.no_grad():
        base_lm.lm_head.weight[tokenizer.convert_tokens_to_ids(DASH)] *= 100
    assert set(quiz.without_thoughts(base_lm).letters) <= set(LETTERS)


@pytest.mark.parametrize("n_ahead", [2, 4, 6, 8])
def test_fresh_thoughts_change_no_answer(quiz, base_lm, tokenizer, n_ahead):
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, n_ahead=n_ahead)
    own = quiz.with_thoughts(model)
    assert own.letters == quiz.without_thoughts(base_lm).letters
    assert quiz.with_thoughts(model, quiz.random_thoughts(n_ahead - 2, 0)).letters == own.letters


def test_given_thoughts_are_thought_and_compared_with_the_way(quiz, base_lm, tokenizer):
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, n_ahead=6)
    loud(model.mixing_head)
    ways = torch.tensor(tokenizer(quiz.ways)["input_ids"])
    told = quiz.with_thoughts(model, ways)
    assert told.thoughts == quiz.ways
    assert told.thoughts_are_ways == Share(len(quiz), len(quiz))
    random_thoughts = quiz.random_thoughts(4, 0)
    scattered = quiz.with_thoughts(model, random_thoughts)
    assert scattered.thoughts == [tokenizer.decode(thought) for thought in random_thoughts]
    assert scattered.letters != told.letters


def test_random_thoughts_are_letters_and_repeat_for_a_seed(quiz):
    drawn = quiz.random_thoughts(40, 0)
    assert set(drawn.flatten().tolist()) == set(quiz.letter_ids.tolist())
    assert torch.equal(drawn, quiz.random_thoughts(40, 0))
    assert not torch.equal(drawn, quiz.random_thoughts(40, 1))


def test_asking_leaves_the_mode_of_a_model_alone(quiz, base_lm):
    for training in (True, False):
        base_lm.train(training)
        quiz.without_thoughts(base_lm)
        assert base_lm.training is training

"""Questions to a model about held-out problems, answered without thoughts, with thoughts, or spelled out.

Legend: n problems, S tokens of a question, K tokens of a thought, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quietstar.base.loading import evaluating
from quietstar.demo.language import DASH, LETTERS, Language, question
from quietstar.model import QuietStarForCausalLM
from quietstar.reporting.interval import Share


@dataclass(frozen=True)
class Answers:
    """A model's answers to a quiz."""

    letters: list[str]
    """the answers"""
    right: Share
    thoughts: list[str]
    """the thought before each answer; empty if there was none"""
    thoughts_are_ways: Share
    """how many thoughts equal the way, letter by letter"""


class Quiz:
    """Questions with their right answers.

    An answer is the likeliest of the language's letters after the question, not of the whole vocabulary: the base
    model has learned that a dash may come there, and that does not count as wrong.
    """

    def __init__(self, problems: list[str], language: Language, tokenizer: PreTrainedTokenizerFast) -> None:
        self.problems = problems
        self.ways = [language.way(problem) for problem in problems]
        self.answers = [language.answer(problem) for problem in problems]
        self.tokenizer = tokenizer
        self.questions = torch.tensor(tokenizer([question(problem) for problem in problems])["input_ids"])
        self.letter_ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))

    def __len__(self) -> int:
        return len(self.problems)

    @torch.no_grad()
    def without_thoughts(self, base_lm: PreTrainedModel) -> Answers:
        """Ask an ordinary language model for the answer directly."""
        with evaluating(base_lm):
            return self._mark(base_lm(self.questions, logits_to_keep=1).logits)

    @torch.no_grad()
    def with_thoughts(self, model: QuietStarForCausalLM, thoughts: Tensor | None = None) -> Answers:
        """Ask a thinking model, which thinks once, greedily, after the question; or give it thoughts [n, K]."""
        if thoughts is not None:
            S = self.questions.shape[1]
            thoughts = thoughts[:, None, None].expand(-1, 1, S, -1)
        with evaluating(model):
            output = model(self.questions, logits_to_keep=1, thoughts=thoughts, use_cache=False)
        thought_of = [self.tokenizer.decode(thought) for thought in output.thoughts[:, 0, -1]]
        return self._mark(output.logits, thought_of)

    @torch.no_grad()
    def spelled_out(self, base_lm: PreTrainedModel) -> Answers:
        """Let an ordinary language model continue after a dash, and take the letter where the answer belongs."""
        dash = self.tokenizer.convert_tokens_to_ids(DASH)
        prompts = torch.nn.functional.pad(self.questions, (0, 1), value=dash)
        n_new = len(self.ways[0]) + len(DASH) + 1
        with evaluating(base_lm):
            written = base_lm.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=n_new,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        answer_at = prompts.shape[1] + n_new - 1
        if written.shape[1] <= answer_at:  # every line ended earlier
            return self._compare([""] * len(self))
        return self._compare([self.tokenizer.decode(token) for token in written[:, answer_at]])

    def random_thoughts(self, n_tokens: int, seed: int) -> Tensor:
        """Return uniformly sampled letters [n, n_tokens]."""
        generator = torch.Generator().manual_seed(seed)
        return self.letter_ids[torch.randint(len(self.letter_ids), (len(self), n_tokens), generator=generator)]

    def _mark(self, logits: Tensor, thoughts: list[str] | None = None) -> Answers:
        """Return the answers given by the logits [n, 1, V] after the questions."""
        likeliest = logits[:, -1, self.letter_ids].argmax(-1).tolist()
        return self._compare([LETTERS[i] for i in likeliest], thoughts)

    def _compare(self, letters: list[str], thoughts: list[str] | None = None) -> Answers:
        thoughts = thoughts or [""] * len(self)
        return Answers(
            letters=letters,
            right=share_equal(letters, self.answers),
            thoughts=thoughts,
            thoughts_are_ways=share_equal(thoughts, self.ways),
        )


def share_equal(given: list[str], wanted: list[str]) -> Share:
    """Return how many items are equal."""
    return Share(sum(a == b for a, b in zip(given, wanted, strict=True)), len(wanted))

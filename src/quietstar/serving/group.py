"""Requests whose texts are written together, token by token, because they are thought about alike."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.journal import DecodingStep
from quietstar.model import QuietStarForCausalLM
from quietstar.reporting.tables import finite
from quietstar.serving.batch import Batch, Thinking
from quietstar.serving.faults import failed
from quietstar.serving.jobs import Job, Ticket, Written, attempt
from quietstar.serving.metrics import Metrics
from quietstar.serving.prompts import Prompt
from quietstar.serving.sampling import NOTHING, Drawing, choose
from quietstar.serving.text import StoppingText, one_line
from quietstar.text.pieces import decoded, token_text

logger = logging.getLogger(__name__)

TOP_K = 5
"""likeliest tokens of the three predictions"""


@dataclass(slots=True, frozen=True)
class Voice:
    """What texts are written with."""

    model: QuietStarForCausalLM
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    """tokens that end a text"""
    suppressed: Tensor | None
    """[n]: tokens that are in no text"""


@dataclass(slots=True)
class Row:
    """One text that is being written: a choice of a request."""

    ticket: Ticket
    job: Job
    choice: int
    drawing: Drawing
    text: StoppingText
    last: int
    """token that is read next: the prompt's last, or the one written last"""
    n_written: int = 0


class Group:
    """A batch, and the rows in it.

    Args:
        voice: model, tokenizer, and what ends a text.
        thinking: how all of them are thought about.
        metrics: counts tokens.
        generator: source of random numbers, where thinking draws any: the group then has one row only.
    """

    def __init__(
        self, voice: Voice, thinking: Thinking, metrics: Metrics, generator: torch.Generator | None = None
    ) -> None:
        self.voice, self.thinking, self.metrics, self.generator = voice, thinking, metrics, generator
        self.rows: list[Row] = []
        self.batch = self._new_batch()

    def __len__(self) -> int:
        return len(self.rows)

    def _new_batch(self) -> Batch:
        return Batch(self.voice.model, self.thinking, self.generator)

    def join(self, prompt: Prompt, choices: range) -> None:
        """Write some of the choices of a request whose prompt has been read; the prompt's batch is left as it is."""
        rows = [self._row(prompt.ticket, prompt.job, choice) for choice in choices]
        if self._tried([*self.rows, *rows], lambda: self.batch.join(prompt.batch, len(rows))):
            self.rows = self.rows + rows
        else:
            self._begin_again()

    def _row(self, ticket: Ticket, job: Job, choice: int) -> Row:
        # where thinking draws too, text and thoughts take turns at the same random numbers, as in `generate`
        generator = self.generator or torch.Generator(self.voice.model.device)
        drawing = Drawing(job.temperature, job.top_p, generator.manual_seed((job.seed + choice) % 2**64))
        text = StoppingText(self.voice.tokenizer, job.prompt_ids, job.stop)
        return Row(ticket, job, choice, drawing, text, last=job.prompt_ids[-1])

    def turn(self) -> None:
        """A token of each text. What fails, fails the requests concerned."""
        self._forget_what_is_over()
        if self.rows and not self._tried(self.rows, self._write):
            self._begin_again()
        self._forget_what_is_over()

    def close(self) -> None:
        """Let go of the cache."""
        self.batch.close()

    def _tried(self, rows: list[Row], act: Callable[[], None]) -> bool:
        """Whether it worked; where it did not, the rows' requests have failed."""
        return attempt(act, [row.ticket for row in rows])

    def _begin_again(self) -> None:
        """With no text: what the batch has come to is not known, or nobody needs it."""
        self.rows = []
        self.batch.close()
        self.batch = self._new_batch()

    def _forget_what_is_over(self) -> None:
        stay = [n for n, row in enumerate(self.rows) if not row.ticket.is_over]
        if not self._tried(self.rows, lambda: self._keep(stay)):
            self._begin_again()

    def _keep(self, stay: list[int]) -> None:
        if len(stay) == len(self.rows):
            return
        if not stay:
            self._begin_again()
            return
        self.batch.keep(stay)
        self.rows = [self.rows[n] for n in stay]

    def _write(self) -> None:
        self.metrics.step(len(self.rows))
        input_ids = torch.tensor([[row.last] for row in self.rows], device=self.voice.model.device)
        top_k = TOP_K if any(row.job.wants_thoughts for row in self.rows) else 0
        logits, step = self.batch.read(input_ids, top_k)
        self._keep(self._say(self.rows, logits, step))

    def _say(self, rows: list[Row], logits: Tensor, step: DecodingStep) -> list[int]:
        """Choose each row's next token and report it; which rows go on."""
        tokens = choose(logits, [row.drawing for row in rows], self.voice.suppressed)
        thought, words = step.thought.tolist(), step.tokens.tolist()
        goes_on = []
        for n, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == NOTHING:
                logger.error("a prediction is not finite")
                row.ticket.report(failed())
                continue
            written = self._written(row, token, words[n] if thought[n] else None)
            if row.job.wants_thoughts:
                written.thought = self._known(token, words[n] if thought[n] else None, step, n)
            self.metrics.tokens("visible", 1)
            self.metrics.tokens("thought", written.n_thought_tokens)
            row.ticket.report(written)
            if written.finish_reason is None:
                goes_on.append(n)
        return goes_on

    def _written(self, row: Row, token: int, words: list[int] | None) -> Written:
        row.last, row.n_written = token, row.n_written + 1
        is_eos = token in self.voice.eos_ids
        is_last = is_eos or row.n_written >= row.job.max_tokens
        text = "" if is_eos else row.text.add(token)
        text += row.text.rest() if is_last else ""
        reason = "stop" if is_eos or row.text.stopped else "length" if is_last else None
        thought_text = one_line(decoded(self.voice.tokenizer, words)) if words and row.job.wants_reasoning else ""
        return Written(row.choice, token, text, len(words or ()), thought_text, finish_reason=reason)

    def _known(self, token: int, words: list[int] | None, step: DecodingStep, row: int) -> dict:
        """What is sent of a token where its thought is asked for; words is None where there was none."""

        def likeliest(index: int) -> list[dict]:
            top = step.top[index]
            return described(self.voice.tokenizer, top.ids[row].tolist(), top.logprob[row].tolist())

        return {
            "id": token,
            "token": token_text(self.voice.tokenizer, token),
            "thought": words is not None,
            "reason": self.batch.journal.reason(step, row),
            "thought_ids": words or [],
            "thought_tokens": [token_text(self.voice.tokenizer, word) for word in words or ()],
            "thought_text": decoded(self.voice.tokenizer, words or []),
            "mixing_weight": None if words is None else finite(float(step.mixing_weight[row])),
            "base": likeliest(0),
            "thought_alone": [] if words is None else likeliest(1),
            "mixed": likeliest(2),
        }


def described(tokenizer: PreTrainedTokenizerBase, ids: list[int], logprob: list[float]) -> list[dict]:
    """The likeliest tokens of a prediction, as they are sent."""
    return [
        {"id": token, "token": token_text(tokenizer, token), "logprob": finite(value)}
        for token, value in zip(ids, logprob, strict=True)
    ]

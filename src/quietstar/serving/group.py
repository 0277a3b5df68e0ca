"""Requests whose texts are written together, token by token, because they are thought about alike."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.evaluation.report import finite
from quietstar.journal import Step
from quietstar.model import QuietStarForCausalLM
from quietstar.pieces import token_text
from quietstar.serving.batch import Batch, Thinking
from quietstar.serving.faults import failed
from quietstar.serving.jobs import Job, Ticket, Written
from quietstar.serving.metrics import Metrics
from quietstar.serving.sampling import NOTHING, Drawing, choose
from quietstar.serving.text import StoppingText, one_line

logger = logging.getLogger(__name__)

TOKENS_AT_ONCE = 512
"""of prompts, between which texts get their next token"""
TOP_K = 5
"""likeliest tokens of the three predictions"""


@dataclass(slots=True, frozen=True)
class Speaker:
    """What texts are written with."""

    model: QuietStarForCausalLM
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    """tokens that end a text"""


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
    """A batch, the rows in it, and the requests whose prompts are read to join it.

    Args:
        speaker: model, tokenizer, and what ends a text.
        thinking: how all of them are thought about.
        metrics: counts tokens.
        generator: source of random numbers, where thinking draws any: the group then has one row only.
    """

    def __init__(
        self, speaker: Speaker, thinking: Thinking, metrics: Metrics, generator: torch.Generator | None = None
    ) -> None:
        self.speaker, self.thinking, self.metrics, self.generator = speaker, thinking, metrics, generator
        self.batch = self._new_batch()
        self.rows: list[Row] = []
        self.joining: deque[tuple[list[Row], Batch]] = deque()

    def __len__(self) -> int:
        return len(self.rows) + sum(len(rows) for rows, _ in self.joining)

    def _new_batch(self, n_texts: int = 0) -> Batch:
        return Batch(self.speaker.model, self.thinking, self.generator, n_texts)

    def add(self, ticket: Ticket, job: Job, choices: range) -> None:
        """Read a request's prompt, and then write some of its choices."""
        device = self.speaker.model.device
        rows = []
        for choice in choices:
            seed = (job.seed + choice) % 2**64
            # where thinking draws too, text and thoughts take turns at the same random numbers, as in `generate`
            generator = self.generator or torch.Generator(device)
            drawing = Drawing(job.temperature, job.top_p, generator.manual_seed(seed))
            text = StoppingText(self.speaker.tokenizer, job.prompt_ids, job.stop)
            rows.append(Row(ticket, job, choice, drawing, text, last=job.prompt_ids[-1]))
        self.joining.append((rows, self._new_batch(n_texts=1)))

    def turn(self) -> None:
        """Some tokens of prompts, and a token of each text. What fails, fails the requests concerned."""
        self._forget_what_is_over()
        left = TOKENS_AT_ONCE
        while self.joining and left > 0:
            rows, batch = self.joining.popleft()
            # the last one is read with the texts that are being written, and thought after with them
            chunk = rows[0].job.prompt_ids[batch.n_read : -1][:left]
            self._tried(rows, partial(self._read_prompt, rows, batch, chunk))
            left -= len(chunk)
        if self.rows and not self._tried(self.rows, self._write):
            self._begin_again()
        self._forget_what_is_over()

    def close(self) -> None:
        """Let go of caches."""
        for batch in (self.batch, *(batch for _, batch in self.joining)):
            batch.close()

    def _tried(self, rows: list[Row], act: Callable[[], None]) -> bool:
        """Whether it worked; where it did not, the rows' requests have failed."""
        try:
            act()
        except Exception:
            logger.exception("a request failed")
            for row in rows:
                row.ticket.report(failed())
            return False
        return True

    def _begin_again(self) -> None:
        """With no text: what the batch has come to is not known, or nobody needs it."""
        self.rows = []
        self.batch.close()
        self.batch = self._new_batch()

    def _forget_what_is_over(self) -> None:
        self.joining = deque((rows, batch) for rows, batch in self.joining if not rows[0].ticket.is_over)
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

    def _read_prompt(self, rows: list[Row], batch: Batch, chunk: list[int]) -> None:
        """Read some tokens of a prompt; when only its last one is left, its texts join the batch."""
        job = rows[0].job
        if chunk:
            batch.skim(torch.tensor([chunk], device=self.speaker.model.device))
        if batch.n_read < len(job.prompt_ids) - 1:
            self.joining.appendleft((rows, batch))
            return
        self.metrics.tokens("prompt", len(job.prompt_ids))
        batch.repeat(len(rows))
        if self._tried([*self.rows, *rows], lambda: self.batch.join(batch)):
            self.rows = self.rows + rows
        else:
            self._begin_again()

    def _write(self) -> None:
        self.metrics.step(len(self.rows))
        input_ids = torch.tensor([[row.last] for row in self.rows], device=self.speaker.model.device)
        top_k = TOP_K if any(row.job.wants_thoughts for row in self.rows) else 0
        logits, step = self.batch.read(input_ids, top_k)
        self._keep(self._say(self.rows, logits, step))

    def _say(self, rows: list[Row], logits: Tensor, step: Step) -> list[int]:
        """Choose each row's next token and report it; which rows go on."""
        tokens = choose(logits, [row.drawing for row in rows], self.speaker.model.suppressed)
        thought, words = step.thought.tolist(), step.tokens.tolist()
        goes_on = []
        for n, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if token == NOTHING:
                logger.error("a prediction is not finite")
                row.ticket.report(failed())
                continue
            written = self._written(row, token, words[n] if thought[n] else None)
            if row.job.wants_thoughts:
                written.thought = self._known(token, written.thought_text, thought[n], words[n], step, n)
            self.metrics.tokens("visible", 1)
            self.metrics.tokens("thought", written.n_thought_tokens)
            row.ticket.report(written)
            if written.finish_reason is None:
                goes_on.append(n)
        return goes_on

    def _written(self, row: Row, token: int, words: list[int] | None) -> Written:
        row.last, row.n_written = token, row.n_written + 1
        is_eos = token in self.speaker.eos_ids
        is_last = is_eos or row.n_written >= row.job.max_tokens
        text = "" if is_eos else row.text.add(token)
        text += row.text.rest() if is_last else ""
        reason = "stop" if is_eos or row.text.stopped else "length" if is_last else None
        thought_text = ""
        if words and (row.job.wants_reasoning or row.job.wants_thoughts):
            thought_text = one_line(self.speaker.tokenizer.decode(words, clean_up_tokenization_spaces=False))
        return Written(row.choice, token, text, len(words or ()), thought_text, finish_reason=reason)

    def _known(self, token: int, text: str, thought: bool, words: list[int], step: Step, row: int) -> dict:
        """What is sent of a token where its thought is asked for."""

        def likeliest(index: int) -> list[dict]:
            top = step.top[index]
            return described(self.speaker.tokenizer, top.ids[row].tolist(), top.logprob[row].tolist())

        return {
            "id": token,
            "token": token_text(self.speaker.tokenizer, token),
            "thought": thought,
            "reason": self.batch.journal.reason(step, row),
            "thought_ids": words if thought else [],
            "thought_tokens": [token_text(self.speaker.tokenizer, word) for word in words] if thought else [],
            "thought_text": text,
            "mixing_weight": finite(float(step.mixing_weight[row])) if thought else None,
            "base": likeliest(0),
            "thought_alone": likeliest(1) if thought else [],
            "mixed": likeliest(2),
        }


def described(tokenizer: PreTrainedTokenizerBase, ids: list[int], logprob: list[float]) -> list[dict]:
    """The likeliest tokens of a prediction, as they are sent."""
    return [
        {"id": token, "token": token_text(tokenizer, token), "logprob": finite(value)}
        for token, value in zip(ids, logprob, strict=True)
    ]

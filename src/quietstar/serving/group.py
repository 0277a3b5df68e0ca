"""Texts of requests that share a batch, because they have the same thinking settings."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.base.draws import RowGenerators
from quietstar.journal import DecodingStep, TopTokens
from quietstar.model import QuietStarForCausalLM
from quietstar.output import tokens_of
from quietstar.reporting.tables import finite
from quietstar.serving.batch import Batch, Thinking
from quietstar.serving.faults import failed
from quietstar.serving.jobs import Job, Ticket, Written, attempt
from quietstar.serving.metrics import Metrics
from quietstar.serving.prompts import UnreadPrompt
from quietstar.serving.sampling import NO_TOKEN, TokenSampling, choose
from quietstar.serving.text import StoppingText
from quietstar.text.pieces import decoded, one_line, token_bytes, token_text

logger = logging.getLogger(__name__)

TOP_K = 5
"""likeliest tokens of the three predictions"""
LEAST_LOGPROB = -9999.0
"""takes the place of minus infinity, which JSON does not have, as in OpenAI's responses"""


@dataclass(slots=True, frozen=True)
class ServedModel:
    """Model and tokenizer, and what they say about special tokens."""

    model: QuietStarForCausalLM
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]
    """tokens that end a text"""
    suppressed: Tensor | None
    """[n]: tokens that are never generated"""


@dataclass(slots=True)
class Row:
    """One text that is being generated: a choice of a request."""

    ticket: Ticket
    job: Job
    choice: int
    sampling: TokenSampling
    text: StoppingText
    last: int
    """the token to read next: the last one of the prompt, or the last generated one"""
    n_left: int
    """tokens that may still be generated"""


class Group:
    """A batch, and the texts in its rows."""

    def __init__(self, served: ServedModel, thinking: Thinking, metrics: Metrics) -> None:
        self.served, self.thinking, self.metrics = served, thinking, metrics
        self.rows: list[Row] = []
        self.batch = self._new_batch()

    def __len__(self) -> int:
        return len(self.rows)

    def _new_batch(self) -> Batch:
        return Batch(self.served.model, self.thinking)

    def join(self, prompt: UnreadPrompt) -> None:
        """Add the choices that continue a prompt, which has been read; the prompt's batch does not change."""
        rows = [self._row(prompt, choice) for choice in prompt.choices]
        if self._tried([*self.rows, *rows], lambda: self.batch.join(prompt.batch, len(rows))):
            self.rows = self.rows + rows
        else:
            self._reset()

    def _row(self, unread: UnreadPrompt, choice: int) -> Row:
        job, prompt = unread.job, unread.job.prompts[unread.index]
        # text and thoughts share a generator, as in `generate`
        generator = torch.Generator(self.served.model.device).manual_seed((job.seed + choice) % 2**64)
        sampling = TokenSampling(
            job.temperature, job.top_p, generator, job.frequency_penalty, job.presence_penalty, job.logit_bias
        )
        text = StoppingText(self.served.tokenizer, prompt.ids, job.stop)
        return Row(unread.ticket, job, choice, sampling, text, last=prompt.ids[-1], n_left=prompt.max_tokens)

    def turn(self) -> None:
        """Generate a token of each text; an error ends the requests that it concerns."""
        self._drop_ended()
        if self.rows and not self._tried(self.rows, self._write):
            self._reset()
        self._drop_ended()

    def close(self) -> None:
        """Free the cache."""
        self.batch.close()

    def _tried(self, rows: list[Row], act: Callable[[], None]) -> bool:
        """Run `act` and return whether it worked; if not, the rows' requests have failed."""
        return attempt(act, [row.ticket for row in rows])

    def _reset(self) -> None:
        """Drop all texts, and replace a batch that is empty or in an unknown state."""
        self.rows = []
        self.batch.close()
        self.batch = self._new_batch()

    def _drop_ended(self) -> None:
        stay = [n for n, row in enumerate(self.rows) if not row.ticket.is_over]
        if not self._tried(self.rows, lambda: self._keep(stay)):
            self._reset()

    def _keep(self, stay: list[int]) -> None:
        if len(stay) == len(self.rows):
            return
        if not stay:
            self._reset()
            return
        self.batch.keep(stay)
        self.rows = [self.rows[n] for n in stay]

    def _write(self) -> None:
        self.metrics.step(len(self.rows))
        input_ids = torch.tensor([[row.last] for row in self.rows], device=self.served.model.device)
        top_k = TOP_K if any(row.job.wants_thoughts for row in self.rows) else 0
        generators = RowGenerators(tuple(row.sampling.generator for row in self.rows))
        logits, step = self.batch.read(input_ids, generators, top_k)
        self._keep(self._report(logits, step))

    def _report(self, logits: Tensor, step: DecodingStep) -> list[int]:
        """Sample and report each row's next token; return the rows that continue."""
        tokens = choose(logits, [row.sampling for row in self.rows], self.served.suppressed)
        logprobs = self._logprobs(logits, tokens)
        has_thought, thoughts = step.thought.tolist(), tokens_of(step.tokens)
        continuing = []
        for n, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if token == NO_TOKEN:
                logger.error("the model's logits are not finite")
                row.ticket.report(failed())
                continue
            thought = thoughts[n] if has_thought[n] else None
            written = self._written(row, token, thought)
            written.logprob = logprobs[n]
            if row.job.wants_thoughts:
                written.thought = self._details(token, thought, step, n)
            self.metrics.tokens("visible", 1)
            self.metrics.tokens("thought", written.n_thought_tokens)
            row.ticket.report(written)
            if written.finish_reason is None:
                continuing.append(n)
        return continuing

    def _written(self, row: Row, token: int, thought: list[int] | None) -> Written:
        row.last, row.n_left = token, row.n_left - 1
        row.sampling.written[token] += 1
        offset = row.text.n_decoded
        is_eos = token in self.served.eos_ids
        is_last = is_eos or row.n_left == 0
        text = "" if is_eos else row.text.add(token)
        text += row.text.rest() if is_last else ""
        reason = "stop" if is_eos or row.text.stopped else "length" if is_last else None
        thought_text = one_line(decoded(self.served.tokenizer, thought)) if thought and row.job.wants_reasoning else ""
        n_thought = len(thought or ())
        return Written(row.choice, token, text, n_thought, thought_text, offset=offset, finish_reason=reason)

    def _logprobs(self, logits: Tensor, tokens: list[int]) -> list[dict | None]:
        """Return what responses have about the log-probabilities of tokens [B], where requested.

        They are those of the prediction itself, before temperature, penalties and biases.
        """
        wanted = [row.job.top_logprobs for row in self.rows]
        most = max((n for n in wanted if n is not None), default=None)
        if most is None:
            return [None] * len(tokens)
        logprob = logits.float().log_softmax(-1)
        top = TopTokens.among(logprob, most)
        chosen = torch.tensor(tokens, device=logits.device).clamp(min=0)[:, None]
        own = logprob.gather(1, chosen).flatten().tolist()
        every = zip(tokens, own, wanted, top.ids.tolist(), top.logprob.tolist(), strict=True)
        return [
            None
            if n is None
            else self._logprob(token, value) | {"top_logprobs": [*map(self._logprob, ids[:n], values[:n])]}
            for token, value, n, ids, values in every
        ]

    def _logprob(self, token: int, logprob: float) -> dict:
        tokenizer = self.served.tokenizer
        return {
            "token": token_text(tokenizer, token),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(token_bytes(tokenizer, token)),
        }

    def _details(self, token: int, thought: list[int] | None, step: DecodingStep, row: int) -> dict:
        """Return what a response has about a token and its thought, which is None if there was none."""

        def likeliest(index: int) -> list[dict]:
            top = step.top[index]
            return described(self.served.tokenizer, top.ids[row].tolist(), top.logprob[row].tolist())

        return {
            "id": token,
            "token": token_text(self.served.tokenizer, token),
            "thought": thought is not None,
            "reason": self.batch.journal.reason(step, row),
            "thought_ids": thought or [],
            "thought_tokens": [token_text(self.served.tokenizer, id) for id in thought or ()],
            "thought_text": decoded(self.served.tokenizer, thought or []),
            "mixing_weight": None if thought is None else finite(float(step.mixing_weight[row])),
            "base": likeliest(0),
            "thought_alone": [] if thought is None else likeliest(1),
            "mixed": likeliest(2),
        }


def described(tokenizer: PreTrainedTokenizerBase, ids: list[int], logprob: list[float]) -> list[dict]:
    """Return the likeliest tokens of a prediction in the format of responses."""
    return [
        {"id": token, "token": token_text(tokenizer, token), "logprob": finite(value)}
        for token, value in zip(ids, logprob, strict=True)
    ]

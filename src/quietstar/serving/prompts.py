"""Reads prompts in chunks, taking turns between prompts, so that generation continues meanwhile."""

from collections import deque
from dataclasses import dataclass
from functools import partial

import torch

from quietstar.model import QuietStarForCausalLM
from quietstar.serving.batch import Batch
from quietstar.serving.jobs import Job, Ticket, attempt
from quietstar.serving.metrics import Metrics

TOKENS_AT_ONCE = 512
"""tokens of prompts and other texts to read per turn"""


@dataclass(slots=True)
class UnreadPrompt:
    """A prompt that is being read, once for all its choices."""

    ticket: Ticket
    job: Job
    index: int
    """of the prompt, in its request"""
    batch: Batch
    """a batch of one text: what has been read"""

    @property
    def choices(self) -> range:
        """The choices that continue it."""
        return range(self.index * self.job.n, (self.index + 1) * self.job.n)

    @property
    def left(self) -> list[int]:
        """Tokens to read, without the last one: a group reads it, and thinks after it."""
        return self.job.prompts[self.index].ids[self.batch.n_read : -1]


class Prompts:
    """All prompts that are being read."""

    def __init__(self, model: QuietStarForCausalLM, metrics: Metrics) -> None:
        self.model, self.metrics = model, metrics
        self.queue: deque[UnreadPrompt] = deque()

    def add(self, ticket: Ticket, job: Job) -> None:
        """Queue a request's prompts."""
        for index in range(len(job.prompts)):
            self.queue.append(UnreadPrompt(ticket, job, index, Batch(self.model, job.thinking, n_texts=1)))

    def turn(self) -> list[UnreadPrompt]:
        """Read some tokens, and return the prompts that are done; an error ends the request that it concerns."""
        ready, left = [], TOKENS_AT_ONCE
        while self.queue and left > 0:
            prompt = self.queue[0]
            if prompt.ticket.is_over:
                self.queue.popleft().batch.close()
                continue
            chunk = prompt.left[:left]
            left -= len(chunk)
            if chunk and not attempt(partial(self._read, prompt, chunk), [prompt.ticket]):
                continue
            if prompt.left:
                self.queue.rotate(-1)  # a long prompt does not keep short ones waiting
            else:
                self.metrics.tokens("prompt", len(prompt.job.prompts[prompt.index].ids))
                ready.append(self.queue.popleft())
        return ready

    def _read(self, prompt: UnreadPrompt, chunk: list[int]) -> None:
        prompt.batch.skim(torch.tensor([chunk], device=self.model.device))

    def close(self) -> None:
        """Free the caches."""
        for prompt in self.queue:
            prompt.batch.close()
        self.queue.clear()

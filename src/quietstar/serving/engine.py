"""One thread that owns the model, and serves whoever asks: texts in batches, token by token, in turns.

Requests that are thought about alike share a batch, which they join and leave between any two tokens. Where thinking
draws random numbers each text has a batch of its own. Whoever comes first is let in first. A turn is a token of every
text, some tokens of prompts, and a part of one errand; prompts, and errands, take turns: nobody waits for others' long
ones to be done.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator

import torch
from transformers import PreTrainedTokenizerBase

from quietstar.base.rope import steady_length
from quietstar.inference.loading import context_length
from quietstar.inference.text_settings import eos_ids, suppressed_ids
from quietstar.model import QuietStarForCausalLM
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Thinking
from quietstar.serving.faults import busy, stopping
from quietstar.serving.group import Group, Voice
from quietstar.serving.jobs import Errand, Event, Job, Returned, Ticket, attempt
from quietstar.serving.metrics import Metrics
from quietstar.serving.prompts import Prompt, Prompts

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
"""after which a client that was turned away is told to come again"""


class Engine:
    """The model and everything that it is asked to do at once.

    Args:
        model: in evaluation mode; nobody else may use it from `start` to `stop`.
        tokenizer: the engine's own.
        settings: limits.
        metrics: what is counted.
    """

    def __init__(
        self,
        model: QuietStarForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        settings: ServeArguments,
        metrics: Metrics | None = None,
    ) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics or Metrics()
        self.voice = Voice(model, tokenizer, eos_ids(model, tokenizer), _suppressed(model, tokenizer))
        self.prompts = Prompts(model, self.metrics)
        self.errands: deque[tuple[Ticket, Generator[None, None, object]]] = deque()
        self.groups: dict[object, Group] = {}
        """by how they are thought about; by ticket and choice where each is alone"""
        self.running: list[Ticket] = []
        self.waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------------------------------------------------------------------ from any thread

    @property
    def context(self) -> int | None:
        """Tokens that the model was made for; None where its config does not say.

        Where its rope frequencies depend on the length, those up to which they do not: texts of any lengths share a
        batch, and prompts are read in parts.
        """
        limits = (context_length(self.model), steady_length(self.model.config))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def max_prompt_tokens(self) -> int | None:
        """Tokens that a prompt may have: a thought follows the last one."""
        limits = [self.settings.max_prompt_tokens]
        limits += [None if self.context is None else self.context - self.model.config.n_ahead]
        return min((limit for limit in limits if limit is not None), default=None)

    def room(self, n_prompt: int) -> int:
        """Tokens that may be written after a prompt."""
        if self.context is None:
            return self.settings.max_tokens
        # the last token is written after a thought, and not read any more
        return min(self.settings.max_tokens, self.context - self.model.config.n_ahead + 1 - n_prompt)

    @property
    def is_alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._stops

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End what is under way, and wait for the thread."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, work: Job | Errand, emit: Callable[[Event], None]) -> Ticket:
        """Queue a job, or an errand to run in the engine's thread; events come to `emit` from that thread.

        Raises:
            RequestError: the queue is full, or the engine has ended.
        """
        ticket = Ticket(work, emit, self.settings.request_seconds)
        with self._changed:
            if not self.is_alive:
                raise stopping()
            if self._n_queued >= self.settings.max_queue:
                raise busy(self._n_queued, RETRY_SECONDS)
            self.waiting.append(ticket)
            self._changed.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop working on it, at the next token."""
        with self._changed:
            ticket.is_cancelled = True
            self._changed.notify()

    # ------------------------------------------------------------------ in the engine's thread

    @property
    def _n_free(self) -> int:
        """Texts that may still be let in."""
        return self.settings.max_batch - sum(ticket.n_rows for ticket in self.running)

    @property
    def _n_queued(self) -> int:
        """Requests that wait for others to end: the rest of the waiting are let in at the next turn."""
        n_free = self._n_free
        for n_let_in, ticket in enumerate(self.waiting):
            n_free -= ticket.n_rows
            if n_free < 0:
                return len(self.waiting) - n_let_in
        return 0

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except BaseException:
            logger.exception("the engine has ended")
        with self._changed:
            self._stops = True
            left = [*self.running, *self.waiting]
            self.waiting.clear()
        self.metrics.in_flight(0, 0)
        self.prompts.close()
        for group in self.groups.values():
            group.close()
        for ticket in left:
            ticket.report(stopping())

    def _wait(self) -> bool:
        """Wait for work; false when the engine is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or self.running or self.waiting)
            return not self._stops

    def _turn(self) -> None:
        with self._changed:
            for ticket in (*self.running, *self.waiting):
                ticket.look_at_the_clock()
            self.waiting = deque(ticket for ticket in self.waiting if not ticket.is_over)
            self.running = [ticket for ticket in self.running if not ticket.is_over]
            while self.waiting and self.waiting[0].n_rows <= self._n_free:
                self.running.append(self.waiting.popleft())
                self._begin(self.running[-1])
        self.metrics.in_flight(len(self.waiting), len(self.running))
        for prompt in self.prompts.turn():
            self._join(prompt)
        self._run_errand()
        for group in self.groups.values():
            group.turn()
        for key in [key for key, group in self.groups.items() if not len(group)]:
            self.groups.pop(key).close()
        with self._changed:
            self.running = [ticket for ticket in self.running if not ticket.is_over]
        self.metrics.in_flight(len(self.waiting), len(self.running))

    def _begin(self, ticket: Ticket) -> None:
        if isinstance(ticket.work, Job):
            self.prompts.add(ticket, ticket.work)
        else:
            self.errands.append((ticket, ticket.work()))

    def _join(self, prompt: Prompt) -> None:
        """Write after a prompt: all texts in one batch, or each in its own where thinking draws."""
        job = prompt.job
        if not job.thinking.draws:
            self._group(job.thinking, job.thinking, None).join(prompt, range(job.n))
        else:
            for choice in range(job.n):
                generator = torch.Generator(self.model.device)
                self._group((prompt.ticket, choice), job.thinking, generator).join(prompt, range(choice, choice + 1))
        prompt.batch.close()

    def _group(self, key: object, thinking: Thinking, generator: torch.Generator | None) -> Group:
        if key not in self.groups:
            self.groups[key] = Group(self.voice, thinking, self.metrics, generator)
        return self.groups[key]

    def _run_errand(self) -> None:
        """Do a part of one errand that somebody still waits for, and of another one next time."""
        self.errands = deque((ticket, parts) for ticket, parts in self.errands if not ticket.is_over)
        if not self.errands:
            return
        ticket, parts = self.errands[0]
        self.errands.rotate(-1)

        def run() -> None:
            try:
                next(parts)
            except StopIteration as end:
                ticket.report(Returned(end.value))

        attempt(run, [ticket])


def _suppressed(model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor | None:
    ids = suppressed_ids(model, tokenizer)
    return torch.tensor(ids, device=model.device) if ids else None

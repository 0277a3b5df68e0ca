"""The engine: a thread that owns the model and generates the texts of all requests, in batches, token by token.

Requests with the same thinking settings share a batch, which they join and leave between any two tokens. Requests are
admitted first come, first served. One turn generates a token of every text, reads some tokens of prompts, and runs a
part of one errand. Prompts and errands take turns, so that long ones do not hold up the others.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator

import torch
from transformers import PreTrainedTokenizerBase

from quietstar.base.rope import steady_length
from quietstar.errors import SettingsError
from quietstar.inference.loading import context_length
from quietstar.inference.text_settings import eos_ids, suppressed_ids
from quietstar.model import QuietStarForCausalLM
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Thinking
from quietstar.serving.faults import busy, stopping
from quietstar.serving.group import Group, ServedModel
from quietstar.serving.jobs import Errand, Event, Job, Returned, Ticket, attempt
from quietstar.serving.metrics import Metrics
from quietstar.serving.prompts import Prompts, UnreadPrompt

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
"""value of Retry-After when the queue is full"""


class Engine:
    """The model, and all requests that it is working on.

    Nobody else may use the model and the tokenizer between `start` and `stop`.

    Raises:
        SettingsError: a thought leaves no room for a prompt.
    """

    def __init__(
        self,
        model: QuietStarForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        settings: ServeArguments,
        metrics: Metrics | None = None,
    ) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics or Metrics()
        if self.context is not None and self.n_ahead >= self.context:
            raise SettingsError(
                f"n_ahead is {self.n_ahead}, and the model's context {self.context}; give at most {self.context - 1}"
            )
        ids = suppressed_ids(model, tokenizer)
        suppressed = torch.tensor(ids, device=model.device) if ids else None
        self.served = ServedModel(model, tokenizer, eos_ids(model, tokenizer), suppressed)
        self.prompts = Prompts(model, self.metrics)
        self.errands: deque[tuple[Ticket, Generator[None, None, object]]] = deque()
        self.groups: dict[Thinking, Group] = {}
        self.running: list[Ticket] = []
        self.waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._stops = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------------------------------------------------------------------ from any thread

    @property
    def context(self) -> int | None:
        """The number of tokens that the model can read; None if its config does not tell.

        If its rope frequencies depend on the length, this is the length up to which they are constant, since texts of
        different lengths share a batch, and prompts are read in parts.
        """
        limits = (context_length(self.model), steady_length(self.model.config))
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def n_ahead(self) -> int:
        """Tokens of a thought, start and end included, unless a request asks for others."""
        return self.model.config.resolve_n_ahead(self.settings.n_ahead)

    @property
    def max_n_ahead(self) -> int:
        """The number of tokens of a thought that a request may ask for; they leave room for a prompt."""
        most = max(self.settings.max_n_ahead, self.n_ahead)
        return most if self.context is None else min(most, self.context - 1)

    def max_prompt_tokens(self, n_ahead: int) -> int | None:
        """Return the number of tokens that a prompt may have; it leaves room for a thought of n_ahead tokens."""
        limits = [self.settings.max_prompt_tokens, None if self.context is None else self.context - n_ahead]
        return min((limit for limit in limits if limit is not None), default=None)

    def room(self, n_prompt: int, n_ahead: int) -> int:
        """Return how many tokens may be generated after a prompt, with thoughts of n_ahead tokens."""
        if self.context is None:
            return self.settings.max_tokens
        # the last token is generated after a thought, and the model does not read it
        return min(self.settings.max_tokens, self.context - n_ahead + 1 - n_prompt)

    @property
    def is_alive(self) -> bool:
        """Whether requests are served."""
        return self._thread.is_alive() and not self._stops

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop all requests, and wait for the thread to end."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, work: Job | Errand, emit: Callable[[Event], None]) -> Ticket:
        """Queue a job, or an errand to run in the engine's thread, which calls `emit` with its events.

        Raises:
            RequestError: the queue is full, or the engine has stopped.
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
        """Stop working on a request, at the next token."""
        with self._changed:
            ticket.is_cancelled = True
            self._changed.notify()

    # ------------------------------------------------------------------ in the engine's thread

    @property
    def _n_free(self) -> int:
        """The number of texts that may still be admitted."""
        return self.settings.max_batch - sum(ticket.n_rows for ticket in self.running)

    @property
    def _n_queued(self) -> int:
        """The number of requests that wait for others to end; other waiting ones are admitted at the next turn."""
        n_free = self._n_free
        for n_admitted, ticket in enumerate(self.waiting):
            n_free -= ticket.n_rows
            if n_free < 0:
                return len(self.waiting) - n_admitted
        return 0

    def _run(self) -> None:
        try:
            while self._wait():
                self._turn()
        except BaseException:
            logger.exception("the engine has stopped")
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
        """Wait for work; return False if the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stops or self.running or self.waiting)
            return not self._stops

    def _turn(self) -> None:
        with self._changed:
            for ticket in (*self.running, *self.waiting):
                ticket.end_if_due()
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

    def _join(self, prompt: UnreadPrompt) -> None:
        """Start to generate after a prompt."""
        thinking = prompt.job.thinking
        if thinking not in self.groups:
            self.groups[thinking] = Group(self.served, thinking, self.metrics)
        self.groups[thinking].join(prompt)
        prompt.batch.close()

    def _run_errand(self) -> None:
        """Run a part of the next errand whose request is not over."""
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

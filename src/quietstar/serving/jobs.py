"""Work for the engine, and the events that it reports."""

import logging
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from quietstar.serving.batch import Thinking
from quietstar.serving.faults import RequestError, failed, too_slow

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Prompt:
    """A text to continue."""

    ids: list[int]
    max_tokens: int
    """tokens to generate at most, without thoughts; both together fit into the model's context"""


@dataclass(kw_only=True)
class Job:
    """Prompts to continue, n times each."""

    prompts: list[Prompt]
    """choice c continues prompt c // n"""
    thinking: Thinking
    seed: int
    """choice c uses seed + c"""
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    """likeliest tokens to report with the log-probability of each generated one; None reports neither"""
    wants_reasoning: bool = True
    """whether to report thoughts as text"""
    wants_thoughts: bool = False
    """whether to report each token's thought, reason, weight and predictions"""

    @property
    def n_texts(self) -> int:
        """The number of texts to generate."""
        return len(self.prompts) * self.n


@dataclass(slots=True)
class Written:
    """One token of one choice."""

    choice: int
    token: int
    text: str
    """text that is now final; empty while a character or a stop string may be incomplete"""
    n_thought_tokens: int
    """0 without a thought"""
    thought_text: str = ""
    """on one line; empty unless requested"""
    thought: dict[str, Any] | None = None
    """details of the token and its thought, as in the response; None unless requested"""
    logprob: dict[str, Any] | None = None
    """log-probabilities of the token and of the likeliest, as in a chat response; None unless requested"""
    offset: int = 0
    """characters of the text that were complete before the token"""
    finish_reason: str | None = None
    """stop, length, or None if the text continues"""


Errand = Callable[[], Generator[None, None, Any]]
"""work other than generation, done in parts; its return value is reported"""


@dataclass(slots=True)
class Returned:
    """The return value of an errand."""

    value: Any


Event = Written | Returned | RequestError
"""a RequestError is the last event of a request, and so is the event that completes it"""


@dataclass(eq=False)
class Ticket:
    """A request that was submitted to the engine.

    Only the engine's thread reports events and ends the request; any thread may cancel it.
    """

    work: Job | Errand
    """texts to generate, or an errand"""
    emit: Callable[[Event], None] = field(repr=False)
    """called in the engine's thread; it must not block"""
    seconds: float
    """time that it may take"""
    began: float = field(default_factory=time.monotonic)
    n_left: int = field(init=False)
    """number of unfinished texts"""
    is_cancelled: bool = False
    is_over: bool = False

    def __post_init__(self) -> None:
        self.n_left = self.n_rows

    @property
    def n_rows(self) -> int:
        """The number of rows of a batch that it takes."""
        return self.work.n_texts if isinstance(self.work, Job) else 1

    def report(self, event: Event) -> None:
        """Emit an event unless the request is over; the request ends if nobody can receive it."""
        if self.is_over:
            return
        if isinstance(event, Written) and event.finish_reason is not None:
            self.n_left -= 1
        self.is_over = isinstance(event, RequestError | Returned) or self.n_left == 0
        try:
            self.emit(event)
        except RuntimeError:  # the request's event loop is closed
            self.is_over = True

    def end_if_due(self) -> None:
        """End the request if it was cancelled or has taken too long."""
        if self.is_cancelled:
            self.report(RequestError(499, "the client has disconnected"))
        elif time.monotonic() - self.began > self.seconds:
            self.report(too_slow(self.seconds))


def attempt(act: Callable[[], None], tickets: Iterable[Ticket]) -> bool:
    """Run `act` and return whether it worked; if not, report its error to the tickets."""
    try:
        act()
    except Exception as error:
        if not isinstance(error, RequestError):
            logger.exception("a request failed")
        fault = error if isinstance(error, RequestError) else failed()
        for ticket in tickets:
            ticket.report(fault)
        return False
    return True

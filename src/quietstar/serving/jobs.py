"""What the engine is asked to do, and what it reports while it does it."""

import logging
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from quietstar.serving.batch import Thinking
from quietstar.serving.faults import RequestError, failed, too_slow

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Job:
    """A prompt to go on from, n times."""

    prompt_ids: list[int]
    thinking: Thinking
    max_tokens: int
    """tokens to write at most, thoughts not counted; prompt and text fit into the model's context"""
    seed: int
    """choice i draws from seed + i"""
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    wants_reasoning: bool = True
    """whether thoughts are reported as text"""
    wants_thoughts: bool = False
    """whether each token's thought, reason, weight and predictions are reported"""


@dataclass(slots=True)
class Written:
    """One token of one choice."""

    choice: int
    token: int
    text: str
    """what it lets out: nothing while a character or a stop string may go on"""
    n_thought_tokens: int
    """0 without a thought"""
    thought_text: str = ""
    """in one line; empty where nobody asked"""
    thought: dict[str, Any] | None = None
    """what is known of the token and its thought, as it is sent; None where nobody asked"""
    finish_reason: str | None = None
    """stop, length, or None where the text goes on"""


Errand = Callable[[], Generator[None, None, Any]]
"""something to do beside the texts, a part at a time; what it returns is reported"""


@dataclass(slots=True)
class Returned:
    """What an errand has returned."""

    value: Any


Event = Written | Returned | RequestError
"""a RequestError is the last that a request hears of; so is what makes it whole"""


@dataclass(eq=False)
class Ticket:
    """A request in the engine's hands.

    It is the engine's thread that reports, and that ends it; anybody may cancel.
    """

    work: Job | Errand
    """texts to write, or something to do beside them"""
    emit: Callable[[Event], None] = field(repr=False)
    """is called in the engine's thread, and must not wait"""
    seconds: float
    """that it may take"""
    began: float = field(default_factory=time.monotonic)
    n_left: int = field(init=False)
    """texts that are not finished"""
    is_cancelled: bool = False
    is_over: bool = False

    def __post_init__(self) -> None:
        self.n_left = self.n_rows

    @property
    def n_rows(self) -> int:
        """Places in a batch that it takes."""
        return self.work.n if isinstance(self.work, Job) else 1

    def report(self, event: Event) -> None:
        """Tell whoever asked, unless it is over; whoever cannot be told has left."""
        if self.is_over:
            return
        if isinstance(event, Written) and event.finish_reason is not None:
            self.n_left -= 1
        self.is_over = isinstance(event, RequestError | Returned) or self.n_left == 0
        try:
            self.emit(event)
        except RuntimeError:  # the event loop that it came from is closed
            self.is_over = True

    def look_at_the_clock(self) -> None:
        """End it where whoever asked has left, or where it has taken too long."""
        if self.is_cancelled:
            self.report(RequestError(499, "the client has left"))
        elif time.monotonic() - self.began > self.seconds:
            self.report(too_slow(self.seconds))


def attempt(act: Callable[[], None], tickets: Iterable[Ticket]) -> bool:
    """Whether something worked; where it did not, these have failed, or are refused as it says."""
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

"""Responses of /v1/responses in OpenAI's format: the thoughts are a reasoning item, the text is a message."""

import time
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from quietstar.serving.answers import Choice
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Job, Written
from quietstar.serving.protocol import ResponsesRequest

REASONING, MESSAGE = "reasoning", "message"


@dataclass(slots=True)
class OutputItem:
    """An item of the output: reasoning or a message, with one part of text."""

    kind: str
    id: str
    index: int
    """in the output"""

    @property
    def event(self) -> str:
        """How events of its text are called."""
        return "response.reasoning_text" if self.kind == REASONING else "response.output_text"


class ResponsesAnswer:
    """One response, built up token by token: returned whole at the end, or streamed as events.

    The items stand in the output in the order in which they began: with the first thought, and with the first token.
    """

    closing: ClassVar[bytes] = b""

    def __init__(self, job: Job, model: str, request: ResponsesRequest) -> None:
        self.job, self.model, self.request = job, model, request
        self.id, self.created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self.choice, self.n_thought = Choice(), 0
        self.items: dict[str, OutputItem] = {}
        self._n_events = 0

    def begin(self) -> list[dict[str, Any]]:
        """Return what a stream sends before the first token."""
        return [
            self._event(f"response.{name}", response=self._body("in_progress", None))
            for name in ("created", "in_progress")
        ]

    def take(self, written: Written) -> list[dict[str, Any]]:
        """Add a token, and return its events for a stream."""
        _, reasoning = self.choice.take(written)
        self.n_thought += written.n_thought_tokens
        events = []
        if self.job.wants_reasoning and written.n_thought_tokens:
            opened = self._open(REASONING)
            events += [*opened, self._of_text(REASONING, "delta", delta=reasoning)]
        details = {"thoughts": [written.thought]} if self.job.wants_thoughts else {}
        logprobs = [] if written.logprob is None else [written.logprob]
        events += self._open(MESSAGE)
        if written.text or details or logprobs:
            events.append(self._of_text(MESSAGE, "delta", delta=written.text, logprobs=logprobs, **details))
        return events

    def end(self) -> list[dict[str, Any]]:
        """Return what a stream sends after the last token."""
        events = [event for kind in self.items for event in self._close(kind)]
        body = self.whole()
        return [*events, self._event(f"response.{body['status']}", response=body)]

    def fail(self, error: RequestError) -> list[dict[str, Any]]:
        """Return what a stream sends when the request fails."""
        fault = error.body["error"]
        return [
            self._event("error", code=fault["code"] or fault["type"], message=fault["message"], param=fault["param"])
        ]

    def whole(self) -> dict[str, Any]:
        """Return the whole response; the text must have ended."""
        return self._body(self._end, self.usage)

    @property
    def _end(self) -> str:
        """Status of a response whose text has ended."""
        return "completed" if self.choice.finish_reason == "stop" else "incomplete"

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts; thought tokens are part of the output's, and also listed separately."""
        n_prompt, n_output = len(self.job.prompts[0].ids), len(self.choice.tokens) + self.n_thought
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": n_output,
            "output_tokens_details": {"reasoning_tokens": self.n_thought},
            "total_tokens": n_prompt + n_output,
        }

    def _body(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        request = self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "error": None,
            "model": self.model,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "temperature": self.job.temperature,
            "top_p": self.job.top_p,
            "top_logprobs": self.job.top_logprobs or 0,
            "output": [] if usage is None else [self._whole_item(kind, status) for kind in self.items],
            "usage": usage,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "metadata": request.metadata or {},
            "user": request.user,
        }

    def _open(self, kind: str) -> list[dict[str, Any]]:
        """Open an item unless it is open, and return the events of that."""
        if kind in self.items:
            return []
        prefix = "rs" if kind == REASONING else "msg"
        item = self.items[kind] = OutputItem(kind, f"{prefix}_{uuid.uuid4().hex}", len(self.items))
        return [
            self._event(
                "response.output_item.added", output_index=item.index, item=self._item(kind, "in_progress", [])
            ),
            self._of_part(kind, "added", self._part(kind, Choice())),
        ]

    def _close(self, kind: str) -> list[dict[str, Any]]:
        item, part = self.items[kind], self._part(kind, self.choice)
        logprobs = {"logprobs": part["logprobs"]} if kind == MESSAGE else {}
        return [
            self._of_text(kind, "done", text=part["text"], **logprobs),
            self._of_part(kind, "done", part),
            self._event("response.output_item.done", output_index=item.index, item=self._whole_item(kind, self._end)),
        ]

    def _whole_item(self, kind: str, status: str) -> dict[str, Any]:
        return self._item(kind, status, [self._part(kind, self.choice)])

    def _item(self, kind: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        more: dict[str, Any] = {"summary": []} if kind == REASONING else {"role": "assistant"}
        return {"id": self.items[kind].id, "type": kind, "status": status, "content": content} | more

    def _part(self, kind: str, choice: Choice) -> dict[str, Any]:
        """Return an item's part with the content of a choice, which is empty when the item is opened."""
        if kind == REASONING:
            return {"type": "reasoning_text", "text": choice.reasoning}
        logprobs = [each.logprob for each in choice.tokens if each.logprob is not None]
        part = {"type": "output_text", "text": choice.text, "annotations": [], "logprobs": logprobs}
        return part | {"thoughts": choice.thoughts} if self.job.wants_thoughts else part

    def _of_part(self, kind: str, what: str, part: dict[str, Any]) -> dict[str, Any]:
        return self._event(f"response.content_part.{what}", **self._place(kind), part=part)

    def _of_text(self, kind: str, what: str, **content: Any) -> dict[str, Any]:
        return self._event(f"{self.items[kind].event}.{what}", **self._place(kind), **content)

    def _place(self, kind: str) -> dict[str, Any]:
        item = self.items[kind]
        return {"item_id": item.id, "output_index": item.index, "content_index": 0}

    def _event(self, name: str, **content: Any) -> dict[str, Any]:
        self._n_events += 1
        return {"type": name, "sequence_number": self._n_events - 1} | content

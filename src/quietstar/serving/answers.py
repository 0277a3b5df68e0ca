"""Responses in OpenAI's format, with the thoughts in additional fields."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from quietstar.serving.jobs import Job, Written


@dataclass
class Answer:
    """One response, built up token by token: returned whole at the end, or streamed in chunks."""

    job: Job
    model: str
    is_chat: bool
    wants_usage: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    n_visible: int = 0
    n_thought: int = 0
    choices: list["Choice"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.id or f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.choices = [Choice() for _ in range(self.job.n)]

    def take(self, written: Written) -> dict[str, Any]:
        """Add a token, and return its chunk for a stream."""
        body = self._head(is_chunk=True) | {"choices": [self._chunk(written)]}
        if self.job.wants_thoughts and not self.n_visible:
            body["prompt_token_ids"] = self.job.prompt_ids
        if self.wants_usage:
            body["usage"] = None
        self.n_visible += 1
        self.n_thought += written.n_thought_tokens
        return body

    def whole(self) -> dict[str, Any]:
        """Return the whole response; every choice must have ended."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)]
        body = self._head() | {"choices": choices, "usage": self.usage}
        return body | {"prompt_token_ids": self.job.prompt_ids} if self.job.wants_thoughts else body

    def last_chunk(self) -> dict[str, Any] | None:
        """Return a chunk with usage if the stream is to end with one, else None."""
        return self._head(is_chunk=True) | {"choices": [], "usage": self.usage} if self.wants_usage else None

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts; thought tokens are part of the completion's, and also listed separately."""
        n_prompt, n_completion = len(self.job.prompt_ids), self.n_visible + self.n_thought
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
            "completion_tokens_details": {"reasoning_tokens": self.n_thought, "visible_tokens": self.n_visible},
        }

    def _head(self, is_chunk: bool = False) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if is_chunk else ''}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, written: Written) -> dict[str, Any]:
        is_first, reasoning = self.choices[written.choice].take(written)
        thought = {"reasoning_content": reasoning} if self.job.wants_reasoning else {}
        chunk: dict[str, Any] = {"index": written.choice, "logprobs": None, "finish_reason": written.finish_reason}
        if self.is_chat:
            chunk["delta"] = ({"role": "assistant"} if is_first else {}) | thought | {"content": written.text}
        else:
            chunk |= {"text": written.text} | thought
        return chunk | {"thoughts": [written.thought]} if self.job.wants_thoughts else chunk

    def _whole_choice(self, index: int, choice: "Choice") -> dict[str, Any]:
        whole: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": choice.finish_reason}
        thought = {"reasoning_content": choice.reasoning} if self.job.wants_reasoning else {}
        if self.is_chat:
            whole["message"] = {"role": "assistant", "content": choice.text} | thought
        else:
            whole |= {"text": choice.text} | thought
        return whole | {"thoughts": choice.thoughts} if self.job.wants_thoughts else whole


@dataclass(slots=True)
class Choice:
    """What has been generated of one choice so far."""

    text: str = ""
    reasoning: str = ""
    """one thought per line"""
    thoughts: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    n_tokens: int = 0
    n_thoughts: int = 0

    def take(self, written: Written) -> tuple[bool, str]:
        """Add a token; return whether it is the first, and the text that its thought adds to the reasoning."""
        is_first, reasoning = self.n_tokens == 0, ""
        if written.n_thought_tokens:
            reasoning = ("\n" if self.n_thoughts else "") + written.thought_text
            self.n_thoughts += 1
        self.n_tokens += 1
        self.text += written.text
        self.reasoning += reasoning
        self.thoughts.append(written.thought)
        self.finish_reason = written.finish_reason
        return is_first, reasoning


def event(body: dict[str, Any]) -> bytes:
    """Encode a body as a server-sent event."""
    return b"data: " + to_json(body) + b"\n\n"


END = b"data: [DONE]\n\n"


def to_json(body: dict[str, Any]) -> bytes:
    """Encode a body as compact JSON in ASCII, in which no client can mistake a character for a line end."""
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()

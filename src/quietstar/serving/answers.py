"""Responses of completions and chat completions in OpenAI's format, with the thoughts in additional fields."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, ClassVar

from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Job, Written


@dataclass
class Answer:
    """One response, built up token by token: returned whole at the end, or streamed in chunks."""

    closing: ClassVar[bytes] = b"data: [DONE]\n\n"
    """end of a stream"""

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
        self.choices = [Choice() for _ in range(self.job.n_texts)]

    def begin(self) -> list[dict[str, Any]]:
        """Return what a stream sends before the first token."""
        return []

    def take(self, written: Written) -> list[dict[str, Any]]:
        """Add a token, and return its chunk for a stream."""
        body = self._head(is_chunk=True) | {"choices": [self._chunk(written)]}
        if not self.n_visible:
            body |= self._prompt_ids
        if self.wants_usage:
            body["usage"] = None
        self.n_visible += 1
        self.n_thought += written.n_thought_tokens
        return [body]

    def end(self) -> list[dict[str, Any]]:
        """Return what a stream sends after the last token: usage, if requested."""
        return [self._head(is_chunk=True) | {"choices": [], "usage": self.usage}] if self.wants_usage else []

    def fail(self, error: RequestError) -> list[dict[str, Any]]:
        """Return what a stream sends when the request fails."""
        return [error.body]

    def whole(self) -> dict[str, Any]:
        """Return the whole response; every choice must have ended."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self.choices)]
        return self._head() | {"choices": choices, "usage": self.usage} | self._prompt_ids

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts; thought tokens are part of the completion's, and also listed separately."""
        n_prompt = sum(len(prompt.ids) for prompt in self.job.prompts)
        n_completion = self.n_visible + self.n_thought
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_completion,
            "total_tokens": n_prompt + n_completion,
            "completion_tokens_details": {"reasoning_tokens": self.n_thought, "visible_tokens": self.n_visible},
        }

    @property
    def _prompt_ids(self) -> dict[str, Any]:
        """Token ids of the prompt, or a list of them for each prompt, beside details of thoughts."""
        ids = [prompt.ids for prompt in self.job.prompts]
        return {"prompt_token_ids": ids[0] if len(ids) == 1 else ids} if self.job.wants_thoughts else {}

    def _head(self, is_chunk: bool = False) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if is_chunk else ''}" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, written: Written) -> dict[str, Any]:
        is_first, reasoning = self.choices[written.choice].take(written)
        thought = {"reasoning_content": reasoning} if self.job.wants_reasoning else {}
        logprobs = self._logprobs([written])
        chunk: dict[str, Any] = {"index": written.choice, "logprobs": logprobs, "finish_reason": written.finish_reason}
        if self.is_chat:
            chunk["delta"] = ({"role": "assistant"} if is_first else {}) | thought | {"content": written.text}
        else:
            chunk |= {"text": written.text} | thought
        return chunk | {"thoughts": [written.thought]} if self.job.wants_thoughts else chunk

    def _whole_choice(self, index: int, choice: "Choice") -> dict[str, Any]:
        logprobs = self._logprobs(choice.tokens)
        whole: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": choice.finish_reason}
        thought = {"reasoning_content": choice.reasoning} if self.job.wants_reasoning else {}
        if self.is_chat:
            whole["message"] = {"role": "assistant", "content": choice.text} | thought
        else:
            whole |= {"text": choice.text} | thought
        return whole | {"thoughts": choice.thoughts} if self.job.wants_thoughts else whole

    def _logprobs(self, tokens: list[Written]) -> dict[str, Any] | None:
        """Return the log-probabilities of tokens in the form of the endpoint, if requested."""
        found = [each.logprob for each in tokens if each.logprob is not None]
        if self.job.top_logprobs is None:
            return None
        if self.is_chat:
            return {"content": found, "refusal": None}
        return {
            "tokens": [each["token"] for each in found],
            "token_logprobs": [each["logprob"] for each in found],
            "top_logprobs": [_by_token([each, *each["top_logprobs"]]) for each in found],
            "text_offset": [each.offset for each in tokens],
        }


def _by_token(likeliest: list[dict[str, Any]]) -> dict[str, float]:
    """Return log-probabilities by token text, likeliest first; of tokens with the same text, that of the likeliest."""
    by_token: dict[str, float] = {}
    for each in sorted(likeliest, key=lambda each: each["logprob"], reverse=True):
        by_token.setdefault(each["token"], each["logprob"])
    return by_token


@dataclass(slots=True)
class Choice:
    """What has been generated of one choice so far."""

    text: str = ""
    reasoning: str = ""
    """one thought per line"""
    tokens: list[Written] = field(default_factory=list)
    n_thoughts: int = 0

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None if it has not."""
        return self.tokens[-1].finish_reason if self.tokens else None

    @property
    def thoughts(self) -> list[Any]:
        """Details of each token and its thought, if requested."""
        return [each.thought for each in self.tokens]

    def take(self, written: Written) -> tuple[bool, str]:
        """Add a token; return whether it is the first, and the text that its thought adds to the reasoning."""
        is_first, reasoning = not self.tokens, ""
        if written.n_thought_tokens:
            reasoning = ("\n" if self.n_thoughts else "") + written.thought_text
            self.n_thoughts += 1
        self.tokens.append(written)
        self.text += written.text
        self.reasoning += reasoning
        return is_first, reasoning


def event(body: dict[str, Any]) -> bytes:
    """Encode a body as a server-sent event, which is named by the body's type if it has one."""
    name = f"event: {body['type']}\n".encode() if "type" in body else b""
    return name + b"data: " + to_json(body) + b"\n\n"


def to_json(body: dict[str, Any]) -> bytes:
    """Encode a body as compact JSON in ASCII, in which no client can mistake a character for a line end."""
    return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()

"""Fields of requests. Unknown fields and wrong types are refused with an error of one line."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from quietstar.serving.neutral import (
    NeutralChat,
    NeutralCompletion,
    NeutralMessage,
    NeutralResponses,
    NeutralWriting,
    RecordedTags,
    only,
)
from quietstar.serving.values import (
    Biases,
    Content,
    Count,
    Ids,
    Input,
    Logprobs,
    Penalty,
    Policy,
    Prompts,
    Share,
    Stop,
    Temperature,
    Text,
)


class _Request(BaseModel):
    """Accepts exactly its fields, of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """Options of `stream`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None


class ResponsesStreamOptions(_Request):
    """Options of `stream` in /v1/responses, whose streams always end with usage."""

    include_obfuscation: Annotated[Any, only(False)] = None


class GenerationRequest(_Request):
    """Fields of all requests that generate. Null is the same as leaving a field out."""

    model: Text | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    user: Text | None = None

    think: Policy = None
    n_ahead: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    thought_temperature: Temperature | None = None
    thought_top_p: Share | None = None
    include_reasoning: bool | None = None
    thoughts: bool | None = None

    default_tokens: ClassVar[int | None] = None
    """limit of generated tokens if the request has none; None for as many as the context allows"""

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The limit of generated tokens, or None, and its field."""
        raise NotImplementedError

    @property
    def requested_logprobs(self) -> int | None:
        """The number of likeliest tokens to report with each generated one; None for no log-probabilities."""
        raise NotImplementedError


class Writing(GenerationRequest, NeutralWriting):
    """Fields that completions and chat completions share."""

    max_tokens: Count | None = None
    n: Count | None = None
    stop: Stop = ()
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases = Field(default_factory=dict)
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "Writing":
        if self.stream_options is not None and self.stream_options.include_usage and not self.stream:
            raise ValueError("stream_options needs stream; leave it out, or set stream to true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The limit of generated tokens, or None, and its field."""
        return self.max_tokens, "max_tokens"


class CompletionRequest(Writing, NeutralCompletion):
    """POST /v1/completions."""

    default_tokens: ClassVar[int | None] = 16
    prompt: Prompts
    logprobs: Logprobs | None = None

    @model_validator(mode="after")
    def _best_of_itself(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is {self.best_of}, but only n is supported; leave it out")
        return self

    @property
    def requested_logprobs(self) -> int | None:
        """The number of likeliest tokens to report with each generated one; None for no log-probabilities."""
        return self.logprobs


class Message(_Request, NeutralMessage):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    name: Text | None = None


class ChatRequest(Writing, NeutralChat):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None

    @model_validator(mode="after")
    def _logprobs_fit(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs; leave it out, or set logprobs to true")
        return self

    @property
    def for_template(self) -> list[dict[str, str]]:
        """The messages for a chat template, without the thoughts of earlier responses."""
        return [each.model_dump(include={"role", "content", "name"}, exclude_none=True) for each in self.messages]

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The smaller of the two limits, and its field."""
        both = {"max_completion_tokens": self.max_completion_tokens, "max_tokens": self.max_tokens}
        given = [(n, name) for name, n in both.items() if n is not None]
        return min(given, default=(None, "max_tokens"))

    @property
    def requested_logprobs(self) -> int | None:
        """The number of likeliest tokens to report with each generated one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


_LOGPROBS = "message.output_text.logprobs"
_REASONING = "reasoning.encrypted_content"
"""accepted without effect, as clients ask for it by default: reasoning items are plain, and may be sent back"""


def _included(value: Any) -> Any:
    if value is not None and not (isinstance(value, list) and all(each in (_LOGPROBS, _REASONING) for each in value)):
        raise ValueError(f'give ["{_LOGPROBS}"], or leave it out; nothing else is supported')
    return value


class ResponsesRequest(GenerationRequest, NeutralResponses):
    """POST /v1/responses."""

    input: Input
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Logprobs | None = None
    include: Annotated[Any, BeforeValidator(_included)] = None
    metadata: RecordedTags = None
    stream_options: ResponsesStreamOptions | None = None

    @model_validator(mode="after")
    def _logprobs_fit(self) -> "ResponsesRequest":
        if self.top_logprobs and self.requested_logprobs is None:
            raise ValueError(f'top_logprobs needs include; leave it out, or set include to ["{_LOGPROBS}"]')
        return self

    @property
    def for_template(self) -> list[dict[str, str]]:
        """The messages for a chat template."""
        first = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return [*first, *self.input]

    @property
    def requested_tokens(self) -> tuple[int | None, str]:
        """The limit of generated tokens, or None, and its field."""
        return self.max_output_tokens, "max_output_tokens"

    @property
    def requested_logprobs(self) -> int | None:
        """The number of likeliest tokens to report with each generated one; None for no log-probabilities."""
        return (self.top_logprobs or 0) if _LOGPROBS in (self.include or ()) else None


class ThoughtRequest(_Request):
    """POST /v1/thoughts: a text, and a thought after its last token."""

    model: Text | None = None
    prompt: Text | None = None
    token_ids: Ids = None
    thought: Text | None = None
    thought_ids: Ids = None
    n_ahead: Annotated[int, Field(ge=2, lt=2**31)] | None = None
    top_k: Annotated[int, Field(ge=1, le=50)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ThoughtRequest":
        if (self.prompt is None) == (self.token_ids is None):
            raise ValueError("give either prompt or token_ids")
        given = [name for name in ("thought", "thought_ids", "n_ahead") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} were given; give one, or none for the model's own thought")
        return self


def supported(request: type[BaseModel]) -> list[str]:
    """Return the supported fields of a request."""
    kinds = [kind for kind in (NeutralCompletion, NeutralChat, NeutralResponses) if issubclass(request, kind)]
    return [name for name in request.model_fields if not any(name in kind.model_fields for kind in kinds)]

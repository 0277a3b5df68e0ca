"""Turns requests into jobs: tokenizes their text, and checks the server's limits."""

import threading
from collections.abc import Callable, Iterator
from inspect import signature

from transformers import PreTrainedTokenizerBase

from quietstar.base.ids import n_embeddings
from quietstar.inference.loading import prompt_ids
from quietstar.policy import ThinkPolicy
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Thinking
from quietstar.serving.engine import Engine
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Job, Prompt
from quietstar.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponsesRequest,
    ThoughtRequest,
    Writing,
)
from quietstar.serving.what_if import Question


class Intake:
    """Turns requests into jobs; safe to call from any thread.

    Nobody else may use the tokenizer, since two threads may not use one at once. `next_seed` gives a seed to a request
    without one.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        settings: ServeArguments,
        name: str,
        next_seed: Callable[[], int],
    ) -> None:
        self.engine, self.tokenizer, self.settings, self.name = engine, tokenizer, settings, name
        self.next_seed = next_seed
        self.think = ThinkPolicy.parse(settings.think)
        self.n_tokens = n_embeddings(engine.model)
        self._one_at_a_time = threading.Lock()

    def job(self, request: CompletionRequest | ChatRequest | ResponsesRequest) -> Job:
        """Return the job of a request.

        Raises:
            RequestError: a limit is exceeded, or the chat template does not accept the messages.
        """
        self._check_model(request.model)
        requested, param = request.requested_tokens
        if requested is not None and requested > self.settings.max_tokens:
            message = f"{param} is {requested}; the server allows up to {self.settings.max_tokens}"
            raise RequestError(400, message, param=param)
        thinking = self._thinking(request)
        job = Job(
            prompts=[],
            thinking=thinking,
            seed=self.next_seed() if request.seed is None else request.seed,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_logprobs=request.requested_logprobs,
            wants_reasoning=request.include_reasoning is not False,
            wants_thoughts=bool(request.thoughts),
        )
        if isinstance(request, Writing):
            self._check_ids(list(request.logit_bias), "logit_bias")
            job.n, job.stop, job.logit_bias = request.n or 1, request.stop, request.logit_bias
            job.frequency_penalty = request.frequency_penalty or 0.0
            job.presence_penalty = request.presence_penalty or 0.0
        self._check_texts(job.n, len(request.prompt) if isinstance(request, CompletionRequest) else 1)
        most = request.default_tokens if requested is None else requested
        for ids, param in self._prompts(request):
            self._check_length(ids, param, thinking.n_ahead)
            room = self.engine.room(len(ids), thinking.n_ahead)
            job.prompts.append(Prompt(ids, room if most is None else min(most, room)))
        return job

    def _prompts(self, request: CompletionRequest | ChatRequest | ResponsesRequest) -> Iterator[tuple[list[int], str]]:
        """Yield the token ids of each prompt, and its field."""
        if isinstance(request, CompletionRequest):
            for index, prompt in enumerate(request.prompt):
                param = "prompt" if len(request.prompt) == 1 else f"prompt.{index}"
                yield self._ids(prompt, param), param
        else:
            param = "messages" if isinstance(request, ChatRequest) else "input"
            yield self._chat_ids(request.for_template, param), param

    def _check_texts(self, n: int, n_prompts: int) -> None:
        most = self.settings.most_texts
        if n_prompts == 1 and n > most:
            raise RequestError(400, f"n is {n}; the server allows up to {most}", param="n")
        if n * n_prompts > most:
            asked = f"{n_prompts} prompts with n {n} are {n * n_prompts} texts"
            message = f"{asked}; the server allows up to {most} in a request"
            raise RequestError(400, message, param="prompt")

    def question(self, request: ThoughtRequest) -> Question:
        """Return the question of a request: a text and a thought after it.

        Raises:
            RequestError: a limit is exceeded.
        """
        self._check_model(request.model)
        text, param = (request.prompt, "prompt") if request.token_ids is None else (request.token_ids, "token_ids")
        ids = self._ids(text or "", param)
        n_ahead = self._n_ahead(request.n_ahead)
        self._check_length(ids, param, n_ahead)
        thought = request.thought_ids
        if request.thought is not None:
            with self._one_at_a_time:
                thought = list(self.tokenizer(request.thought, add_special_tokens=False)["input_ids"])
        question = Question(ids, thought, request.top_k or 5, n_ahead=n_ahead)
        if thought is not None:
            self._check_ids(thought, "thought_ids" if request.thought is None else "thought")
            question.check(self.engine.context)
        return question

    def _n_ahead(self, requested: int | None) -> int:
        most = self.engine.max_n_ahead
        if requested is not None and requested > most:
            raise RequestError(400, f"n_ahead is {requested}; the server allows up to {most}", param="n_ahead")
        return self.engine.n_ahead if requested is None else requested

    def _thinking(self, request: GenerationRequest) -> Thinking:
        own = self.settings
        return Thinking.of(
            self.think if request.think is None else request.think,
            self._n_ahead(request.n_ahead),
            own.thought_temperature if request.thought_temperature is None else request.thought_temperature,
            own.thought_top_p if request.thought_top_p is None else request.thought_top_p,
        )

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise RequestError(
                404, f"unknown model {name[:60]!r}; give {self.name!r}", param="model", code="model_not_found"
            )

    def _ids(self, prompt: str | list[int], param: str) -> list[int]:
        if isinstance(prompt, str):
            with self._one_at_a_time:
                prompt = prompt_ids(self.tokenizer, prompt)
        self._check_ids(prompt, param)
        return prompt

    def _check_ids(self, ids: list[int], param: str) -> None:
        wrong = next((token for token in ids if not 0 <= token < self.n_tokens), None)
        if wrong is not None:
            shown = wrong if abs(wrong) < 2**63 else "too large"
            raise RequestError(400, f"token id {shown} is out of range; give 0 to {self.n_tokens - 1}", param=param)

    def _check_length(self, ids: list[int], param: str, n_ahead: int) -> None:
        limit = self.engine.max_prompt_tokens(n_ahead)
        if not ids:
            raise RequestError(400, "the prompt has no tokens; give some text to continue", param=param)
        if limit is not None and len(ids) > limit:
            message = f"the prompt has {len(ids)} tokens; give at most {limit}"
            raise RequestError(400, message, param=param, code="context_length_exceeded")

    def _chat_ids(self, messages: list[dict[str, str]], param: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise RequestError(
                400,
                "the model's tokenizer has no chat template; use /v1/completions",
                param=param,
                code="no_chat_template",
            )
        self._check_spelled_out(messages, param)
        try:
            with self._one_at_a_time:
                # control tokens that a message spells out stay text, so that it cannot pose as another role
                ids = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
                )
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())[:200]
            message = f"the model's chat template does not accept these messages: {reason}"
            raise RequestError(400, message, param=param) from error
        self._check_ids(ids, param)
        return list(ids)

    def _check_spelled_out(self, messages: list[dict[str, str]], param: str) -> None:
        """Raise for spelled-out control tokens if this version of transformers cannot sanitize them."""
        if "sanitize_control_tokens" in signature(self.tokenizer.apply_chat_template).parameters:
            return
        control = [*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()]
        for text in (message.get(part, "") for message in messages for part in ("content", "name")):
            spelled = next((token for token in control if token in text), None)
            if spelled is not None:
                raise RequestError(
                    400,
                    f"a message spells out the control token {spelled!r}; leave it out (or serve with a newer "
                    "transformers, to which it is text there)",
                    param=param,
                )

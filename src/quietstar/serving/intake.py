"""Turns requests into jobs: tokenizes their text, and checks the server's limits."""

import threading
from collections.abc import Callable
from inspect import signature

from transformers import PreTrainedTokenizerBase

from quietstar.base.ids import n_embeddings
from quietstar.inference.loading import prompt_ids
from quietstar.policy import ThinkPolicy
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Thinking
from quietstar.serving.engine import Engine
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Job
from quietstar.serving.protocol import ChatRequest, CompletionRequest, ThoughtRequest, Writing
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

    def job(self, request: CompletionRequest | ChatRequest) -> Job:
        """Return the job of a request.

        Raises:
            RequestError: a limit is exceeded, or the chat template does not accept the messages.
        """
        self._check_model(request.model)
        n = request.n or 1
        if n > self.settings.most_texts:
            raise RequestError(400, f"n is {n}; the server allows up to {self.settings.most_texts}", param="n")
        requested, param = request.requested_tokens
        if requested is not None and requested > self.settings.max_tokens:
            message = f"{param} is {requested}; the server allows up to {self.settings.max_tokens}"
            raise RequestError(400, message, param=param)
        thinking = self._thinking(request)
        if isinstance(request, ChatRequest):
            ids, param = self._chat_ids(request), "messages"
        else:
            ids, param = self._ids(request.prompt, "prompt"), "prompt"
        self._check_length(ids, param, thinking.n_ahead)
        room = self.engine.room(len(ids), thinking.n_ahead)
        most = request.default_tokens if requested is None else requested
        return Job(
            prompt_ids=ids,
            thinking=thinking,
            max_tokens=room if most is None else min(most, room),
            seed=self.next_seed() if request.seed is None else request.seed,
            n=n,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            stop=request.stop,
            wants_reasoning=request.include_reasoning is not False,
            wants_thoughts=bool(request.thoughts),
        )

    def question(self, request: ThoughtRequest) -> Question:
        """Return the question of a request: a text and a thought after it.

        Raises:
            RequestError: a limit is exceeded.
        """
        self._check_model(request.model)
        text, param = (request.prompt, "prompt") if request.token_ids is None else (request.token_ids, "token_ids")
        ids = self._ids(text or "", param)
        self._check_length(ids, param, self.engine.n_ahead)
        thought = request.thought_ids
        if request.thought is not None:
            with self._one_at_a_time:
                thought = list(self.tokenizer(request.thought, add_special_tokens=False)["input_ids"])
        question = Question(ids, thought, request.top_k or 5, n_ahead=self.engine.n_ahead)
        if thought is not None:
            self._check_ids(thought, "thought_ids" if request.thought is None else "thought")
            question.check(self.engine.context)
        return question

    def _thinking(self, request: Writing) -> Thinking:
        own, most = self.settings, self.engine.max_n_ahead
        n_ahead = self.engine.n_ahead if request.n_ahead is None else request.n_ahead
        if n_ahead > most:
            raise RequestError(400, f"n_ahead is {n_ahead}; the server allows up to {most}", param="n_ahead")
        return Thinking.of(
            self.think if request.think is None else request.think,
            n_ahead,
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

    def _chat_ids(self, request: ChatRequest) -> list[int]:
        if not self.tokenizer.chat_template:
            raise RequestError(
                400,
                "the model's tokenizer has no chat template; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        messages = [message.for_template for message in request.messages]
        self._check_spelled_out(request)
        try:
            with self._one_at_a_time:
                # control tokens that a message spells out stay text, so that it cannot pose as another role
                ids = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
                )
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())[:200]
            message = f"the model's chat template does not accept these messages: {reason}"
            raise RequestError(400, message, param="messages") from error
        self._check_ids(ids, "messages")
        return list(ids)

    def _check_spelled_out(self, request: ChatRequest) -> None:
        """Raise for spelled-out control tokens if this version of transformers cannot sanitize them."""
        if "sanitize_control_tokens" in signature(self.tokenizer.apply_chat_template).parameters:
            return
        control = [*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()]
        for text in (text for message in request.messages for text in (message.content, message.name or "")):
            spelled = next((token for token in control if token in text), None)
            if spelled is not None:
                raise RequestError(
                    400,
                    f"a message spells out the control token {spelled!r}; leave it out (or serve with a newer "
                    "transformers, to which it is text there)",
                    param="messages",
                )

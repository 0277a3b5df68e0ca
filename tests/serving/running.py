"""Engines and servers over tiny models, for the duration of a test, and what a request gives when it runs alone."""

import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from string import ascii_lowercase
from typing import Any

import torch
from transformers import LogitsProcessorList

from quietstar import QuietStarForCausalLM
from quietstar.journal import GeneratedThoughts
from quietstar.policy import ThinkPolicy
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.batch import Thinking
from quietstar.serving.engine import Engine
from quietstar.serving.faults import RequestError
from quietstar.serving.jobs import Event, Job, Prompt, Ticket, Written
from quietstar.serving.run import Server, listen, make_server
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

CONTEXT = 256
N_AHEAD = 4
NAME = "tiny"


@cache
def speaking_model(family: str = "llama", letters: bool = True, ends: bool = True) -> QuietStarForCausalLM:
    """A model that writes bytes, or lower-case letters and sometimes eos. It is shared: do not change it."""
    tokenizer = byte_tokenizer()
    said = [*ascii_lowercase, "Ġ", "Ã", "©", *(["</s>"] if ends else [])]
    banned = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) not in said] if letters else None
    context = "n_positions" if family == "gpt2" else "max_position_embeddings"
    return tiny_model(
        family,
        n_ahead=N_AHEAD,
        base={"vocab_size": len(tokenizer), context: CONTEXT},
        **({"suppressed_token_ids": banned} if banned else {}),
    )


def a_job(
    prompt_ids: list[int], think: str = "always", max_tokens: int = 8, more: Sequence[list[int]] = (), **how: Any
) -> Job:
    """Return a job that reports thoughts; `more` are further prompts."""
    drawn = {name.removeprefix("thought_"): how.pop(name) for name in list(how) if name.startswith("thought_")}
    policy, n_ahead = ThinkPolicy.parse(think), how.pop("n_ahead", N_AHEAD)
    thinking = Thinking.of(policy, n_ahead, drawn.get("temperature", 0.0), drawn.get("top_p", 1.0))
    settings = {"seed": 0, "wants_thoughts": True, **how}
    return Job(prompts=[Prompt(ids, max_tokens) for ids in (prompt_ids, *more)], thinking=thinking, **settings)


def penalized(job: Job, n_prompt: int) -> LogitsProcessorList:
    """Return a job's penalties and biases as a processor of `generate`, token by token."""

    def change(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores, written = scores.clone(), input_ids[0, n_prompt:].tolist()
        for token in set(written):
            scores[0, token] -= job.frequency_penalty * written.count(token) + job.presence_penalty
        for token, bias in job.logit_bias.items():
            scores[0, token] += bias
        return scores

    return LogitsProcessorList([change])


def alone(model: QuietStarForCausalLM, job: Job, choice: int = 0) -> tuple[list[int], GeneratedThoughts]:
    """Return the tokens of a choice as `generate` writes them, and their thoughts."""
    torch.manual_seed(job.seed + choice)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if job.temperature:
        how = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
    prompt = job.prompts[choice // job.n]
    ids = torch.tensor([prompt.ids])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        think=job.thinking.policy,
        n_ahead=job.thinking.n_ahead,
        thought_temperature=job.thinking.temperature,
        thought_top_p=job.thinking.top_p,
        max_new_tokens=prompt.max_tokens,
        pad_token_id=0,
        output_thoughts=True,
        logits_processor=penalized(job, len(prompt.ids)),
        **how,
    )
    return found.sequences[0, len(prompt.ids) :].tolist(), found.thoughts


class DrivenEngine(Engine):
    """An engine without a thread: tests run its turns."""

    is_alive = True

    def turn(self) -> None:
        """Run one turn."""
        self._turn()

    def ask(self, job: Job) -> tuple[Ticket, list[Event]]:
        """Submit a job, and return the list that will receive its events."""
        events: list[Event] = []
        return self.submit(job, events.append), events

    def finish(self) -> None:
        """Run turns until no request is left."""
        for _ in range(10_000):
            if not (self.waiting or self.running):
                return
            self.turn()
        raise AssertionError("the engine does not come to an end")


def driven(model: QuietStarForCausalLM, **settings: Any) -> DrivenEngine:
    """Return an engine whose turns a test runs."""
    return DrivenEngine(model, byte_tokenizer(), ServeArguments(**settings))


@contextmanager
def running_engine(model: QuietStarForCausalLM, **settings: Any) -> Iterator[Engine]:
    """Run an engine with its thread."""
    engine = Engine(model, byte_tokenizer(), ServeArguments(**settings))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def outcome_of(engine: Engine, job: Job) -> list[Event]:
    """Return all events of a job."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(job, events.put)
    found: list[Event] = []
    while sum(isinstance(e, Written) and e.finish_reason is not None for e in found) < job.n_texts:
        found.append(events.get(timeout=60))
        if isinstance(found[-1], RequestError):
            break
    return found


@contextmanager
def served(
    model: QuietStarForCausalLM, chat_template: str | None = None, **settings: Any
) -> Iterator[tuple[str, Server]]:
    """Run a server on a free port: its address, and the server itself."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    with listen("127.0.0.1", 0) as door:
        server = make_server(model, tokenizer, ServeArguments(**settings), NAME)
        ready = threading.Event()
        server.when_ready = ready.set
        thread = threading.Thread(target=lambda: server.run(sockets=[door]), daemon=True)
        thread.start()
        try:
            assert ready.wait(60)
            yield f"http://127.0.0.1:{door.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()

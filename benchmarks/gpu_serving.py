"""The server under many clients, for `gpu.py`: over HTTP, or directly on the engine if no web server is installed."""

import asyncio
import importlib.util
import queue
import sys
import time
import types
from typing import Any

import torch
from decoding import build
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from quietstar import QuietStarForCausalLM

WEB = ("fastapi", "uvicorn", "prometheus_client", "httpx")


def seconds_of(device: str, n_clients: int, n_tokens: int) -> tuple[str, dict[str, float]]:
    """Return how clients connected, and the seconds of each way until all had their tokens."""
    model = build(device, 8)
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 128, (n_clients,), generator=generator).tolist()
    prompts = [torch.randint(3, 30_000, (n,), generator=generator).tolist() for n in lengths]
    missing = [name for name in WEB if importlib.util.find_spec(name) is None]
    if missing:
        seconds = to_the_engine(model, prompts, n_tokens)
        return f"directly on the engine ({', '.join(missing)} not installed)", seconds | whole(model, prompts, n_tokens)
    import serving

    with serving.served(model, n_clients) as url:
        asyncio.run(serving.ask(url, prompts[:1], 1, at_once=True))
        seconds = {
            way: asyncio.run(serving.ask(url, prompts, n_tokens, at_once=way == "all at once"))
            for way in ("one by one", "all at once")
        }
    return "over HTTP", seconds | whole(model, prompts, n_tokens)


def whole(model: QuietStarForCausalLM, prompts: list[list[int]], n_tokens: int) -> dict[str, float]:
    """Return the seconds of `generate` for all prompts as one left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    began = time.perf_counter()
    model.generate(
        ids, attention_mask=mask, max_new_tokens=n_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return {"generate": time.perf_counter() - began}


def to_the_engine(model: QuietStarForCausalLM, prompts: list[list[int]], n_tokens: int) -> dict[str, float]:
    """Return the seconds of each way, without HTTP."""
    if importlib.util.find_spec("prometheus_client") is None:
        sys.modules["prometheus_client"] = _nothing_counted()
    from quietstar.policy import ThinkPolicy
    from quietstar.serving.arguments import ServeArguments
    from quietstar.serving.batch import Thinking
    from quietstar.serving.engine import Engine
    from quietstar.serving.jobs import Job, Prompt

    vocabulary = {str(token): token for token in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")))
    engine = Engine(model, tokenizer, ServeArguments(max_batch=len(prompts)))
    engine.start()
    thinking = Thinking(ThinkPolicy.parse("always"), model.config.n_ahead)

    def ask(prompts: list[list[int]], n: int) -> float:
        """Return the seconds until all have their last token."""
        events: queue.Queue[Any] = queue.Queue()
        began = time.perf_counter()
        for prompt in prompts:
            engine.submit(Job(prompts=[Prompt(prompt, n)], thinking=thinking, seed=0, temperature=0.0), events.put)
        n_open = len(prompts)
        while n_open:
            event = events.get(timeout=600)
            if isinstance(event, Exception):
                raise event
            n_open -= getattr(event, "finish_reason", None) is not None
        return time.perf_counter() - began

    try:
        ask(prompts[:1], 1)
        return {
            "one by one": sum(ask([prompt], n_tokens) for prompt in prompts),
            "all at once": ask(prompts, n_tokens),
        }
    finally:
        engine.stop()


def _nothing_counted() -> types.ModuleType:
    """Return a substitute for prometheus_client whose counters do nothing."""

    class Nothing:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: self

    module = types.ModuleType("prometheus_client")
    for name in ("CollectorRegistry", "Counter", "Gauge", "Histogram", "generate_latest"):
        setattr(module, name, Nothing)
    return module

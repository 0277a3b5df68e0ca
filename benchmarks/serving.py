"""Tokens per second of a server, for clients one by one and all at once, compared with `generate` for all at once.

    python benchmarks/serving.py                                  32 clients, two minutes on two CPU cores
    python benchmarks/serving.py --clients 4 --tokens 4           quickly
    python benchmarks/serving.py --thought_temperature 1          sampled thoughts

The model is that of the other benchmarks (V 32,002, D 256, 6 layers) with random weights, thinking before every token.
Clients talk to a real local server over HTTP, with prompts of 16 to 127 tokens, greedily. The three take turns in one
process; figures are medians of rounds. `generate` gets the same prompts as one left-padded batch, and is the upper
bound for the server.
"""

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from decoding import build
from tokenizers import Tokenizer, models
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from quietstar import QuietStarForCausalLM
from quietstar.serving.arguments import ServeArguments
from quietstar.serving.run import listen, make_server

WAYS = ("one by one", "all at once", "generate")


@contextmanager
def served(model: QuietStarForCausalLM, n_clients: int) -> Iterator[str]:
    """Run a server, and yield its address."""
    vocabulary = {str(token): token for token in range(model.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")))
    with listen("127.0.0.1", 0) as listener:
        server = make_server(model, tokenizer, ServeArguments(max_batch=n_clients), "benchmark")
        ready = threading.Event()
        server.when_ready = ready.set
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        ready.wait()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def ask(url: str, prompts: list[list[int]], n_tokens: int, temperature: float, at_once: bool) -> float:
    """Return the seconds until all have their answers."""
    how = {"timeout": None, "limits": httpx.Limits(max_connections=None), "trust_env": False}  # no proxy
    async with httpx.AsyncClient(base_url=url, **how) as client:

        async def one(prompt: list[int]) -> None:
            body = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "thought_temperature": temperature}
            answer = await client.post("/v1/completions", json=body)
            answer.raise_for_status()
            assert answer.json()["usage"]["completion_tokens_details"]["visible_tokens"] == n_tokens

        began = time.perf_counter()
        if at_once:
            await asyncio.gather(*map(one, prompts))
        else:
            for prompt in prompts:
                await one(prompt)
        return time.perf_counter() - began


def generate(model: QuietStarForCausalLM, prompts: list[list[int]], n_tokens: int, temperature: float) -> float:
    """Return the seconds of one batch."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    input_ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    began = time.perf_counter()
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "thought_temperature": temperature}
    model.generate(input_ids, attention_mask=mask, max_new_tokens=n_tokens, **how)
    return time.perf_counter() - began


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each client requests")
    parser.add_argument("--n_ahead", type=int, default=8)
    parser.add_argument("--thought_temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file of all timings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build("cpu", args.n_ahead)
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 128, (args.clients,), generator=generator).tolist()
    prompts = [torch.randint(3, 30_000, (n,), generator=generator).tolist() for n in lengths]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with served(model, args.clients) as url:
        asyncio.run(ask(url, prompts[:1], 1, 0.0, at_once=True))  # the first pass of a process is slower
        what = (prompts, args.tokens, args.thought_temperature)
        for _ in range(args.rounds):
            seconds["one by one"].append(asyncio.run(ask(url, *what, at_once=False)))
            seconds["all at once"].append(asyncio.run(ask(url, *what, at_once=True)))
            seconds["generate"].append(generate(model, *what))
    n_tokens = args.clients * args.tokens
    print(f"| {args.clients} clients, {args.tokens} tokens each | visible tokens/s | x one by one |\n|---|---:|---:|")
    first = statistics.median(seconds["one by one"])
    for way, took in seconds.items():
        print(f"| {way} | {n_tokens / statistics.median(took):.1f} | {first / statistics.median(took):.2f} |")
    if args.output:
        args.output.write_text(json.dumps({"clients": args.clients, "tokens": args.tokens, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

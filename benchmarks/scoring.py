"""Items of gsm8k scored per second, with and without thoughts.

    python benchmarks/scoring.py --data gsm8k/test.jsonl                     200 items, a minute on two CPU cores
    python benchmarks/scoring.py --data gsm8k/test.jsonl --batch_size 16

The model is that of the other benchmarks (V 32,002, D 256, 6 layers) with random weights. The tokenizer is a BPE
trained on the items, with separate digits like Mistral's. `plain` is the base model as `--original` scores it, a
forward pass and the LM head at the scored positions; `plain, all logits` is the base model's own forward with logits at
all positions. They take turns in one process; figures are medians.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from decoding import build
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quietstar.evaluation.direct import alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Continuation, Speaker, Stopwatch, by_length
from quietstar.evaluation.tasks import TASKS, Item, load_items
from quietstar.policy import ThinkPolicy


def learn_tokenizer(items: list[Item], vocab_size: int = 8000) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on the items, with separate digits."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([item.text for item in items], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def all_logits(speaker: Speaker, sequences: list[Continuation], batch_size: int) -> float:
    """Return the seconds of the base model's own forward passes over the same batches."""
    watch = Stopwatch(speaker.device)
    for indices in by_length(sequences, batch_size):
        rows = [torch.tensor(sequences[index].ids) for index in indices]
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        speaker.model(input_ids=input_ids, attention_mask=mask, use_cache=False)
    return watch.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="gsm8k as JSON lines")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--n_ahead", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = TASKS["gsm8k"]
    items = load_items(task, str(options.data))
    tokenizer = learn_tokenizer(items)
    sequences, _ = encode(items[: options.items], tokenizer, alphabet_of(task, tokenizer))
    model = build("cpu", options.n_ahead)
    plain, thinking = Speaker(model.base_lm), Speaker(model, ThinkPolicy.parse("always"))
    entropy = Speaker(model, ThinkPolicy.parse("never"))
    jobs: dict[str, Callable[[], float]] = {
        "plain, all logits": lambda: all_logits(plain, sequences, options.batch_size),
        "plain": lambda: score_items(plain, sequences, options.batch_size).seconds,
        "thinking": lambda: score_items(thinking, sequences, options.batch_size).seconds,
        "thinking nowhere": lambda: score_items(entropy, sequences, options.batch_size).seconds,
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(options.rounds + 1):
        for name, job in jobs.items():
            took = job()
            if number:  # the first round warms up
                seconds[name].append(took)
    n_tokens = sum(len(sequence.ids) for sequence in sequences) / len(sequences)
    n_scored = sum(len(sequence.ids) - sequence.first for sequence in sequences) / len(sequences)
    print(f"{len(sequences)} items of {n_tokens:.0f} tokens, {n_scored:.1f} scored; batches of {options.batch_size}")
    print("| | items/s | relative to plain |\n| --- | ---: | ---: |")
    for name, took in seconds.items():
        rate = len(sequences) / statistics.median(took)
        share = statistics.median(seconds["plain"]) / statistics.median(took)
        print(f"| {name} | {rate:.1f} | {share:.2f} |")


if __name__ == "__main__":
    main()

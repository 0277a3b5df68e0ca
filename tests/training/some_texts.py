"""Texts, and a tokenizer of characters, for tests of what is made of them."""

import random

import datasets
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer_of_characters(*, adds_bos=False, adds_eos=False, **special):
    """A token for each character, with ids that start after the special tokens."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    words = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", *characters]
    model = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model.decoder = decoders.Fuse()
    if adds_bos or adds_eos:
        model.post_processor = processors.TemplateProcessing(
            single=f"{'<s> ' * adds_bos}$A{' </s>' * adds_eos}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", **special)


TOKENIZER = tokenizer_of_characters(**SPECIAL)
EOS = TOKENIZER.eos_token_id


def written(n, seed=0, longest=40):
    """Texts of 0 to `longest` characters, each with its number in front."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz "
    return [f"{i}:" + "".join(draw.choices(letters, k=draw.randint(0, longest))) for i in range(n)]


def stream_of(texts, n_files=3):
    return datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=n_files)


def ids_of(rows):
    return [row["input_ids"] for row in rows]


def whole(text, tokenizer=TOKENIZER):
    return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def rows_of(files):
    for file in files:
        for text in file:
            yield {"text": text}


def stream_of_files(files):
    """A stream of the given files, each a list of texts."""
    return datasets.IterableDataset.from_generator(rows_of, gen_kwargs={"files": files})

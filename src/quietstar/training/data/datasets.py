"""Datasets for training and evaluation, and the collator of their batches.

`texts` loads texts, `windows` cuts them, and `stream` does so for texts that are read while training. Legend: B
sequences in a batch, S tokens in the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from quietstar.errors import DataError
from quietstar.learn import IGNORED
from quietstar.runs.contents import digest_of_files
from quietstar.training.data.arguments import DataArguments
from quietstar.training.data.columns import MESSAGES
from quietstar.training.data.conversations import ConversationEncoder
from quietstar.training.data.files import find_files, is_local
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.text_files import TextFiles, column_of
from quietstar.training.data.texts import load_texts
from quietstar.training.data.windows import Encoder, TextEncoder, TextWindows, separator_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_datasets(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[TextWindows | StreamedTextWindows, TextWindows | None]:
    """Load texts and cut them into sequences of at most `max_length` tokens.

    Args:
        args: which texts, and how they are cut.
        tokenizer: of the model.
        seed: on which the held-out texts, the order of a stream and the windows depend.

    Returns:
        The sequences to train on, and those to evaluate on (None if `eval_size` is 0), which stay the same in every
        evaluation: a dictionary each, with input_ids [length] and, where some tokens have none, labels [length].

    Raises:
        DataError: the texts cannot be loaded, or none is long enough for one prediction.
        MissingExtraError: the datasets library is not installed.
    """
    separator_id(tokenizer, args.packing)  # before a download
    files = find_files(args.dataset)[1] if args.streaming and is_local(args.dataset) else []
    texts, held_out = load_texts(args, seed)
    encode = _encoder(texts, args.dataset, tokenizer, args)
    train: TextWindows | StreamedTextWindows
    if isinstance(texts, TextFiles):
        train = StreamedTextWindows(
            texts,
            tokenizer,
            args.max_length,
            seed,
            packing=args.packing,
            source=args.dataset,
            block_size=args.shuffle_block,
            encode=encode,
            contents={"file_digest": digest_of_files(files)} if files else None,
        )
    else:
        train = TextWindows(
            texts, tokenizer, args.max_length, seed, packing=args.packing, source=args.dataset, encode=encode
        )
    if held_out is None:
        return train, None
    eval_source = args.eval_dataset or args.dataset
    try:
        evaluation = TextWindows(
            held_out,
            tokenizer,
            args.max_length,
            seed,
            packing=args.packing,
            fixed=True,
            source=eval_source,
            encode=_encoder(held_out, eval_source, tokenizer, args),
        )
    except DataError as error:
        raise DataError(f"evaluation set: {error}; or pass another --eval_size or --eval_dataset") from error
    return train, evaluation


def _encoder(texts: Any, source: str, tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> Encoder:
    """Return the encoder for these texts."""
    if column_of(texts.texts if isinstance(texts, TextFiles) else texts) == MESSAGES:
        return ConversationEncoder(tokenizer, assistant_only=args.assistant_only_loss, source=source)
    if args.assistant_only_loss:
        raise DataError(
            f"assistant_only_loss was given, but {source!r} has plain texts: leave it out, or pass a dataset with a "
            'column "messages" (or another one as --text_column)'
        )
    return TextEncoder(tokenizer, args.packing)


@dataclass
class TextCollator:
    """Collates sequences into a batch, padded on the right.

    Labels come from the lengths, so a token that equals the padding token still has a label.
    """

    pad_token_id: int
    """id of padding, which is masked and has no label"""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate sequences.

        Args:
            features: for each sequence "input_ids", a list or tensor of [length], and "labels" of the same length if
                some tokens have none. Other columns of numbers must have the same shape in all, and are stacked; what
                has no numbers, such as the text that the tokens are of, is left out.

        Returns:
            input_ids, attention_mask and labels, each [B, S] of int64; labels are -100 at padding. Sequences of a
            stream also give `place`, [B, 4] of int64.
        """
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in features]
        labels = [torch.as_tensor(row.get("labels", row["input_ids"]), dtype=torch.long) for row in features]
        others = features[0].keys() - {"input_ids", "attention_mask", "labels"}
        extra = sorted(name for name in others if _is_of_numbers(features[0][name]))
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            **{name: torch.stack([torch.as_tensor(row[name]) for row in features]) for name in extra},
        }


def _is_of_numbers(value: Any) -> bool:
    try:
        torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return an id to pad with: the tokenizer's, else eos, else 0. Padding is masked and has no labels."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0

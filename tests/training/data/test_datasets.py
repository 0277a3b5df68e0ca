"""From files to batches: labels, padding, and held-out texts."""

import json
from itertools import chain
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from quietstar.errors import DataError
from quietstar.training.data.datasets import DataArguments, TextCollator, build_datasets, pad_token_id
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.data.windows import TextWindows
from tests.training.some_texts import EOS, SPECIAL, TOKENIZER, ids_of, tokenizer_of_characters, whole, written

GSM8K = Path(__file__).parents[2] / "data" / "gsm8k" / "train.jsonl"


def test_batches_are_padded_on_the_right_and_unlabelled_there():
    batch = TextCollator(pad_token_id=9)([{"input_ids": [1, 2, 3]}, {"input_ids": torch.tensor([4, 5])}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, 5, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_eos_is_learned_where_it_is_also_the_padding():
    tokenizer = tokenizer_of_characters(eos_token="</s>")
    assert pad_token_id(tokenizer) == EOS
    rows = list(TextWindows(["abc", "a"], tokenizer, 10))
    batch = TextCollator(pad_token_id(tokenizer))(rows)
    assert batch["input_ids"][1, 1:].tolist() == [EOS] * 3
    assert batch["labels"][1, 1:].tolist() == [EOS, -100, -100]
    assert batch["attention_mask"][1].tolist() == [1, 1, 0, 0]


def test_labels_of_a_row_are_kept_other_numbers_stacked_and_text_left_out():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weight": 0.5, "text": "abc", "names": ["a"], "none": None},
        {"input_ids": [4], "labels": [4], "weight": 1.0, "text": "d", "names": [], "none": None},
    ]
    batch = TextCollator(0)(rows)
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "weight"}
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["weight"].tolist() == [0.5, 1.0]


def test_places_of_a_stream_are_stacked():
    rows = [{"input_ids": [1, 2], "place": [3, 0]}, {"input_ids": [1], "place": [3, 17]}]
    place = TextCollator(0)(rows)["place"]
    assert (place.dtype, place.tolist()) == (torch.int64, [[3, 0], [3, 17]])


@pytest.mark.parametrize(("special", "token"), [(SPECIAL, "<pad>"), ({"eos_token": "</s>"}, "</s>"), ({}, "<unk>")])
def test_pad_token_is_pad_or_eos_or_the_first(special, token):
    tokenizer = tokenizer_of_characters(**special)
    assert tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer)) == token


def in_file(tmp_path, texts):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_built_datasets_train_on_what_they_do_not_evaluate_on(tmp_path, streaming, packing):
    path = in_file(tmp_path, written(40))
    args = DataArguments(dataset=path, eval_size=10, max_length=64, streaming=streaming, packing=packing)
    train, evaluation = build_datasets(args, TOKENIZER, 0)
    assert isinstance(train, StreamedTextWindows if streaming else TextWindows)
    if not packing:
        held_out = {tuple(row) for row in ids_of(evaluation)}
        trained_on = {tuple(row) for row in ids_of(train)}
        assert (len(held_out), len(trained_on)) == (10, 30)
        assert held_out.isdisjoint(trained_on)


def test_evaluation_windows_stay_the_same(tmp_path):
    path = in_file(tmp_path, [text * 9 for text in written(40)])
    train, evaluation = build_datasets(DataArguments(dataset=path, eval_size=10, max_length=8), TOKENIZER, 0)
    before = ids_of(train), ids_of(evaluation)
    train.set_epoch(1)
    evaluation.set_epoch(1)
    assert ids_of(train) != before[0]
    assert ids_of(evaluation) == before[1]


def test_a_stream_that_breaks_is_named_with_the_reason(tmp_path):
    """The message names the file that breaks, although it was not read before."""
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 1000)
    (tmp_path / "b.jsonl").write_text('{"text": "abc"}\n{"text": 3}\n')
    args = DataArguments(dataset=str(tmp_path), eval_size=0, streaming=True)
    train, _ = build_datasets(args, TOKENIZER, 0)
    with pytest.raises(DataError, match=r"b\.jsonl, line 2' has 3"):
        list(train)


def test_a_stream_of_parquet_files_that_breaks_is_named_with_the_reason(tmp_path):
    for name, rows in (("a", [{"text": "abc"}]), ("b", [{"text": "abc", "more": 1}])):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    args = DataArguments(dataset=str(tmp_path), eval_size=0, streaming=True)
    train, _ = build_datasets(args, TOKENIZER, 0)
    with pytest.raises(DataError, match=r"cannot be read.*same columns"):
        list(train)


def files_of(folder, extension, shards):
    for i, texts in enumerate(shards):
        path = folder / f"{i}{extension}"
        if extension == ".txt":
            path.write_text("".join(f"{text}\n" for text in texts))
        elif extension == ".jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    return str(folder)


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("extension", [".txt", ".jsonl", ".parquet"])
def test_local_files_are_split_and_their_first_texts_held_out(tmp_path, extension, n_ranks):
    shards = [[f"{shard}.{i}" for i in range(size)] for shard, size in enumerate([7, 3, 9, 5, 8])]
    path = files_of(tmp_path, extension, shards)
    args = DataArguments(dataset=path, eval_size=9, streaming=True, shuffle_block=4)
    train, evaluation = build_datasets(args, TOKENIZER, 0)
    texts = [*chain(*shards)]
    assert train.texts.n_files == len(shards)
    assert ids_of(evaluation) == [whole(text) for text in texts[:9]]
    orders = []
    for epoch in range(3):
        train.set_epoch(epoch)
        rows = []
        for rank in range(n_ranks):
            train.split(rank, n_ranks)
            of_rank = list(train)
            rows += ids_of(of_rank)
            train.start_at([of_rank[3]["place"]])
            assert list(train) == of_rank[4:]
        assert sorted(rows) == sorted(whole(text) for text in texts[9:])
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]


def test_files_of_columns_made_into_texts_keep_their_shards(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"question": f"q{i}", "answer": "a"}) + "\n")
    args = DataArguments(dataset=str(tmp_path), eval_size=1, streaming=True, template="{question}={answer}")
    train, _ = build_datasets(args, TOKENIZER, 0)
    assert train.texts.n_files == 3
    assert sorted(ids_of(train)) == [whole("q1=a"), whole("q2=a")]


def test_no_evaluation_and_none_possible(tmp_path):
    assert build_datasets(DataArguments(dataset=in_file(tmp_path, ["ab"]), eval_size=0), TOKENIZER, 0)[1] is None
    other = tmp_path / "b.txt"
    other.write_text("\n\n")
    args = DataArguments(dataset=in_file(tmp_path, ["ab"]), eval_dataset=str(other))
    with pytest.raises(DataError, match=r"evaluation set: .*--eval_dataset"):
        build_datasets(args, TOKENIZER, 0)


def test_an_unfit_tokenizer_is_reported_before_loading():
    with pytest.raises(DataError, match="--packing"):
        build_datasets(DataArguments(dataset="no-one/nothing", packing=True), tokenizer_of_characters(), 0)


def test_arguments_are_flags():
    parser = HfArgumentParser(DataArguments)
    (default,) = parser.parse_args_into_dataclasses([])
    assert default == DataArguments()
    flags = "--dataset a.txt --text_column body --packing --streaming false --max_length 512 --eval_size 0"
    (args,) = parser.parse_args_into_dataclasses(flags.split())
    assert (args.dataset, args.text_column, args.packing, args.streaming) == ("a.txt", "body", True, False)
    assert (args.max_length, args.eval_size) == (512, 0)
    (args,) = parser.parse_args_into_dataclasses(["--template", r"Q: {question}\nA: {answer}"])
    assert args.template == "Q: {question}\nA: {answer}"
    assert "--template" in parser.format_help()


def test_gsm8k_from_file_to_batch():
    args = DataArguments(dataset=str(GSM8K), split="train[:50]", template=r"Q: {question}\nA: {answer}", eval_size=10)
    train, evaluation = build_datasets(args, TOKENIZER, 0)
    assert (len(train), len(evaluation), train.n_skipped) == (40, 10, 0)
    loader = DataLoader(evaluation, batch_size=10, collate_fn=TextCollator(pad_token_id(TOKENIZER)))
    batch = next(iter(loader))
    assert batch["input_ids"].shape == batch["labels"].shape == (10, 256)

"""What a run prints: a table of thoughts, and lines of figures."""

import logging
import re
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from tqdm import tqdm
from transformers import TrainerCallback

from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments
from quietstar.training.callbacks import ProgressLines, ShowThoughts, lines_of_their_own, thought_table
from quietstar.training.data.datasets import TextCollator
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
STATE = SimpleNamespace(is_world_process_zero=True, global_step=7)


def model_of(**settings: Any):
    return tiny_model("llama", base=dict(vocab_size=len(TOKENIZER)), **({"n_ahead": 5} | settings))


def row(n: int) -> torch.Tensor:
    return torch.randint(3, len(TOKENIZER), (1, n), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("n_ahead", [2, 3, 5])
@pytest.mark.parametrize(("S", "asked", "rows"), [(2, 6, 1), (3, 6, 2), (30, 1, 1), (30, 6, 6), (60, 6, 6)])
def test_a_table_has_as_many_rows_as_asked_for(n_ahead, S, asked, rows):
    assert thought_table(model_of(n_ahead=n_ahead), TOKENIZER, row(S), asked).row_count == rows


@pytest.mark.parametrize("S", [pytest.param(S) if 5 <= S <= 8 else S for S in range(2, 15)])
def test_a_short_row_shows_all_its_positions(S):
    assert thought_table(model_of(), TOKENIZER, row(S), 6).row_count == min(6, S - 1)


def test_a_table_has_the_values_that_forward_returns():
    model, input_ids = model_of(), row(40)
    table = thought_table(model, TOKENIZER, input_ids, 4)
    with torch.no_grad():
        output = model(input_ids, labels=input_ids, n_ahead_talk=1)
    cells = [list(column.cells) for column in table.columns]
    assert [column.header for column in table.columns] == ["after", "thought", "then", "weight", "reward"]
    thoughts = [repr(TOKENIZER.decode(tokens))[1:-1] for tokens in output.thoughts[0, 0]]
    positions = []
    for n in range(4):
        at = [
            i
            for i in range(39)
            if thoughts[i] == cells[1][n]
            and f"{output.mixing_weight[0, 0, i, 0]:.2f}" == cells[3][n]
            and f"{output.reward[0, 0, i]:+.2f}" == cells[4][n]
            and repr(TOKENIZER.decode(input_ids[0, max(0, i - 7) : i + 1]))[1:-1] == cells[0][n]
            and repr(TOKENIZER.decode(input_ids[0, i + 1 : i + 4]))[1:-1] == cells[2][n]
        ]
        assert len(at) == 1
        positions += at
    assert positions == sorted(positions)
    assert min(b - a for a, b in pairwise(positions)) >= 6, "spread over the row"


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("n_ahead", [2, 5])
def test_showing_thoughts_does_not_change_the_model(n_ahead, train, capsys):
    model = model_of(n_ahead=n_ahead).train(train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    dataset = [{"input_ids": row(20)[0].tolist()}]
    ShowThoughts(dataset, TextCollator(0), 3).on_evaluate(None, STATE, None, model=model, processing_class=TOKENIZER)
    assert model.training == train
    assert all(module.training == train for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert ("thoughts on held-out text" in capsys.readouterr().err) == (n_ahead > 2)


def test_the_mode_survives_an_error(monkeypatch):
    model = model_of().train()
    monkeypatch.setattr("quietstar.training.callbacks.thought_table", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ShowThoughts([{"input_ids": [5, 6, 7]}], TextCollator(0), 3).on_evaluate(
            None, STATE, None, model=model, processing_class=TOKENIZER
        )
    assert model.training


@pytest.mark.parametrize("length", [1, 2])
def test_thoughts_of_the_shortest_rows(length, capsys):
    ShowThoughts([{"input_ids": [5] * length}], TextCollator(0), 6).on_evaluate(
        None, STATE, None, model=model_of(), processing_class=TOKENIZER
    )
    assert ("thoughts on held-out text" in capsys.readouterr().err) == (length > 1)


class Stream(IterableDataset):
    """Held-out text without a length, which transformers' Trainer takes as well."""

    def __iter__(self):
        yield from [{"input_ids": row(20)[0].tolist()}, {"input_ids": row(9)[0].tolist()}]


@pytest.mark.parametrize(
    "held_out",
    [pytest.param(Stream()), {"one": [{"input_ids": [5, 6, 7]}]}],
    ids=["stream", "several"],
)
def test_thoughts_are_shown_of_any_held_out_text_that_the_trainer_takes(held_out, tmp_path, capsys):
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    QuietStarTrainer(model_of(), args, processing_class=TOKENIZER, eval_dataset=held_out).evaluate()
    assert "thoughts on held-out text" in capsys.readouterr().err


@pytest.mark.parametrize(("n_rows", "left_out"), [(4, 0), (5, 1), (3, 3)])
def test_rows_that_evaluations_leave_out_are_told(n_rows, left_out, tmp_path, caplog):
    how = dict(use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=4, thoughts_shown=0)
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), dataloader_drop_last=True, **how)
    rows = [{"input_ids": row(9)[0].tolist()}] * n_rows
    figures = QuietStarTrainer(model_of(), args, processing_class=TOKENIZER, eval_dataset=rows).evaluate()
    told = [line for line in caplog.messages if line.startswith("dataloader_drop_last")]
    assert [f"leaves {left_out} of {n_rows} held-out rows out" in line for line in told] == [True] * (left_out > 0)
    assert ["no held-out figures" in line for line in told] == ["eval_nll" not in figures] * len(told)


def test_lines_of_figures_are_written_above_the_bar():
    written: list[str] = []
    lines = ProgressLines()
    lines.training_bar = SimpleNamespace(write=written.append)
    lines.on_log(None, STATE, None, logs={"loss": 1.23456, "nll": 1.2, "talk_nll_0": 3.0, "grad_norm": 9.0})
    lines.on_log(None, STATE, None, logs={"eval_loss": 2.0, "eval_base_nll": 2.5, "eval_runtime": 1.0})
    lines.on_log(None, STATE, None, logs={"train_runtime": 1.0})
    lines.on_log(None, STATE, None, logs={})
    assert written == [
        "step     7  training  loss 1.235  nll 1.2  talk_nll_0 3",
        "step     7  held out  loss 2  base_nll 2.5",
    ]


def test_what_is_told_beside_a_bar_has_a_line_of_its_own(capsys):
    bars, console = ProgressLines(), logging.StreamHandler(sys.stderr)
    trainer = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[TrainerCallback(), bars]))
    logging.root.addHandler(console)
    with lines_of_their_own(trainer):
        bars.training_bar = tqdm(total=4, file=sys.stderr)
        bars.training_bar.update(1)
        logging.getLogger("quietstar").warning("a checkpoint is skipped")
    logging.root.removeHandler(console)
    print("a file is damaged", file=sys.stderr)
    shown = [line.split("\r")[-1] for line in capsys.readouterr().err.strip().split("\n")]
    assert shown[0] == "a checkpoint is skipped"
    assert "1/4" in shown[-2]
    assert shown[-1] == "a file is damaged"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_alone(is_terminal, tmp_path, capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "quietstar")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    how = dict(use_cpu=True, report_to="none", thoughts_shown=0, max_steps=2, logging_steps=1, save_strategy="no")
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), disable_tqdm=False, eval_strategy="no", **how)
    rows = [{"input_ids": row(9)[0].tolist()}] * 2
    QuietStarTrainer(model_of(), args, processing_class=TOKENIZER, train_dataset=rows).train()
    out, err = capsys.readouterr()
    assert [line[:20] for line in out.splitlines()] == ["step     1  training", "step     2  training"]
    assert ("2/2" in err) == is_terminal
    told = [line for line in caplog.messages if "took" in line]
    assert [
        bool(re.fullmatch(r"step 1 took [\d.]+ seconds; 1 more take about [\d.]+ seconds", line)) for line in told
    ] == ([] if is_terminal else [True])
    assert is_terminal or not err


def test_no_line_without_a_bar():
    lines = ProgressLines()
    lines.on_log(None, STATE, None, logs={"loss": 1.0})
    assert lines.training_bar is None

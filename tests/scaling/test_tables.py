"""A plan on a terminal of any width, and the command in it."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from quietstar import QuietStarForCausalLM
from quietstar.cli import plan as command_line
from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.plan import GIB, plan
from quietstar.scaling.tables import WAY_HEADINGS, changes, choice, gib, notes, shown
from tests.tiny_tokenizer import tiny_folder

QWEN = "Qwen/Qwen3-0.6B-Base"


def command(found):
    return list(choice(found))[-1]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_heading_and_strategy_is_whole_in_a_narrow_terminal(width):
    args = PlanArguments(model=QWEN, gpus=8, tflops=400.0, bandwidth=300.0)
    console = Console(width=width, file=StringIO())
    console.print(shown(plan(args), width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for words in (*WAY_HEADINGS, "tokens of text", "recomputed", "FSDP2, CPU offload"):
        assert any(words in line for line in lines), words


def test_every_heading_is_whole_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    command_line.main(["--model", QWEN, "--gpus", "8"])
    assert any(all(words in line for words in WAY_HEADINGS) for line in capsys.readouterr().out.splitlines())


def test_the_command_for_several_nodes_names_the_options_of_each():
    told = list(choice(plan(PlanArguments(model=QWEN, gpus=8, nodes=2))))
    assert "Run on each of the 2 nodes" in told[-2]
    assert " --num_machines 2 --machine_rank 0 --main_process_ip FIRST_MACHINE -m quietstar" in told[-1]


def test_the_command_without_bfloat16_overrides_the_recipes():
    assert " --mixed_precision no -m quietstar train " in command(plan(PlanArguments(model=QWEN, gpus=8, bf16=False)))
    assert "mixed_precision" not in command(plan(PlanArguments(model=QWEN, gpus=8)))


def test_the_command_leaves_out_settings_of_the_models_config(tmp_path):
    base = tiny_folder(tmp_path / "base")
    thinking = str(tmp_path / "thinking")
    QuietStarForCausalLM.from_base(str(base), n_ahead=3, n_passes=4).save_pretrained(thinking)
    assert command(plan(PlanArguments(model=thinking))) == f"quietstar train --model {thinking}"
    assert command(plan(PlanArguments(model=thinking, n_passes=1))).endswith(" --n_passes 1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(bandwidth=5.0), "; --bandwidth alone has no effect."),
        (dict(gpus=2, tflops=5.0), "; --tflops alone has no effect."),
        (dict(tflops=5.0), "No durations of strategies that communicate: give --bandwidth"),
        (dict(lora_r=5), "--lora_r 5 has no effect without --lora."),
    ],
    ids=str,
)
def test_options_without_effect_are_reported(options, told):
    assert told in " ".join(notes(plan(PlanArguments(model=QWEN, **options))))


def test_numbers_are_written_out():
    asked = PlanArguments(max_length=20_000_000)
    eased = replace(asked, max_length=10_000_000, think_fraction=0.0625, lora=True, load_in_4bit=True)
    assert list(changes(asked, eased)) == [
        "--think_fraction 0.0625",
        "--lora",
        "--load_in_4bit",
        "--max_length 10000000",
    ]
    sizes = {0: "0", 1e-6: "1e-06", 0.0008: "0.0008", 0.02: "0.02", 0.7: "0.7", 68.5: "68.5", 1234.5: "1,234"}
    assert [gib(size * GIB) for size in sizes] == list(sizes.values())

"""`quietstar plan`: what it prints for a configuration, and its errors of one line."""

import re

import pytest

from quietstar.scaling.arguments import PlanArguments
from quietstar.scaling.plan import GIB, USABLE, plan
from quietstar.scaling.tables import choice
from tests.cli import call
from tests.tiny_tokenizer import tiny_folder


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A working directory with a plain model in `base`."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    tiny_folder(tmp_path / "base")
    return tmp_path / "base"


def test_a_case_of_ones_own(base, capsys):
    assert call("plan", "--model", "base", "--gpus", 8, "--memory", 80, "--tflops", 100, "--bandwidth", 50) == 0
    said = capsys.readouterr().out
    for strategy in ("DDP", "FSDP2", "ZeRO-3", "FSDP2, CPU offload"):
        assert said.count(f"│ {strategy} ") == 2, "without gradient checkpointing and with it"
    for words in ("tokens of text", "TFLOP", "received a step", " s │", "Choose DDP without gradient checkpointing"):
        assert words in said
    command = said.strip().splitlines()[-1]
    assert command.startswith(
        "accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 8 -m quietstar"
    )


def test_no_duration_is_made_up(base, capsys):
    assert call("plan", "--model", "base", "--gpus", 2, "--tflops", 100) == 0
    said = capsys.readouterr().out
    assert "No durations: give --tflops, and --bandwidth" in said
    assert " s │" not in said


def test_the_command_that_is_printed_is_one_that_train_takes(base, capsys):
    options = ["--lora", "--n_ahead", 5, "--think_fraction", 0.5, "--gradient_checkpointing", "--bf16", "false"]
    assert call("plan", "--model", "base", *options) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1]
    assert command.startswith("quietstar train --model base ")
    from quietstar.cli.train import CLASSES
    from quietstar.runs.options import make_parser

    parsed = make_parser("quietstar train", "", *CLASSES).parse_args(command.split()[2:])
    assert (parsed.lora, parsed.n_ahead, parsed.think_fraction) == (True, 5, 0.5)
    assert parsed.gradient_checkpointing
    assert parsed.bf16 is False


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(model="mistralai/Mistral-7B-v0.1", gpus=8), r"Choose FSDP2 without gradient checkpointing: "),
        (dict(model="Qwen/Qwen3-0.6B-Base", gpus=1), r"Choose one GPU without gradient checkpointing: "),
        (dict(model="Qwen/Qwen3-0.6B-Base", gpus=8, nodes=2, memory=6), r"fsdp2_nodes\.yaml --num_processes 16 "),
        (dict(model="meta-llama/Meta-Llama-3-70B", gpus=8), r"--think_fraction 0\.\d+, --lora"),
        (dict(model="meta-llama/Meta-Llama-3-70B", memory=8), r"Nothing fits\. The least is [\d.]+ GiB"),
    ],
    ids=lambda of: of if isinstance(of, str) else " ".join(map(str, of.values())),
)
def test_the_choice(options, expected):
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    found = plan(PlanArguments(**options))
    assert re.search(expected, " ".join(choice(found)))
    if found.chosen is not None:
        limit = USABLE * found.args.memory * GIB
        assert found.chosen.moment.total <= limit
        cheaper = [way for way in found.ways if way.cost < found.chosen.cost and not way.strategy.offloads]
        assert found.args != found.chosen_args or all(way.moment.total > limit for way in cheaper)


def test_a_thinking_model_says_its_own_settings(base, capsys):
    from quietstar import QuietStarForCausalLM

    QuietStarForCausalLM.from_base("base", n_ahead=3, n_passes=4).save_pretrained("thinking")
    own, given = plan(PlanArguments(model="thinking")), plan(PlanArguments(model="thinking", n_passes=1))
    assert (own.ways[0].step.n_ahead, own.ways[0].step.P) == (3, 4)
    assert (given.ways[0].step.n_ahead, given.ways[0].step.P) == (3, 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--gpus 0", "gpus is 0; give a whole number of at least 1"),
        ("--nodes -1", "nodes is -1"),
        ("--memory 0", "memory is 0.0; give a number above 0"),
        ("--memory nan", "memory is nan"),
        ("--tflops -1", "tflops is -1.0"),
        ("--bandwidth inf", "bandwidth is inf"),
        ("--max_length 1", "max_length is 1; give a whole number of at least 2"),
        ("--think_fraction 2", "think_fraction is 2.0; give a share from 0 to 1"),
        ("--n_ahead 1", "n_ahead is 1; give a whole number of at least 2"),
        ("--n_passes 0", "n_passes is 0"),
        ("--dtype int8", "dtype is 'int8'; choose from"),
        ("--lora_r 0", "lora_r is 0"),
        ("--load_in_4bit", "load_in_4bit was given without lora"),
        ("--model no/such", "no/such"),
        ("--model empty", "empty"),
        ("--gpu 8", "unrecognized arguments: --gpu 8; did you mean --gpus?"),
        ("--gpus eight", "invalid int value: 'eight'"),
    ],
)
def test_what_cannot_be_is_one_line(base, capsys, words, expected):
    (base.parent / "empty").mkdir()
    assert call("plan", *words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("quietstar plan: ")
    assert expected in line


def test_every_option_has_a_help_text(capsys):
    assert call("plan", "--help") == 0
    said = capsys.readouterr().out
    for name in PlanArguments.__dataclass_fields__:
        assert f"\n  --{name}" in said, name

"""Options: our own first, each with a help text; a YAML file, and flags that override it."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from quietstar.cli import COMMANDS
from quietstar.cli.train import CLASSES
from quietstar.runs.options import INHERITED, make_parser, parse
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.arguments import GROUPS
from quietstar.training.model_arguments import ModelArguments
from tests.cli import call


def parser_of_train():
    return make_parser("quietstar train", "Teach.", *CLASSES, groups=GROUPS, config=True)


def parsed(*argv: object) -> dict[str, Any]:
    """Return the value of every field that a command line sets."""
    values: dict[str, Any] = {}
    for made in parse(parser_of_train(), ["--use_cpu", *map(str, argv)], *CLASSES):
        values |= vars(made)
    return values


@pytest.fixture
def config(tmp_path):
    """Write a YAML file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


# ---------------------------------------------------------------------- help


def test_help_lists_our_groups_before_the_inherited_options(capsys):
    assert call("train", "--help") == 0
    said = capsys.readouterr().out
    places = [said.index(f"\n{title}:\n") for title in (*GROUPS, INHERITED)]
    assert places == sorted(places)
    ours = [field.name for cls in (ModelArguments, DataArguments) for field in dataclasses.fields(cls)]
    ours += ["n_ahead", "n_ahead_talk", "think_fraction", "policy_weight", "learning_rate", "output_dir", "overwrite"]
    for name in ours:
        assert said.index(f"\n  --{name}") < places[-1], name
    for name in ("num_train_epochs", "optim", "resume_from_checkpoint", "gradient_checkpointing"):
        assert said.index(f"\n  --{name}") > places[-1], name


def test_help_is_narrow_enough_for_a_terminal_where_it_is_ours(capsys):
    assert call("train", "--help") == 0
    ours = capsys.readouterr().out.split(INHERITED)[0]
    assert max(map(len, ours.splitlines())) <= 118
    assert len(ours.splitlines()) < 140


def test_every_option_has_a_help_text():
    for action in parser_of_train()._actions:
        assert action.help, action.dest
        assert len(action.help) > 10 or action.dest == "help", (action.dest, action.help)


def test_every_field_has_an_option():
    options = {action.dest for action in parser_of_train()._actions}
    for cls in CLASSES:
        assert {field.name for field in dataclasses.fields(cls) if field.init} <= options


def test_every_default_is_that_of_its_class():
    model_args, data_args, args = parse(parser_of_train(), ["--use_cpu"], *CLASSES)
    assert model_args == ModelArguments()
    assert data_args == DataArguments()
    assert args.to_dict() == QuietStarTrainingArguments(use_cpu=True).to_dict()


# ---------------------------------------------------------------------- flags


def test_the_lines_of_the_readme_parse():
    words = "--max_length 256 --lora --learning_rate 1e-4 --lora_r 64 --lora_alpha 128 --n_ahead 4 --n_ahead_talk 2"
    values = parsed(*words.split())
    expected = dict(max_length=256, lora=True, learning_rate=1e-4, lora_r=64, lora_alpha=128, n_ahead=4, n_ahead_talk=2)
    assert {name: values[name] for name in expected} == expected
    assert parsed("--original", "--max_length", 256)["original"] is True


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--packing", "packing", True),
        ("--packing false", "packing", False),
        ("--max-length 64", "max_length", 64),
        ("--streaming true", "streaming", True),
        ("--streaming false", "streaming", False),
        ("--no_eval_on_start", "eval_on_start", False),
        ("--bf16 true", "bf16", True),
        ("--lora_target_modules q_proj v_proj", "lora_target_modules", ["q_proj", "v_proj"]),
        ("--warmup_steps 0.1", "warmup_steps", 0.1),
        ("--policy_weight 0", "policy_weight", 0.0),
        ("--max_steps -1", "max_steps", -1),
        ("--initial_thought_text=---", "initial_thought_text", "---"),
        (r"--template Q:{question}\nA:{answer}", "template", "Q:{question}\nA:{answer}"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_flags(words, name, value):
    assert parsed(*words.split())[name] == value


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("--n_ahed 4", "unrecognized arguments: --n_ahed 4; did you mean --n_ahead?"),
        ("--learning_rat=1e-4", "unrecognized arguments: --learning_rat=1e-4; did you mean --learning_rate?"),
        ("--zzzz", "unrecognized arguments: --zzzz; see quietstar train --help"),
        ("stray", "unrecognized arguments: stray; see quietstar train --help"),
        ("--n_ahead x", "argument --n_ahead/--n-ahead: invalid int value: 'x'; see quietstar train --help"),
        ("--n_ahead 2.5", "argument --n_ahead/--n-ahead: invalid int value: '2.5'; see quietstar train --help"),
        ("--n_ahead", "argument --n_ahead/--n-ahead: expected one argument; see quietstar train --help"),
        ("--seed fast", "argument --seed: invalid int value: 'fast'; see quietstar train --help"),
    ],
)
def test_a_flag_that_is_wrong_is_one_line(words, hint, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("train", *words.split()) == 2
    assert capfd.readouterr().err == f"quietstar train: {hint}\n"
    assert list(tmp_path.iterdir()) == []


def test_no_flag_is_taken_for_another_that_begins_like_it():
    with pytest.raises(SystemExit):
        parsed("--learn", "1e-4")


# ---------------------------------------------------------------------- YAML

RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_papers_recipe_says_what_the_paper_says():
    values = parsed("--config", RECIPES / "quietstar.yaml")
    paper = dict(policy_weight=1e6, learning_rate=1e-6, warmup_steps=20, weight_decay=1e-3, max_grad_norm=1.0)
    paper |= dict(max_steps=100, n_ahead=8, n_ahead_talk=4, n_passes=2, max_length=256, clip_heads_apart=False)
    assert {name: values[name] for name in paper} == paper
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 8


def test_the_recipe_of_a_real_run_names_text_that_is_there(monkeypatch):
    values = parsed("--config", RECIPES / "real.yaml")
    for name in ("dataset", "eval_dataset"):
        assert (RECIPES.parent / values[name]).is_file()
    assert values["lora"]
    assert values["policy_weight"] is None, "the default is what is tried"


def test_a_file_gives_what_flags_would(config):
    file = config(
        """
        # a comment
        model: some/model
        n_ahead: 5
        learning_rate: 1e-4
        policy_weight: 0
        warmup_steps: 0.1
        lora: true
        merge: false
        eval_on_start: false
        streaming: false
        bf16: null
        lora_target_modules: [q_proj, v_proj]
        template: "Q: {question}\\nA: {answer}"
        lr_scheduler_kwargs: {num_cycles: 2}
        max_steps: -1
        """
    )
    values = parsed("--config", file)
    expected = dict(
        model="some/model",
        n_ahead=5,
        learning_rate=1e-4,
        policy_weight=0.0,
        warmup_steps=0.1,
        lora=True,
        merge=False,
        eval_on_start=False,
        streaming=False,
        bf16=False,  # the default on a CPU
        lora_target_modules=["q_proj", "v_proj"],
        template="Q: {question}\nA: {answer}",
        lr_scheduler_kwargs={"num_cycles": 2},
        max_steps=-1,
    )
    assert {name: values[name] for name in expected} == expected
    untouched = parsed()
    assert values["max_length"] == untouched["max_length"]


@pytest.mark.parametrize("flags_first", [True, False])
def test_flags_win(config, flags_first):
    file = config("n_ahead: 5\nlora: true\nlora_target_modules: [q_proj, v_proj]\nmax_length: 64\n")
    flags = ["--n_ahead", 6, "--lora", "false", "--lora_target_modules", "k_proj"]
    values = parsed(*flags, "--config", file) if flags_first else parsed("--config", file, *flags)
    assert (values["n_ahead"], values["lora"], values["lora_target_modules"]) == (6, False, ["k_proj"])
    assert values["max_length"] == 64


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("initial_thought_text: hm", "initial_thought_text", "hm"),
        pytest.param('initial_thought_text: "---"', "initial_thought_text", "---"),
        pytest.param('template: "- {question}"', "template", "- {question}"),
        pytest.param('template: "--{question}"', "template", "--{question}"),
        ("eval_strategy: 'no'", "eval_strategy", "no"),
        pytest.param("eval_strategy: no", "eval_strategy", "no"),
        ("lora_target_modules: []", "lora_target_modules", None),
        ("lora_target_modules: q_proj", "lora_target_modules", ["q_proj"]),
        ("seed: 0", "seed", 0),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" in value else "",
)
def test_values_that_look_like_something_else(config, line, name, value):
    assert parsed("--config", config(line))[name] == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_ahed: 4", "has unknown option 'n_ahed'; did you mean n_ahead?"),
        ("n_ahead: 4\nmax-length: 3", "has unknown option 'max-length'; did you mean max_length?"),
        ("qqqq: 4", "has unknown option 'qqqq'"),
        ("config: other.yaml", "has unknown option 'config'"),
        ("help: true", "has unknown option 'help'"),
        ("- n_ahead\n- 4", "is a list; give lines such as 'n_ahead: 8'"),
        ("n_ahead 4", "is a str; give lines such as 'n_ahead: 8'"),
        ("", "is a NoneType; give lines such as 'n_ahead: 8'"),
        ("n_ahead: [4", "is not valid YAML: "),
        ("a: b: c", "is not valid YAML: "),
    ],
)
def test_a_file_that_is_wrong_is_one_line(config, text, expected, capfd):
    file = config(text)
    assert call("train", "--config", file) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"quietstar train: config {file} {expected}")
    assert err.count("\n") == 1


def test_missing_and_binary_files_are_refused(tmp_path, capfd):
    assert call("train", "--config", tmp_path / "no.yaml") == 2
    expected = "cannot be read: No such file or directory; give a YAML file"
    assert capfd.readouterr().err == f"quietstar train: config {tmp_path / 'no.yaml'} {expected}\n"
    assert call("train", "--config", "recipes/no.yaml") == 2
    assert capfd.readouterr().err.endswith("give a YAML file; recipes/ is a folder in a clone of the project\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    assert call("train", "--config", tmp_path / "binary.yaml") == 2
    assert "is not valid YAML" in capfd.readouterr().err


def test_a_value_of_the_wrong_kind_in_a_file_is_one_line(config, capfd):
    assert call("train", "--config", config("n_ahead: four")) == 2
    assert capfd.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------- numbers

POSITIONAL = {"distill": 1, "evaluate": 1, "generate": 1, "inspect": 1, "serve": 1}
FLOATS = [
    (command, action.option_strings[0])
    for command in COMMANDS
    for action in importlib.import_module(f"quietstar.cli.{command}").parser()._actions
    if action.type is float
]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("command", "option"), FLOATS, ids=str)
def test_no_option_of_any_command_is_not_a_number(command, option, value, capsys):
    words = ["model"] * POSITIONAL.get(command, 0)
    assert call(command, *words, f"{option}={value}") == 2
    assert capsys.readouterr().err == f"quietstar {command}: {option[2:]} is {value}; give a finite number\n"

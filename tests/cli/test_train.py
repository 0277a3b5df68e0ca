"""`quietstar train`: documented command lines work, and invalid input gives one line and changes nothing."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, MistralForCausalLM, T5Config, T5ForConditionalGeneration

from quietstar import QuietStarForCausalLM
from quietstar.training import QuietStarTrainer, trackers
from tests.cli import call, files_of, lines_of, no_progress_bars
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")
pytest.importorskip("peft", reason="peft is not installed (extra: lora)")

SMALL = ("--use_cpu", "--report_to", "none")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base model in `base`, and questions with answers in `qa.jsonl`, both made once."""
    folder = tmp_path_factory.mktemp("made")
    tiny_folder(folder / "base")
    lines = [
        {"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}." + " That is all." * (25 * (i == 3))}
        for i in range(12)
    ]
    (folder / "qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A working directory with a copy of them, and nothing else."""
    folder = tmp_path / "place"
    folder.mkdir()
    for name in ("base", "qa.jsonl"):
        (folder / name).symlink_to(made / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    no_progress_bars()
    return folder


LOCAL = ("--model", "base", "--dataset", "qa.jsonl", "--output_dir", "run", "--eval_size", "2", *SMALL)
ADAPTERS = ("--lora", "--learning_rate", "1e-4", "--lora_r", "64", "--lora_alpha", "128")


def train(*words: object) -> int:
    return call("train", *LOCAL, "--text_column", "answer", *words)


# ---------------------------------------------------------------------- lines that work


@pytest.mark.parametrize(
    "words",
    [
        ("--max_length", "256", *ADAPTERS, "--n_ahead", "4", "--n_ahead_talk", "2"),
        ("--max_length", "128", *ADAPTERS, "--n_ahead", "8", "--n_ahead_talk", "4"),
    ],
    ids=["4 ahead", "8 ahead"],
)
def test_the_lines_that_people_type(place, words, capfd):
    assert train(*words, "--max_steps", 2, "--gradient_accumulation_steps", 4) == 0
    loaded = AutoModelForCausalLM.from_pretrained("run")
    assert isinstance(loaded, QuietStarForCausalLM)
    given = dict(pairwise(words))
    assert loaded.config.n_ahead == int(given["--n_ahead"])
    assert loaded.config.n_ahead_talk == int(given["--n_ahead_talk"])
    assert (loaded.config.lora["r"], loaded.config.lora["lora_alpha"]) == (64, 128)
    settings = json.loads(Path("run/run.json").read_text())
    assert settings["data"]["max_length"] == int(given["--max_length"])
    assert settings["training"]["learning_rate"] == 1e-4
    said = capfd.readouterr().err
    assert said.splitlines()[-1].startswith("saved to run; held-out text, nats a token: ")
    assert "thoughts on held-out text" in said


def test_the_line_of_the_baseline(place, capfd):
    assert train("--original", "--max_length", 256, "--max_steps", 2) == 0
    assert type(AutoModelForCausalLM.from_pretrained("run")) is MistralForCausalLM
    assert not [name for name in load_file("run/model.safetensors") if "mixing" in name or "thought" in name]
    assert "thoughts on held-out text" not in capfd.readouterr().err


def test_a_template_and_a_file_of_options(place, capfd):
    Path("recipe.yaml").write_text(
        "model: base\ndataset: qa.jsonl\noutput_dir: run\neval_size: 2\nmax_steps: 5\nn_ahead: 3\nuse_cpu: true\n"
        'template: "Q: {question}\\nA: {answer}"\nmax_length: 40\ngradient_accumulation_steps: 1\nreport_to: none\n'
        "thoughts_shown: 1\nthink_fraction: 0.25\n"
    )
    assert call("train", "--config", "recipe.yaml", "--max_steps", 1) == 0
    settings = json.loads(Path("run/run.json").read_text())
    assert settings["training"]["max_steps"] == 1
    assert settings["training"]["think_fraction"] == 0.25
    assert settings["data"]["template"] == "Q: {question}\nA: {answer}"
    assert AutoConfig.from_pretrained("run").n_ahead == 3


def test_a_run_can_be_resumed_and_a_finished_one_stays_as_it_is(place, caplog):
    words = ("--max_length", 16, "--n_ahead", 3, "--gradient_accumulation_steps", 1, "--save_steps", 1)
    words += ("--learning_rate", 0.01, "--warmup_steps", 0, "--thoughts_shown", 0, "--save_total_limit", 5)
    torch.manual_seed(0)
    assert train(*words, "--max_steps", 3) == 0
    whole = load_file("run/model.safetensors")
    shutil.rmtree("run/checkpoint-3")
    shutil.rmtree("run/checkpoint-2")
    for word, is_finished in (("--resume_from_checkpoint=true", False), ("--resume", True)):
        caplog.clear()
        assert train(*words, "--max_steps", 3, word) == 0
        again = load_file("run/model.safetensors")
        assert all(torch.equal(whole[name], again[name]) for name in whole)
        told = [line for line in caplog.messages if "checkpoint" in line]
        ended = "checkpoint-3: nothing was left to train; to go on, give a larger max_steps"
        assert told == (["resuming from checkpoint-3", ended] if is_finished else ["resuming from checkpoint-1"])


# ---------------------------------------------------------------------- bad input


@pytest.fixture
def refused(place, capfd, caplog, monkeypatch) -> Callable[..., str]:
    """Call the command, check for exit code 2, one line and unchanged files, and return the line."""

    def check(*argv: object) -> str:
        before = files_of(place), sorted(place.rglob("*"))
        capfd.readouterr()
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(QuietStarTrainer, "train", lambda *args, **kwargs: pytest.fail("training began"))
            code = call(*argv)
        lines = lines_of(capfd, caplog)
        assert code == 2
        assert len(lines) == 1, lines
        assert (files_of(place), sorted(place.rglob("*"))) == before
        assert lines[0].startswith(f"quietstar {argv[0]}: ")
        assert len(lines[0]) < 1000
        return lines[0]

    return check


TEXT = ("--text_column", "answer")
BAD_OPTIONS = [
    ("--n_ahead 1", "n_ahead is 1; give a whole number of at least 2"),
    ("--n_ahead 0", "n_ahead is 0; give a whole number of at least 2"),
    ("--n_ahead -3", "n_ahead is -3; give a whole number of at least 2"),
    ("--n_ahead x", "invalid int value: 'x'"),
    ("--n_ahead_talk 0", "n_ahead_talk is 0; give a whole number of at least 1"),
    ("--n_ahead_talk -1", "n_ahead_talk is -1; give a whole number of at least 1"),
    ("--n_passes 0", "n_passes is 0; give a whole number of at least 1"),
    ("--policy_weight -1", "policy_weight is '-1'; give a number of at least 0, or balanced:R"),
    ("--base_loss_weight 2", "base_loss_weight is 2.0; give a number from 0 to 1"),
    ("--reinforce_temperature 0", "reinforce_temperature is 0.0; give a number above 0"),
    ("--think_fraction 1.5", "think_fraction is 1.5; give a share from 0 to 1"),
    ("--think_fraction -0.5", "think_fraction is -0.5; give a share from 0 to 1"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size is 0; give a number of at least 1"),
    ("--gradient_accumulation_steps 0", "gradient_accumulation_steps is 0; give a number of at least 1"),
    ("--learning_rate -1", "learning_rate is -1.0; give a number of at least 0"),
    ("--lora --lora_r 0", "lora_r is 0"),
    ("--lora --lora_dropout 1", "lora_dropout 1.0"),
    ("--lora --lora_target_modules nothing", "nothing"),
    ("--merge", "merge was given without lora, and there is nothing to merge; add --lora"),
    ("--dtype int8", "dtype is 'int8'; choose from auto, float32, bfloat16, float16"),
    ("--original --n_ahead 4", "original trains without thoughts, but n_ahead was given; leave one out"),
    ("--original --n_ahead 4 --n_ahead_talk 2", "but n_ahead, n_ahead_talk was given; leave one out"),
    ("--max_length 1", "max_length is 1"),
    ("--eval_size -1", "eval_size is -1"),
    ("--eval_size 12", "has 12 texts, and holding out 12 leaves none to train on"),
    ("--text_column no_such", "has no column 'no_such', its columns are question, answer"),
    ("--lr_scheduler_type foo", "foo"),
    ("--optim foo", "invalid choice: 'foo'"),
    ("--eval_strategy sometimes", "sometimes"),
    ("--warmup_steps -1", "warmup_steps"),
    ("--bf16 --fp16", "16"),
    ("--n_ahed 4", "unrecognized arguments: --n_ahed 4; did you mean --n_ahead?"),
    ("--max_steps 0", "max_steps is 0"),
    ("--max_steps -7", "max_steps is -7"),
    ("--weight_decay -1", "weight_decay is -1"),
    ("--seed -1", "seed is -1"),
    ("--report_to tensorboard comet_ml", "comet"),
    ("--report_to tensorbord", "report_to is 'tensorbord'; choose from none, all, "),
    ("--streaming true --max_steps -1 --max_length 9", "max_steps"),
    ("--original --think_fraction 0.5", "original"),
    ("--original --head_learning_rate 1e-3", "but head_learning_rate was given; leave one out"),
]


@pytest.mark.parametrize(("words", "expected"), BAD_OPTIONS, ids=lambda value: value if value[0] == "-" else "")
def test_a_bad_option_is_one_line_and_changes_nothing(place, refused, words, expected):
    assert expected in refused("train", *LOCAL, *TEXT, *words.split())


def test_a_rate_at_which_adapters_hardly_learn_is_told(place, caplog):
    for words, is_told in ((("--lora",), True), (("--lora", "--learning_rate", "1e-5"), False), ((), False)):
        caplog.clear()
        assert (
            train("--max_steps", 1, "--max_length", 16, "--n_ahead", 3, "--thoughts_shown", 0, "--overwrite", *words)
            == 0
        )
        assert any("adapters hardly change at it; 1e-4 is usual" in line for line in caplog.messages) == is_told


def test_a_missing_tracker_is_told_before_anything_is_loaded(place, refused, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    told = refused("train", "--model", "nowhere", "--dataset", "nothing.jsonl", *SMALL[:1], "--report_to", "wandb")
    assert "report_to is wandb, which is not installed: pip install wandb" in told


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Q: {question}{", "does not parse"),
        ("Q: {question}}", "does not parse"),
        ("Q: {nothing}", "names nothing, which 'qa.jsonl' does not have: use its columns, question, answer"),
        ("Q and A", "names no column"),
        ("{}", "names no column"),
    ],
)
def test_a_bad_template(place, refused, template, expected):
    assert expected in refused("train", *LOCAL, "--template", template)


def empty_text(place: Path) -> tuple:
    (place / "empty.jsonl").write_text("")
    return ("--dataset", "empty.jsonl")


def blank_text(place: Path) -> tuple:
    (place / "blank.txt").write_text("\n\n\n\n\n")
    return ("--dataset", "blank.txt")


def short_text(place: Path) -> tuple:
    (place / "short.jsonl").write_text('{"text": ""}\n' * 9)
    return ("--dataset", "short.jsonl")


def broken_text(place: Path) -> tuple:
    (place / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    return ("--dataset", "broken.jsonl")


def no_file(place: Path) -> tuple:
    return ("--dataset", "no_such.jsonl")


def no_dataset(place: Path) -> tuple:
    return ("--dataset", "no_such/dataset")


BAD_TEXTS = [
    (empty_text, "'empty.jsonl' is empty; give a --dataset with at least one row of text"),
    (no_file, "no file or folder matches 'no_such.jsonl': check the path"),
    (no_dataset, "the hub cannot be reached or does not have it"),
    (blank_text, "'blank.txt'"),
    (short_text, "'short.jsonl'"),
    (broken_text, "broken.jsonl is not JSON"),
]


@pytest.mark.parametrize(("made_by", "expected"), BAD_TEXTS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_texts(place, refused, made_by: Callable[[Path], tuple], expected):
    assert expected in refused("train", *LOCAL, *made_by(place))


def copy_of_base(place: Path) -> Path:
    return Path(shutil.copytree(place / "base", place / "model"))


def no_folder(place: Path) -> Path:
    return Path("no/such")


def mistyped(place: Path) -> Path:
    return Path("smollm-135m")


def no_tokenizer(place: Path) -> Path:
    folder = copy_of_base(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return Path(folder.name)


def only_a_tokenizer(place: Path) -> Path:
    byte_tokenizer().save_pretrained(place / "model")
    return Path("model")


def no_weights(place: Path) -> Path:
    folder = copy_of_base(place)
    (folder / "model.safetensors").unlink()
    return Path(folder.name)


def torn_weights(place: Path) -> Path:
    folder = copy_of_base(place)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return Path(folder.name)


def torn_config(place: Path) -> Path:
    folder = copy_of_base(place)
    (folder / "config.json").write_text('{"model_type": "mis')
    return Path(folder.name)


def strange_config(place: Path) -> Path:
    folder = copy_of_base(place)
    (folder / "config.json").write_text('{"model_type": "no_such_family"}')
    return Path(folder.name)


def encoder_decoder(place: Path) -> Path:
    sizes = dict(vocab_size=259, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    return Path("model")


def not_finite(place: Path) -> Path:
    folder = copy_of_base(place)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.save_pretrained(folder)
    return Path(folder.name)


def thinking_without_weights(place: Path) -> Path:
    base_lm = AutoModelForCausalLM.from_pretrained("base")
    QuietStarForCausalLM.from_base(base_lm, tokenizer=byte_tokenizer()).save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    (place / "model" / "model.safetensors").unlink()
    return Path("model")


def thinking_impossibly(place: Path) -> Path:
    thinking_without_weights(place)
    config = json.loads((place / "model" / "config.json").read_text())
    (place / "model" / "config.json").write_text(json.dumps(config | {"n_ahead": 1}))
    return Path("model")


def tokenizer_of_another(place: Path) -> Path:
    tiny_folder(place / "model", vocab_size=61)
    return Path("model")


def custom_code(place: Path) -> Path:
    folder = copy_of_base(place)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "custom", "auto_map": classes}))
    (folder / "code.py").write_text("raise SystemExit('nobody allowed this to run')\n")
    return Path(folder.name)


BAD_MODELS = [
    (
        no_folder,
        "there is no model 'no/such' here, nor on a hub that can be reached; give a folder, a GGUF file, a name on",
    ),
    (mistyped, "did you mean smollm2-135m?"),
    (no_tokenizer, "no tokenizer could be loaded from 'model': give a folder with tokenizer files beside the model"),
    (only_a_tokenizer, "config.json"),
    (no_weights, "cannot load a model from 'model'"),
    (torn_config, "'model'"),
    (encoder_decoder, "'model' is not a decoder-only language model"),
    (not_finite, "predictions are NaN"),
    (torn_weights, "'model'"),
    (custom_code, "--trust_remote_code"),
    (thinking_without_weights, "'model'"),
    (tokenizer_of_another, "tokenizer"),
    (strange_config, "no_such_family"),
    (thinking_impossibly, "n_ahead is 1"),
]


@pytest.mark.parametrize(("made_by", "expected"), BAD_MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_models(place, refused, made_by: Callable[[Path], Path], expected):
    assert expected in refused("train", *LOCAL, *TEXT, "--model", made_by(place))


def test_rows_longer_than_the_model_has_positions_are_refused_at_once(place, refused):
    tiny_folder(place / "model", "gpt2", n_positions=16)
    words = ("--model", "model", "--max_length", 32, "--n_ahead", 4)
    assert "max_length" in refused("train", *LOCAL, *TEXT, *words)


def test_a_hub_that_cannot_be_reached_names_the_local_way(place, refused):
    line = refused("train", "--dataset", "qa.jsonl", *TEXT)
    assert "'mistralai/Mistral-7B-v0.1'" in line
    assert "give a folder, a GGUF file, a name on the hub, or smollm2-135m, which needs no hub" in line
    assert "hub that can be reached" in line
    line = refused("train", "--model", "base")
    assert "'open-web-math/open-web-math'" in line
    assert "pass local files instead: --dataset FILE_OR_FOLDER (.txt, .jsonl, .json, .parquet)" in line


@pytest.mark.parametrize("words", ["--n_ahead 1", "--n_ahead_talk 0", "--n_passes 0", "--policy_weight -1"])
def test_an_impossible_setting_is_said_before_anything_is_read(place, refused, words):
    name = words.split()[0].removeprefix("--")
    assert f"{name} is " in refused("train", *words.split())


# ---------------------------------------------------------------------- folders


def test_a_folder_with_a_run_is_left_alone_unless_overwritten(place, refused):
    words = ("--max_steps", 1, "--gradient_accumulation_steps", 1, "--max_length", 12, "--n_ahead", 3)
    words += ("--thoughts_shown", 0, "--save_strategy", "no")
    assert train(*words) == 0
    line = refused("train", *LOCAL, *TEXT, *words)
    assert line.endswith(
        "already has a run; give --resume to go on with it, another folder, or --overwrite to empty this one"
    )
    Path("run/of_old").write_text("old")
    assert train(*words, "--overwrite") == 0
    assert not Path("run/of_old").exists()


@pytest.mark.parametrize("also", [(), ("--overwrite",), ("--resume_from_checkpoint", "true")], ids=str)
def test_a_folder_with_foreign_files_is_always_left_alone(place, refused, also):
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("years of work")
    line = refused("train", *LOCAL, *TEXT, *also)
    assert line.startswith("quietstar train: output_dir run ")


def test_an_output_dir_that_is_a_file(place, refused):
    Path("run").write_text("years of work")
    line = refused("train", *LOCAL, *TEXT, "--overwrite")
    assert line == "quietstar train: output_dir run is a file; give a folder"


def test_the_folder_of_the_model_is_no_place_for_a_run(place, refused):
    copy_of_base(place)
    words = ("--model", "model", "--output_dir", "model", "--overwrite")
    assert "is not empty, and not created by quietstar" in refused("train", *LOCAL, *TEXT, *words)


# ---------------------------------------------------------------------- losses that are not finite


def test_a_loss_that_is_not_finite_is_one_line(place, capfd, monkeypatch):
    compute_loss = QuietStarTrainer.compute_loss
    seen: list[int] = []

    def broken(self, model, inputs, *args, **kwargs):
        if model.training:
            seen.append(1)
        if len(seen) == 4:  # the second batch of the second step
            with torch.no_grad():
                model.mixing_head.layers[4].weight.fill_(float("nan"))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(QuietStarTrainer, "compute_loss", broken)
    words = ("--gradient_accumulation_steps", 2, "--max_length", 12, "--n_ahead", 3, "--thoughts_shown", 0)
    words += ("--max_bad_steps", 2, "--max_steps", 9)
    assert train(*words, "--eval_on_start", "false", "--disable_tqdm", "true") == 2
    *_, line = lines_of_errors(capfd)
    assert len(list(Path("run/bad-steps").iterdir())) == 2
    assert line.startswith("quietstar train: the loss is nan at step 3, the last of 2 bad steps in a row")
    assert not Path("run/model.safetensors").exists()


def test_a_model_that_blows_up_is_one_line(place, capfd):
    words = ("--gradient_accumulation_steps", 2, "--max_length", 12, "--n_ahead", 4, "--thoughts_shown", 0)
    blown = ("--learning_rate", "1e30", "--max_grad_norm", "1e30", "--warmup_steps", 0, "--eval_strategy", "no")
    assert train(*words, *blown, "--eval_on_start", "false", "--disable_tqdm", "true") == 2
    assert "bad steps in a row" in lines_of_errors(capfd)[-1]


def lines_of_errors(capfd) -> list[str]:
    """Messages go to stderr; figures go to stdout if there is no progress bar."""
    return capfd.readouterr().err.strip().splitlines()


def test_transformers_is_one_that_is_supported():
    assert (5, 17) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (6, 0)

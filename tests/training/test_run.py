"""A whole run: its folder has all that is needed, it repeats exactly, and it resumes where it stopped."""

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer, TrainingArguments

import quietstar
from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError, QuietStarError, SettingsError
from quietstar.training import DataArguments, QuietStarTrainer, QuietStarTrainingArguments, run
from quietstar.training.data.datasets import TextCollator, build_datasets
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import default_folder, run_training
from tests.tiny_tokenizer import tiny_folder

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")

MODEL, DATA = ModelArguments.__dataclass_fields__, DataArguments.__dataclass_fields__


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base model with its tokenizer."""
    return tiny_folder(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Thirteen texts, some longer than a row."""
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = (json.dumps({"text": f"{i}: " + "ab ba " * (1 + i % 4)}) + "\n" for i in range(13))
    file.write_text("".join(lines))
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Put Arrow files of these tests into a folder that pytest deletes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def made(monkeypatch) -> list[QuietStarTrainer]:
    """The trainers of the runs."""
    trainers: list[QuietStarTrainer] = []

    class Kept(QuietStarTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(run, "QuietStarTrainer", Kept)
    return trainers


def train(base: Path, texts: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """A short run."""
    chosen = {
        "model": str(base),
        "dataset": str(texts),
        "eval_size": 3,
        "max_length": 12,
        "output_dir": str(folder),
        "n_ahead": 4,
        "n_ahead_talk": 2,
        "max_steps": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "policy_weight": 1.0,
        "logging_steps": 1,
        "thoughts_shown": 0,
        "eval_on_start": False,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    } | settings
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return run_training(
        ModelArguments(**{name: chosen.pop(name) for name in MODEL.keys() & chosen.keys()}),
        DataArguments(**{name: chosen.pop(name) for name in DATA.keys() & chosen.keys()}),
        QuietStarTrainingArguments(**chosen),
    )


LORA = dict(lora=True, lora_r=4, lora_alpha=8)
ORIGINAL = dict(original=True, n_ahead=None, n_ahead_talk=None, policy_weight=None)


def test_figures_are_those_of_the_model_that_is_saved(base, texts, tmp_path):
    """Or the best model, if it is kept: here that of the first evaluation, as a higher nll counts as better."""
    best = dict(load_best_model_at_end=True, metric_for_best_model="nll", greater_is_better=True)
    often = dict(eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    figures = train(base, texts, tmp_path / "run", max_steps=6, **best, **often)
    train(tmp_path / "run", texts, tmp_path / "again", max_steps=1, eval_on_start=True)
    logs = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("run", "again"))
    nll, again = ([line["eval_nll"] for line in map(json.loads, log) if "eval_nll" in line] for log in logs)
    assert figures["eval_nll"] == max(nll) != nll[-1]
    assert figures["eval_nll"] == pytest.approx(again[0], rel=1e-6)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def logits_of(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.arange(5, 20)[None]).logits


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_holds_the_model_its_figures_and_its_settings(base, texts, tmp_path, made):
    figures = train(base, texts, tmp_path / "run", think_fraction=0.5, max_steps=3)
    folder = tmp_path / "run"
    assert json.loads((folder / "results.json").read_text()) == figures
    assert figures["n_skipped_texts"] == 0
    assert figures["eval_loss"] == figures["eval_nll"]
    assert math.isfinite(figures["eval_loss"])
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3]
    settings = json.loads((folder / "run.json").read_text())
    assert settings["model"]["model"] == str(base)
    assert settings["data"]["max_length"] == 12
    assert settings["training"]["think_fraction"] == 0.5
    assert settings["versions"]["torch"] == torch.__version__

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(loaded, QuietStarForCausalLM)
    assert (loaded.config.n_ahead, loaded.config.n_ahead_talk, loaded.config.policy_weight) == (4, 2, 1.0)
    assert torch.equal(logits_of(loaded), logits_of(made[0].model))
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


def test_the_figures_at_the_end_are_those_of_the_model_in_the_folder(base, texts, tmp_path):
    figures = train(base, texts, tmp_path / "run", eval_strategy="no")
    args = QuietStarTrainingArguments(output_dir=str(tmp_path / "again"), use_cpu=True, report_to="none")
    data_args = DataArguments(dataset=str(texts), eval_size=3, max_length=12)
    _, held_out = build_datasets(data_args, AutoTokenizer.from_pretrained(base), args.seed)
    again = QuietStarTrainer(tmp_path / "run", args, eval_dataset=held_out).evaluate()
    for name in ("eval_nll", "eval_base_nll", "eval_talk_nll_0", "eval_reward_mean", "eval_mixing_weight"):
        assert again[name] == pytest.approx(figures[name], rel=1e-6)


def test_a_trained_model_can_be_trained_on(base, texts, tmp_path, made):
    train(base, texts, tmp_path / "first")
    train(tmp_path / "first", texts, tmp_path / "second", n_ahead=None, n_passes=3, max_steps=1, learning_rate=0.0)
    assert furthest(weights(tmp_path / "first"), weights(tmp_path / "second")) == 0
    assert (made[1].model.config.n_ahead, made[1].model.config.n_passes) == (4, 3)


def test_lora_cannot_be_added_to_a_model_that_thinks(base, texts, tmp_path):
    train(base, texts, tmp_path / "first")
    with pytest.raises(SettingsError, match="is a thinking model already, and lora can only be given to a base model"):
        train(tmp_path / "first", texts, tmp_path / "second", **LORA)
    assert not (tmp_path / "second").exists()


# ---------------------------------------------------------------------- repeating and resuming


def test_the_same_seed_gives_the_same_model_whatever_the_random_state(base, texts, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        torch.rand(3)
        train(base, texts, tmp_path / name, seed=seed)
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "two")) == 0
    assert furthest(weights(tmp_path / "one"), weights(tmp_path / "three")) > 1e-3


@pytest.mark.parametrize(
    ("kind", "stopped_at"),
    [
        ("lora", 2),
        ("lora", 5),
        ("stream", 2),
        *(pytest.param(kind, 6) for kind in ("full", "fraction", "original")),
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(base, texts, tmp_path, kind, stopped_at):
    """Ten texts make five steps an epoch: stopped within the first, at its end, and in the second."""
    settings = dict(max_steps=9, save_strategy="steps", save_steps=stopped_at, save_total_limit=9, eval_strategy="no")
    kinds = {"lora": LORA, "fraction": dict(think_fraction=0.3), "original": ORIGINAL, "stream": dict(streaming=True)}
    settings |= kinds.get(kind, {})
    torch.manual_seed(0)
    train(base, texts, tmp_path / "whole", **settings)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    shutil.copy(tmp_path / "whole" / "run.json", stopped)
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{stopped_at}", stopped / f"checkpoint-{stopped_at}")
    torch.rand(9)
    train(base, texts, stopped, **settings, resume_from_checkpoint="true")
    assert furthest(weights(stopped), weights(tmp_path / "whole")) == 0
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert lines_of(logs[0]) == lines_of(logs[1])


def test_the_log_is_written_during_the_run(base, texts, tmp_path, monkeypatch):
    """It includes the lines before a stop, and the run ends with the same file."""
    log, settings = tmp_path / "run" / "log.jsonl", dict(save_strategy="steps", save_steps=2, logging_steps=1)
    logs = []
    write_figures = run.write_figures

    def look(*args: Any) -> None:
        logs.append(log.read_text())
        write_figures(*args)
        logs.append(log.read_text())

    monkeypatch.setattr(run, "write_figures", look)
    train(base, texts, tmp_path / "run", **settings, max_steps=2)
    train(base, texts, tmp_path / "run", **settings, max_steps=4, resume=True)
    assert logs[0] == logs[1] != logs[2] == logs[3]
    assert [line["step"] for line in map(json.loads, logs[2].splitlines()) if "loss" in line] == [1, 2, 3, 4]


CLOCKS = ("runtime", "per_second")
"""in names of figures that say how long something took"""


def lines_of(log: list[str]) -> list[dict[str, float]]:
    """Lines of a log without times."""
    lines = map(json.loads, log)
    return [{name: value for name, value in line.items() if not name.endswith(CLOCKS)} for line in lines]


def stopped_run(base: Path, texts: Path, folder: Path) -> Path:
    """A run that was stopped while its second checkpoint was being written."""
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=9)
    torch.manual_seed(0)
    train(base, texts, folder, **settings)
    for name in ("model.safetensors", "results.json", "log.jsonl"):
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("lost", ["model.safetensors", "optimizer.pt", "progress-0.pt", "complete.json"])
def test_a_checkpoint_that_is_not_whole_is_not_resumed_from_and_reported(base, texts, tmp_path, lost, caplog):
    folder = stopped_run(base, texts, tmp_path / "run")
    torn = folder / "checkpoint-4" / lost
    torn.write_bytes(torn.read_bytes()[:-2])
    train(base, texts, folder, max_steps=4, save_strategy="no", resume=True)
    assert f"checkpoint-4 is skipped: {'its ' if lost == 'complete.json' else repr(lost)}" in caplog.text
    torch.manual_seed(0)
    train(base, texts, tmp_path / "whole", max_steps=4)
    assert furthest(weights(folder), weights(tmp_path / "whole")) == 0


@pytest.mark.parametrize("named", ["true", "checkpoint-999"])
def test_a_missing_checkpoint_changes_nothing(base, texts, tmp_path, named):
    folder = tmp_path / "run"
    train(base, texts, folder)
    before = files_of(folder)
    with pytest.raises(CheckpointError, match="checkpoint"):
        train(base, texts, folder, max_steps=7, resume_from_checkpoint=named)
    assert files_of(folder) == before


def test_resume_false_does_not_resume(base, texts, tmp_path):
    train(base, texts, tmp_path / "run", max_steps=1, resume_from_checkpoint="false")
    assert (tmp_path / "run" / "model.safetensors").is_file()


# ---------------------------------------------------------------------- adapters


def test_only_adapters_and_heads_change(base, texts, tmp_path, made):
    train(base, texts, tmp_path / "run", **LORA)
    before, after = weights(base), weights(tmp_path / "run")
    kept = {name.removeprefix("base_lm.").replace(".base_layer", ""): name for name in after if ".lora_" not in name}
    for name in before:
        assert torch.equal(before[name], after[kept[name]]), name
    fresh = QuietStarForCausalLM.from_base(str(base), **ModelArguments(**LORA).adapter_settings())
    for name, parameter in fresh.named_parameters():
        trains = ".lora_" in name or not name.startswith("base_lm.")
        assert parameter.requires_grad == trains
        if ".lora_B" in name or "thought_embeddings" in name or name == "mixing_head.layers.4.weight":
            assert not torch.equal(parameter, after[name]), name
    adapted = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name in after if ".lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_one_folder_loads_with_its_adapters(texts, tmp_path, made, tied):
    base = tiny_folder(tmp_path / "base", "llama", tie_word_embeddings=tied)
    train(base, texts, tmp_path / "run", **LORA)
    shutil.rmtree(base)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert loaded.config.lora["r"] == 4
    assert torch.equal(logits_of(loaded), logits_of(made[0].model))
    assert any(".lora_" in name for name in weights(tmp_path / "run"))


def test_target_modules_and_dropout_are_used(base, texts, tmp_path):
    train(base, texts, tmp_path / "run", **LORA, lora_target_modules=["q_proj", "up_proj"], lora_dropout=0.5)
    adapted = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[1] for name in weights(tmp_path / "run") if ".lora_" in name}
    assert adapted == {"q_proj", "up_proj"}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.lora["lora_dropout"] == 0.5


def test_unknown_target_modules_are_refused(base, texts, tmp_path):
    with pytest.raises(SettingsError, match="no_such_proj"):
        train(base, texts, tmp_path / "run", **LORA, lora_target_modules=["no_such_proj"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_in_bfloat16_what_learns_in_small_steps_stays_float32(base, texts, tmp_path, made, lora):
    train(base, texts, tmp_path / "run", dtype="bfloat16", **lora)
    for name, value in weights(tmp_path / "run").items():
        in_full = ".lora_" in name or not name.startswith("base_lm.")
        assert value.dtype == (torch.float32 if in_full else torch.bfloat16), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert {name: p.dtype for name, p in loaded.named_parameters()} == {
        name: p.dtype for name, p in made[0].model.named_parameters()
    }
    assert torch.equal(logits_of(loaded), logits_of(made[0].model))


@pytest.fixture(scope="module")
def stored_in_bfloat16(base, tmp_path_factory) -> Path:
    """The base model, stored in bfloat16, and the same weights in float32 beside it."""
    folder = tmp_path_factory.mktemp("stored")
    half = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for name, model in (("half", half), ("full", copy.deepcopy(half).float())):
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / name)
    return folder


SMALL_STEPS = dict(learning_rate=1e-5, max_steps=3, policy_weight=0.0)


@pytest.mark.parametrize("how", [{}, ORIGINAL], ids=["thinking", "original"])
def test_weights_stored_in_bfloat16_move_as_those_in_float32(stored_in_bfloat16, texts, tmp_path, caplog, how):
    settings = {**SMALL_STEPS, **how}
    for name in ("half", "full"):
        train(stored_in_bfloat16 / name, texts, tmp_path / name, **settings)
    assert "is lost" not in caplog.text
    before = weights(stored_in_bfloat16 / "full")
    half, full = weights(tmp_path / "half"), weights(tmp_path / "full")
    assert all(value.dtype == torch.float32 for value in half.values())
    assert all(torch.equal(value, full[name]) for name, value in half.items())
    assert share_moved(before, half) > 0.7  # rows of tokens that never come stay
    if how:
        return
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    train(tmp_path / "half", texts, tmp_path / "on", dtype="bfloat16", **SMALL_STEPS)  # one that thinks already
    assert share_moved(half, weights(tmp_path / "on")) > 0  # rounded
    assert "the weights that train are bfloat16" in caplog.text


def test_updates_that_bfloat16_loses_are_told_once(stored_in_bfloat16, texts, tmp_path, caplog):
    train(stored_in_bfloat16 / "half", texts, tmp_path / "run", dtype="bfloat16", **SMALL_STEPS)
    assert caplog.text.count("an update smaller than 0.0039 of a weight is lost") == 1
    assert share_moved(weights(stored_in_bfloat16 / "half"), weights(tmp_path / "run")) < 0.1


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_frozen_weights_stay_as_they_are_stored(stored_in_bfloat16, texts, tmp_path, caplog, dtype):
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    train(stored_in_bfloat16 / "half", texts, tmp_path / "run", dtype=dtype, **LORA)
    train(tmp_path / "run", texts, tmp_path / "on", dtype=dtype)  # adapters that are there already
    for folder in ("run", "on"):
        for name, value in weights(tmp_path / folder).items():
            in_full = ".lora_" in name or not name.startswith("base_lm.")
            assert value.dtype == (torch.float32 if in_full else torch.bfloat16), (folder, name)
    assert "is lost" not in caplog.text


def share_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Share of the base model's weights that have changed."""
    names = {name: name if name in after else f"base_lm.{name}" for name in before}
    names = {name: of for name, of in names.items() if "thought" not in of and "mixing" not in of}
    moved = torch.cat([(before[name].float() != after[of].float()).flatten() for name, of in names.items()])
    return float(moved.float().mean())


def test_merged_weights_predict_the_same(base, texts, tmp_path, made, monkeypatch):
    said = []
    save = run.save

    def listened(trainer: QuietStarTrainer, *args: Any, **kwargs: Any) -> None:
        said.append(logits_of(trainer.model))
        save(trainer, *args, **kwargs)

    monkeypatch.setattr(run, "save", listened)
    train(base, texts, tmp_path / "run", **LORA, merge=True)
    assert not any("lora" in name or "base_layer" in name for name in weights(tmp_path / "run"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert loaded.config.lora is None
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(logits_of(loaded), said[0], rtol=1e-5, atol=1e-5)
    fresh = logits_of(QuietStarForCausalLM.from_base(str(base), n_ahead=4))
    assert (said[0] - fresh).abs().max() > 1e-2, "the adapters have learned something"
    assert {name.removeprefix("base_lm.") for name in weights(tmp_path / "run")} >= weights(base).keys()


@pytest.mark.parametrize(("dtype", "is_kept"), [("auto", True), ("bfloat16", False)])
@pytest.mark.parametrize("how", [{}, ORIGINAL], ids=["thinking", "original"])
def test_what_adapters_add_to_weights_stored_in_bfloat16(stored_in_bfloat16, texts, tmp_path, dtype, is_kept, how):
    """It is too small for bfloat16, and kept unless 16 bits are asked for."""
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    settings = {**SMALL_STEPS, "learning_rate": 1e-4, "dtype": dtype, "lora": True, "lora_r": 2, **how}
    train(stored_in_bfloat16 / "half", texts, tmp_path / "run", **settings, **({} if how else {"merge": True}))
    before, after = weights(stored_in_bfloat16 / "half"), weights(tmp_path / "run")
    adapted = {name: value for name, value in before.items() if "_proj" in name}
    assert (share_moved(adapted, after) > 0.9) is is_kept
    assert {value.dtype for name, value in after.items() if "_proj" in name} == {
        torch.float32 if is_kept else torch.bfloat16
    }


def test_a_resumed_run_misses_no_weights_that_are_tied(texts, tmp_path, caplog):
    base = tiny_folder(tmp_path / "base", "llama", tie_word_embeddings=True)
    often = dict(save_strategy="steps", save_steps=1)
    train(base, texts, tmp_path / "run", max_steps=1, **often)
    train(base, texts, tmp_path / "run", max_steps=2, resume=True, **often)
    assert "missing keys" not in caplog.text


# ---------------------------------------------------------------------- the baseline


def test_original_learns_exactly_as_the_base_model_does(base, texts, tmp_path):
    recipe = dict(
        max_steps=4,
        learning_rate=1e-3,
        warmup_steps=2,
        weight_decay=0.1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        lr_scheduler_type="constant_with_warmup",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    train(base, texts, tmp_path / "ours", **ORIGINAL, **recipe)
    log = map(json.loads, (tmp_path / "ours" / "log.jsonl").read_text().splitlines())
    ours = [line for line in log if "loss" in line]

    plain = LlamaForCausalLM.from_pretrained(base)
    data_args = DataArguments(dataset=str(texts), eval_size=3, max_length=12)
    rows, _ = build_datasets(data_args, AutoTokenizer.from_pretrained(base), 42)
    args = TrainingArguments(output_dir=str(tmp_path / "plain"), remove_unused_columns=False, **recipe)
    trainer = Trainer(plain, args, train_dataset=rows, data_collator=TextCollator(0))
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "loss" in line]

    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    assert [line["nll"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-5)
    assert [line["grad_norm"] for line in ours] == pytest.approx([line["grad_norm"] for line in theirs], rel=1e-4)
    expected = {name: value.detach() for name, value in plain.state_dict().items()}
    torch.testing.assert_close(weights(tmp_path / "ours"), expected, rtol=1e-5, atol=1e-5)
    assert furthest(weights(base), weights(tmp_path / "ours")) > 1e-3


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
def test_original_leaves_a_plain_model(base, texts, tmp_path, lora, made):
    figures = train(base, texts, tmp_path / "run", **ORIGINAL, **lora)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert type(loaded) is LlamaForCausalLM
    assert weights(tmp_path / "run").keys() == weights(base).keys()
    assert furthest(weights(base), weights(tmp_path / "run")) > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "run").eos_token_id == 2
    heads = [*made[0].model.mixing_head.parameters(), *made[0].model.thought_embeddings.parameters()]
    assert all(parameter.grad is None for parameter in heads)
    assert figures["eval_loss"] == pytest.approx(figures["eval_base_nll"], rel=1e-6)


@pytest.mark.parametrize("lora", [{}, LORA], ids=["alone", "beside lora"])
def test_original_leaves_adapters_of_branches_out(base, texts, tmp_path, lora):
    """Branch adapters are not saved with a plain model, which predicts what the base pass did."""
    train(base, texts, tmp_path / "thinks", branch_adapters=True, **(dict(lora_r=4) | lora))
    train(tmp_path / "thinks", texts, tmp_path / "plain", **ORIGINAL, learning_rate=0.0)
    assert weights(tmp_path / "plain").keys() == weights(base).keys()
    thinking = QuietStarForCausalLM.from_pretrained(tmp_path / "thinks")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected = thinking.base_lm(ids).logits
        torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_original_does_not_think_in_evaluation_either(base, texts, tmp_path):
    figures = train(base, texts, tmp_path / "run", **ORIGINAL)
    assert not [name for name in figures if "talk" in name or "reward" in name or "mixing" in name]


@pytest.mark.parametrize(
    "given",
    [
        dict(n_ahead=4),
        dict(n_ahead_talk=2),
        dict(n_passes=1),
        dict(policy_weight=0.0),
        dict(thought_temperature=0.5),
        dict(n_ahead_min=2),
        dict(think_tokens=3),
        dict(think="entropy:2"),
        dict(reference="ema"),
        dict(policy_epochs=2),
        pytest.param(dict(think_fraction=0.5)),
        pytest.param(dict(base_loss_weight=0.3)),
    ],
    ids=lambda given: next(iter(given)),
)
def test_original_refuses_settings_that_it_would_ignore(base, texts, tmp_path, given):
    with pytest.raises(SettingsError, match=rf"original .*{next(iter(given))}"):
        train(base, texts, tmp_path / "run", **(ORIGINAL | given))
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- names and refusals


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        (dict(model="mistralai/Mistral-7B-v0.1"), {}, "runs/Mistral-7B-v0.1-8-ahead"),
        (dict(model="some/folder/m/"), dict(n_ahead=12), "runs/m-12-ahead"),
        (dict(model="m", original=True), {}, "runs/m-original"),
    ],
)
def test_a_folder_is_named_after_the_model(model, settings, expected):
    assert default_folder(ModelArguments(**model), QuietStarTrainingArguments(use_cpu=True, **settings)) == expected


def test_a_run_without_an_output_dir_takes_that_name(base, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(base, texts, tmp_path, output_dir=None, max_steps=1)
    assert (tmp_path / "runs" / f"{base.name}-4-ahead" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["runs"]


@pytest.mark.parametrize("what", ["a run", "foreign files", "a file"])
def test_nothing_is_overwritten_unasked(base, texts, tmp_path, what):
    folder = tmp_path / "run"
    if what == "a run":
        train(base, texts, folder)
    elif what == "foreign files":
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "thesis.txt").write_text("years of work")
    else:
        folder.write_text("years of work")
    before = files_of(tmp_path)
    for asked in ({}, {"overwrite": True}, {"resume_from_checkpoint": "true"}):
        if (what, asked) in (("a run", {"overwrite": True}), ("a run", {"resume_from_checkpoint": "true"})):
            continue
        with pytest.raises(SettingsError, match="output_dir"):
            train(base, texts, folder, **asked)
        assert files_of(tmp_path) == before


def test_overwrite_empties_the_folder(base, texts, tmp_path):
    folder = tmp_path / "run"
    train(base, texts, folder)
    (folder / "checkpoint-9").mkdir()
    (folder / "checkpoint-9" / "old").write_text("old")
    train(base, texts, folder, overwrite=True, n_ahead=5)
    assert not (folder / "checkpoint-9").exists()
    assert AutoModelForCausalLM.from_pretrained(folder).config.n_ahead == 5


def test_overwrite_empties_nothing_for_a_run_that_cannot_start(base, texts, tmp_path):
    folder = tmp_path / "run"
    train(base, texts, folder)
    before = files_of(folder)
    wrong = dict(n_ahead=1, text_column="no", model="no/such", dataset="no.jsonl", eval_size=99)
    for settings in ({name: value} for name, value in wrong.items()):
        with pytest.raises(QuietStarError):
            train(base, texts, folder, **({"overwrite": True} | settings))
        assert files_of(folder) == before


@pytest.mark.parametrize("streaming", [True, False])
def test_a_run_can_train_on_a_stream(base, texts, tmp_path, streaming):
    figures = train(base, texts, tmp_path / "run", streaming=streaming, packing=True, max_steps=3)
    assert math.isfinite(figures["eval_nll"])


def test_a_missing_tokenizer_is_reported(texts, tmp_path):
    base = tiny_folder(tmp_path / "base", "llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded from"):
        train(base, texts, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_model_is_refused(texts, tmp_path):
    base = tiny_folder(tmp_path / "base", "llama", vocab_size=61)
    with pytest.raises(QuietStarError, match="tokenizer"):
        train(base, texts, tmp_path / "run")


def test_versions_are_those_that_run():
    assert run.versions()["quietstar"] == quietstar.__version__

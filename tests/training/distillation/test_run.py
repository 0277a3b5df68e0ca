"""A distillation ends in a plain model that predicts more like its teacher; killed, it goes on bit by bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from quietstar import QuietStarForCausalLM
from quietstar.cli import main
from quietstar.errors import SettingsError
from quietstar.training import DataArguments, QuietStarTrainingArguments
from quietstar.training.distillation import run as distillation
from quietstar.training.distillation.arguments import DistillArguments
from quietstar.training.distillation.run import distill, words
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from quietstar.training.trainer import QuietStarTrainer
from tests.tiny import make_thoughtful
from tests.tiny_tokenizer import tiny_folder

TEXT = dict(eval_size=4, max_length=12, streaming=False)
OPTIONS: dict[str, Any] = dict(
    max_steps=6,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    warmup_steps=1,
    eval_steps=3,
    save_steps=2,
    save_total_limit=2,
    logging_steps=2,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)


@pytest.fixture(scope="module")
def models(inputs: Path) -> Path:
    """A thinking model in `thinking`, made from the one in `base`."""
    if not (inputs / "thinking").is_dir():
        model = QuietStarForCausalLM.from_base(str(inputs / "base"), n_ahead=4)
        make_thoughtful(model)
        model.save_pretrained(inputs / "thinking")
        for file in (inputs / "base").glob("tokenizer*"):
            (inputs / "thinking" / file.name).write_bytes(file.read_bytes())
    return inputs


def run(models: Path, folder: Path, model: dict[str, Any] | None = None, of: Any = None, **settings: Any) -> list[str]:
    return distill(
        str(models / "thinking"),
        ModelArguments(**(model or {})),
        DataArguments(dataset=str(models / "texts"), **TEXT),
        QuietStarTrainingArguments(output_dir=str(folder), **(OPTIONS | settings)),
        DistillArguments(**({"student": str(models / "base")} | (of or {}))),
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(ours: Path, theirs: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.parametrize("objective", ["kl", "reverse_kl"])
def test_the_student_comes_nearer_to_its_teacher(models: Path, tmp_path: Path, objective: str) -> None:
    run(models, tmp_path / "run", of={"objective": objective}, max_steps=40, logging_steps=5)
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_that_never_thinks_has_nothing_for_its_own_base_model(models: Path, tmp_path: Path) -> None:
    run(models, tmp_path / "run", of={"student": None, "teacher_think": "never"}, max_steps=1, logging_steps=1)
    (first, *_) = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert first == pytest.approx(0, abs=1e-6)
    run(models, tmp_path / "thinks", of={"student": None}, max_steps=1, logging_steps=1)
    (first, *_) = [line["loss"] for line in lines(tmp_path / "thinks") if "loss" in line]
    assert first > 0.01


def test_what_is_saved_is_an_ordinary_model(models: Path, tmp_path: Path) -> None:
    said = run(models, tmp_path / "run")
    assert said[0] == f"saved to {tmp_path / 'run'}, a plain model"
    config = (tmp_path / "run" / "config.json").read_text()
    assert "quietstar" not in config
    assert json.loads(config)["model_type"] == "llama"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {file.name for file in (tmp_path / "run").glob("*")} >= {"generation_config.json", "tokenizer.json"}
    found = json.loads((tmp_path / "run" / "distill.json").read_text())
    names = {"teacher", "teacher_without", "before", "after", "teacher_lead", "student_gain", "kept"}
    assert found.keys() == names
    assert found["teacher_without"]["value"] == pytest.approx(found["before"]["value"]), "it was made of the student"
    last = lines(tmp_path / "run")[-2]
    assert found["after"]["value"] == pytest.approx(last["eval_base_nll"], abs=1e-4)


def test_tied_weights_stay_tied(tmp_path: Path, models: Path) -> None:
    tiny_folder(tmp_path / "base", "qwen2", tie_word_embeddings=True)
    model = QuietStarForCausalLM.from_base(str(tmp_path / "base"), n_ahead=3)
    model.save_pretrained(tmp_path / "thinking")
    for file in (tmp_path / "base").glob("tokenizer*"):
        (tmp_path / "thinking" / file.name).write_bytes(file.read_bytes())
    distill(
        str(tmp_path / "thinking"),
        ModelArguments(),
        DataArguments(dataset=str(models / "texts"), **TEXT),
        QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), **(OPTIONS | {"max_steps": 2})),
        DistillArguments(),
    )
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight
    assert not [name for name in load_file(tmp_path / "run" / "model.safetensors") if "lm_head" in name]


class Stop(TrainerCallback):
    """Kills a run after some of its steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("with_cache", [False, True])
def test_killed_it_goes_on_bit_by_bit(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_cache: bool
) -> None:
    def how(name: str) -> dict[str, Any]:
        return {"teacher_passes": 2} | ({"cache": str(tmp_path / name)} if with_cache else {})

    run(models, tmp_path / "whole", of=how("a"))
    for step in (1, 3, 5):
        with monkeypatch.context() as patch:
            plain = distillation.run_training
            patch.setattr(distillation, "run_training", lambda *a, **k: plain(*a, **k, callbacks=[Stop(step)]))  # noqa: B023
            with pytest.raises(KeyboardInterrupt):
                run(models, tmp_path / "run", of=how("b"), resume=True)
    run(models, tmp_path / "run", of=how("b"), resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_cache_is_asked_in_later_epochs(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken, n = distillation.Teacher.spoken, []

    def counted(self: Any, ids: torch.Tensor, *more: Any) -> Any:
        n.append(len(ids))
        return spoken(self, ids, *more)

    monkeypatch.setattr(distillation.Teacher, "spoken", counted)
    how = {"cache": str(tmp_path / "said"), "cache_tokens": 256}
    run(models, tmp_path / "run", of=how, max_steps=45)  # three epochs of 60 rows
    assert 60 <= sum(n) < 130, "long texts have other windows in another epoch"
    run(models, tmp_path / "whole", max_steps=45)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-2, "nearly all tokens are kept"


def test_other_lessons_do_not_go_on(models: Path, tmp_path: Path) -> None:
    run(models, tmp_path / "run", max_steps=2)
    with pytest.raises(SettingsError, match="objective is 'reverse_kl' and was 'kl'"):
        run(models, tmp_path / "run", of={"objective": "reverse_kl"}, resume=True)
    with pytest.raises(SettingsError, match="teacher_think is 'never' and was 'always'"):
        run(models, tmp_path / "run", of={"teacher_think": "never"}, resume=True)
    with pytest.raises(SettingsError, match="cache_tokens is 2 and was None"):
        run(models, tmp_path / "run", of={"cache": str(tmp_path / "said"), "cache_tokens": 2}, resume=True)
    plain = (
        ModelArguments(model=str(models / "base"), original=True),
        DataArguments(dataset=str(models / "texts"), **TEXT),
        QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), **(OPTIONS | {"resume": True, "max_steps": 2})),
    )
    with pytest.raises(SettingsError, match="objective is None and was 'kl'"):
        run_training(*plain)


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": True}, {}])
def test_neither_teacher_nor_student_is_overwritten(models: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    for name in ("thinking", "base"):
        shutil.copytree(models / name, tmp_path / name)
        (tmp_path / name / "run.json").write_text("{}")
    for name in ("thinking", "base"):
        before = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        with pytest.raises(SettingsError, match=f"output_dir .*{name}"):
            distill(
                str(tmp_path / "thinking"),
                ModelArguments(),
                DataArguments(dataset=str(models / "texts"), **TEXT),
                QuietStarTrainingArguments(output_dir=str(tmp_path / name), **(OPTIONS | how)),
                DistillArguments(student=str(tmp_path / "base")),
            )
        assert before == {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}


def test_a_cache_may_be_in_the_runs_folder_and_is_not_emptied_with_it(models: Path, tmp_path: Path) -> None:
    how = {"cache": str(tmp_path / "run" / "cache")}
    run(models, tmp_path / "run", of=how, max_steps=2)
    files = sorted((tmp_path / "run" / "cache").rglob("*.safetensors"))
    assert files
    with pytest.raises(SettingsError, match=r"contains .*cache, which this run reads; give another output_dir"):
        run(models, tmp_path / "run", of=how, max_steps=2, overwrite=True)
    assert sorted((tmp_path / "run" / "cache").rglob("*.safetensors")) == files


def test_a_dry_run_keeps_nothing(models: Path, tmp_path: Path) -> None:
    said = run(models, tmp_path / "run", of={"cache": str(tmp_path / "said"), "cache_tokens": 3}, dry_run=True)
    assert "would take about" in said[0]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "said").exists()


CHAT = (
    "{% for m in messages %}{{ m.role[0] }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_only_tokens_with_a_label_are_compared(models: Path, tmp_path: Path) -> None:
    """Of conversations, the assistant's."""
    for name in ("thinking", "base"):
        shutil.copytree(models / name, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(CHAT)
    talks = [
        [{"role": "user", "content": f"{n} and {n}?"}, {"role": "assistant", "content": f"{2 * n}."}] for n in range(20)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    distill(
        str(tmp_path / "thinking"),
        ModelArguments(),
        DataArguments(dataset=str(tmp_path / "talks.jsonl"), assistant_only_loss=True, max_length=20, eval_size=4),
        QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), **(OPTIONS | {"max_steps": 2, "eval_steps": 2})),
        DistillArguments(student=str(tmp_path / "base")),
    )
    found = json.loads((tmp_path / "run" / "distill.json").read_text())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["after"]["value"] == pytest.approx(results["eval_base_nll"], abs=1e-4)


def test_the_teacher_is_measured_as_it_taught(models: Path, tmp_path: Path) -> None:
    found = {}
    for passes in (1, 3):
        run(models, tmp_path / str(passes), of={"teacher_passes": passes}, max_steps=1)
        found[passes] = json.loads((tmp_path / str(passes) / "distill.json").read_text())["teacher"]["value"]
    assert abs(found[1] - found[3]) > 0.01


def test_adapters_of_a_teacher_in_16_bits_are_merged_in_32(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    base = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = QuietStarForCausalLM.from_base(str(tmp_path / "base"), n_ahead=4, lora={"r": 4}, dtype="auto")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 1e-3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "thinking")
    for file in (models / "base").glob("tokenizer*"):
        (tmp_path / "thinking" / file.name).write_bytes(file.read_bytes())
    still = OPTIONS | {"learning_rate": 0.0, "max_steps": 1}
    distill(
        str(tmp_path / "thinking"),
        ModelArguments(),
        DataArguments(dataset=str(models / "texts"), **TEXT),
        QuietStarTrainingArguments(output_dir=str(tmp_path / "run"), **still),
        DistillArguments(),
    )
    student = load_file(tmp_path / "run" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    layer = model.base_lm.get_submodule(name.removesuffix(".weight"))
    (scale,), (up,), (down,) = layer.scaling.values(), layer.lora_B.values(), layer.lora_A.values()
    added = scale * (up.weight @ down.weight).detach()
    torch.testing.assert_close(student[name] - before[name].float(), added, atol=1e-7, rtol=1e-3)


def test_a_student_of_other_tokens_is_refused(models: Path, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "other", "llama")
    with pytest.raises(SettingsError, match=r"does not have the tokens of .*; give a student of the same tokenizer"):
        run(models, tmp_path / "run", of={"student": str(tmp_path / "other")})
    assert not (tmp_path / "run").exists()


def test_a_student_with_other_embeddings_is_refused(models: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(models / "base")
    model.resize_token_embeddings(264)
    model.save_pretrained(tmp_path / "padded")
    for file in (models / "base").glob("tokenizer*"):
        (tmp_path / "padded" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SettingsError, match="the student has 264 embeddings, and the teacher 257"):
        run(models, tmp_path / "run", of={"student": str(tmp_path / "padded")})


def test_adapters_are_merged_into_the_plain_model(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    run(models, tmp_path / "run", {"lora": True, "lora_r": 4}, of={"student": None})
    before = load_file(models / "base" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert all("proj" in name for name in changed)


def test_bad_steps_are_skipped_as_ever(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, n = QuietStarTrainer.compute_loss, []

    def broken(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = compute(self, model, inputs, *args, **kwargs)
        n.append(model.training)
        return found * float("nan") if sum(n) == 3 and model.training else found

    monkeypatch.setattr(QuietStarTrainer, "compute_loss", broken)
    run(models, tmp_path / "run")
    assert (tmp_path / "run" / "bad-steps" / "step-000002-rank-0.json").is_file()


def test_what_is_said_of_a_teacher_without_a_gain() -> None:
    def estimate(value: float, reach: float) -> dict[str, float]:
        return {"value": value, "low": value - reach, "high": value + reach, "n": 9}

    found = {name: estimate(2.0, 0.1) for name in ("teacher", "teacher_without", "before", "after")}
    found |= {"teacher_lead": estimate(0.01, 0.02), "student_gain": estimate(0.3, 0.1), "kept": estimate(30.0, 90.0)}
    assert words(found)[-1] == (
        "the teacher's lead of +0.0100 (-0.0100 to +0.0300) nats a token may be none, with nothing to make up for"
    )
    found["teacher_lead"] = estimate(0.6, 0.1)
    found["kept"] = estimate(0.5, 0.2)
    assert words(found)[-1] == (
        "the student gained +0.3000 (+0.2000 to +0.4000), 50% of the teacher's lead of +0.6000 (+0.5000 to +0.7000) "
        "(95 % interval 30% to 70%)"
    )
    assert words({}) == []


def test_the_command(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name}={value}" for name, value in (OPTIONS | {"max_steps": 2}).items()]
    text = [f"--dataset={models / 'texts'}", "--eval_size=4", "--max_length=12"]
    command = ["distill", str(models / "thinking"), *text, *flags]
    assert main([*command, f"--output_dir={tmp_path / 'run'}"]) == 0
    assert f"saved to {tmp_path / 'run'}, a plain model" in capsys.readouterr().err
    one = tmp_path / "text.txt"
    one.write_text("Two and two are four.\nThree and three are six.\n")
    evaluate = ["evaluate", str(tmp_path / "run"), "--original", f"--output_dir={tmp_path / 'evaluation'}"]
    assert main([*evaluate, "--perplexity", str(one), "--max_length=32"]) == 0
    assert main([*command, "--dry_run", f"--student={models / 'base'}"]) == 0
    assert "would take about" in capsys.readouterr().err
    assert main(["distill", str(models / "base"), *text, *flags]) == 2
    assert "is a plain model that does not think" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--policy_weight=1"])
    assert "unrecognized arguments: --policy_weight" in capsys.readouterr().err

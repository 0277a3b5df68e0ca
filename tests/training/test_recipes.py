"""Ready configurations of Accelerate: its own launcher reads them, and whole runs come out the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soak
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from quietstar import QuietStarForCausalLM
from quietstar.interop.convert import convert
from quietstar.training import checkpoints
from tests.tiny import make_thoughtful
from tests.training.test_killed import command

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_accelerate_reads_it(recipe):
    config = load_config_from_file(str(recipe))
    assert config.distributed_type in (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)
    words = recipe.read_text().split(f"--config_file recipes/accelerate/{recipe.name}")
    assert len(words) == 2  # it says how it is used


def launched(recipe: str, words: list[str], tmp_path: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """A run on two processes, launched by Accelerate with a recipe."""
    config = yaml.safe_load((RECIPES[0].parent / f"{recipe}.yaml").read_text()) | {
        "num_processes": 2,
        "num_machines": 1,
        "mixed_precision": "no",
    }
    file = tmp_path / "accelerate.yaml"
    file.write_text(yaml.safe_dump(config | settings))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    launch += [f"--main_process_port={soak.free_port()}", str(Path(__file__).parent / "sharded_command.py")]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *launch, *words[2:]],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"},
    )


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["fsdp2", "fsdp2_offload"])
def test_a_sharded_run_from_its_command_to_its_model(inputs, tmp_path, recipe):
    """LoRA with checkpointing, evaluations with thoughts and a report; what is saved is one model."""
    folder = tmp_path / "run"
    adapters = ["--lora", "--lora_r=4", "--learning_rate=1e-2", "--gradient_checkpointing", "--save_steps=2"]
    watched = ["--eval_strategy=steps", "--eval_steps=2", "--eval_report_rows=1", "--thoughts_shown=2", "--resume"]
    done = launched(recipe, [*command(inputs, folder, *adapters, *watched), "--max_steps=2"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    checkpoint = folder / "checkpoint-2"
    assert checkpoints.read_marker(checkpoint)["settings"]["world_size"] == 2
    assert len(list((checkpoint / "model-shards").glob("*.safetensors"))) == 2
    assert (folder / "reports" / "step-000002" / "report.html").is_file()
    convert(str(checkpoint), tmp_path / "model")
    whole, together = load_file(folder / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    assert whole.keys() == together.keys()
    assert all(torch.equal(whole[name], together[name]) for name in whole)
    model = QuietStarForCausalLM.from_pretrained(folder)
    assert float(model.mixing_head.layers[-1].weight.detach().abs().max()) > 0  # it has learned
    assert any(float(value.abs().max()) > 0 for name, value in whole.items() if "lora_B" in name)


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2"])
def test_a_curriculum_on_two_processes(inputs, tmp_path, recipe):
    """Its second stage begins with the optimizer of the first."""
    folder = tmp_path / "run"
    stages = ["--curriculum=5:2,4:2", "--curriculum_steps=2,3", "--curriculum_keep_optimizer", "--eval_strategy=steps"]
    words = [word for word in command(inputs, folder) if not word.startswith("--n_ahead")]
    done = launched(recipe, [*words, *stages, "--eval_steps=1", "--learning_rate=1e-2", "--resume"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "stage 2 of 2: n_ahead 4, n_ahead_talk 2, 3 steps" in done.stderr
    assert done.stderr.count("stage 2 of 2") == 1
    model = QuietStarForCausalLM.from_pretrained(folder)
    assert model.config.n_ahead == 4
    assert float(model.mixing_head.layers[-1].weight.detach().abs().max()) > 0
    assert not list(folder.rglob("checkpoint-*"))


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["ddp", "fsdp2"])
def test_a_distillation_on_two_processes(inputs, tmp_path, recipe):
    """Adapters of the teacher's own base model learn, and are merged into a plain model."""
    model = QuietStarForCausalLM.from_base(str(inputs / "base"), n_ahead=4)
    make_thoughtful(model)
    model.save_pretrained(tmp_path / "thinking")
    for file in (inputs / "base").glob("tokenizer*"):
        (tmp_path / "thinking" / file.name).write_bytes(file.read_bytes())
    folder, left_out = tmp_path / "run", ("--model", "--n_ahead", "--thoughts_shown")
    flags = [word for word in command(inputs, folder)[3:] if not word.startswith(left_out)]
    more = ["--lora", "--lora_r=4", "--max_steps=3", "--learning_rate=1e-2", "--eval_strategy=steps", "--eval_steps=3"]
    words = ["", "", "distill", str(tmp_path / "thinking"), *flags, *more, f"--cache={tmp_path / 'cache'}"]
    done = launched(recipe, words, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("a plain model") == 1
    before, after = load_file(inputs / "base" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "quietstar" not in (folder / "config.json").read_text()


@pytest.mark.long
def test_a_run_under_zero3_from_its_command_to_its_model(inputs, tmp_path):
    """All weights, evaluations with thoughts and a report."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed (extra: deepspeed)")
    folder = tmp_path / "run"
    watched = ["--eval_strategy=steps", "--eval_steps=2", "--eval_report_rows=1", "--thoughts_shown=2", "--resume"]
    words = command(inputs, folder, *watched, "--save_steps=2", "--learning_rate=1e-2")
    done = launched("zero3", [*words, "--max_steps=2"], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (folder / "reports" / "step-000002" / "report.html").is_file()
    model = QuietStarForCausalLM.from_pretrained(folder)
    assert float(model.mixing_head.layers[-1].weight.detach().abs().max()) > 0  # it has learned

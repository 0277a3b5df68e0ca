"""Two processes learn what one learns from the same rows and thoughts, whole weights (DDP) or sharded ones (FSDP2)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from quietstar.training import QuietStarTrainer
from tests.several import Pair, shard_on_cpus
from tests.tiny import loud, tiny_model
from tests.training.test_trainer import LENGTHS, arguments, collate, losses_of, rows, with_thoughts

FSDP2 = dict(fsdp=True, fsdp_config={"version": 2, "reshard_after_forward": True})
KINDS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp2": FSDP2}


@pytest.fixture(scope="module")
def pair():
    made = Pair()
    yield made
    made.close()


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.kept = model, {}

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.kept.setdefault(name, whole(parameter.grad).clone())


def whole(tensor: Tensor) -> Tensor:
    """Of a sharded tensor, all of it."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def learn(
    folder: Path,
    texts: list[dict[str, Any]],
    n_processes: int,
    family: str = "llama",
    base: dict | None = None,
    model: dict | None = None,
    method: dict | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Two steps of eight rows each, by SGD, in two batches a step on each process: losses, gradients, parameters."""
    if settings.get("fsdp"):
        shard_on_cpus()
    made = tiny_model(
        family, base=base, **({"n_ahead": 4, "n_ahead_talk": 2, "policy_weight": 1.0} | (model or {}))
    ).train()
    adapters = torch.nn.ModuleDict(
        {name.replace(".", "_"): module for name, module in made.named_modules() if name.endswith("lora_B.default")}
    )
    loud(adapters, seed=5)
    size = 8 // n_processes // 2
    chosen = dict(optim="sgd", learning_rate=0.01, max_grad_norm=1e9, per_device_train_batch_size=size)
    trainer = QuietStarTrainer(
        made,
        arguments(folder, **(chosen | {"gradient_accumulation_steps": 2} | settings)),
        train_dataset=texts,
        data_collator=collate if "thoughts" in texts[0] else None,
    )
    gradients = Gradients(trainer.model)
    trainer.add_callback(gradients)
    trainer.train()
    return {
        "losses": losses_of(trainer),
        "log": trainer.state.log_history,
        "gradients": gradients.kept,
        "parameters": {name: whole(parameter) for name, parameter in trainer.model.named_parameters()},
        "wrapped": type(trainer.model_wrapped).__name__,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": dict(base=dict(tie_word_embeddings=True)),
    "gpt2": dict(family="gpt2"),
    "lora": dict(model=dict(lora={"r": 4})),
    "checkpointing": dict(gradient_checkpointing=True),
    "checkpointing, tied, lora": dict(
        gradient_checkpointing=True, base=dict(tie_word_embeddings=True), model=dict(lora={"r": 4})
    ),
}
"""what is trained, and how"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(pair: Pair, tmp_path: Path, kind: str, case: str):
    texts = with_thoughts(rows(*LENGTHS))
    alone = learn(tmp_path / "one", texts, 1, **CASES[case])
    for ours in pair(learn, tmp_path / kind, texts, 2, **KINDS[kind], **CASES[case]):
        assert ours["wrapped"].startswith("FSDP" if kind == "fsdp2" else "DistributedDataParallel")
        assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        for what in ("gradients", "parameters"):
            assert ours[what].keys() == alone[what].keys()
            for name, value in ours[what].items():
                size = float(alone[what][name].abs().max())
                torch.testing.assert_close(value, alone[what][name], rtol=1e-5, atol=1e-5 * max(size, 1), msg=name)

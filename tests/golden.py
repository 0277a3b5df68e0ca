"""Cases that the released code produced, and its own reduction of unreduced tensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quietstar import QuietStarForCausalLM, QuietStarOutput

FOLDER = Path(__file__).parent / "golden"


@dataclass
class Case:
    name: str
    settings: dict
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]

    @property
    def n_ahead(self) -> int:
        """Ours: the released code samples one token fewer in training than in `infer`."""
        return self.settings["n_ahead"] - (self.settings["kind"] != "infer")

    @property
    def n_ahead_talk(self) -> int:
        return self.settings.get("n_ahead_talk", 1)

    @property
    def n_passes(self) -> int:
        return self.settings.get("n_passes", 1)

    @property
    def reinforce_temperature(self) -> float:
        return self.settings.get("reinforce_temperature", 1.0)

    @property
    def policy_weight(self) -> float:
        return self.settings["policy_loss_beta"]

    def inputs(self) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels [B, S] and thoughts [B, P, S, K]."""
        inputs = {"input_ids": self.tensors["input_ids"].long()}
        if "attention_mask" in self.tensors:
            inputs["attention_mask"] = self.tensors["attention_mask"].long()
        if "labels" in self.tensors:
            labels = self.tensors["labels"].long()
            inputs["labels"] = labels.masked_fill(labels == self.settings["pad_token_id"], -100)
        B, S = inputs["input_ids"].shape
        steps = [self.tensors[f"sampled_step_{j}"].long() for j in self.settings.get("sampled_at_steps", [])]
        if steps:
            inputs["thoughts"] = torch.stack(steps, dim=-1).reshape(B, self.n_passes, S, len(steps))
        return inputs

    def write_checkpoint(self, folder: Path) -> Path:
        """A folder as the released code saves it."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.settings["config"] | self.settings.get("config_extra", {})
        (folder / "config.json").write_text(json.dumps({"model_type": "mistral", **config}))
        save_file(self.weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def load(self, folder: Path, **settings: object) -> QuietStarForCausalLM:
        """The model, with the case's own settings."""
        names = ("n_ahead", "n_ahead_talk", "n_passes", "policy_weight", "reinforce_temperature")
        chosen = {name: getattr(self, name) for name in names}
        return QuietStarForCausalLM.from_original(self.write_checkpoint(folder), **{**chosen, **settings})


def load_case(name: str) -> Case:
    """A case of tests/golden by its name."""
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    weights = {}
    for file in settings["weights"]:
        weights |= load_file(FOLDER / file)
    return Case(name, settings, load_file(FOLDER / settings["data"]), weights)


def original_losses(output: QuietStarOutput, case: Case) -> dict[str, Tensor]:
    """nll, policy loss and loss as the released code reduces them: the policy term over L = S - 1 - M columns,
    padding included, then over sampled tokens."""
    L = output.base_nll.shape[1] - 1 - case.n_ahead_talk
    per_token = -output.advantage[..., :L, None] * output.thought_logprob[..., :L, :]
    dqn_loss = per_token.mean((0, 1, 2)).mean()
    return {"nll_loss": output.nll, "dqn_loss": dqn_loss, "loss": output.nll + case.policy_weight * dqn_loss}


def original_names(model: QuietStarForCausalLM) -> dict[str, torch.nn.Parameter]:
    """The released code's parameter names -> ours."""
    names = {name.removeprefix("base_lm."): p for name, p in model.named_parameters() if name.startswith("base_lm.")}
    names |= {n.replace("layers.", "talk_head.0."): p for n, p in model.mixing_head.named_parameters()}
    return names | dict(model.thought_embeddings.named_parameters())

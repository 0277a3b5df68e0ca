"""Cases that the released code produced, and its own reduction of unreduced tensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quietstar import QuietStarForCausalLM, QuietStarOutput

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
KEPT = Path(__file__).resolve().parent / "golden_small"
"""one small case that travels with the tests"""


@dataclass
class Case:
    name: str
    settings: dict
    tensors: dict[str, Tensor]
    weights: Path

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
        save_file(load_file(self.weights), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def load(self, folder: Path, **settings: object) -> QuietStarForCausalLM:
        """The model, with the case's own settings."""
        chosen = {"n_ahead": self.n_ahead, "n_ahead_talk": self.n_ahead_talk, "n_passes": self.n_passes}
        return QuietStarForCausalLM.from_original(self.write_checkpoint(folder), **{**chosen, **settings})


def cases(folder: Path) -> list[str]:
    """Names of the cases in a folder."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load_case(folder: Path, name: str) -> Case:
    settings = json.loads((folder / f"{name}.json").read_text())
    return Case(name, settings, load_file(folder / settings["data"]), folder / settings["weights"])


def original_losses(output: QuietStarOutput, n_ahead_talk: int, policy_weight: float = 1e6) -> dict[str, Tensor]:
    """nll, policy loss and loss as the released code reduces them: the policy term over L = S - 1 - M columns,
    padding included, then over sampled tokens."""
    L = output.base_nll.shape[1] - 1 - n_ahead_talk
    per_token = -output.advantage[..., :L, None] * output.thought_logprob[..., :L, :]
    dqn_loss = per_token.mean((0, 1, 2)).mean()
    return {"nll_loss": output.nll, "dqn_loss": dqn_loss, "loss": output.nll + policy_weight * dqn_loss}


def original_names(model: QuietStarForCausalLM) -> dict[str, torch.nn.Parameter]:
    """The released code's parameter names -> ours."""
    names = {name.removeprefix("base_lm."): p for name, p in model.named_parameters() if name.startswith("base_lm.")}
    names |= {n.replace("layers.", "talk_head.0."): p for n, p in model.mixing_head.named_parameters()}
    return names | dict(model.thought_embeddings.named_parameters())

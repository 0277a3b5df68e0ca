"""Which model a training run trains, and which of its weights."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from quietstar.attention import BACKENDS
from quietstar.errors import SettingsError, need
from quietstar.inference.loading import DTYPES
from quietstar.runs.fields import check_values, option

MODEL = "model"
LORA = "low-rank adapters"


@dataclass(kw_only=True)
class ModelArguments:
    """Which model to train, and which of its weights."""

    model: str = option(
        "mistralai/Mistral-7B-v0.1",
        "base model, or thinking model to train further: hub name, folder, GGUF file, or smollm2-135m (docs/models.md)",
        MODEL,
    )
    original: bool = option(
        False, "train the base model as it is, without thoughts: the baseline; saved as a plain model", MODEL
    )
    dtype: str = option(
        "auto",
        "weights are loaded as: auto (those that train in float32, frozen ones as they are stored), float32 or "
        "bfloat16 (small updates are lost)",
        MODEL,
        DTYPES,
    )
    attention_backend: str = option(
        "auto", f"how branches attend: auto (the fastest), {', '.join(BACKENDS)}", MODEL, ("auto", *BACKENDS)
    )
    trust_remote_code: bool = option(False, "run code that lies beside the model on the hub", MODEL)
    load_in_4bit: bool = option(
        False, "keep the base model's frozen weights in 4 bits (QLoRA, arXiv 2305.14314), beside --lora", LORA
    )
    lora: bool = option(False, "train only low-rank adapters, the mixing head and the thought embeddings", LORA)
    branch_adapters: bool = option(
        False, "train low-rank adapters that act in branches only; the base pass runs without them", LORA
    )
    freeze_base: bool = option(
        False,
        "freeze the base model: mixing head, thought embeddings and --branch_adapters train, and predictions without "
        "thoughts do not change by a bit",
        LORA,
    )
    lora_r: int = option(16, "rank of the adapters", LORA)
    lora_alpha: int = option(32, "scale of the adapters, divided by their rank", LORA)
    lora_dropout: float = option(0.0, "dropout in front of the adapters", LORA)
    lora_target_modules: list[str] | None = option(
        None, "names of modules that get adapters (default: all linear layers)", LORA
    )
    merge: bool = option(False, "merge the adapters into the weights at the end, and save those", LORA)

    def __post_init__(self) -> None:
        check_values(self)
        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise SettingsError(
                f"lora_r is {self.lora_r}, lora_alpha {self.lora_alpha}, lora_dropout {self.lora_dropout}; give a "
                "rank of at least 1, a scale above 0 and a dropout from 0 to below 1"
            )
        if self.load_in_4bit and not (self.lora or self.freeze_base):
            raise SettingsError(
                "load_in_4bit was given without lora, and weights in 4 bits do not train; add --lora, or --freeze_base"
            )
        if self.freeze_base and self.lora:
            raise SettingsError(
                "freeze_base and lora were both given, and adapters of lora change the base pass; give "
                "--branch_adapters in place of --lora"
            )
        if given := [name for name in ("branch_adapters", "freeze_base") if self.original and getattr(self, name)]:
            raise SettingsError(f"original trains without thoughts, but {', '.join(given)} was given; leave one out")
        if self.merge and not self.lora:
            raise SettingsError("merge was given without lora, and there is nothing to merge; add --lora")

    def loading_settings(self) -> dict[str, Any]:
        """Return settings of the base model's weights, as `from_pretrained` takes them."""
        settings: dict[str, Any] = {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        if self.load_in_4bit:
            need("bitsandbytes", "quant", "weights in 4 bits")
            kind = torch.float32 if self.dtype == "float32" else torch.bfloat16
            settings["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=kind,
                # FSDP only shards tensors of the dtype that it computes with.
                bnb_4bit_quant_storage=kind if os.environ.get("ACCELERATE_USE_FSDP") == "true" else torch.uint8,
            )
        return settings

    def adapter_settings(self) -> dict[str, dict[str, Any]]:
        """Return fields of QuietStarConfig for the adapters: settings as `peft.LoraConfig` takes them."""
        settings: dict[str, Any] = {"r": self.lora_r, "lora_alpha": self.lora_alpha, "lora_dropout": self.lora_dropout}
        settings |= {"target_modules": self.lora_target_modules} if self.lora_target_modules else {}
        return {name: dict(settings) for name in ("lora", "branch_adapters") if getattr(self, name)}

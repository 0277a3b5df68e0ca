"""The options of `quietstar plan`: a model, settings of a run as in `quietstar train`, and GPUs."""

from dataclasses import dataclass, replace

import torch

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.inference.loading import DTYPES
from quietstar.runs.fields import check_above_0, check_at_least, check_values, option
from quietstar.scaling.memory import Numbers
from quietstar.scaling.shape import Shape
from quietstar.scaling.step import Step
from quietstar.training.arguments import REFERENCES, check_ema_device
from quietstar.training.curriculum import CurriculumArguments

MODEL = "model"
METHOD = "method (arXiv 2403.09629)"
RECIPE = "recipe"
MACHINE = "machine"
GROUPS = (MODEL, METHOD, RECIPE, MACHINE)
"""groups of options, in the order of `--help`"""

AT_LEAST = {
    "gpus": 1,
    "nodes": 1,
    "lora_r": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 2,
}


@dataclass(kw_only=True)
class PlanArguments:
    """The run to plan.

    Raises:
        SettingsError: a value is impossible.
    """

    model: str = option(
        "mistralai/Mistral-7B-v0.1", "base or thinking model: hub name, folder, GGUF file, or smollm2-135m", MODEL
    )
    dtype: str = option(
        "auto",
        f"dtype of the weights: {', '.join(DTYPES)} (auto: float32 for trained weights, as stored for frozen ones)",
        MODEL,
        DTYPES,
    )
    trust_remote_code: bool = option(False, "run code that comes with the model on the hub", MODEL)
    lora: bool = option(False, "train only low-rank adapters, mixing head and thought embeddings", MODEL)
    lora_r: int = option(16, "rank of the adapters", MODEL)
    load_in_4bit: bool = option(False, "store frozen matrices of the layers in 4 bits; needs --lora", MODEL)

    n_ahead: int | None = option(None, "tokens of a thought, start and end included (default: 8)", METHOD)
    n_ahead_talk: int | None = option(None, "true tokens that each thought is rewarded for (default: 4)", METHOD)
    n_passes: int | None = option(None, "thoughts sampled for each position (default: 2)", METHOD)
    curriculum: str | None = option(
        None, "stages as n_ahead:n_ahead_talk, such as 16:8,12:4,8:4, as quietstar train takes them", METHOD
    )
    think_fraction: float = option(1.0, "fraction of the positions to think at", METHOD)
    reference: str = option("self", "self, or ema for a moving average of the weights that train", METHOD, REFERENCES)
    ema_device: str | None = option(
        None, "cpu keeps the moving average there (default: where the model is)", METHOD, ("cpu",)
    )

    max_length: int = option(256, "tokens of a sequence", RECIPE)
    per_device_train_batch_size: int = option(1, "sequences in a batch on each device", RECIPE)
    gradient_accumulation_steps: int = option(8, "batches whose gradients are accumulated for one step", RECIPE)
    gradient_checkpointing: bool = option(
        False, "recompute activations instead of keeping them (default: compare both)", RECIPE
    )
    bf16: bool | None = option(None, "train in bfloat16 (default: yes)", RECIPE)

    gpus: int = option(1, "GPUs on each node", MACHINE)
    nodes: int = option(1, "number of nodes", MACHINE)
    memory: float = option(80.0, "memory of each GPU, GiB", MACHINE)
    tflops: float | None = option(
        None, "TFLOP/s that one GPU reaches in training; needed to estimate durations", MACHINE
    )
    bandwidth: float | None = option(
        None, "GB/s that one GPU receives from the others; needed to estimate durations", MACHINE
    )

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least(self, AT_LEAST, "whole number")
        check_above_0(self, ("memory", "tflops", "bandwidth"))
        if not 0 <= self.think_fraction <= 1:
            raise SettingsError(f"think_fraction is {self.think_fraction}; give a share from 0 to 1")
        check_ema_device(self.reference, self.ema_device)
        if self.load_in_4bit and not self.lora:
            raise SettingsError("load_in_4bit was given without lora, but 4-bit weights cannot be trained; add --lora")
        QuietStarConfig(**self.method)  # raises for impossible values
        if self.curriculum is not None and (self.n_ahead is not None or self.n_ahead_talk is not None):
            raise SettingsError("n_ahead and n_ahead_talk are those of the curriculum's stages; leave one out")
        CurriculumArguments(curriculum=self.curriculum)

    @property
    def method(self) -> dict[str, int]:
        """The method's settings that were given, by their names in QuietStarConfig."""
        names = ("n_ahead", "n_ahead_talk", "n_passes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def stages(self) -> "list[PlanArguments]":
        """The run of each stage of the curriculum; this run alone without one."""
        if self.curriculum is None:
            return [self]
        lengths = CurriculumArguments(curriculum=self.curriculum).lengths
        return [
            replace(self, curriculum=None, n_ahead=n_ahead, n_ahead_talk=n_ahead_talk)
            for n_ahead, n_ahead_talk in lengths
        ]

    @property
    def n_gpus(self) -> int:
        """Number of GPUs on all nodes."""
        return self.gpus * self.nodes

    @property
    def lora_settings(self) -> dict[str, int] | None:
        """Arguments of `peft.LoraConfig`, or None without adapters."""
        return {"r": self.lora_r} if self.lora else None

    def numbers(self, shape: Shape) -> Numbers:
        """Return the precision of a model's weights and of matrix products."""
        stored = shape.dtype if self.lora else torch.float32  # as `quietstar train` loads them
        weights = stored if self.dtype == "auto" else getattr(torch, self.dtype)
        return Numbers(weights=weights, autocast=self.bf16 is not False)

    def step(self, checkpointing: bool) -> Step:
        """Return the sizes of one forward and backward pass."""
        config = QuietStarConfig(**self.method)
        return Step(
            B=self.per_device_train_batch_size,
            S=self.max_length,
            n_ahead=config.n_ahead,
            M=config.n_ahead_talk,
            P=config.n_passes,
            fraction=self.think_fraction,
            checkpointing=checkpointing,
        )

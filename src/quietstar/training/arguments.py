"""What a training run is: the method's settings, the recipe, and everything that transformers' Trainer takes."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from quietstar.config import MIXING, THOUGHT_SOURCES, QuietStarConfig, check_n_ahead
from quietstar.errors import SettingsError
from quietstar.evaluation.tasks import TASKS, parse_data
from quietstar.learn import ADVANTAGES, PolicyWeight
from quietstar.policy import ThinkPolicy
from quietstar.runs.fields import check_at_least, check_values, option
from quietstar.training.model_arguments import LORA, MODEL

METHOD = "method (arXiv 2403.09629)"
RECIPE = "recipe"
RUN = "run"
AT_LEAST_0 = """
thoughts_shown eval_report_rows learning_rate head_learning_rate weight_decay skip_spikes kl_weight
"""
AT_LEAST_1 = """
max_bad_steps eval_limit per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
policy_epochs think_tokens
"""
LOWER_IS_BETTER = re.compile(r"(^|_)(loss|nll|drift)(_|$)")
"""names of figures of which a best model has the lowest; transformers knows loss alone"""
REFERENCES = ("self", "ema")
REPORT_TO = ("none", "all", *INTEGRATION_TO_CALLBACK)
EMA_DECAY = 0.999
GROUPS = (MODEL, "text", METHOD, LORA, RECIPE, RUN)
"""the order in which `--help` lists our own options"""


@dataclass(kw_only=True)
class QuietStarTrainingArguments(TrainingArguments):
    """Arguments of QuietStarTrainer. Defaults are the paper's recipe, except for three: see recipes/quietstar.yaml.

    The settings of the method are written into the model's config; None leaves what the model has. Fields that are not
    listed here are those of `transformers.TrainingArguments`, with its defaults.

    Raises:
        SettingsError: a value is impossible.
    """

    n_ahead: int | None = option(
        None, "tokens of a thought, start and end included: n_ahead - 2 are sampled (default: 8)", METHOD
    )
    n_ahead_min: int | None = option(
        None, "draw each step's n_ahead from this one up, so that one model serves all lengths", METHOD
    )
    n_ahead_talk: int | None = option(None, "true tokens that judge each thought in training (default: 4)", METHOD)
    learn_to_end: bool = option(False, "a thought may end early, which is learned with its tokens", METHOD)
    length_price: float | None = option(
        None, "nats that a reward loses for each sampled token of its thought (default: 0)", METHOD
    )
    n_passes: int | None = option(None, "thoughts sampled for each position in training (default: 2)", METHOD)
    mixing: str | None = option(
        None,
        "head mixes predictions without and with a thought; thought: only with (default: head)",
        METHOD,
        MIXING,
    )
    think_fraction: float = option(
        1.0, "share of positions to think at, redrawn each step so that long texts fit", METHOD
    )
    think_tokens: int | None = option(None, "positions of each row to think at, instead of --think_fraction", METHOD)
    think: str | None = option(None, "think where a policy would, such as entropy:2.5, or at a share of these", METHOD)
    thought_source: str | None = option(
        None,
        "what thoughts consist of: sampled, or a control: filler, random, copy (default: sampled)",
        METHOD,
        THOUGHT_SOURCES,
    )
    filler_text: str | None = option(None, "filler thoughts repeat this text's first token (default: ...)", METHOD)
    thought_temperature: float | None = option(
        None, "temperature at which thoughts are sampled in training (default: 1)", METHOD
    )
    reinforce_temperature: float | None = option(
        None, "temperature of the log-probabilities in the policy loss (default: 1; the paper's is 3)", METHOD
    )
    advantage: str | None = option(
        None, "positive (the paper's, the default), centered, leave_one_out or standardized", METHOD, ADVANTAGES
    )
    reference: str = option(
        "self", "whose prediction rewards subtract: self, or ema, a moving average", METHOD, REFERENCES
    )
    ema_decay: float = option(EMA_DECAY, "share of the moving average that a step leaves as it is", METHOD)
    ema_device: str | None = option(
        None, "cpu keeps the moving average there (default: where the model is)", METHOD, ("cpu",)
    )
    kl_weight: float = option(0.0, "weight of the thoughts' divergence from those of the moving average", METHOD)
    policy_epochs: int = option(1, "steps that learn from one set of thoughts, on the same rows", METHOD)
    clip_ratio: float | None = option(
        None, "PPO's clipping: the ratio of a token's probabilities earns nothing beyond 1 +- this", METHOD
    )
    nll_weight: float | None = option(
        None, "weight of the nll beside the policy loss; 0 learns from rewards alone (default: 1)", METHOD
    )
    policy_weight: str | None = option(
        None,
        "weight of the policy loss beside the nll: a number, or balanced:R, for a gradient R times the nll's (default: "
        "balanced:0.1; the paper's is 1e6)",
        METHOD,
    )
    base_loss_weight: float | None = option(
        None, "share of the base model's own nll in the loss; the talk loss has the rest (default: 0.5)", METHOD
    )
    initial_thought_text: str | None = option(
        None, "start and end of a thought begin as this text's first token (default: ---)", METHOD
    )

    learning_rate: float = option(1e-6, "peak learning rate of AdamW", RECIPE)
    head_learning_rate: float | None = option(
        None, "peak learning rate of mixing head and thought embeddings (default: --learning_rate)", RECIPE
    )
    lr_scheduler_type: str = option(
        "constant_with_warmup", "how the learning rate moves", RECIPE, [each.value for each in SchedulerType]
    )
    warmup_steps: float = option(20, "steps over which the learning rate rises to its peak", RECIPE)
    weight_decay: float = option(1e-3, "weight decay of AdamW", RECIPE)
    max_grad_norm: float = option(1.0, "gradient norm is clipped to this", RECIPE)
    clip_heads_apart: bool = option(
        True,
        "clip the gradients of mixing head and thought embeddings apart from the model's, which are far smaller",
        RECIPE,
    )
    max_steps: int = option(100, "optimizer steps; -1 trains for num_train_epochs instead", RECIPE)
    per_device_train_batch_size: int = option(1, "rows in memory at once, on each device", RECIPE)
    gradient_accumulation_steps: int = option(8, "batches whose gradients are added up for one step", RECIPE)
    bf16: bool | None = option(None, "train in bfloat16 (default: where a GPU can)", RECIPE)

    output_dir: str | None = option(
        None, "folder of the run, without an earlier one (default: runs/MODEL-N-ahead)", RUN, is_first=True
    )
    overwrite: bool = option(False, "empty an output_dir that holds an earlier run", RUN)
    eval_on_start: bool = option(True, "evaluate before the first step, so that a broken set-up shows at once", RUN)
    eval_strategy: str = option("steps", "when to evaluate: no, steps or epoch", RUN, ("no", "steps", "epoch"))
    eval_steps: float | None = option(50, "steps between evaluations on held-out text", RUN)
    eval_tasks: list[str] = option([], f"tasks to answer at every evaluation: {', '.join(TASKS)}", RUN, TASKS)
    eval_data: list[str] = option([], "local files of --eval_tasks instead of the hub's, such as gsm8k=FILE", RUN)
    eval_limit: int | None = option(200, "items of each of --eval_tasks at most", RUN)
    eval_report_rows: int = option(0, "held-out rows in the report of thoughts of each evaluation; 0 writes none", RUN)
    logging_steps: float = option(10, "steps between lines of figures", RUN)
    save_steps: float = option(100, "steps between checkpoints", RUN)
    save_total_limit: int | None = option(1, "checkpoints to keep, the latest", RUN)
    dry_run: bool = option(
        False, "take three steps on full rows, report their memory and time, save nothing, and stop", RUN
    )
    resume: bool = option(False, "resume bit by bit from output_dir's latest complete checkpoint, or begin", RUN)
    allow_changes: bool = option(False, "resume with other settings than the run had, as another run", RUN)
    max_bad_steps: int = option(
        5, "stop after this many skipped steps in a row: those whose loss or gradient is not finite", RUN
    )
    skip_spikes: float = option(
        0.0,
        "also skip steps whose loss or gradient norm lies this many robust standard deviations above the median of the "
        "latest 128 steps, such as 10; 0 skips none",
        RUN,
    )
    stop_when_unhealthy: bool = option(
        False,
        "end the run at the first warning of a health check, with the best checkpoint so far; checkpoints are then "
        "written at evaluations",
        RUN,
    )
    health_checks: bool = option(True, "warn of what goes wrong when a model learns to think (docs/training.md)", RUN)
    auto_micro_batch: bool = option(False, "if memory is short, halve the rows at once, and keep those of a step", RUN)
    report_to: list[str] = option(
        ["none"], "trackers of figures and reports: tensorboard, wandb, mlflow, trackio", RUN, REPORT_TO
    )
    thoughts_shown: int = option(6, "thoughts to print at every evaluation", RUN)
    seed: int = option(42, "seed of windows, thoughts and everything else that is random", RUN)

    restore_callback_states_from_checkpoint: bool = option(
        True, "callbacks, such as early stopping, keep their states in a resumed run"
    )
    logging_nan_inf_filter: bool = option(False, "hide losses that are not finite; such steps are skipped in any case")
    remove_unused_columns: bool = option(False, "drop columns that forward does not take")

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 <= self.think_fraction <= 1:
            raise SettingsError(f"think_fraction is {self.think_fraction}; give a share from 0 to 1")
        if self.think_tokens is not None and self.think_fraction != 1:
            raise SettingsError(
                f"think_fraction is {self.think_fraction}, and think_tokens {self.think_tokens}; both say at how many "
                "positions to think: leave one out"
            )
        if self.overwrite and (self.resume or self.named_checkpoint):
            raise SettingsError("overwrite empties output_dir, and resume needs what is in it; leave one out")
        if self.resume and self.named_checkpoint:
            raise SettingsError(
                f"resume takes the latest checkpoint, and resume_from_checkpoint names {self.resume_from_checkpoint}; "
                "give one of the two"
            )
        if unused := sorted(parse_data(self.eval_data, "eval_data").keys() - set(self.eval_tasks)):
            raise SettingsError(f"eval_data was given for {', '.join(unused)}, which is not among eval_tasks; add it")
        check_at_least(self, dict.fromkeys(AT_LEAST_0.split(), 0) | dict.fromkeys(AT_LEAST_1.split(), 1))
        self._check_objective()
        if self.think is not None:
            ThinkPolicy.parse(self.think)
        if self.max_steps < 1 and self.max_steps != -1:
            raise SettingsError(
                f"max_steps is {self.max_steps}; give a number of at least 1, or -1 for num_train_epochs"
            )
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        if self.policy_weight is not None:
            self.policy_weight = PolicyWeight.parse(self.policy_weight).setting  # type: ignore[assignment]
        QuietStarConfig(**self.method_settings())  # raises if a setting is impossible
        if self.n_ahead_min is not None:
            check_n_ahead(self.n_ahead_min, "n_ahead_min")
        if self.n_ahead is not None:
            self.check_n_ahead_min(self.n_ahead)
        if self.stop_when_unhealthy and not self.health_checks:
            raise SettingsError("stop_when_unhealthy was given without health_checks; leave one out")
        if self.stop_when_unhealthy and self.eval_strategy != "no":  # the best checkpoint is one of an evaluation
            self.load_best_model_at_end = True
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.logging_steps
        if getattr(self, "data_seed", None) is None:  # Processes sample their own thoughts in one order of rows.
            self.data_seed: int | None = self.seed
        if self.bf16 is None:
            self.bf16 = not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better: bool | None = not LOWER_IS_BETTER.search(self.metric_for_best_model)
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # There is no memory to copy to, and torch would warn.
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False  # Rows of different lengths cannot be dispatched as one.

    def _check_objective(self) -> None:
        check_ema_device(self.reference, self.ema_device)
        if not 0 <= self.ema_decay <= 1:
            raise SettingsError(f"ema_decay is {self.ema_decay}; give a share from 0 to 1")
        for name, default in {"kl_weight": 0, "ema_decay": EMA_DECAY}.items():
            if self.reference != "ema" and (value := getattr(self, name)) != default:
                raise SettingsError(f"{name} is {value}, and there is no moving average; add --reference ema")
        if self.clip_ratio is not None and not 0 < self.clip_ratio < 1:
            raise SettingsError(f"clip_ratio is {self.clip_ratio}; give a number above 0, below 1")
        if self.kl_weight and self.thought_source not in (None, "sampled"):
            raise SettingsError(
                f"kl_weight is {self.kl_weight}, and {self.thought_source} thoughts have no policy loss"
            )
        if self.policy_epochs == 1 and self.clip_ratio is not None:
            raise SettingsError(
                f"clip_ratio is {self.clip_ratio}, and policy_epochs 1: the first step of a set of thoughts is never "
                "clipped; give a policy_epochs of at least 2"
            )

    @property
    def thinks_everywhere(self) -> bool:
        """Whether training thinks at every position that has a label to predict."""
        return self.think_fraction == 1 and self.think_tokens is None and self.think is None

    @property
    def named_checkpoint(self) -> str | None:
        """The checkpoint that resume_from_checkpoint names: None for false; empty for true, which is the latest."""
        said = str(self.resume_from_checkpoint or "false")
        return {"false": None, "none": None, "true": ""}.get(said.lower(), said)

    def check_n_ahead_min(self, n_ahead: int) -> None:
        """Raise SettingsError if n_ahead_min is not a length of thoughts from 2 to a model's n_ahead."""
        if self.n_ahead_min is not None and self.n_ahead_min > n_ahead:
            raise SettingsError(f"n_ahead_min is {self.n_ahead_min}, above n_ahead {n_ahead}; give 2 to {n_ahead}")

    def method_settings(self) -> dict[str, Any]:
        """Return the settings of the method that were given, by their names in QuietStarConfig."""
        given = {name: getattr(self, name) for name in METHOD_SETTINGS}
        return {name: value for name, value in given.items() if value is not None and value is not False}


def check_ema_device(reference: str, ema_device: str | None) -> None:
    """Raise SettingsError if there is a place for a moving average that is not kept."""
    if ema_device is not None and reference != "ema":
        raise SettingsError("ema_device is cpu, and there is no moving average; add --reference ema")


METHOD_SETTINGS = (
    "n_ahead",
    "n_ahead_talk",
    "learn_to_end",
    "length_price",
    "n_passes",
    "mixing",
    "thought_source",
    "filler_text",
    "thought_temperature",
    "reinforce_temperature",
    "advantage",
    "policy_weight",
    "nll_weight",
    "base_loss_weight",
    "initial_thought_text",
)

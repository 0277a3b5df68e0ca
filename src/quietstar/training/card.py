"""The card of a trained model, README.md: what it is, how to load it, what was measured, and whose it is.

The Hugging Face hub shows it, and reads the fields at its beginning.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from quietstar.base.origin import CARD, OURS, Origin, hub_name, origin_of
from quietstar.config import QuietStarConfig
from quietstar.evaluation.report import CAVEAT
from quietstar.reporting.interval import Estimate
from quietstar.runs.folders import versions, write_whole
from quietstar.training.arguments import METHOD_SETTINGS

PAPER = "2403.09629"
LISTED = """
dataset text_column template max_length max_steps num_train_epochs per_device_train_batch_size
gradient_accumulation_steps learning_rate head_learning_rate lora lora_r freeze_base branch_adapters think_fraction seed
objective reward_weight teacher_think teacher_passes teacher_temperature
"""
"""settings of a run that its card lists, besides those of the method"""
TABLE_OF_NLL = "| | nats a token | difference (95 % interval over rows) |\n|---|---|---|"
LESS_IS_BETTER = "Less is better."
NOT_OF_THOUGHTS = (
    f"{LESS_IS_BETTER} A change since before training is not of thoughts alone: the text is learned, too. {CAVEAT}"
)


def write_card_of(trainer: Any, folder: Path | None = None, **kwargs: Any) -> None:
    """Write the card of a QuietStarTrainer's model, on its first process; see `write_card`.

    Args:
        trainer: whose model it is.
        folder: with the model; the run's own by default.
        kwargs: what transformers would say on its own card.
    """
    if trainer.is_world_process_zero():
        settings = {"model": trainer.model.base_lm.name_or_path} | trainer.args.to_dict() | trainer.settings
        write_card(folder or trainer.folder, settings, evaluation_of(trainer) or {})


def evaluation_of(trainer: Any) -> dict[str, float] | None:
    """Return the held-out figures of the last step, or of the best one if its model is kept; None if there are none."""
    step = trainer.state.global_step
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        step = trainer.state.best_global_step
    for line in reversed(trainer.state.log_history):
        if "eval_loss" in line and line["step"] == step:
            return {name: value for name, value in line.items() if name.startswith("eval_")}
    return None


def write_card(
    folder: Path, settings: Mapping[str, Any], figures: Mapping[str, float], *, notes: Sequence[str] = ()
) -> None:
    """Write the card of the model in a folder, unless there is one that somebody else has written.

    Args:
        folder: with the model; what it is, its config says.
        settings: of the run, by the names of options; its model's name is that of the model that it began with.
        figures: of held-out text, by the names that are logged (`eval_base_nll`, ...).
        notes: further sentences about what was measured.
    """
    file = folder / CARD
    if file.exists() and OURS not in file.read_text(encoding="utf-8", errors="replace"):
        return
    config, _ = PreTrainedConfig.get_config_dict(folder)
    thinks = config if config.get("model_type") == QuietStarConfig.model_type else None
    name, origin = " ".join(folder.resolve().name.split()), origin_of(str(settings.get("model") or ""))
    dataset = settings.get("dataset")
    data = ModelCardData(
        base_model=origin.on_hub,
        license=origin.license,
        license_name=origin.license_name,
        library_name="transformers" if thinks is None else "quietstar",
        pipeline_tag="text-generation",
        datasets=hub_name(str(dataset)) if dataset else None,
        tags=["quiet-star"],
        model_name=name,
        eval_results=_results(figures),
    )
    parts = [
        f"# {name}",
        _what(thinks, origin, settings),
        f"## Use\n\n{_use(thinks is not None)}",
        _measured(figures, notes),
        f"## How it was trained\n\n{_table(_listed(settings, thinks or {}))}",
        f"## Licence\n\n{_licence(origin)}",
        f"## Source\n\n{_SOURCE}",
    ]
    write_whole(file, f"---\n{data.to_yaml()}\n---\n\n{OURS}\n\n" + "\n\n".join(part for part in parts if part) + "\n")


_SOURCE = f"""Quiet-STaR: Language Models Can Teach Themselves to Think Before Speaking. Eric Zelikman, Georges Harik,
Yijia Shao, Varuna Jayasiri, Nick Haber, Noah D. Goodman. 2024. [arXiv:{PAPER}](https://arxiv.org/abs/{PAPER})"""


def _what(thinks: Mapping[str, Any] | None, origin: Origin, settings: Mapping[str, Any]) -> str:
    made_of = f"[{origin.on_hub}](https://huggingface.co/{origin.on_hub})" if origin.on_hub else origin.name
    if thinks is None:
        taught = settings.get("teacher_digest")
        how = "taught by a thinking model" if taught else "trained without thoughts"
        return f"An ordinary language model, made of {made_of} and {how}. It needs no code besides transformers."
    return (
        f"A language model that thinks before it speaks, made of {made_of}: after a token it writes a hidden thought "
        f"of up to {thinks['n_ahead'] - 2} tokens. Its next prediction is a mix of what it would have said without the "
        "thought and with it."
    )


def _use(thinks: bool) -> str:
    first = "import quietstar  # makes the model known to transformers\n" if thinks else ""
    return f"""With {"quietstar and " if thinks else ""}transformers installed:

```python
{first}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_MODEL")  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained("THIS_MODEL")
inputs = tokenizer("Two dozen eggs make", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=16)[0]))
```"""


def _results(figures: Mapping[str, float]) -> list[EvalResult] | None:
    named = {"eval_base_nll": "nats a token, without thoughts", "eval_talk_nll_0": "nats a token, with thoughts"}
    if "eval_talk_nll_0" not in figures:
        named = {"eval_base_nll": "nats a token"}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name="held-out text",
            metric_type="nll",
            metric_name=words,
            metric_value=round(figures[figure], 4),
        )
        for figure, words in named.items()
        if math.isfinite(figures.get(figure, math.nan))
    ] or None


def _measured(figures: Mapping[str, float], notes: Sequence[str]) -> str:
    """Return the section about held-out text; nothing if nothing was measured."""
    before, without, now = (figures.get(f"eval_{name}") for name in ("nll_before", "base_nll", "talk_nll_0"))
    rows = []
    if before is not None:
        rows.append(f"| before training | {before:.4f} | |")
    if without is not None:
        words = "after training" if now is None else "after training, without thoughts"
        rows.append(f"| {words} | {without:.4f} | {_estimate(figures, 'eval_drift', 'before')} |")
    if now is not None:
        change = _estimate(figures, "eval_thought_gain", "without", sign=-1)
        rows.append(f"| after training, with thoughts | {now:.4f} | {change} |")
    parts = ["\n".join([TABLE_OF_NLL, *rows]), LESS_IS_BETTER if now is None else NOT_OF_THOUGHTS] if rows else []
    return "\n\n".join(["## Held-out text", *parts, *notes]) if rows or notes else ""


def _estimate(figures: Mapping[str, float], name: str, beside: str, sign: int = 1) -> str:
    """Return a figure with its interval as text, or nothing if it has none."""
    if f"{name}_low" not in figures:
        return ""
    low, high = sorted(sign * figures[f"{name}_{end}"] for end in ("low", "high"))
    return f"{Estimate(sign * figures[name], low, high, n=0).signed()} beside {beside}"


def _listed(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the card lists: those of the method, and of the run."""
    found = {name: config[name] for name in METHOD_SETTINGS if name in config}
    found |= {name: settings[name] for name in LISTED.split() if name in settings}
    found.pop("num_train_epochs" if (found.get("max_steps") or 0) > 0 else "max_steps", None)
    if dataset := found.get("dataset"):
        found["dataset"] = hub_name(str(dataset)) or Path(str(dataset)).name
    adapters = {name: config[name] for name in ("lora", "branch_adapters") if isinstance(config.get(name), Mapping)}
    if adapters or not found.get("lora"):
        found.pop("lora_r", None)
    found |= {name: f"r {given['r']}, lora_alpha {given['lora_alpha']}" for name, given in adapters.items()}
    return {name: value for name, value in found.items() if value not in (None, "") and value is not False} | versions()


def _table(rows: Mapping[str, Any]) -> str:
    def cell(value: Any) -> str:
        return f"`{value}`".replace("\n", "\\n").replace("|", "\\|") if "`" not in str(value) else str(value)

    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows.items())])


def _licence(origin: Origin) -> str:
    if licence := origin.license_name or origin.license:
        return f"{licence}: the licence of {origin.name} also holds for what was made of it."
    return f"The licence of {origin.name} also holds for what was made of it. It was not found as this was written."

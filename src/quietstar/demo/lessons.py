"""The demo's two trainings: a tiny base model learns the language, then Quiet-STaR teaches it to think."""

from dataclasses import dataclass
from typing import Any

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from quietstar.demo.language import Lines
from quietstar.model import QuietStarForCausalLM
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments, TextCollator

SIZE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
"""size of the base model: too shallow to compute five moves between a question and its answer"""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long and how fast to train."""

    output_dir: str
    seed: int
    steps: int
    batch_size: int
    """lines in each step"""
    learning_rate: float
    """at its peak, after a tenth of the steps"""
    schedule: str = "linear"
    """how it moves from there, as transformers names it"""


def learn_language(
    course: Course,
    lines: list[str],
    tokenizer: PreTrainedTokenizerFast,
    watch: TrainerCallback,
    n_layers: int = SIZE["num_hidden_layers"],
) -> PreTrainedModel:
    """Return a base model, trained on the lines."""
    set_seed(course.seed)
    base_lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SIZE | {"num_hidden_layers": n_layers},
        )
    )
    if course.steps == 0:
        return base_lm
    trainer = Trainer(
        model=base_lm,
        args=TrainingArguments(adam_beta2=0.98, remove_unused_columns=False, **settings(course)),
        train_dataset=Lines(lines, tokenizer),
        data_collator=TextCollator(tokenizer.pad_token_id),
        callbacks=[watch],
    )
    train(trainer)
    return base_lm


def learn_to_think(
    course: Course,
    model: QuietStarForCausalLM,
    lines: list[str],
    tokenizer: PreTrainedTokenizerFast,
    watch: TrainerCallback,
    *,
    clip_heads_apart: bool,
) -> None:
    """Train a thinking model on the lines, thinking after every token."""
    if course.steps == 0:
        return
    trainer = QuietStarTrainer(
        model=model,
        args=QuietStarTrainingArguments(
            gradient_accumulation_steps=1,
            clip_heads_apart=clip_heads_apart,
            health_checks=False,  # they warn of the paper's policy weight, and the demo itself tells what comes of it
            eval_strategy="no",
            **settings(course),
        ),
        train_dataset=Lines(lines, tokenizer),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    train(trainer)


def settings(course: Course) -> dict[str, Any]:
    """Return the arguments that both trainers share. A GPU would not make a model this small any faster."""
    return {
        "output_dir": course.output_dir,
        "max_steps": course.steps,
        "per_device_train_batch_size": course.batch_size,
        "learning_rate": course.learning_rate,
        "warmup_steps": 0.1,
        "lr_scheduler_type": course.schedule,
        "seed": course.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }


def train(trainer: Trainer) -> None:
    """Train without the lines that a trainer prints if it shows no bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()

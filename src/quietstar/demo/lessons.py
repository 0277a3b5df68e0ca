"""The demo's two trainings: a tiny base model learns the language, then Quiet-STaR teaches it to think."""

from collections.abc import Callable
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

from quietstar.demo.arguments import DemoArguments
from quietstar.demo.language import Language, Lines
from quietstar.model import QuietStarForCausalLM
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments, TextCollator

SIZE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
"""size of the base model: too shallow to compute five moves between a question and its answer"""


def learn_language(
    args: DemoArguments,
    language: Language,
    problems: list[str],
    tokenizer: PreTrainedTokenizerFast,
    watch: TrainerCallback,
) -> PreTrainedModel:
    """Return a base model, trained on two lines per problem: one with its way spelled out, one without."""
    set_seed(args.seed)
    base_lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SIZE,
        )
    )
    if args.steps == 0:
        return base_lm
    lines = [language.line(problem, spelled=spelled) for problem in problems for spelled in (True, False)]
    trainer = Trainer(
        model=base_lm,
        args=TrainingArguments(
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,
            adam_beta2=0.98,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            **common_settings(args),
        ),
        train_dataset=Lines(lines, tokenizer),
        data_collator=TextCollator(tokenizer.pad_token_id),
        callbacks=[watch],
    )
    train(trainer)
    return base_lm


def learn_to_think(
    args: DemoArguments,
    base_lm: PreTrainedModel,
    language: Language,
    problems: list[str],
    tokenizer: PreTrainedTokenizerFast,
    watch: Callable[[QuietStarForCausalLM], TrainerCallback],
) -> QuietStarForCausalLM:
    """Return a thinking model around the base model, trained on unspelled lines, thinking after every token.

    `watch` returns a callback for the training of the model that it is given.
    """
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, **args.method_settings())
    if args.thought_steps == 0:
        return model
    trainer = QuietStarTrainer(
        model=model,
        args=QuietStarTrainingArguments(
            max_steps=args.thought_steps,
            per_device_train_batch_size=args.thought_batch_size,
            learning_rate=args.thought_learning_rate,
            warmup_steps=0.1,
            gradient_accumulation_steps=1,
            clip_heads_apart=False,  # the demo trains as the paper does
            health_checks=False,  # they warn of the paper's policy weight, and the demo itself tells what comes of it
            eval_strategy="no",
            **common_settings(args),
        ),
        train_dataset=Lines([language.line(problem, spelled=False) for problem in problems], tokenizer),
        processing_class=tokenizer,
        callbacks=[watch(model)],
    )
    train(trainer)
    return model


def common_settings(args: DemoArguments) -> dict[str, Any]:
    """Return the arguments that both trainers share. A GPU would not make a model this small any faster."""
    return {
        "output_dir": args.output_dir,
        "lr_scheduler_type": "linear",
        "seed": args.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }


def train(trainer: Trainer) -> None:
    """Train without the lines that a trainer prints if it shows no bar."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()

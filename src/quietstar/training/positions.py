"""Where to think in a training step, if not everywhere, and for how long."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quietstar.learn import IGNORED
from quietstar.output import QuietStarOutput
from quietstar.runs.seeds import mixed_seed
from quietstar.training.arguments import QuietStarTrainingArguments


def add_think_at(
    batches: list[dict[str, Any]],
    args: QuietStarTrainingArguments,
    *,
    step: int,
    rank: int,
    run: Callable[..., QuietStarOutput],
) -> None:
    """Add think_at [B, S] to those batches of a step that have none, unless thoughts are to be everywhere.

    It differs between steps, batches and ranks, and is the same if a run is repeated or resumed. With a policy, `run`,
    the model's forward pass, says first where it would think.
    """
    if args.thinks_everywhere:
        return
    for index, batch in enumerate(batches):
        if "think_at" not in batch:
            generator = torch.Generator().manual_seed(mixed_seed(args.seed, step, index, rank))
            allowed = None
            if args.think is not None:
                with torch.no_grad():  # The shortest thoughts: they are not needed.
                    own = torch.Generator(batch["labels"].device).manual_seed(generator.initial_seed())
                    how = {"think": args.think, "n_passes": 1, "loss_only": True, "use_cache": False, "generator": own}
                    output = run(**batch | how | {"n_ahead": 2})
                allowed = output.think_at
            share = args.think_fraction, generator, args.think_tokens
            batch["think_at"] = draw_positions(batch["labels"], *share, allowed=allowed)


def add_n_ahead(batches: list[dict[str, Any]], lowest: int | None, highest: int, *, seed: int, step: int) -> None:
    """Add n_ahead to those batches of a step that have no thoughts: any of lowest to highest, each as likely.

    It differs between steps. All batches of a step on all ranks have the same, also if a run is repeated or resumed.
    Without a lowest one, all thoughts have the model's length, and nothing is added.
    """
    if lowest is None:
        return
    n_ahead = lowest + mixed_seed(seed, step, highest) % (highest - lowest + 1)
    for batch in batches:
        if "thoughts" not in batch:
            batch["n_ahead"] = n_ahead


def draw_positions(
    labels: Tensor,
    fraction: float,
    generator: torch.Generator,
    n_tokens: int | None = None,
    *,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return a random share of each row's positions that have a label to predict, [B, S] bool.

    Every row gets round(fraction x its labels), and at least one if the fraction is above 0.

    Args:
        labels: [B, S], -100 where there is none; position i predicts the label at i + 1.
        fraction: from 0 to 1.
        generator: on the CPU.
        n_tokens: so many positions of each row instead of a share, or all that it has.
        allowed: [B, S] positions to draw from; if a batch has none, one is drawn from all, so that all processes
            make the same passes.
    """
    predicts = torch.nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1)).cpu()
    if allowed is not None:
        chosen = predicts & allowed.cpu()
        if not chosen.any() and predicts.any():
            some = predicts.flatten().nonzero().squeeze(1)
            chosen.view(-1)[some[torch.randint(len(some), (1,), generator=generator)]] = True
        predicts = chosen
    n_wanted = (fraction * predicts.sum(1)).round()
    if fraction > 0:
        n_wanted = n_wanted.clamp(min=1)
    if n_tokens is not None:
        n_wanted = torch.full_like(n_wanted, n_tokens)
    score = torch.rand(labels.shape, generator=generator).masked_fill(~predicts, 2.0)
    rank = score.argsort(dim=1).argsort(dim=1)
    return ((rank < n_wanted[:, None]) & predicts).to(labels.device)

"""What batches are given beside their texts: scores of the reference, and the thoughts of an earlier policy epoch."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from quietstar.base.loading import evaluating
from quietstar.learn import Rollout
from quietstar.model import QuietStarForCausalLM
from quietstar.output import QuietStarOutput
from quietstar.training.arguments import QuietStarTrainingArguments
from quietstar.training.memory import Batch, out_of_memory_in
from quietstar.training.parts import Part
from quietstar.training.reference import Reference

OF_BATCH = ("input_ids", "thoughts", "think_at")
"""what is a part of the batch itself"""


class Rollouts(Part):
    """Gives each batch of a step its `rollout`, and its thoughts if these have been sampled before.

    A step reads new texts, and thinks; the `policy_epochs - 1` steps after it read the same again, and learn from the
    same thoughts and advantages. Without a reference and further epochs, batches are left as they are.

    Attributes:
        earlier: of the step that thought: for each batch, or piece of one, its thoughts, where they are, and the
            tensors of its rollout.
    """

    def __init__(self, args: QuietStarTrainingArguments, reference: Reference) -> None:
        self.args, self.reference, self.n_epochs = args, reference, args.policy_epochs
        self.earlier: list[dict[str, Tensor]] = []
        self.is_first_epoch = True
        self.needed = {"reference_nll": reference.is_used, "reference_logprob": args.kl_weight > 0}

    def restore(self, batches: list[Batch], n_before: int) -> bool:
        """Give the batches of a further policy epoch what the first one left; return False if this is a first one.

        It is also one if what is left is of other texts, or of a run with other settings.

        Args:
            batches: of the step, with labels.
            n_before: steps before it.
        """
        found = None if n_before % self.n_epochs == 0 else _in_batches(self.earlier, batches, self.needed)
        self.is_first_epoch = found is None
        if found is None:
            self.earlier = []
            return False
        for batch, of_batch in zip(batches, found, strict=True):
            self._add(batch, of_batch)
        return True

    def score(
        self, batches: list[Batch], model: QuietStarForCausalLM, run: Callable[..., QuietStarOutput], seeds: list[int]
    ) -> None:
        """Give the batches of a first policy epoch what the reference says.

        Args:
            batches: of the step, with labels, and think_at where thoughts are not everywhere.
            model: whose weights train.
            run: its forward pass, as the run's processes share it.
            seeds: of the thoughts that are sampled here, for each batch.

        Raises:
            OutOfMemoryError: a batch does not fit into memory.
        """
        if not self.reference.is_used:
            for batch in batches if self.n_epochs > 1 else ():
                self._add(batch, {})
            return
        for batch in batches:
            batch |= send_to_device(batch, self.args.device)
        model.train()  # As the pass that learns from these thoughts, which comes later, will have it.
        where = "in the reference's pass over a batch: lower --per_device_train_batch_size"
        with torch.no_grad(), out_of_memory_in(where):
            thought = [
                self._think(*each, run) if self.args.kl_weight else {} for each in zip(batches, seeds, strict=True)
            ]
            with evaluating(model), self.reference.in_place(model):
                scored = [self._score(batch | found, run) for batch, found in zip(batches, thought, strict=True)]
        for batch, found, scores in zip(batches, thought, scored, strict=True):
            self._add(batch, found | scores)

    def _add(self, batch: Batch, found: dict[str, Tensor]) -> None:
        batch |= {name: found[name] for name in OF_BATCH if name in found}
        rollout: dict[str, Any] = {name: value for name, value in found.items() if name not in OF_BATCH}
        batch["rollout"] = Rollout(clip_ratio=self.args.clip_ratio, kl_weight=self.args.kl_weight, **rollout)

    def _think(self, batch: Batch, seed: int, run: Callable[..., QuietStarOutput]) -> dict[str, Tensor]:
        """Sample the thoughts that the reference is to score.

        By a generator of their own: the random state of a checkpoint is loaded after a resumed run's first batches.
        """
        if "thoughts" in batch:
            return {}
        generator = torch.Generator(batch["labels"].device).manual_seed(seed)
        output = run(**batch, loss_only=True, use_cache=False, generator=generator)
        return {"thoughts": output.thoughts, "drawn_logprob": output.drawn_logprob}

    def _score(self, batch: Batch, run: Callable[..., QuietStarOutput]) -> dict[str, Tensor]:
        """Return what the reference says of a batch's text, and of its thoughts if these are held to it."""
        inputs = {name: value for name, value in batch.items() if name not in ("drawn_logprob", "thoughts")}
        if not self.args.kl_weight:
            inputs["think_at"] = torch.zeros_like(batch["labels"])
            return {"reference_nll": run(**inputs, loss_only=True, use_cache=False).base_nll}
        output = run(**inputs, thoughts=batch["thoughts"], logits_to_keep=1, use_cache=False)
        return {"reference_nll": output.base_nll, "reference_logprob": output.thought_logprob}

    def add(self, output: QuietStarOutput, batch: Batch) -> None:
        """Keep the thoughts of a batch, or of a piece of one, for the policy epochs after the first."""
        if self.n_epochs == 1 or not self.is_first_epoch:
            return
        own = {"input_ids": batch["input_ids"], "thoughts": output.thoughts}
        own |= {"logprob": output.thought_logprob.detach(), "advantage": output.advantage}
        own |= {"think_at": batch["think_at"]} if "think_at" in batch else {}
        own |= {} if output.drawn_logprob is None else {"drawn_logprob": output.drawn_logprob}
        self.earlier = [*self.earlier, batch["rollout"].tensors() | own]

    def state_dict(self) -> dict[str, Any]:
        """Return what there is for the policy epochs to come."""
        return {"earlier": [{name: value.cpu() for name, value in each.items()} for each in self.earlier]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        self.earlier = state["earlier"]

    def snapshot(self) -> list[dict[str, Tensor]]:
        """Return what the steps so far have left."""
        return self.earlier

    def rollback(self, snapshot: list[dict[str, Tensor]]) -> None:
        """Go back to a `snapshot`."""
        self.earlier = snapshot


def _in_batches(
    pieces: list[dict[str, Tensor]], batches: list[Batch], needed: dict[str, bool]
) -> list[dict[str, Tensor]] | None:
    """Join the pieces of each batch; None if they are of other texts, or have not what is needed, or more."""
    joined, rest = [], list(pieces)
    for batch in batches:
        ids, own, n = batch["input_ids"], list[dict[str, Tensor]](), 0
        while rest and n < len(ids) and rest[0]["input_ids"].shape[1] == ids.shape[1]:
            own.append(rest.pop(0))
            n += len(own[-1]["input_ids"])
        if n != len(ids) or any((name in piece) != wanted for piece in own for name, wanted in needed.items()):
            return None
        joined.append({name: torch.cat([piece[name] for piece in own]).to(ids.device) for name in own[0]})
        if not torch.equal(joined[-1]["input_ids"], ids):
            return None
    return joined

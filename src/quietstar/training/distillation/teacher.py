"""The teacher of a run: a thinking model, frozen, that says what it predicts of each batch.

Legend: B examples, S tokens in a row, P thoughts whose predictions are averaged, k tokens, D hidden size, n labels.
"""

import math
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from quietstar.base.divergence import Likeliest, Spoken
from quietstar.base.ids import n_embeddings
from quietstar.base.logprob import token_logprob
from quietstar.base.precision import product_dtype
from quietstar.errors import SettingsError
from quietstar.evaluation.scoring import Speaker
from quietstar.inference.loading import UseArguments, load_model
from quietstar.learn import IGNORED, Labels, Rollout
from quietstar.learn.lesson import Lesson
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.runs.contents import digest_of_model
from quietstar.runs.processes import ALONE, Processes
from quietstar.training.distillation.arguments import FAST, PLAIN, DistillArguments
from quietstar.training.distillation.cache import NAMES, Cache
from quietstar.training.memory import Batch, out_of_memory_in


class Teacher:
    """Says what a thinking model predicts at each label of a batch.

    Args:
        name: of the thinking model.
        args: what is learned from it, and how it thinks.
        device: of the run.
        trust_remote_code: run code that lies beside the model on the hub.

    Raises:
        CheckpointError: there is no such model, or it does not think; the cache is of another teacher.
    """

    def __init__(
        self, name: str, args: DistillArguments, device: torch.device, *, trust_remote_code: bool = False
    ) -> None:
        self.name, self.args, self.device = name, args, device
        how = UseArguments(device=str(device), trust_remote_code=trust_remote_code)
        self.model, self.tokenizer = load_model(name, how)
        assert isinstance(self.model, QuietStarForCausalLM)
        self.digest = digest_of_model(name) or name
        about = {"teacher": self.digest, **args.way_to_think}
        self.cache = Cache(args.cache, args.cache_tokens, about) if args.cache else None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is learned, besides the settings of every run."""
        found = {"objective": self.args.objective, "reward_weight": self.args.reward_weight}
        found |= {"teacher_digest": self.digest, **self.args.way_to_think}
        return found | {"cache_tokens": None if self.cache is None else self.args.cache_tokens}

    def check_fits(self, student: QuietStarForCausalLM) -> None:
        """Raise SettingsError if the student predicts another number of tokens."""
        theirs, own = n_embeddings(student), n_embeddings(self.model)
        if theirs != own:
            raise SettingsError(
                f"the student has {theirs} embeddings, and the teacher {own}: their predictions cannot be compared; "
                "give a student of the teacher's family"
            )

    @torch.no_grad()
    def teach(self, batches: list[Batch], seeds: list[int]) -> None:
        """Give each batch of a step its lesson, as its rollout.

        Args:
            batches: of the step, with labels.
            seeds: of the thoughts that are sampled here, for each batch.

        Raises:
            OutOfMemoryError: a batch does not fit into memory.
        """
        if self.args.objective == PLAIN:
            return
        for batch, seed in zip(batches, seeds, strict=True):
            batch |= send_to_device(batch, self.device)
            with out_of_memory_in("while the teacher thinks about a batch: lower --per_device_train_batch_size"):
                batch["rollout"] = Rollout(lesson=self.lesson(batch, seed))

    def lesson(self, batch: Batch, seed: int) -> Lesson:
        """Return what the teacher says of a batch."""
        ids, labels = batch["input_ids"], batch["labels"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        ahead = Labels.look_ahead(labels, torch.zeros_like(labels), 1, mask).ahead[..., 0]
        where = ahead != IGNORED
        made: dict[str, Any] = {"objective": self.args.objective, "reward_weight": self.args.reward_weight}
        if self.cache is not None:
            rows = [(row[is_text.bool()], at) for row, is_text, at in zip(ids, mask, where, strict=True)]
            if (kept := self.cache.read(rows)) is None:
                said = Likeliest.of(self.spoken(ids, mask, where, seed), self.args.cache_tokens)
                parts = where.sum(1).tolist()
                self.cache.write(rows, [each.split(parts) for each in (said.tokens, said.logprob, said.rest)])
                kept = self.cache.read(rows)  # A row that was there before stays as it was.
                assert kept is not None
            made |= {name: _at(where, torch.cat(list(each))) for name, each in zip(NAMES, kept, strict=True)}
            return Lesson(**made)
        spoken = self.spoken(ids, mask, where, seed)
        if self.args.objective != FAST:
            hidden = _at(where, spoken.hidden.transpose(0, 1))
            return Lesson(**made, head=spoken.head, hidden=hidden.transpose(1, 2))
        each = torch.stack([token_logprob(spoken.head, hidden, ahead[where]) for hidden in spoken.hidden])
        return Lesson(**made, nll=_at(where, math.log(len(each)) - each.logsumexp(0)))

    def spoken(self, input_ids: Tensor, attention_mask: Tensor, where: Tensor, seed: int) -> Spoken:
        """Return predictions at n positions of a batch [B, S], by states [P, n, D] with thoughts mixed in."""
        speakers = self.speakers(seed)
        states = [each.states(input_ids, attention_mask, where)[0] for each in speakers]
        head = speakers[0].trunk.head
        return Spoken(head, torch.stack(states), product_dtype(head.weight))

    def speakers(self, seed: int, processes: Processes = ALONE) -> list[Speaker]:
        """Return what speaks with one thought each: greedy, or sampled with one source of random numbers."""
        P = self.args.teacher_passes
        generator = torch.Generator(self.device).manual_seed(seed)
        one = Speaker(
            self.model,
            ThinkPolicy.parse(self.args.teacher_think),
            temperature=self.args.teacher_temperature if P > 1 else 0.0,
            generator=generator,
            n_ahead=self.args.teacher_n_ahead,
            processes=processes,
        )
        return [one] * P


def _at(where: Tensor, values: Tensor) -> Tensor:
    """Return values [n, ...] at the n places where a mask [B, S] is true, 0 elsewhere: [B, S, ...]."""
    found = values.new_zeros(*where.shape, *values.shape[1:])
    found[where] = values
    return found

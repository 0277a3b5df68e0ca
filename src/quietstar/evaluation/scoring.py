"""Log-probabilities of the last tokens of sequences, with thoughts at these tokens or without.

Legend: B sequences in a batch, S tokens of the longest, n tokens that are scored, D hidden size, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from quietstar.attention import attention_backend
from quietstar.base.trunk import Text, Trunk
from quietstar.base.vocabulary import STATES
from quietstar.grid import default_position_ids
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import KINDS, Moment, ThinkPolicy
from quietstar.predict import where_to_think
from quietstar.request import Request
from quietstar.runs.processes import ALONE, Processes
from quietstar.talk import mixed_states, talk
from quietstar.think import Sampling, Thinker, think


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sequence of tokens whose last ones are scored."""

    ids: list[int]
    first: int
    """index of the first token that is scored, at least 1"""
    alphabet: tuple[int, ...] = ()
    """tokens over which probabilities are also renormalised; empty for none"""


@dataclass(slots=True)
class Scores:
    """Scores of the n scored tokens of a sequence."""

    logprob: Tensor
    """[n] in nats, over the vocabulary"""
    is_likeliest: Tensor
    """[n] bool: no token of the vocabulary is likelier"""
    within: Tensor
    """[n]: log-probability within the alphabet; 0 for tokens outside it"""
    thought: Tensor
    """[n] bool: a thought was written before it"""
    measured: Tensor
    """[n]: what the policy's rule measured; 0 if none was asked for"""
    thought_length: Tensor
    """[n]: sampled tokens of that thought; 0 without one"""


@dataclass(slots=True)
class Speaker:
    """A model, and whether it thinks before it speaks."""

    model: PreTrainedModel
    policy: ThinkPolicy | None = None
    """where to think; None never thinks, as a plain model must"""
    temperature: float = 0.0
    """at which thoughts are sampled"""
    top_p: float = 1.0
    generator: torch.Generator | None = None
    processes: Processes = ALONE
    """they share the sequences"""
    n_ahead: int | None = None
    """tokens of a thought, start and end included; None is the model's"""
    sharpness: float = 1.0
    """logits are multiplied by this: 1 / a temperature of predictions"""
    thinker: Thinker | None = field(init=False, default=None)
    """None for a plain model"""
    trunk: Trunk = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, QuietStarForCausalLM):
            self.thinker = self.model.thinker(self.n_ahead)
            self.trunk = self.thinker.trunk
        else:
            self.trunk = Trunk(self.model, attention_backend("dense", self.model))

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.trunk.device

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the states that predict the token after each of n positions of a batch [B, S]: where `asked` is true.

        Returns:
            [n, D] states with thoughts mixed in, [n, D] without, [n] bool: where a thought was written, and [n]
            how many tokens were sampled for it.
        """
        text = Text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=default_position_ids(attention_mask.bool()),
            cache=DynamicCache(),
        )
        base = self.trunk.read(text)
        without = base.h_base[asked]
        if self.policy is None or self.thinker is None:
            none = torch.zeros(len(without), dtype=torch.long, device=self.device)
            return without, without, none.bool(), none
        request = Request(
            config=self.model.config,
            text=text,
            think_at=asked,
            n_ahead=self.thinker.n_ahead,
            policy=self.policy,
            sampling=Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                suppressed=self.model.suppressed,
                generator=self.generator,
            ),
        )
        grid = where_to_think(self.thinker, request, base)
        thoughts = think(self.thinker, grid, text, request.sampling)
        lengths = grid.scatter_columns(thoughts.lengths)[:, 0]
        said = talk(self.thinker, grid, base, thoughts)
        return mixed_states(grid, base.h_base, said)[asked], without, grid.is_column[asked], lengths[asked]

    def logits(self, states: Tensor) -> Tensor:
        """Return logits [n, V] in float32 of states [n, D]."""
        return self.trunk.logits(states).float() * self.sharpness


def mean_length(scores: Sequence[Scores]) -> float | None:
    """Return the mean number of sampled tokens of a thought; None if there are no thoughts."""
    lengths = torch.cat([each.thought_length[each.thought] for each in scores])
    return float(lengths.double().mean()) if len(lengths) else None


def by_length(sequences: Sequence[Continuation], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of similar lengths, longest first: a batch that does not fit fails at once."""
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index].ids))
    for first in range(0, len(order), batch_size):
        yield order[first : first + batch_size]


@torch.no_grad()
def score(
    speaker: Speaker,
    sequences: Sequence[Continuation],
    batch_size: int,
    *,
    measure: str | None = None,
    progress: Callable[[list[Scores]], None] | None = None,
) -> list[Scores]:
    """Return the scores of sequences, in batches by length; thoughts are written at scored positions only.

    Each of the speaker's processes scores a share of the sequences, batch_size at a time, and gets all scores.
    `measure` names a policy's rule to measure at each position. `progress` is called with the scores of each batch of
    this process.
    """
    ours = speaker.processes.share(sequences)
    found: dict[int, Scores] = {}
    for indices in by_length(ours, batch_size):
        scores = _score_batch(speaker, [ours[index] for index in indices], measure)
        found |= dict(zip(indices, scores, strict=True))
        if progress is not None:
            progress(scores)
    return speaker.processes.together([found[index] for index in range(len(ours))], len(sequences))


def _score_batch(speaker: Speaker, batch: list[Continuation], measure: str | None) -> list[Scores]:
    rows = [torch.tensor(sequence.ids) for sequence in batch]
    # nothing is scored after the last token
    input_ids = pad_sequence([row[:-1] for row in rows], batch_first=True).to(speaker.device)
    lengths = torch.tensor([len(row) - 1 for row in rows], device=speaker.device)
    index = torch.arange(input_ids.shape[1], device=speaker.device)
    mask = index < lengths[:, None]
    first = torch.tensor([sequence.first - 1 for sequence in batch], device=speaker.device)
    asked = mask & (index >= first[:, None])
    states, base, thought, length = speaker.states(input_ids, mask.long(), asked)
    targets = torch.cat([row[sequence.first :] for row, sequence in zip(rows, batch, strict=True)]).to(speaker.device)
    sequence_of = asked.nonzero()[:, 0]

    logprob, likeliest = torch.empty_like(targets, dtype=torch.float32), torch.empty_like(targets, dtype=torch.bool)
    within = torch.zeros_like(logprob)
    for some in torch.arange(len(targets), device=speaker.device).split(STATES):
        logits = speaker.logits(states[some])
        own = logits.gather(1, targets[some, None]).squeeze(1)
        logprob[some] = own - logits.logsumexp(1)
        likeliest[some] = own == logits.amax(1)
        for alphabet in {sequence.alphabet for sequence in batch if sequence.alphabet}:
            ids = torch.tensor(alphabet, device=speaker.device)
            has_it = torch.tensor([sequence.alphabet == alphabet for sequence in batch], device=speaker.device)
            counts = has_it[sequence_of[some]] & torch.isin(targets[some], ids)
            within[some] = torch.where(counts, own - logits[:, ids].logsumexp(1), within[some])
    measured = torch.zeros_like(logprob)
    if measure is not None:
        measured = _measured(speaker, measure, base, asked)
    parts = asked.sum(1).tolist()
    split = [values.cpu().split(parts) for values in (logprob, likeliest, within, thought, measured, length)]
    return [Scores(*values) for values in zip(*split, strict=True)]


def _measured(speaker: Speaker, rule: str, base: Tensor, asked: Tensor) -> Tensor:
    rows, columns = asked.nonzero(as_tuple=True)
    n_thoughts = torch.zeros(len(asked), dtype=torch.long, device=rows.device)
    mixing_head = None if speaker.thinker is None else speaker.thinker.mixing_head
    moment = Moment(rows, columns, n_thoughts, base, speaker.trunk.logits, mixing_head, speaker.generator)
    return KINDS[rule].measure(moment, torch.ones_like(rows, dtype=torch.bool)).float()


class Stopwatch:
    """Elapsed seconds, including the GPU's work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.begun = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._now() - self.begun

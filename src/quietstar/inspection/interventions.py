"""Interventions: replacements of recorded thoughts, to see whether the content of thoughts matters.

Legend: N thoughts of a whole trace, K tokens of a thought, k tokens of its replacement, n tokens for random thoughts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import SettingsError
from quietstar.output import ENDED

MOST_TRIES = 16
"""most random orders to try while some leave a thought unchanged"""


@dataclass(slots=True, kw_only=True)
class Situation:
    """The inputs of an intervention."""

    thoughts: Tensor
    """[N, K]: all thoughts of the trace"""
    tokens: Tensor
    """[n]: tokens to sample random thoughts from"""
    filler: int | None = None
    """the token without content, for `filler`"""
    given: Tensor | None = None
    """[k]: the user's thought"""
    generator: torch.Generator | None = None
    """source of random numbers, on the CPU"""


Replace = Callable[[Situation], Tensor | None]
"""returns replacements [N, k] of the thoughts, or None if it cannot be done"""


def filler(now: Situation) -> Tensor:
    """Replace each token by filler: the same computation without content (as in arXiv 2404.15758)."""
    assert now.filler is not None
    return torch.full_like(now.thoughts, now.filler).masked_fill(now.thoughts == ENDED, ENDED)


def shuffled(now: Situation) -> Tensor:
    """Shuffle the tokens of each thought, into another order if there is one."""
    mixed = now.thoughts.clone()
    for _ in range(1 + MOST_TRIES):
        same = (mixed == now.thoughts).all(1)
        if not same.any():
            break
        place = torch.rand(now.thoughts[same].shape, generator=now.generator)
        order = torch.argsort(place + (now.thoughts[same] == ENDED), dim=1)
        mixed[same] = now.thoughts[same].gather(1, order)
    return mixed


def swapped(now: Situation) -> Tensor | None:
    """Permute the thoughts of the trace so that none keeps its position, and as few as possible get an equal one."""
    N = len(now.thoughts)
    if N < 2:
        return None
    tries: list[tuple[int, Tensor]] = []
    for _ in range(MOST_TRIES):
        # a cycle through all positions in a random order moves every thought
        order = torch.randperm(N, generator=now.generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        tries.append((int((now.thoughts[other] == now.thoughts).all(1).sum()), other))
        if not tries[-1][0]:
            break
    _, best = min(tries, key=lambda pair: pair[0])
    return now.thoughts[best]


def random_tokens(now: Situation) -> Tensor:
    """Replace each token by one sampled uniformly from the vocabulary."""
    drawn = now.tokens[torch.randint(len(now.tokens), now.thoughts.shape, generator=now.generator)]
    return drawn.masked_fill(now.thoughts == ENDED, ENDED)


def given(now: Situation) -> Tensor | None:
    """Replace every thought by the user's."""
    return None if now.given is None else now.given.expand(len(now.thoughts), -1)


def truncated(n: int) -> Replace:
    """Return the intervention that ends thoughts after n tokens: early answering (arXiv 2307.13702)."""
    return lambda now: now.thoughts[:, :n]


FILLER = "filler"
"""the control"""
RANDOM = "random"
REMOVED = "removed"
"""no thought at all: the base prediction"""
SIMPLE: dict[str, tuple[str, Replace]] = {
    FILLER: ("filler in its place", filler),
    "shuffled": ("its tokens shuffled", shuffled),
    "swapped": ("another position's thought", swapped),
    RANDOM: ("random tokens", random_tokens),
}
GIVEN = "given"
TRUNCATED = "truncated"
CHOICES = (REMOVED, *SIMPLE, TRUNCATED)
"""interventions that can be chosen by name"""


def is_truncated(name: str) -> bool:
    """Whether an intervention truncates thoughts, such as truncated_2."""
    return name.startswith(f"{TRUNCATED}_")


@dataclass(frozen=True, slots=True)
class Intervention:
    """One way to replace thoughts."""

    name: str
    """prefix of its columns"""
    label: str
    """short description"""
    replace: Replace | None
    """None removes the thought"""


def interventions_of(names: list[str], n_thought_tokens: int, has_given: bool) -> list[Intervention]:
    """Return interventions by name; `truncated` stands for one for each length from 0 to K - 1.

    Raises:
        SettingsError: a name is unknown.
    """
    found = []
    for name in names:
        if name not in CHOICES:
            raise SettingsError(f"intervention {name!r} is unknown; choose from {', '.join(CHOICES)}")
        if name == REMOVED:
            found.append(Intervention(REMOVED, "thought removed", None))
        elif name == TRUNCATED:
            for n in range(n_thought_tokens):
                label = f"cut after {n} token{'' if n == 1 else 's'}"
                found.append(Intervention(f"{TRUNCATED}_{n}", label, truncated(n)))
        else:
            found.append(Intervention(name, *SIMPLE[name]))
    if has_given:
        found.append(Intervention(GIVEN, "your thought", given))
    return found


def plain_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int, suppressed: list[int]) -> Tensor:
    """Return the tokens [n] that are neither special nor suppressed.

    Raises:
        SettingsError: there are none.
    """
    excluded = {*tokenizer.all_special_ids, *suppressed}
    ids = [token for token in sorted(tokenizer.get_vocab().values()) if token < vocab_size and token not in excluded]
    if not ids:
        raise SettingsError(
            f"the tokenizer has special tokens only, and {RANDOM} thoughts need others; leave {RANDOM} out of the "
            "interventions"
        )
    return torch.tensor(ids)


def typed_thought(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Return the tokens [k] of the user's thought.

    Raises:
        SettingsError: there are none, or the tokenizer does not know some of the text.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or _is_unknown(tokenizer, text, ids):
        problem = "the tokenizer does not know all of it" if ids else "it has no tokens"
        raise SettingsError(f"thought is {text!r}, but {problem}; give another text")
    return torch.tensor(ids, dtype=torch.long)


def _is_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> bool:
    """Whether the tokenizer does not know some of a text that does not contain the unknown token literally."""
    return tokenizer.unk_token_id in ids and str(tokenizer.unk_token) not in text


def filler_token(tokenizer: PreTrainedTokenizerBase, text: str | None) -> int:
    """Return the filler token: that of the text if given, otherwise a dot, padding or eos, the first that exists.

    Raises:
        SettingsError: the text is not one token, or the tokenizer has none of these.
    """
    ids = tokenizer("." if text is None else text, add_special_tokens=False)["input_ids"]
    while len(ids) > 1 and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]  # SentencePiece adds a space
    is_known = len(ids) == 1 and not _is_unknown(tokenizer, text or ".", ids)
    if text is not None and not is_known:
        tokens = f"{len(ids)} tokens" if len(ids) > 1 else "the unknown token" if ids else "no token"
        raise SettingsError(f"filler is {text!r}, which is {tokens} to the tokenizer; give a text of one token")
    for token in (ids[0] if is_known else None, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SettingsError("the tokenizer has no dot, padding or eos token to use as filler; give --filler TEXT")

"""What else could have been thought: interventions on recorded thoughts, to see whether what they say matters.

Legend: N thoughts of a whole trace, C of them, K tokens of a thought, k of the thought in its place, n words.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from quietstar.errors import SettingsError

REDRAWS = 16
"""times that an order is drawn at most, where it leaves a thought as it was"""


@dataclass(slots=True, kw_only=True)
class Situation:
    """What an intervention may use."""

    thoughts: Tensor
    """[N, K]: all thoughts of the trace"""
    words: Tensor
    """[n]: tokens that random thoughts are made of"""
    filler: int | None = None
    """the token that says nothing, for `filler`"""
    given: Tensor | None = None
    """[k]: the user's thought"""
    generator: torch.Generator | None = None
    """source of random numbers, on the CPU"""


Replace = Callable[[Situation], Tensor | None]
"""-> [N, k] thoughts in the place of those recorded; None where that cannot be done"""


def filler(now: Situation) -> Tensor:
    """As many tokens that say nothing: the same computation, no content (as in arXiv 2404.15758)."""
    assert now.filler is not None
    return torch.full_like(now.thoughts, now.filler)


def shuffled(now: Situation) -> Tensor:
    """The same tokens in another order; a thought of one token, or of equal ones, has no other."""
    order = torch.argsort(torch.rand(now.thoughts.shape, generator=now.generator), dim=1)
    mixed = now.thoughts.gather(1, order)
    for _ in range(REDRAWS):
        same = (mixed == now.thoughts).all(1)
        if not same.any():
            break
        order = torch.argsort(torch.rand(now.thoughts[same].shape, generator=now.generator), dim=1)
        mixed[same] = now.thoughts[same].gather(1, order)
    return mixed


def swapped(now: Situation) -> Tensor | None:
    """A thought from another position of the trace: each goes to one other position, to another thought if it can."""
    N = len(now.thoughts)
    if N < 2:
        return None
    found: list[tuple[int, Tensor]] = []
    for _ in range(REDRAWS):
        # a cycle through all positions in a random order leaves none with its own
        order = torch.randperm(N, generator=now.generator)
        other = torch.empty_like(order)
        other[order] = order.roll(1)
        found.append((int((now.thoughts[other] == now.thoughts).all(1).sum()), other))
        if not found[-1][0]:
            break
    return now.thoughts[min(found, key=lambda of: of[0])[1]]


def random_tokens(now: Situation) -> Tensor:
    """As many tokens of the vocabulary, all equally likely."""
    drawn = torch.randint(len(now.words), now.thoughts.shape, generator=now.generator)
    return now.words[drawn]


def given(now: Situation) -> Tensor | None:
    """The thought that the user typed, everywhere."""
    return None if now.given is None else now.given.expand(len(now.thoughts), -1)


def truncated(n: int) -> Replace:
    """Early answering (arXiv 2307.13702): the thought ends after n tokens."""
    return lambda now: now.thoughts[:, :n]


FILLER = "filler"
"""the control"""
RANDOM = "random"
REMOVED = "removed"
"""the one intervention without any thought: the base prediction"""
SIMPLE: dict[str, tuple[str, Replace]] = {
    FILLER: ("filler in its place", filler),
    "shuffled": ("its tokens shuffled", shuffled),
    "swapped": ("another position's thought", swapped),
    RANDOM: ("random tokens", random_tokens),
}
GIVEN = "given"
TRUNCATED = "truncated"
CHOICES = (REMOVED, *SIMPLE, TRUNCATED)
"""what can be asked for by name; a typed thought comes with its text"""


def is_truncated(name: str) -> bool:
    """Whether an intervention leaves the beginning of a thought: truncated_2."""
    return name.startswith(f"{TRUNCATED}_")


@dataclass(frozen=True, slots=True)
class Intervention:
    """One way to change thoughts."""

    name: str
    """the beginning of its columns' names"""
    label: str
    """what it is, in words"""
    replace: Replace | None
    """None removes the thought"""


def interventions_of(names: list[str], n_thought_tokens: int, has_given: bool) -> list[Intervention]:
    """Those of that name; `truncated` stands for one for each length from 0 to K - 1.

    Raises:
        SettingsError: there is none of a name.
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
        found.append(Intervention(GIVEN, "the thought that was typed", given))
    return found


def plain_words(tokenizer: PreTrainedTokenizerBase, vocab_size: int, suppressed: list[int]) -> Tensor:
    """[n]: tokens that are no special ones and may be thought.

    Raises:
        SettingsError: there is none.
    """
    left_out = {*tokenizer.all_special_ids, *suppressed}
    ids = [token for token in sorted(tokenizer.get_vocab().values()) if token < vocab_size and token not in left_out]
    if not ids:
        raise SettingsError(
            f"the tokenizer has special tokens only, and {RANDOM} thoughts are made of others; leave {RANDOM} out of "
            "the interventions"
        )
    return torch.tensor(ids)


def typed_thought(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """[k]: tokens of a thought that was typed.

    Raises:
        SettingsError: there is none.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or _is_unknown(tokenizer, text, ids):
        made = "does not know every word" if ids else "makes no token"
        raise SettingsError(f"thought is {text!r}, of which the tokenizer {made}; give another text")
    return torch.tensor(ids, dtype=torch.long)


def _is_unknown(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> bool:
    """Whether some of a text is not known to the tokenizer: where the text does not spell out that token itself."""
    return tokenizer.unk_token_id in ids and str(tokenizer.unk_token) not in text


def filler_token(tokenizer: PreTrainedTokenizerBase, text: str | None) -> int:
    """The token that says nothing: that of a text; a dot where the tokenizer has one, else padding, else the end.

    Raises:
        SettingsError: the text is not one token, or the tokenizer has none that could serve.
    """
    ids = tokenizer("." if text is None else text, add_special_tokens=False)["input_ids"]
    while len(ids) > 1 and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]  # SentencePiece puts a space in front
    is_known = len(ids) == 1 and not _is_unknown(tokenizer, text or ".", ids)
    if text is not None and not is_known:
        made = f"{len(ids)} tokens" if len(ids) > 1 else "a token for what it does not know" if ids else "no token"
        raise SettingsError(f"filler is {text!r}, of which the tokenizer makes {made}; give a text of one token")
    for token in (ids[0] if is_known else None, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise SettingsError("the tokenizer has no dot and no token for padding or for the end; give --filler TEXT")

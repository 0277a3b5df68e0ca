"""Synthetic payloads of traces for report and figures: of any size, and with malicious text."""

import math
import random
from typing import Any

from quietstar.inspection.payload import shown

TEXT = (
    "Two dozen eggs make a cake for the whole village , and nobody asks how many were broken on the way . \n "
    "She counts : twelve and twelve is twenty four ; half of them are brown . It rains all morning , so the market "
    "opens late and every price is lower than it was ."
)
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    "<!-- <script>",
    "\N{RIGHT-TO-LEFT OVERRIDE}evil",
    "\N{LEFT-TO-RIGHT ISOLATE}",
    "\x00",
    "\x1b[31m",
    "\r\n",
    "\t",
    "",
    "",
    "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{WOMAN}",
    "\N{ZERO WIDTH JOINER}",
    "\N{COMBINING ACUTE ACCENT}",
    "\ud83d",
    "\N{LINE SEPARATOR}",
    "שלום",
    "مرحبا",
    "漢字",
    "=1+1",
    '@SUM("A1")',
    "-2",
    "+3",
    'a "quote", a comma',
    "${x} {{x}} %s &amp; &lt;",
    "$x_1^2$",
    "$\\frac{$",
    "a" * 120,
]
"""texts of tokens that a document, terminal, spreadsheet or formula could interpret"""


def payload(
    n_positions: int = 200,
    n_rows: int = 1,
    K: int = 4,
    seed: int = 0,
    hostile: bool = False,
    thinks: float = 0.7,
    n_words: int = 0,
) -> dict[str, Any]:
    """Return a payload as `quietstar.inspection.payload` does.

    Args:
        n_positions: in all rows together.
        n_rows: rows.
        K: tokens of a thought.
        seed: of everything that is drawn.
        hostile: whether tokens of HOSTILE stand in the text and in thoughts.
        thinks: share of the positions with a thought.
        n_words: tokens of the vocabulary beside those of TEXT.
    """
    source = random.Random(seed)
    texts = (HOSTILE if hostile else []) + [
        word if word == "\n" else f" {word}" for word in dict.fromkeys(TEXT.split(" "))
    ]
    texts += [f" word{index}" for index in range(n_words)]
    tokens = {str(100_000 + index): text for index, text in enumerate(texts)}
    names = ["removed", "filler", "shuffled", "swapped", "random", *(f"truncated_{k}" for k in range(K)), "given"]
    at_positions = shown(names)
    lengths = [n_positions // n_rows + (row < n_positions % n_rows) for row in range(n_rows)]
    pool: list[list[int]] = []
    rows = [_row(source, length, K, tokens, at_positions, hostile, thinks, pool) for length in lengths]
    labels = {"removed": "thought removed", "filler": "as many filler tokens", "given": "the thought given"}
    return {
        "title": "Thoughts about <eggs> & \N{RIGHT-TO-LEFT OVERRIDE}more" if hostile else "Thoughts about eggs",
        "model": "runs/tiny",
        "made": "2026-11-25 10:00 UTC",
        "settings": {"think": "entropy:2.5", "seed": seed, "thought_temperature": 0.0},
        "versions": {"quietstar": "0.1", "torch": "2.13"},
        "summary": [
            "Thoughts made the next token likelier by 0.042 nats on average (95 % interval 0.030 to 0.055).",
            "Filler of the same length does as well as half of that: some of the gain is computation, not content.",
        ],
        "interventions": _effects(source, names, labels, n_positions),
        "difficulty": [
            {
                "by": by,
                "low": low,
                "high": high,
                "n": 40,
                "gain": _estimate(source, 0.03 * low),
                "reward": _estimate(source, 0.03 * low),
                "interventions": _effects(source, names, labels, 40),
            }
            for by in ("base nll", "base entropy")
            for low, high in ((0, 1), (1, 2), (2, 4), (4, None))
        ],
        "tokens": tokens,
        "rows": rows,
        "thoughts": pool,
    }


def _effects(source: random.Random, names: list[str], labels: dict[str, str], n: int) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "label": labels.get(name, name.replace("_", " after ")),
            "n": n,
            "n_same": 0,
            "delta": _estimate(source, -0.05),
            "kl": _estimate(source, 0.1),
            "flips": _estimate(source, 0.2),
        }
        for name in names
    ]


def _estimate(source: random.Random, about: float) -> dict[str, float]:
    value = about + source.gauss(0, 0.01)
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def _row(
    source: random.Random,
    S: int,
    K: int,
    tokens: dict[str, str],
    names: list[str],
    hostile: bool,
    thinks: float,
    pool: list[list[int]],
) -> dict[str, Any]:
    plain = [int(each) for each in tokens]
    text = [plain[i % len(plain)] for i in range(S)] if hostile else [source.choice(plain) for _ in range(S)]
    thought = [source.random() < thinks for _ in range(S)]

    def some(make: Any, where: list[bool] | None = None, last: bool = True) -> list[Any]:
        return [make() if (where is None or where[i]) and (last or i < S - 1) else None for i in range(S)]

    def thoughts() -> int:
        pool.append([source.choice(plain) for _ in range(K)])
        return len(pool) - 1

    def top() -> list[list[float]]:
        shares = sorted((source.random() for _ in range(5)), reverse=True)
        return [
            [each, round(math.log(share / 4), 4)] for each, share in zip(source.sample(plain, 5), shares, strict=True)
        ]

    def effect(name: str) -> dict[str, list[Any]]:
        if name.startswith("truncated"):
            told = {}
        elif name in ("shuffled", "random"):
            told = {"thought_ids": some(thoughts, thought)}
        else:  # none, one for all, or one from elsewhere
            told = {"thought_ids": some(lambda: None if name == "removed" else 0, thought)}
        flips = some(lambda: int(source.random() < 0.2), thought)
        return {
            "delta": some(lambda: round(source.gauss(-0.05, 3), 3), thought, last=False),
            "kl": some(lambda: round(abs(source.gauss(0, 2)), 3), thought),
            "flips": flips,
            "top": [source.choice(plain) if was else None for was in flips],
            **told,
        }

    base = some(lambda: -source.expovariate(0.5), last=False)
    before = [None if one is None else one * 0.9 for one in base]
    mixed = [None if one is None else one + source.gauss(0.05, 0.4) * one / 4 for one in base]
    gain = [None if one is None or not thought[i] else float(mixed[i]) - one for i, one in enumerate(base)]
    return {
        "pieces": [tokens[str(each)] for each in text],
        "ids": text,
        "thought": thought,
        "reason": [f"entropy {3 if each else 1.2:.2f}, threshold 2.5" for each in thought],
        "thought_ids": some(thoughts, thought),
        "thought_logprob": some(lambda: [round(-source.expovariate(0.3), 4) for _ in range(K)], thought),
        "weight": some(lambda: source.gauss(0.2, 0.25), thought),
        "reward": gain,
        "gain": gain,
        "base_logprob": base,
        "before_logprob": before,
        "alone_logprob": some(lambda: -source.expovariate(0.4), thought, last=False),
        "mixed_logprob": mixed,
        "base_entropy": some(lambda: source.uniform(0.5, 4)),
        "base_top": some(top),
        "alone_top": some(top, thought),
        "mixed_top": some(top),
        "what_if": {name: effect(name) for name in names},
    }

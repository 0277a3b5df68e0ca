"""What is measured of one run: every held-out token's nll, thoughts replaced, tasks, and what it all cost."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.errors import CheckpointError
from quietstar.evaluation.direct import score_items
from quietstar.evaluation.lengths import passes_a_token
from quietstar.evaluation.scoring import Continuation, Scores, Speaker, Stopwatch, score
from quietstar.inspection.observe import trace
from quietstar.inspection.results import write_results
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.reporting.tables import finite
from quietstar.runs.folders import claim, write_whole
from quietstar.study.recipe import Recipe
from quietstar.study.texts import Texts

ALWAYS = ThinkPolicy.parse("always")
INTERVENTIONS = ("removed", "filler", "swapped", "random")
"""replacements of thoughts that a study tries"""
SAMPLES = 3
"""thoughts of a run that the report shows from each inspected row"""
THOUGHTS = "thoughts"
"""folder of a run's report of thoughts"""


@dataclass(kw_only=True)
class Measured:
    """Figures of one arm and seed. Lists of lists are [rows][tokens] of the test text, in nats."""

    arm: str
    seed: int | None
    """None for an arm that does not train"""
    nll: list[list[float]]
    """as it predicts: with thoughts if it has any"""
    base_nll: list[list[float]] | None = None
    """of its base pass, without thoughts; None for a model that has none"""
    entropy: list[list[float]] | None = None
    """of the untouched base's prediction, in its own record only"""
    sharpness: float = 1.0
    """what its logits are multiplied by"""
    interventions: dict[str, list[list[float]]] = field(default_factory=dict)
    """name -> log-probability with the replacement minus with the thought, [inspected rows][tokens]"""
    samples: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """task -> measure -> value of each item"""
    n_steps: int = 0
    chosen_step: int = 0
    step_flops: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    """[step, nll of the selection text] of each evaluation"""
    figures: dict[str, float] = field(default_factory=dict)
    """of the selection text at the chosen step, as training logs them; the entropy of thoughts is training's last"""
    train_seconds: float = 0.0
    seconds_a_token: float = 0.0
    """of scoring a test token"""
    passes_a_token: float = 1.0
    """forward passes of decoding a token"""
    command: str = ""
    contents: dict[str, str | None] = field(default_factory=dict)
    """digests of the model that it began as, and of the tokens of the selection and test texts"""

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        write_whole(file, json.dumps(finite(asdict(self))) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            CheckpointError: it is not such a file.
        """
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{file} is not a study's record of a run; delete it, and the run is measured again"
            ) from error


def measure_predictions(
    record: Measured, model: PreTrainedModel, texts: Texts, recipe: Recipe, *, with_entropy: bool = False
) -> None:
    """Add the nll of every test token, with thoughts and without, and the time of a token."""
    rows = [Continuation(ids=ids, first=1) for ids in texts.test]
    plain = Speaker(model, sharpness=record.sharpness)
    thinking = Speaker(model, ALWAYS) if plain.thinker is not None else None
    if thinking is not None:
        record.base_nll = _nll(score(plain, rows, recipe.batch_size))
    watch = Stopwatch(plain.device)
    found = score(thinking or plain, rows, recipe.batch_size, measure="entropy" if with_entropy else None)
    record.seconds_a_token = watch.seconds / sum(len(each.logprob) for each in found)
    record.nll = _nll(found)
    if with_entropy:
        record.entropy = [each.measured.tolist() for each in found]
    if thinking is not None:
        thinker = thinking.thinker
        assert thinker is not None
        record.passes_a_token = passes_a_token(
            ALWAYS, thinker.n_ahead, found, branches_differ=thinker.trunk.branches_differ
        )


def _nll(scores: list[Scores]) -> list[list[float]]:
    return [(-each.logprob).tolist() for each in scores]


def measure_tasks(record: Measured, model: PreTrainedModel, texts: Texts, batch_size: int) -> None:
    """Add each task's exact match and answer probability, item by item."""
    speaker = Speaker(model, sharpness=record.sharpness)
    if speaker.thinker is not None:
        speaker = Speaker(model, ALWAYS)
    for name, items in texts.tasks.items():
        scores = score_items(speaker, items, batch_size)
        record.tasks[name] = {
            "exact_match": scores.exact_match.double().tolist(),
            "answer_probability": scores.answer_probability.double().tolist(),
        }


def measure_thoughts(
    record: Measured,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    recipe: Recipe,
    folder: Path,
) -> None:
    """Add what replacing thoughts does on the first test rows, and write the run's own report of thoughts."""
    if not isinstance(model, QuietStarForCausalLM) or not recipe.inspected_rows or not model.config.n_thought_tokens:
        return
    rows = [TextToTrace(ids=ids) for ids in texts.test[: recipe.inspected_rows]]
    found = trace(
        model, tokenizer, rows, TraceSettings(interventions=INTERVENTIONS), name=f"{record.arm}, seed {record.seed}"
    )
    write_results(found, claim(folder / THOUGHTS, found.about, overwrite=True))
    columns = found.columns
    known = [index for index, gain in enumerate(columns["gain"]) if gain is not None]
    for name in INTERVENTIONS:
        by_row: list[list[float]] = [[] for _ in rows]
        for index in known:
            delta = columns[f"{name}_delta"][index]
            if delta is not None:
                by_row[columns["row"][index]].append(delta)
        record.interventions[name] = by_row
    for row in range(min(len(rows), SAMPLES)):
        of_row = [index for index in known if columns["row"][index] == row]
        best = sorted(of_row, key=lambda index: -abs(columns["gain"][index]))[:SAMPLES]
        record.samples += [_sample(columns, index) for index in sorted(best)]


def _sample(columns: dict[str, list[Any]], index: int) -> dict[str, Any]:
    first = max(index - 11, index - columns["position"][index])
    return {
        "before": "".join(columns["piece"][first : index + 1]),
        "thought": columns["thought_text"][index],
        "next": columns["next_token"][index],
        "gain": columns["gain"][index],
    }


def sharpest(model: PreTrainedModel, rows: list[list[int]], batch_size: int) -> float:
    """Return what logits are to be multiplied by for the lowest nll of rows, from 1/4 to 4 (a temperature's inverse).

    The nll is convex in it: a golden-section search finds the lowest.
    """
    sequences, golden = [Continuation(ids=ids, first=1) for ids in rows], (5**0.5 - 1) / 2

    def nll(sharpness: float) -> float:
        scores = score(Speaker(model, sharpness=sharpness), sequences, batch_size)
        return -float(torch.cat([each.logprob for each in scores]).double().mean())

    low, high = 0.25, 4.0
    inner = [high - golden * (high - low), low + golden * (high - low)]
    values = [nll(each) for each in inner]
    while high - low > 0.005:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - golden * (high - low)
            values[0] = nll(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + golden * (high - low)
            values[1] = nll(inner[1])
    return (low + high) / 2

"""Interventions where the truth is known: in the demo's language, the thought leads to the answer."""

from pathlib import Path

import pytest

from quietstar.demo.arguments import DemoArguments
from quietstar.demo.story import tell
from quietstar.inspection.trace import Trace


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Return a trace of the demo's model, as in `make demo`: held-out problems, with thoughts after the question."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    tell(DemoArguments(output_dir=str(folder), picture=False))
    return Trace.load(Path(folder) / "thoughts")


def right(found: Trace, name: str | None) -> float:
    """Return the share of answers that are the likeliest token under an intervention."""
    columns = found.columns
    asked = [i for i, gain in enumerate(columns["gain"]) if gain is not None]
    tops = [columns["mixed_top_ids"][i][0] if name is None else columns[f"{name}_top_id"][i] for i in asked]
    assert len(asked) == DemoArguments().inspected
    return sum(top == columns["next_id"][i] for top, i in zip(tops, asked, strict=True)) / len(asked)


@pytest.mark.slow
def test_its_own_thoughts_carry_the_answer_and_no_others_do(found: Trace) -> None:
    assert right(found, None) > 0.95
    for name in ("random", "swapped", "filler", "removed", "truncated_0", "truncated_3"):
        assert right(found, name) < 0.3, name
    assert right(found, "shuffled") < 0.6


@pytest.mark.slow
def test_the_summary_says_so(found: Trace) -> None:
    summary = found.summary
    assert summary.gain is not None
    assert summary.content is not None
    assert summary.computation is not None
    assert summary.gain.low > 1
    assert summary.content.low > 1
    assert summary.computation.high < summary.content.low
    assert summary.sentences[0].startswith(
        "Thoughts help, and more than filler of the same length; with them, the model predicts this text better than "
        "before training. Over 100 positions, thoughts change"
    )
    assert "the content of thoughts is worth" in summary.sentences[1]
    assert summary.sentences[-1] == "All of their 4 tokens are needed for 90 % of the gain, on average."
    for each in summary.interventions:
        assert each.delta is not None
        assert each.delta.high < -1, each.name

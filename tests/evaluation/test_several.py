"""An evaluation with two processes gives the results of one, and each process does its share."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quietstar.evaluation import voting
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.run import evaluate
from tests.evaluation.test_harness import know_own_tasks, write_tasks
from tests.several import Pair
from tests.tiny_tokenizer import thinking_folders

GSM8K = [{"question": f"{n} + {n}?", "answer": f"so #### {2 * n}"} for n in range(1, 8)]
"""an odd number, so that the two processes have unequal shares"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinking model, questions, a text, and lm-eval tasks of every kind."""
    where = thinking_folders(tmp_path_factory.mktemp("several"), {"max_position_embeddings": 512}, n_ahead=4)
    (where / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    (where / "text.txt").write_text("Some text of which the perplexity is measured. " * 20)
    write_tasks(where, [{"question": f"is {n} more than {7 - n}?", "label": n % 3} for n in range(5)])
    return where


def settings(folder: Path, out: Path, **more: Any) -> EvaluateArguments:
    """Return the arguments of a short evaluation."""
    how = dict(data=[f"gsm8k={folder / 'gsm8k.jsonl'}"], tasks=["gsm8k"], device="cpu", output_dir=str(out))
    return EvaluateArguments(**(how | dict(cot=True, cot_tokens=5, answer_tokens=3, votes=2, batch_size=2) | more))


def run(folder: Path, out: Path, **more: Any) -> tuple[dict[str, Any], int]:
    """Return the results of an evaluation, and how many questions this process asked."""
    asked, vote = [], voting.vote

    def counted(*args: Any, **kwargs: Any) -> dict[str, Any]:
        asked.append(1)
        return vote(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voting, "vote", counted)
        know_own_tasks(patch)
        return evaluate(str(folder / "thinking"), settings(folder, out, **more)), len(asked)


def without_clocks(value: Any) -> Any:
    """Return what depends neither on the machine nor on the folder."""
    if isinstance(value, dict):
        clocks = ("seconds", "samples_per_second", "output_dir")
        return {name: without_clocks(each) for name, each in value.items() if name not in clocks}
    return [without_clocks(each) for each in value] if isinstance(value, list) else value


def near(value: Any) -> Any:
    """Check that results are equal within a tolerance, as batches have other items."""
    if isinstance(value, dict):
        return {name: near(each) for name, each in value.items()}
    if isinstance(value, list):
        return [near(each) for each in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def answers(file: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, file.read_text().splitlines())
    return sorted(map(without_clocks, lines), key=lambda line: line["index"])


def test_everything_at_once(pair: Pair, folder: Path, tmp_path: Path) -> None:
    """Direct answers, a sweep, votes, perplexity, and lm-eval's scores, texts and rolling windows."""
    how = dict(
        think="entropy:3",
        sweep=True,
        sweep_n_ahead="2,6",
        perplexity=str(folder / "text.txt"),
        lm_eval="local_choice,local_write,local_read",
        lm_eval_path=str(folder / "tasks"),
    )
    alone, n_alone = run(folder, tmp_path / "one", **how)
    (here, n_here), (there, n_there) = pair(run, folder, tmp_path / "two", **how)
    assert (n_alone, n_here, n_there) == (14, 8, 6)
    assert here == there
    assert len(here["lm_eval"]["thinking"]) == 3
    assert without_clocks(here) == near(without_clocks(alone))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        if name.endswith(".jsonl"):
            assert answers(tmp_path / "two" / name) == near(answers(tmp_path / "one" / name)), name


@pytest.mark.parametrize("n_processes", [1, 2])
def test_votes_go_on_on_any_number_of_processes(pair: Pair, folder: Path, tmp_path: Path, n_processes: int) -> None:
    """Answers that two processes wrote to their files are not asked again, except for an incomplete line."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(folder, whole)
    shutil.copytree(whole, out)
    name = "gsm8k-cot-thinking"
    lines = (out / f"{name}.jsonl").read_text().splitlines(keepends=True)
    (out / f"{name}.jsonl").unlink()
    (out / f"{name}.rank-0.jsonl").write_text(lines[0])
    (out / f"{name}.rank-1.jsonl").write_text(lines[1] + lines[3] + lines[5][:20])
    found = [run(folder, out, resume=True)] if n_processes == 1 else pair(run, folder, out, resume=True)
    assert sum(n_asked for _, n_asked in found) == 4
    assert sorted(path.name for path in out.glob("gsm8k-cot-*")) == ["gsm8k-cot-base.jsonl", f"{name}.jsonl"]
    assert answers(out / f"{name}.jsonl") == answers(whole / f"{name}.jsonl")


def test_processes_draw_thoughts_of_their_own(pair: Pair, folder: Path, tmp_path: Path) -> None:
    """Sampled thoughts are reproducible with the same number of processes, but differ from those of one process."""
    how = dict(thought_temperature=1.0, cot=False)
    first, second = (pair(run, folder, tmp_path / name, **how)[0][0]["results"] for name in ("a", "b"))
    assert without_clocks(first) == without_clocks(second)

"""lm-eval with thoughts, on local task files without network."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from quietstar.evaluation import harness
from quietstar.evaluation.__main__ import main
from quietstar.evaluation.harness import QuietStarLM
from quietstar.evaluation.report import MODES
from tests.evaluation.test_run import run
from tests.processes import Command
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer, thinking_folders

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: [" yes", " no", " perhaps"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: local_write
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: " yes"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
READ = """
task: local_read
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thinking model, and tasks of every kind."""
    where = thinking_folders(tmp_path_factory.mktemp("lm-eval"), {"max_position_embeddings": 512}, n_ahead=4)
    rows = [{"question": f"is {n} more than {7 - n}?", "label": n % 3} for n in range(6)]
    write_tasks(where, rows)
    (where / "gsm8k.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
    return where


OwnTasks = partial(TaskManager, include_defaults=False)
"""lm-eval's own 14,000 files of tasks take ten seconds to look through: only one test, of the command, does"""


@pytest.fixture(autouse=True)
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    know_own_tasks(monkeypatch)


def know_own_tasks(patch: pytest.MonkeyPatch) -> None:
    """Leave out lm-eval's own tasks, and what it finds out about the machine with a dozen programs."""
    patch.setattr(harness, "TaskManager", OwnTasks)
    patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def write_tasks(where: Path, rows: list[dict[str, Any]]) -> None:
    """Write an lm-eval task of every kind, with these rows, to a folder `tasks`."""
    (where / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (where / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("write", WRITE), ("read", READ)):
        (where / "tasks" / f"{name}.yaml").write_text(text.replace("DATA", str(where / "data.jsonl")))


def requests(*pairs: tuple[str, str]) -> list[Instance]:
    """Return requests as lm-eval makes them."""
    return [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize("think", ["always", "never"])
def test_loglikelihoods_are_those_of_a_forward_pass(think: str) -> None:
    """Log-likelihoods are the continuation's only, whatever else is in the batch."""
    tokenizer = byte_tokenizer()
    model = tiny_model(n_ahead=4, base={"vocab_size": len(tokenizer)})
    pairs = [("one two", " three"), ("a longer context than that:", " x"), ("one", "s and twos")]
    asked = QuietStarLM(model, tokenizer=tokenizer, batch_size=2, think=think)
    for (context, continuation), (logprob, greedy) in zip(pairs, asked.loglikelihood(requests(*pairs)), strict=True):
        ids = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
        n = len(continuation)
        with torch.no_grad():
            logits = model(ids, think=think).logits[0, -n - 1 : -1].log_softmax(-1)
        truth = ids[0, -n:]
        assert logprob == pytest.approx(float(logits.gather(1, truth[:, None]).sum()), rel=1e-4)
        assert greedy == bool((logits.argmax(-1) == truth).all())


@pytest.mark.parametrize("n_ahead", [2, 7])
def test_thoughts_are_as_long_as_they_are_asked_for(n_ahead: int) -> None:
    """Scores and texts are those of a model whose config says so; longer thoughts leave less room for the text."""
    tokenizer = byte_tokenizer()
    pairs = [("one two", " three"), ("a longer context than that:", " x")]
    found = []
    for own, asked in ((4, n_ahead), (n_ahead, None)):
        model = tiny_model(n_ahead=own, base={"vocab_size": len(tokenizer)})
        lm = QuietStarLM(model, tokenizer=tokenizer, batch_size=2, n_ahead=asked)
        write = {"gen_kwargs": {"max_gen_toks": 5, "do_sample": False, "until": []}}
        asks = [Instance("generate_until", {}, ("one two", write["gen_kwargs"]), 0)]
        found.append((lm.loglikelihood(requests(*pairs)), lm.generate_until(asks), lm.max_length))
    assert found[0] == found[1]
    assert found[0][2] == 128 - n_ahead


def test_its_own_functions_know_the_name(folder: Path) -> None:
    """`--model quietstar`, with thoughts and without, for every kind of task."""
    manager = OwnTasks(include_path=str(folder / "tasks"))
    found = {}
    for think in ("always", "never"):
        found[think] = lm_eval.simple_evaluate(
            "quietstar",
            model_args={"pretrained": str(folder / "thinking"), "think": think, "device": "cpu"},
            tasks=["local_choice", "local_write", "local_read"],
            task_manager=manager,
            batch_size=4,
            bootstrap_iters=0,
        )
    assert set(found["always"]["results"]) == {"local_choice", "local_write", "local_read"}
    found["by hf"] = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": str(folder / "thinking")},
        tasks=["local_read"],
        task_manager=manager,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
    )
    read = [found[think]["results"]["local_read"]["word_perplexity,none"] for think in found]
    assert read[0] != read[1]
    assert read[2] == pytest.approx(read[0], rel=1e-4), "lm-eval's own model thinks everywhere"
    plain = lm_eval.simple_evaluate(
        "quietstar",
        model_args={"pretrained": str(folder / "base"), "original": True, "device": "cpu"},
        tasks=["local_choice", "local_write", "local_read"],
        task_manager=manager,
        batch_size=2,
        bootstrap_iters=0,
    )
    for task, figures in plain["results"].items():
        for name, value in figures.items():
            if isinstance(value, float):
                assert value == pytest.approx(found["never"]["results"][task][name], rel=1e-4), (task, name)


def test_thoughts_change_what_is_written(folder: Path) -> None:
    """generate_until is `generate` with the policy, and does not depend on batches."""
    texts = []
    for think, batch_size in (("always", 1), ("always", 3), ("never", 3)):
        asked = QuietStarLM(str(folder / "thinking"), think=think, batch_size=batch_size, device="cpu")
        wanted = [
            Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}), index)
            for index, text in enumerate(("one two", "a longer text than that one", "x"))
        ]
        texts.append(asked.generate_until(wanted))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ("", {"device": "cuda:0", "batch_size": 1}, {"device": "auto"}),  # the defaults of lm-eval's command
        ("", {"device": "cpu", "batch_size": 4, "max_batch_size": None}, {"device": "cpu", "batch_size": 4}),
        (",device=cpu,batch_size=2", {"device": "cuda:0", "batch_size": 1}, {"device": "cpu", "batch_size": 2}),
    ],
    ids=["defaults", "asked for", "in model_args"],
)
def test_defaults_of_lm_eval_are_accepted(
    words: str, options: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []

    class Noted(QuietStarLM):
        def __init__(self, pretrained: str, *, device: str = "auto", batch_size: int = 1, **others: Any) -> None:
            made.append({"pretrained": pretrained, "device": device, "batch_size": batch_size, **others})

    Noted.create_from_arg_string(f"pretrained=here{words}", options)
    Noted.create_from_arg_obj(simple_parse_args_string(f"pretrained=here{words}"), options)
    assert made == [{"pretrained": "here", "batch_size": 1, **expected}] * 2


def command(folder: Path, out: Path, think: str) -> list[str]:
    """Return the arguments of lm-eval's command, as documented."""
    where = f"--include_path {folder / 'tasks'} --output_path {out} --tasks local_choice --limit 3"
    return ["run", "--model", "quietstar", *where.split(), "--model_args", f"pretrained={folder / 'thinking'},{think}"]


def test_its_own_command_knows_the_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """An invalid policy gives one line."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", OwnTasks)
    monkeypatch.setattr("sys.argv", ["lm_eval", *command(folder, tmp_path / "out", "think=entropy:2.5")])
    assert main() == 0
    assert "local_choice" in capfd.readouterr().out
    monkeypatch.setattr("sys.argv", ["lm_eval", *command(folder, tmp_path / "out", "think=often")])
    assert main() == 2
    assert "choose from always" in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.long
def test_its_own_command_is_a_module(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, which knows lm-eval's tasks as well."""
    words = command(folder, tmp_path / "out", "think=entropy:2.5")
    with Command("-m", "quietstar.evaluation", *words) as process:
        assert process.wait() == 0, process.stderr
        assert "local_choice" in process.stdout


def test_evaluate_runs_it(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Figures have intervals and differences; an unknown task is named."""
    out = tmp_path / "out"
    tasks = "local_choice,local_write,local_read"
    options = ["--lm_eval", tasks, "--lm_eval_path", str(folder / "tasks"), "--limit", "5"]
    assert run(folder, out, *options) == 0
    results = json.loads((out / "results.json").read_text())
    found = {(each["task"], each["measure"], each["mode"]): each for each in results["results"]}
    for task, measure in (("local_choice", "acc"), ("local_write", "exact_match")):
        assert found[task, measure, "base"]["estimate"]["n"] == 5
        assert found[task, measure, "thinking"]["difference"] is not None
        assert found[task, measure, "thinking"]["samples_per_second"] > 0
    table = (out / "results.md").read_text()
    for measure in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        base, thinking = (found["local_read", measure, mode] for mode in ("base", "thinking"))
        for mode, line in (("base", base), ("thinking", thinking)):
            theirs = results["lm_eval"][mode]["local_read"]["results"]["local_read"][f"{measure},none"]
            estimate = line["estimate"]
            assert estimate["value"] == pytest.approx(theirs, rel=1e-6)
            assert estimate["low"] < theirs < estimate["high"]
            cells = ["local_read", f"{measure} (less is better)", MODES[mode], "5", f"{estimate['value']:.4f}"]
            assert f"| {' | '.join(cells)} |" in table
        gain = thinking["estimate"]["value"] - base["estimate"]["value"]
        assert thinking["difference"]["value"] == pytest.approx(gain)
        assert thinking["difference"]["low"] <= gain <= thinking["difference"]["high"]
    assert set(results["lm_eval"]) == {"base", "thinking"}
    assert run(folder, tmp_path / "other", "--lm_eval", "local_chance") == 2
    assert "lm-eval knows no task local_chance" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()

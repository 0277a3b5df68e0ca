"""What README and guides say can be done is done: commands and Python, names of the hub replaced by local ones."""

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from quietstar.cli import main
from tests.study.tiny_study import recipe_file
from tests.tiny import tiny_model
from tests.tiny_gguf import reference_tokenizer
from tests.tiny_tokenizer import tiny_folder

ROOT = Path(__file__).parents[1]
COMMANDS_OF = "README docs/train docs/use docs/inspection docs/distillation docs/models docs/study docs/serving"
PYTHON_OF = "docs/train README docs/use docs/evaluation"
"""pages whose commands or Python are run, in an order in which each finds what it needs"""
QUICK = "--max_steps 1 --gradient_accumulation_steps 1 --eval_size 2 --thoughts_shown 1 --use_cpu"
ROWS = [{"question": f"What is {n} times two?", "answer": f"{n} and {n} make {2 * n}."} for n in range(12)]


def blocks(language: str, pages: str) -> list[str]:
    text = "\n".join((ROOT / f"{page}.md").read_text() for page in pages.split())
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fences if name == language]


def commands() -> list[list[str]]:
    """The different `quietstar` lines, without their comments, as words."""
    lines = [line for block in blocks("bash", COMMANDS_OF) for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("quietstar ") and "RECIPE" not in line]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)[1:]) for line in lines)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base model, text files, and a checkpoint of the released code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rest.jsonl").write_text("".join(json.dumps({"text": row["question"]}) + "\n" for row in ROWS))
    tiny_folder(tmp_path / "DIR", "mistral", reference_tokenizer(), max_position_embeddings=512)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n' * 3)
    (tmp_path / "csqa.jsonl").write_text(
        '{"question": "Where?", "choices": {"label": ["A"], "text": ["here"]}, "answerKey": "A"}\n'
    )
    (tmp_path / "held-out.jsonl").write_text('{"text": "Two dozen eggs make 24."}\n' * 3)
    (tmp_path / "notes.txt").write_text("Two dozen eggs make 24.")
    tiny_model("mistral").save_original(tmp_path / "released-code")
    return tmp_path


def offline(words: list[str]) -> list[str]:
    """The same command with local names, and quick."""
    local = {"ezelikman/quietstar-8-ahead": "released-code", "smollm2-135m": "DIR"}
    words = [local.get(word, word) for word in words]
    if words[0] == "train" and "--help" not in words:
        if "--model" not in words:
            words += ["--model", "DIR", "--dataset", "train.jsonl", "--template", "Q: {question}\\nA: {answer}"]
        words += QUICK.split()
    if words[0] == "distill":
        words += ["--max_steps", "1", "--eval_size", "2", "--max_length", "32", "--use_cpu"]
    if words[0] == "evaluate":
        words += ["--data", *(f"{task}={task}.jsonl" for task in ("gsm8k", "csqa") if task in words)]
    if words[0] == "study":
        words[1] = str(recipe_file(Path.cwd()))
    return words


def test_every_command_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(commands()) >= 20
    for words in commands():
        if words[0] == "serve":  # goes on until it is stopped: tests/serving/test_command.py starts it
            words = ["serve", "--help"]
        if "--help" in words:
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 0
        else:
            assert main(offline(words)) == 0, (words, capsys.readouterr().err)
    for folder in ["mine", "released", "mine-original", "DIR-4-ahead", "DIR-original", "plain"]:
        assert (here / "runs" / folder / "config.json").exists()
    assert (here / "runs/mine-thoughts/report.html").exists()
    assert (here / "runs/study/study.html").exists()
    for folder in ("runs/mine-evaluation", "runs/mine-sweep", "runs/mine-lengths"):
        assert (here / folder / "results.md").exists()


def test_the_python_runs(here: Path) -> None:
    """From a base model to a trained one in a folder, and from the folder to its thoughts."""
    names: dict = {}
    for block in blocks("python", PYTHON_OF):
        block = block.replace("runs/mine", "runs/qwen3")
        block = block.replace("Qwen/Qwen3-0.6B-Base", "DIR").replace("max_steps=100", "max_steps=1, use_cpu=True")
        exec(block, names)
    output = names["output"]
    S = names["inputs"]["input_ids"].shape[1]
    assert output.thoughts.shape == (1, 1, S, 6)
    assert output.mixing_weight.shape == (1, 1, S, 4)
    assert torch.isfinite(output.reward).all()
    assert {figure["mode"] for figure in names["results"]["results"]} == {"base", "thinking"}
    assert (here / "runs/qwen3-figures/results.md").exists()


def test_the_map_is_the_tree() -> None:
    """Every room and every file at the top of the package stands in the map, and nothing else does."""
    tree = next(block for block in blocks("", "CONTRIBUTING") if block.startswith("src/quietstar/"))
    named: dict[bool, set[str]] = {True: set(), False: set()}
    for line in tree.splitlines():
        indented = line.startswith("  ")
        named[indented].update(re.findall(r"(?:^|(?<=\s))([\w/]+(?:\.py|/))", line.partition(":")[0]))
    package = ROOT / "src/quietstar"
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named[True] - {"data/"} == rooms | files
    assert all((ROOT / name).exists() for name in named[False])


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file, and to a heading in it."""
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_and_lists_are_shown_as_such(page: Path) -> None:
    """A blank line stands before each of them, and all rows of a table have the same number of cells."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for before, line in itertools.pairwise(text.splitlines()):
        if line.startswith("|") and before:
            assert before.startswith("|"), line
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", before)), line
        if re.match(r"- |\d+\. ", line) and before:
            assert re.match(r"- |\d+\. |  ", before), line

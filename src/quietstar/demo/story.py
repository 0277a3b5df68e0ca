"""Run the whole demo: a tiny model learns a small language, then learns to think, and answers a quiz."""

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import transformers
from rich.console import Console

from quietstar.demo import picture, report
from quietstar.demo.arguments import DemoArguments
from quietstar.demo.for_study import write_for_study
from quietstar.demo.language import CHANCE, EQUALS, Language, build_tokenizer, split_problems
from quietstar.demo.lessons import learn_language, learn_to_think
from quietstar.demo.quiz import Quiz
from quietstar.demo.watch import Line, Watch, progress_bar
from quietstar.inspection.observe import trace
from quietstar.inspection.results import write_results
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.model import QuietStarForCausalLM
from quietstar.reporting.interval import Share
from quietstar.reporting.tables import json_lines
from quietstar.runs.folders import check_output_folder, claim, versions, write_whole

MEASURE_EVERY = 2
"""steps between two measurements during Quiet-STaR training"""
N_MEASURED = 200
"""held-out problems in each of these measurements"""
N_EXAMPLES = 6
THOUGHTS = "thoughts"
"""folder of the traced thoughts"""


def tell(args: DemoArguments, console: Console | None = None) -> dict[str, Any]:
    """Run the demo, show its figures, and write model, figures and picture to `args.output_dir`.

    Returns:
        The content of metrics.json: settings, versions, parameters, figures (right, n, share, low, high; named as in
        `report.ROWS`, and thoughts_are_ways), examples, seconds.

    Raises:
        SettingsError: the folder is not empty; nothing in it is changed.
        MissingExtraError: a picture is to be drawn, but matplotlib is not installed.
    """
    check_output_folder(args.output_dir, overwrite=args.overwrite)
    if args.picture:
        picture.require_matplotlib()
    console = console or Console(highlight=False)
    clock, diary, figures = Clock(), list[Line](), dict[str, Share]()

    language = Language.sample(args.seed)
    tokenizer = build_tokenizer()
    problems, held_out = split_problems(args.seed, args.held_out)
    quiz = Quiz(held_out, language, tokenizer)
    short_quiz = Quiz(held_out[:N_MEASURED], language, tokenizer)
    console.print(report.introduction(language, problems, held_out))

    with silence(), one_thread(), progress_bar(console) as progress:
        with clock.time("base_model"):
            watch = Watch("base", diary, progress, "base model learns the language", args.steps)
            corpus = [language.line(problem, spelled=spelled) for problem in problems for spelled in (True, False)]
            base_lm = learn_language(args.language_course(), corpus, tokenizer, watch)
        with clock.time("quiz"):
            figures["base"] = quiz.without_thoughts(base_lm).right
            figures["spelled_out"] = quiz.spelled_out(base_lm).right

        untouched = copy.deepcopy(base_lm)
        model = QuietStarForCausalLM.from_base(base_lm, tokenizer=tokenizer, **args.method_settings())
        fresh = copy.deepcopy(model)
        with clock.time("quiet_star"):
            watch = Watch(
                "thoughts",
                diary,
                progress,
                "Quiet-STaR teaches it to think",
                args.thought_steps,
                measure=lambda: {
                    "n_held_out": len(short_quiz),
                    "held_out_own_thoughts": short_quiz.with_thoughts(model).right.value,
                    "held_out_base_pass": short_quiz.without_thoughts(model.base_lm).right.value,
                },
                every=MEASURE_EVERY,
                shown=("held_out_own_thoughts", "{:.0%} right"),
            )
            unspelled = [language.line(problem, spelled=False) for problem in problems]
            # The heads' gradients are clipped with all others, as the paper does.
            learn_to_think(args.thought_course(), model, unspelled, tokenizer, watch, clip_heads_apart=False)
        with clock.time("quiz"):
            random_thoughts = quiz.random_thoughts(model.config.n_thought_tokens, args.seed)
            own = quiz.with_thoughts(model)
            figures["base_pass"] = quiz.without_thoughts(model.base_lm).right
            figures["random_thoughts"] = quiz.with_thoughts(model, random_thoughts).right
            figures["own_thoughts"] = own.right
            figures["thoughts_are_ways"] = own.thoughts_are_ways

        with clock.time("inspection"):
            lines = [language.line(problem, spelled=False) for problem in held_out[: args.inspected]]
            texts = [  # a character is a token, and the thought comes between question and answer
                TextToTrace(ids=ids, may_think=[line.index(EQUALS)])
                for line, ids in zip(lines, tokenizer(lines)["input_ids"], strict=True)
            ]
            thoughts = trace(model, tokenizer, texts, TraceSettings(seed=args.seed), name="the demo", before=untouched)

        with clock.time("files"):
            folder = claim(args.output_dir, asdict(args), overwrite=args.overwrite)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            unheard = [language.line(problem, spelled=False) for problem in held_out]
            write_for_study(folder, fresh, tokenizer, unspelled, unheard)
            write_results(thoughts, claim(folder / THOUGHTS, thoughts.about))
            if args.picture:
                picture.draw(folder / "picture.png", figures, diary)

    results: dict[str, Any] = {
        "settings": asdict(args),
        "versions": versions(),
        "n_parameters": {"base": base_lm.num_parameters(), "thinking": model.num_parameters()},
        "n_problems": {"training": len(problems), "held_out": len(held_out)},
        "chance": CHANCE,
        "figures": {name: share.to_dict() for name, share in figures.items()},
        "examples": report.examples(quiz, own, N_EXAMPLES),
        "seconds": clock.seconds(),
    }
    write_whole(folder / "metrics.json", json.dumps(results, indent=2) + "\n")
    write_whole(folder / "table.md", report.figures_markdown(figures))
    write_whole(folder / "log.jsonl", json_lines(diary))

    console.print(report.figures_table(figures))
    console.print(report.thoughts_sentence(figures["thoughts_are_ways"]))
    console.print(report.examples_table(results["examples"]))
    console.print("[bold]Do the thoughts matter?[/]")
    for sentence in thoughts.summary.sentences:
        console.print(sentence)
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    console.print(f"{clock.seconds()['total_wall']:.0f} seconds. In {folder}: {files}", soft_wrap=True)
    return results


class Clock:
    """Seconds spent on each stage: wall time, and CPU time of all cores."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        spent = self.stages.setdefault(stage, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] += time.perf_counter() - wall
        spent["cpu"] += time.process_time() - cpu

    def seconds(self) -> dict[str, Any]:
        """Return the seconds of each stage, and the wall time since the start."""
        rounded = {
            stage: {kind: round(seconds, 1) for kind, seconds in spent.items()} for stage, spent in self.stages.items()
        }
        return rounded | {"total_wall": round(time.perf_counter() - self.begin, 1)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread within the block.

    A second one hardly helps with tensors this small, and on a busy machine, threads that waited for each other made
    the demo eight times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def silence() -> Iterator[None]:
    """Turn off messages and progress bars of transformers within the block."""
    logging = transformers.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

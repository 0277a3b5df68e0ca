"""Run `--discover`: base models that hardly know a scratch letter, and arms of Quiet-STaR that may find it."""

import copy
import json
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, set_seed

from quietstar.demo.discover import picture, report
from quietstar.demo.discover.arguments import DiscoverArguments
from quietstar.demo.discover.report import Findings
from quietstar.demo.discover.world import MOVES, World
from quietstar.demo.for_study import write_for_study
from quietstar.demo.language import CHANCE, build_tokenizer
from quietstar.demo.lessons import learn_language, learn_to_think
from quietstar.demo.picture import require_matplotlib
from quietstar.demo.quiz import Quiz
from quietstar.demo.story import Clock, one_thread, silence
from quietstar.demo.watch import Line, Watch, progress_bar
from quietstar.model import QuietStarForCausalLM
from quietstar.reporting.tables import json_lines
from quietstar.runs.folders import check_output_folder, claim, versions, write_whole

MEASURED = ("step", "own_thoughts", "base_pass", "scratch_letters")
"""what a curve has of a line of the diary"""


def discover(args: DiscoverArguments, console: Console | None = None) -> dict[str, Any]:
    """Run all arms, show their figures, and write them and a picture to `args.output_dir`.

    Returns:
        The content of metrics.json: settings, versions, chance, seconds; `base`, shares of right answers (right, n,
        share, low, high) of each seed's base model; `curves`, arm -> seed -> such shares at every measured step; and
        `found`, arm -> the seeds in which reinforcement found the thought.

    Raises:
        SettingsError: the folder is not empty; nothing in it is changed.
        MissingExtraError: a picture is to be drawn, but matplotlib is not installed.
    """
    check_output_folder(args.output_dir, overwrite=args.overwrite)
    if args.picture:
        require_matplotlib()
    console = console or Console(highlight=False)
    clock, found = Clock(), Findings()
    console.print(report.introduction(World.sample(args.seed, args.held_out), args))
    with silence(), one_thread(), progress_bar(console) as progress:
        runs = [Run(args, args.seed + n, progress, clock) for n in range(args.n_seeds)]
        bases = [one_seed(run, found) for run in runs]
    with clock.time("files"):
        folder = claim(args.output_dir, asdict(args), overwrite=args.overwrite)
        first, world = runs[0], runs[0].world
        fresh = fresh_model(first, args.arms[0], bases[0])
        unheard = [world.language.line(problem, spelled=False) for problem in world.held_out]
        write_for_study(folder, fresh, first.tokenizer, world.lessons(), unheard)
        if args.picture:
            picture.draw(folder / "picture.png", found)
    results = {
        "settings": asdict(args),
        "versions": versions(),
        "chance": CHANCE,
        "base": found.base,
        "curves": found.curves,
        "found": {arm: found.seeds_found(arm) for arm in found.curves},
        "seconds": clock.seconds(),
    }
    write_whole(folder / "metrics.json", json.dumps(results, indent=2) + "\n")
    write_whole(folder / "table.md", report.markdown_table(found))
    write_whole(folder / "log.jsonl", json_lines(found.diary))
    console.print(report.table(found))
    for sentence in report.sentences(found):
        console.print(sentence)
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    console.print(f"{clock.seconds()['total_wall']:.0f} seconds. In {folder}: {files}", soft_wrap=True)
    return results


class Run:
    """What all arms of a seed share: the options, a language with its quiz, and where progress is shown."""

    def __init__(self, args: DiscoverArguments, seed: int, progress: Progress, clock: Clock) -> None:
        self.args, self.seed, self.progress, self.clock = args, seed, progress, clock
        self.tokenizer = build_tokenizer(MOVES)
        self.world = World.sample(seed, args.held_out)
        self.quiz = Quiz(self.world.held_out, self.world.language, self.tokenizer)


def one_seed(run: Run, found: Findings) -> PreTrainedModel:
    """Train a base model, then a copy of it in each arm, and add what was measured to the findings.

    Return the base model.
    """
    args, seed = run.args, run.seed
    with run.clock.time("base_model"):
        watch = Watch(f"base, seed {seed}", found.diary, run.progress, f"seed {seed}: the language", args.steps)
        corpus = run.world.corpus(args.spelled_one_in, seed)
        base_lm = learn_language(args.language_course(seed), corpus, run.tokenizer, watch, n_layers=args.layers)
    found.base[seed] = {
        "no_thoughts": run.quiz.without_thoughts(base_lm).right.to_dict(),
        "spelled_out": run.quiz.spelled_out(base_lm).right.to_dict(),
    }
    for arm in args.arms:
        with run.clock.time(arm):
            lines = one_arm(run, arm, copy.deepcopy(base_lm))
        found.diary += lines
        found.curves.setdefault(arm, {})[seed] = [
            {name: line[name] for name in MEASURED} for line in lines if "own_thoughts" in line
        ]
    return base_lm


def fresh_model(run: Run, arm: str, base_lm: PreTrainedModel) -> QuietStarForCausalLM:
    """Return the thinking model of an arm before it learns anything, around a base model."""
    set_seed(run.seed)  # The mixing head begins at random, and the same in each arm.
    model = QuietStarForCausalLM.from_base(base_lm, tokenizer=run.tokenizer, **run.args.method_settings(arm))
    end_as(model, run.tokenizer.convert_tokens_to_ids(run.args.end_text))
    return model


def one_arm(run: Run, arm: str, base_lm: PreTrainedModel) -> list[Line]:
    """Teach a base model to think, and return the diary of it; every few lines have the quiz's shares."""
    args, diary = run.args, list[Line]()
    model = fresh_model(run, arm, base_lm)

    def measure() -> Line:
        own = run.quiz.with_thoughts(model)
        return {
            "own_thoughts": own.right.to_dict(),
            "base_pass": run.quiz.without_thoughts(model.base_lm).right.to_dict(),
            "scratch_letters": own.thoughts_are_ways.to_dict(),
        }

    watch = Watch(
        f"{arm}, seed {run.seed}",
        diary,
        run.progress,
        f"seed {run.seed}: {arm}",
        args.thought_steps,
        measure=measure,
        every=args.measure_every,
        shown=("own_thoughts", "{0[share]:.0%} right"),
    )
    course = args.thought_course(run.seed)
    learn_to_think(course, model, run.world.lessons(), run.tokenizer, watch, clip_heads_apart=True)
    return diary


@torch.no_grad()
def end_as(model: QuietStarForCausalLM, token_id: int) -> None:
    """Let the end of a thought begin as the embedding of a token."""
    vector = model.base_lm.get_input_embeddings().weight[token_id]
    model.thought_embeddings.end_embedding.copy_(vector / model.config.embedding_scale)

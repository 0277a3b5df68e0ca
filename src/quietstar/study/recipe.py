"""A study's recipe: model, texts, arms, seeds and measures, read from YAML and checked before anything runs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from quietstar.errors import SettingsError, did_you_mean, shown
from quietstar.evaluation.tasks import find_task
from quietstar.runs.options import OneLineParser, as_flags, read_yaml
from quietstar.study.arms import BASE, CANDIDATE, READY, THINKING, UNTOUCHED, Arm
from quietstar.training.data.arguments import DataArguments

SET_BY_STUDY = frozenset(
    [
        "model",
        "dataset",
        "eval_dataset",
        "eval_size",
        "output_dir",
        "overwrite",
        "resume",
        "resume_from_checkpoint",
        "seed",
        "data_seed",
        "dry_run",
        "config",
        "original",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "save_strategy",
        "save_steps",
        "eval_strategy",
        "eval_delay",
        "eval_steps",
        "eval_on_start",
        "stop_when_unhealthy",
        "streaming",
        "assistant_only_loss",
        "eval_tasks",
    ]
)
"""options of `quietstar train` that a study gives itself, or that would break its comparisons"""


OF_ALL = frozenset({field.name for field in fields(DataArguments)} | {"max_steps", "num_train_epochs", "dtype", "bf16"})
"""options that all arms share: rows, steps and precision"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is compared on what.

    Raises:
        SettingsError: a value is impossible.
    """

    model: str
    """base model, as `quietstar train --model` takes it"""
    dataset: str
    """text to train on"""
    selection: str
    """text on which the checkpoint of each run is chosen, named like `dataset`"""
    test: str
    """text that is reported"""
    tasks: dict[str, str] = field(default_factory=dict)
    """task -> local file of its items, or nothing for the hub's"""
    task_items: int = 200
    """items of each task"""
    test_rows: int = 256
    """rows of the test text at most"""
    inspected_rows: int = 16
    """rows of the test text on which thoughts are replaced"""
    batch_size: int = 8
    """rows that are measured at once"""
    evaluations: int = 4
    """evaluations of a run on the selection text, after the one before training; the best checkpoint is reported"""
    seeds: tuple[int, ...] = (0, 1, 2)
    options: dict[str, Any] = field(default_factory=dict)
    """options of `quietstar train` for every arm that trains"""
    thinking: dict[str, Any] = field(default_factory=dict)
    """further options for every arm that thinks"""
    arms: dict[str, Arm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("task_items", "test_rows", "inspected_rows", "batch_size", "evaluations"):
            least = {"test_rows": 2, "task_items": 2, "inspected_rows": 0}.get(name, 1)
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise SettingsError(f"{name} is {shown(value)}; give a whole number of at least {least}")
        if len({self.dataset, self.selection, self.test}) < 3:
            raise SettingsError(
                f"dataset is {self.dataset!r}, selection {self.selection!r} and test {self.test!r}; give three texts "
                "that share nothing: what is reported may have chosen nothing"
            )

    def train_options(self, arm: Arm) -> dict[str, Any]:
        """Return the options of `quietstar train` that a recipe gives an arm."""
        return self.options | (self.thinking if arm.kind == THINKING else {}) | arm.options

    @property
    def candidates(self) -> list[str]:
        """Arms whose thoughts are reinforced: those that the study is about."""
        return [name for name in self.arms if self.role(name) == CANDIDATE]

    def role(self, name: str) -> str:
        """Return what an arm is in the comparison; see `Arm.role`."""
        return self.arms[name].role(self.train_options(self.arms[name]))


def read_recipe(file: str, parser: OneLineParser, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe in a YAML file.

    Args:
        file: the YAML file.
        parser: of `quietstar train`, which knows its options.
        overrides: values that replace the file's; None values do not.

    Raises:
        SettingsError: the file cannot be read, or a key, an arm or an option in it is unknown or impossible.
    """
    found = read_yaml(f"recipe {file}", file, "model: NAME") | {
        name: value for name, value in (overrides or {}).items() if value is not None
    }
    names = [each.name for each in fields(Recipe)]
    for key in found:
        if key not in names:
            hint = did_you_mean(str(key), names) or f"; choose from {', '.join(names)}"
            raise SettingsError(f"recipe {file} has unknown key {shown(key)}{hint}")
    for name in ("model", "dataset", "selection", "test"):
        if not isinstance(found.get(name), str):
            raise SettingsError(f"recipe {file} has {name} {shown(found.get(name))}; give a text, such as {name}: NAME")
    for name in ("options", "thinking", "tasks"):
        found[name] = found.get(name) or {}
        if not isinstance(found[name], dict):
            raise SettingsError(f"recipe {file} has {name} {shown(found[name])}; give lines such as 'n_ahead: 8'")
    check_options(file, "options", found["options"], parser)
    check_options(file, "thinking", found["thinking"], parser, OF_ALL)
    found["tasks"] = {find_task(str(name)).name: str(path or "") for name, path in found["tasks"].items()}
    for path in filter(None, found["tasks"].values()):
        if not Path(path).exists():
            raise SettingsError(f"recipe {file} has a task file {path}, which does not exist; give a file, or nothing")
    found["seeds"] = seeds_in(file, found.get("seeds", [0, 1, 2]))
    found["arms"] = arms_in(file, found.get("arms"), parser)
    return Recipe(**found)


def seeds_in(file: str, seeds: Any) -> tuple[int, ...]:
    """Return the seeds of a recipe, or raise SettingsError."""
    is_list = isinstance(seeds, list | tuple) and len(seeds) > 0
    if not is_list or any(type(seed) is not int or not 0 <= seed < 2**32 for seed in seeds):
        raise SettingsError(f"recipe {file} has seeds {shown(seeds)}; give a list of whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise SettingsError(f"recipe {file} has a seed twice: {shown(seeds)}; give each once")
    return tuple(seeds)


def arms_in(file: str, given: Any, parser: OneLineParser) -> dict[str, Arm]:
    """Return the arms of a recipe: names of READY ones, or a mapping of names to options. The base comes first.

    Raises:
        SettingsError: there is no such arm, or an option of one is unknown.
    """
    if isinstance(given, list):
        given = dict.fromkeys(given) if all(isinstance(name, str) for name in given) else None
    if not isinstance(given, dict) or not given:
        raise SettingsError(
            f"recipe {file} has no arms; list some, such as arms: [finetune-compute, filler, quietstar]"
        )
    arms = {BASE: READY[BASE]}
    for name, options in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise SettingsError(f"recipe {file} has an arm {shown(name)}; name it with letters, digits, ., - and _")
        arms[name] = arm_of(file, name, options, parser)
    if not any(arm.kind == THINKING for arm in arms.values()):
        raise SettingsError(f"recipe {file} has no arm that thinks; add one, such as quietstar")
    return arms


def arm_of(file: str, name: str, given: Any, parser: OneLineParser) -> Arm:
    """Return an arm: a READY one, or another like it, with further options if there are any.

    Raises:
        SettingsError: there is no such arm, or an option is unknown.
    """
    if given is not None and not isinstance(given, dict):
        raise SettingsError(f"recipe {file} has arm {name} {shown(given)}; give lines such as 'n_ahead: 8'")
    options = dict(given or {})
    like, about = options.pop("like", name), options.pop("about", None)
    if name in READY and like != name:
        raise SettingsError(f"recipe {file} has arm {name} like {shown(like)}, but {name} comes ready; rename it")
    if not isinstance(like, str) or like not in READY:
        raise SettingsError(
            f"recipe {file} has arm {name}, which is none that comes ready, like {shown(like)}; give like: one of "
            f"{', '.join(READY)}"
        )
    ready = READY[like]
    if options and ready.kind == UNTOUCHED:
        raise SettingsError(f"recipe {file} gives arm {name} options, but it does not train; leave them out")
    check_options(file, f"arm {name}", options, parser, OF_ALL)
    return replace(ready, name=name, about=str(about or ready.about), options=ready.options | options)


def check_options(
    file: str, where: str, options: dict[Any, Any], parser: OneLineParser, of_all: frozenset[str] = frozenset()
) -> None:
    """Raise SettingsError for options that `quietstar train` lacks, that a study sets, or that are for all arms."""
    for name in options:
        if name in of_all:
            raise SettingsError(
                f"recipe {file} sets {name} in {where}, and arms that differ in it do not compare; set it in options"
            )
        if name in SET_BY_STUDY:
            raise SettingsError(f"recipe {file} sets {name} in {where}, which a study sets itself; leave it out")
    as_flags(f"recipe {file}, {where},", options, parser)

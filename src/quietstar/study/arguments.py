"""Options of `quietstar study`."""

from dataclasses import dataclass

from quietstar.errors import SettingsError
from quietstar.runs.fields import option

WHAT = "what to compare"
RUN = "run"


@dataclass(kw_only=True)
class StudyArguments:
    """Which parts of a study to run, and where.

    Raises:
        SettingsError: options do not fit each other.
    """

    model: str | None = option(None, "base model, instead of the recipe's", WHAT)
    dataset: str | None = option(None, "text to train on, instead of the recipe's", WHAT)
    selection: str | None = option(None, "text on which checkpoints are chosen, instead of the recipe's", WHAT)
    test: str | None = option(None, "text that is reported, instead of the recipe's", WHAT)
    arms: list[str] = option([], "run only these arms of the recipe; the untouched base is always measured", WHAT)
    seeds: list[int] = option([], "run only these seeds of the recipe", WHAT)
    output_dir: str | None = option(None, "folder of the study (default: runs/study-RECIPE)", RUN)
    resume: bool = option(False, "go on in output_dir where the study was stopped, or begin", RUN)
    overwrite: bool = option(False, "empty an output_dir that holds an earlier run", RUN)
    dry_run: bool = option(False, "try three steps of each arm, say what all would cost and take, and stop", RUN)
    keep_models: bool = option(True, "keep the trained models; without them, a study needs little room", RUN)
    report: list[str] = option([], "put the runs of these studies of one recipe together, and run nothing", RUN)

    def __post_init__(self) -> None:
        if self.overwrite and self.resume:
            raise SettingsError("overwrite empties output_dir, and resume needs what is in it; leave one out")
        if self.report and (self.arms or self.seeds or self.dry_run or self.resume):
            raise SettingsError("report puts finished runs together and runs nothing; leave the other options out")

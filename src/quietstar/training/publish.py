"""A run's model on a hub, once it is finished: for runs whose checkpoints are not what they end with."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME as PICKLE

from quietstar.errors import CheckpointError, QuietStarError, SettingsError, first_line
from quietstar.runs.folders import MARKER, UNFINISHED
from quietstar.training.arguments import QuietStarTrainingArguments

LEFT_OUT = ["checkpoint-*", "checkpoint-*/**", "stage-*/**", f"*{UNFINISHED}", MARKER, PICKLE]
"""what is not uploaded: a run's settings name folders of this machine, and a pickle could run code"""


@contextmanager
def published_at_end(args: QuietStarTrainingArguments) -> Iterator[None]:
    """With push_to_hub, make the repository now, and upload the run's folder after the block, without checkpoints.

    Within the block, push_to_hub is off: transformers would upload each checkpoint.

    Raises:
        SettingsError: the repository cannot be made.
        CheckpointError: the folder cannot be uploaded; it is complete all the same.
    """
    if not args.push_to_hub:
        yield
        return
    folder = Path(str(args.output_dir))
    repository = _repository(args) if args.process_index == 0 else ""
    args.push_to_hub = False
    try:
        yield
    finally:
        args.push_to_hub = True
    if args.process_index == 0:
        upload(args, folder, repository)


def upload(args: QuietStarTrainingArguments, folder: Path, repository: str | None = None) -> None:
    """Upload a run's folder; raise CheckpointError if that fails."""
    (folder / PICKLE).unlink(missing_ok=True)  # transformers writes it when it uploads a checkpoint
    repository = repository or _repository(args)
    with _uploading(folder, repository):
        HfApi(token=args.hub_token).upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="End of training",
            revision=args.hub_revision,
            ignore_patterns=LEFT_OUT,
            delete_patterns=[PICKLE],
        )


def in_one_line(trainer: type[Trainer]) -> tuple[Any, Any]:
    """Return a trainer's init_hf_repo and push_to_hub, which raise SettingsError and CheckpointError if they fail."""

    @wraps(trainer.init_hf_repo)
    def init_hf_repo(self: Trainer, *args: Any, **kwargs: Any) -> None:
        with _making(_name(self.args)):
            trainer.init_hf_repo(self, *args, **kwargs)

    @wraps(trainer.push_to_hub)
    def push_to_hub(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        with _uploading(Path(str(self.args.output_dir)), self.hub_model_id or _name(self.args)):
            return trainer.push_to_hub(self, *args, **kwargs)

    return init_hf_repo, push_to_hub


def _repository(args: QuietStarTrainingArguments) -> str:
    """Return the name of the repository on the hub; make it if there is none."""
    name = _name(args)
    with _making(name):
        return str(HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id)


def _name(args: TrainingArguments) -> str:
    """Return what the repository is to be called."""
    return args.hub_model_id or Path(str(args.output_dir)).resolve().name


@contextmanager
def _uploading(folder: Path, repository: str) -> Iterator[None]:
    try:
        yield
    except QuietStarError:
        raise
    except Exception as error:  # of the network or the hub
        raise CheckpointError(
            f"the model is saved in {folder}, but cannot be uploaded ({first_line(error)}); try again with "
            f"{shlex.join(['hf', 'upload', repository, str(folder), '--exclude', *LEFT_OUT])}"
        ) from error


@contextmanager
def _making(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the network, the hub or the name
        raise SettingsError(
            f"--push_to_hub needs the repository {name} on the hub, which cannot be made ({first_line(error)}); log in "
            "with hf auth login, or leave that option out"
        ) from error

"""The seam with transformers' Trainer: each private name of it that is used, and what for.

A release of transformers may drop or rename any of them; then the tests here fail with what the name is needed for.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from transformers import (
    GenerationMixin,
    HfArgumentParser,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
)

import quietstar

SOURCE = Path(quietstar.__file__).parent
SEAM = SOURCE / "training" / "trainer.py"

OVERRIDDEN = {
    "_run_epoch": "makes no step more in a run that has made all its steps or was told to stop",
    "_get_train_sampler": "reads the rows of a step again for its further policy epochs",
    "_clip_grad_norm": "clips mixing head and thought embeddings apart from the base model",
    "_get_grad_norm": "notes the norm of the gradients, by which a step is judged",
    "_save_checkpoint": "writes checkpoints to a temporary folder, and marks them complete last",
    "_save_optimizer_and_scheduler": "writes the optimizer in shards under FSDP",
    "_load_from_checkpoint": "loads weights under the model's own names, whole or in shards, and refuses missing ones",
    "_load_best_model": "loads the best model as `_load_from_checkpoint` does",
    "_load_optimizer_and_scheduler": "loads the optimizer in shards under FSDP, and keeps settings with allow_changes",
    "_load_scaler": "says in one line that a scaler's file is damaged",
    "_load_rng_state": "says in one line that the random state's file is damaged",
}
"""private methods of the Trainer that are overridden: it must call them where it did"""

USED = {
    "_save_scaler": "writes the scaler of fp16 into a checkpoint",
    "_save_rng_state": "writes the state of the random numbers into a checkpoint",
    "_push_from_checkpoint": "uploads a checkpoint that is complete",
    "_evaluate": "makes the evaluation that a signal delayed",
    "_determine_best_metric": "notes whether that evaluation is the best one",
}
"""private methods of the Trainer that are called"""

ELSEWHERE: dict[str, tuple[type, str]] = {
    "_attn_implementation": (PreTrainedConfig, "names the attention function that branches are hooked into"),
    "_experts_implementation": (PreTrainedConfig, "must be set again on a config that another one holds"),
    "_can_set_attn_implementation": (PreTrainedModel, "says whether a model takes attention functions by name"),
    "_init_weights": (PreTrainedModel, "begins the weights of mixing head and thought embeddings"),
    "_supports_sdpa": (PreTrainedModel, "lets a base model attend by sdpa"),
    "_skip_keys_device_placement": (PreTrainedModel, "keeps caches where they are"),
    "_keep_in_fp32_modules_strict": (PreTrainedModel, "keeps mixing head, thought embeddings and adapters in float32"),
    "_prepare_cache_for_generation": (GenerationMixin, "tells the journal which tokens end a sequence"),
    "_eos_token_tensor": (GenerationMixin, "holds the tokens that end a sequence"),
    "_get_logits_processor": (GenerationMixin, "rules suppressed tokens out before top-p and its like choose"),
    "_parse_dataclass_field": (HfArgumentParser, "adds an option to its group of --help"),
}
"""private names of other classes of transformers that are used anywhere in the source: the class, and what for"""

INTERNAL_CALL = "save_model(..., _internal_call) tells a checkpoint's model from one that is to be uploaded"


@pytest.mark.parametrize("name", OVERRIDDEN | USED)
def test_the_trainer_has_each_private_name(name: str) -> None:
    what_for = (OVERRIDDEN | USED)[name]
    assert callable(getattr(Trainer, name, None)), (
        f"transformers {transformers.__version__} has no Trainer.{name}, which {what_for}"
    )


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_the_trainer_calls_each_private_method_that_is_overridden(name: str) -> None:
    calls = [node.attr for node in ast.walk(ast.parse(inspect.getsource(Trainer))) if isinstance(node, ast.Attribute)]
    assert name in calls, (
        f"transformers {transformers.__version__} does not call Trainer.{name} any more, which {OVERRIDDEN[name]}"
    )


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_classes_have_each_private_name(name: str) -> None:
    owner, what_for = ELSEWHERE[name]
    source = inspect.getsource(inspect.getmodule(owner))  # type: ignore[arg-type]
    assert hasattr(owner, name) or name in source, (
        f"transformers {transformers.__version__} has no {owner.__name__}.{name}, which {what_for}"
    )
    sources = (file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py"))
    assert any(name in text for text in sources), f"{name} is not used any more: take it out of this list"


def test_saving_knows_internal_calls() -> None:
    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters, INTERNAL_CALL


def private_names_of_the_trainer() -> set[str]:
    """Names of attributes that begin with one underscore: methods, and what its methods set."""
    found = {name for owner in Trainer.__mro__[:-1] for name in vars(owner)}
    for node in ast.walk(ast.parse(inspect.getsource(Trainer))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def private_names_in(file: Path) -> Iterator[tuple[str, int]]:
    """Each attribute and method name of a file that begins with one underscore, and its line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.attr, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value, node.lineno


def trainers_of(file: Path) -> list[str]:
    """Names of the classes of a file that inherit from a Trainer."""
    classes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)]
    return [node.name for node in classes for base in node.bases if ast.unparse(base).endswith("Trainer")]


def test_the_lists_are_what_the_seam_uses() -> None:
    names = {name for name, _ in private_names_in(SEAM)} & private_names_of_the_trainer()
    assert names == OVERRIDDEN.keys() | USED.keys()
    defined = {name for name in vars(quietstar.QuietStarTrainer) if name in private_names_of_the_trainer()}
    assert defined == OVERRIDDEN.keys()


def test_nothing_else_knows_private_names_of_the_trainer() -> None:
    known = private_names_of_the_trainer()
    found = [
        f"{file.relative_to(SOURCE)}:{line}: {name}"
        for file in sorted(SOURCE.rglob("*.py"))
        if file != SEAM
        for name, line in private_names_in(file)
        if name in known and not defined_in(file, name)
    ]
    assert found == []


def defined_in(file: Path, name: str) -> bool:
    """Whether a file has a function or an attribute of its own of that name, such as `_save`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return True
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store):
            return True
    return False


def test_one_class_inherits_from_a_trainer() -> None:
    found = {file.relative_to(SOURCE).as_posix(): trainers_of(file) for file in SOURCE.rglob("*.py")}
    assert {name: classes for name, classes in found.items() if classes} == {
        "training/trainer.py": ["QuietStarTrainer"]
    }


def test_no_module_of_transformers_is_changed() -> None:
    """Such as by `trainer.skip_first_batches = ...`: the seam is made of overrides."""
    for file in SOURCE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
            for alias in node.names
            if alias.name.islower()
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert not (isinstance(node.value, ast.Name) and node.value.id in imported), f"{file}:{node.lineno}"

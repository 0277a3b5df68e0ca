"""A resumed run is recognised by the contents of its files, and by the settings that decide what is learned."""

import dataclasses
import os
import shutil

import pytest
import transformers
from packaging.version import Version

from quietstar.config import QuietStarConfig
from quietstar.errors import SettingsError
from quietstar.training.arguments import METHOD_SETTINGS, QuietStarTrainingArguments
from quietstar.training.same_run import TRAINING, refuse_changes, what_matters
from tests.training.test_killed import train

WHEN_AND_WHAT_IT_SHOWS = """
output_dir overwrite resume resume_from_checkpoint allow_changes dry_run max_steps max_bad_steps do_train do_eval
do_predict eval_on_start eval_strategy eval_steps eval_delay eval_tasks eval_data eval_limit eval_report_rows
stop_when_unhealthy health_checks
per_device_eval_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model
greater_is_better save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
restore_callback_states_from_checkpoint thoughts_shown logging_strategy logging_steps logging_first_step
log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to
run_name project trackio_space_id trackio_bucket_id trackio_static_space_id push_to_hub hub_token hub_private_repo
hub_model_id hub_strategy hub_always_push hub_revision debug skip_memory_metrics"""

HOW_IT_RUNS = """
ema_device auto_micro_batch activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing_kwargs
torch_empty_cache_steps use_cache use_cpu dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
ddp_backend ddp_timeout local_rank"""
"""memory, loading of batches and communication, which change figures by rounding at most"""

IGNORED = """
label_smoothing_factor average_tokens_across_devices remove_unused_columns label_names
fsdp fsdp_config deepspeed parallelism_config"""
"""ignored by the method's loss and batches; how a model is sharded is compared separately"""

FREE = frozenset(f"{WHEN_AND_WHAT_IT_SHOWS} {HOW_IT_RUNS} {IGNORED}".split())
"""all other arguments: a resumed run may change them"""


def test_no_argument_is_in_both_lists() -> None:
    assert FREE.isdisjoint(TRAINING.split())
    assert FREE.isdisjoint(METHOD_SETTINGS)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.24"), reason="has other arguments")
def test_every_argument_is_in_a_list() -> None:
    """A new argument belongs in TRAINING, METHOD_SETTINGS or FREE."""
    names = {field.name for field in dataclasses.fields(QuietStarTrainingArguments)}
    assert names - FREE - {*TRAINING.split(), *METHOD_SETTINGS} == set()


NOW = {"seed": 1, "dataset": "a.jsonl", "model": "m", "row_digest": "x", "weight_digest": "w", "streaming": False}


@pytest.mark.parametrize(
    "before",
    [
        NOW,
        NOW | {"dataset": "./a.jsonl", "model": "m/"},
        {"seed": 1, "dataloader_num_workers": 1},
        NOW | {"a_setting_of_another_version": 3},
    ],
)
def test_the_same_run(before: dict) -> None:
    refuse_changes(before, NOW | {"dataloader_num_workers": 0}, "checkpoint-1")


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (NOW | {"row_digest": "y"}, "the rows to train on have changed;"),
        (NOW | {"row_digest": "y", "dataset": "b"}, "rows to train on .*dataset is 'a.jsonl' and was 'b'"),
        (NOW | {"weight_digest": "y", "dataset": "b"}, "settings: the weights of the model have changed;"),
        (NOW | {"weight_digest": "y", "model": "n"}, "weights of the model .*, model is 'm' and was 'n';"),
        (NOW | {"weight_digest": None, "model": "n"}, "model is 'm' and was 'n'"),
        ({"dataset": "./a.jsonl"}, r"dataset is 'a.jsonl' and was './a.jsonl'"),
        (NOW | {"seed": 2}, "seed is 1 and was 2"),
        ({"dataloader_num_workers": 2}, "dataloader_num_workers is 0 and was 2"),
    ],
)
def test_another_run(before: dict, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        refuse_changes(before, NOW | {"dataloader_num_workers": 0}, "checkpoint-1")


@pytest.mark.parametrize(("schedule", "matters"), [("cosine", True), ("linear", True), ("constant_with_warmup", False)])
def test_the_last_step_matters_where_the_learning_rate_moves_towards_it(schedule, matters, tmp_path):
    args = QuietStarTrainingArguments(output_dir=str(tmp_path), lr_scheduler_type=schedule, max_steps=7, use_cpu=True)
    found = what_matters(args, QuietStarConfig(), {})
    assert found.get("max_steps") == (7 if matters else None)


@pytest.mark.parametrize("streaming", [False, True])
def test_contents_decide_and_spelling_does_not(inputs, tmp_path, streaming, monkeypatch):
    """The same files elsewhere are the same; other rows in a file of the same name are not."""
    folder, texts = tmp_path / "run", tmp_path / "texts"
    shutil.copytree(inputs / "texts", texts)
    how = dict(streaming=streaming, save_steps=2, dataset=str(texts))
    train(inputs, folder, max_steps=2, **how)
    os.rename(texts, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    more = {"dataloader_num_workers": 1} if streaming else {"dataloader_num_workers": 2}
    train(inputs, folder, **how | {"max_steps": 4, "dataset": "./moved/"} | more)
    file = next(path for path in sorted((tmp_path / "moved").rglob("*")) if path.is_file())
    whole = file.read_text()
    file.write_text(whole.replace("a", "b"))
    with pytest.raises(SettingsError, match="to train on have changed"):
        train(inputs, folder, **how | {"max_steps": 6, "dataset": "moved"})
    file.write_text(whole)

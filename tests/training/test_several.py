"""Two processes learn what one learns from the same rows and thoughts, whole weights (DDP) or sharded ones (FSDP2)."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_shards import shard_on_cpus
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainerCallback, trainer

from quietstar import QuietStarForCausalLM
from quietstar.errors import CheckpointError
from quietstar.interop.convert import convert
from quietstar.interop.shards import consolidate
from quietstar.runs.processes import ALONE, Processes
from quietstar.training import DataArguments, QuietStarTrainer
from quietstar.training.data.stream import StreamedTextWindows
from quietstar.training.model_arguments import ModelArguments
from quietstar.training.run import run_training
from quietstar.training.tally import count_labels
from tests.elsewhere import refused
from tests.long import mostly_long
from tests.several import Pair
from tests.tiny import loud, tiny_model
from tests.tiny_tokenizer import byte_tokenizer
from tests.training.some_texts import stream_of_files
from tests.training.test_trainer import LENGTHS, arguments, collate, losses_of, rows, with_thoughts

FSDP2 = dict(fsdp=True, fsdp_config={"version": 2, "reshard_after_forward": True})
KINDS: dict[str, dict[str, Any]] = {"ddp": {}, "fsdp2": FSDP2}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, whole."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.kept = model, {}

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.kept.setdefault(name, whole(parameter.grad).clone())


def whole(tensor: Tensor) -> Tensor:
    """Of a sharded tensor, all of it."""
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def learn(
    folder: Path,
    texts: list[dict[str, Any]],
    n_processes: int,
    family: str = "llama",
    base: dict | None = None,
    model: dict | None = None,
    resumed_from: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Two steps of eight rows each, by SGD, in two batches a step on each process: losses, gradients, parameters."""
    if settings.get("fsdp"):
        shard_on_cpus()
    made = tiny_model(
        family, base=base, **({"n_ahead": 4, "n_ahead_talk": 2, "policy_weight": 1.0} | (model or {}))
    ).train()
    adapters = torch.nn.ModuleDict(
        {name.replace(".", "_"): module for name, module in made.named_modules() if name.endswith("lora_B.default")}
    )
    loud(adapters, seed=5)
    size = 8 // n_processes // 2
    chosen = dict(optim="sgd", learning_rate=0.01, max_grad_norm=1e9, per_device_train_batch_size=size)
    run = QuietStarTrainer(
        made,
        arguments(folder, **(chosen | {"gradient_accumulation_steps": 2} | settings)),
        train_dataset=texts,
        data_collator=collate if "thoughts" in texts[0] else None,
    )
    gradients = Gradients(run.model)
    run.add_callback(gradients)
    run.train(resumed_from)
    return {
        "losses": losses_of(run),
        "log": run.state.log_history,
        "gradients": gradients.kept,
        "parameters": {name: whole(parameter) for name, parameter in run.model.named_parameters()},
        "wrapped": type(run.model_wrapped).__name__,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": dict(base=dict(tie_word_embeddings=True)),
    "gpt2": dict(family="gpt2"),
    "lora": dict(model=dict(lora={"r": 4})),
    "balanced, adapters of branches": dict(model=dict(policy_weight="balanced:0.5", branch_adapters={"r": 4})),
    "a reference, policy epochs": dict(
        reference="ema", ema_decay=0.5, kl_weight=0.3, policy_epochs=2, clip_ratio=0.2, max_steps=4
    ),
    "rewards alone, lora": dict(
        model=dict(advantage="leave_one_out", nll_weight=0.0, mixing="thought", lora={"r": 4}), reference="ema"
    ),
    "thoughts that may end": dict(model=dict(learn_to_end=True, length_price=0.1)),
    "checkpointing": dict(gradient_checkpointing=True),
    "checkpointing, tied, lora": dict(
        gradient_checkpointing=True, base=dict(tie_word_embeddings=True), model=dict(lora={"r": 4})
    ),
}
"""what is trained, and how"""


@pytest.mark.parametrize(
    ("case", "kind"),
    mostly_long(
        product(CASES, KINDS),
        [
            ("plain", "ddp"),
            ("plain", "fsdp2"),
            ("balanced, adapters of branches", "ddp"),
            ("a reference, policy epochs", "ddp"),
            ("a reference, policy epochs", "fsdp2"),
            ("thoughts that may end", "fsdp2"),
            ("checkpointing, tied, lora", "fsdp2"),
        ],
    ),
)
def test_two_processes_learn_what_one_learns(pair: Pair, tmp_path: Path, kind: str, case: str):
    texts = with_thoughts(rows(*LENGTHS))
    alone = learn(tmp_path / "one", texts, 1, **CASES[case])
    for ours in pair(learn, tmp_path / kind, texts, 2, **KINDS[kind], **CASES[case]):
        assert ours["wrapped"].startswith("FSDP" if kind == "fsdp2" else "DistributedDataParallel")
        assert ours["losses"] == pytest.approx(alone["losses"], rel=1e-5, abs=1e-6)
        for what in ("gradients", "parameters"):
            assert ours[what].keys() == alone[what].keys()
            for name, value in ours[what].items():
                size = float(alone[what][name].abs().max())
                torch.testing.assert_close(value, alone[what][name], rtol=1e-5, atol=1e-5 * max(size, 1), msg=name)


# ---------------------------------------------------------------------- what differs between them, and what does not


def thoughts_of(folder: Path, texts: list[dict[str, Any]], **settings: Any) -> list[Tensor]:
    """The thoughts [B, P, S, K] that a process samples in each batch."""
    if settings.get("fsdp"):
        shard_on_cpus()
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0)
    run = QuietStarTrainer(model, arguments(folder, **settings), train_dataset=texts)
    compute, seen = run.compute_loss, []

    def noted(*args: Any, **kwargs: Any) -> Any:
        loss, output = compute(*args, **kwargs, return_outputs=True)
        seen.append(output.thoughts.clone())
        return loss

    run.compute_loss = noted  # type: ignore[method-assign]
    run.train()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_are_as_long_on_every_process(pair: Pair, tmp_path: Path, kind: str):
    """Sharded weights are gathered in every pass: all processes must make as many."""
    here, there = pair(thoughts_of, tmp_path / kind, rows(12) * 8, n_ahead_min=2, max_steps=6, **KINDS[kind])
    lengths = [thoughts.shape[-1] for thoughts in here]
    assert lengths == [thoughts.shape[-1] for thoughts in there]
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_differ_between_processes_and_repeat_by_seed(pair: Pair, tmp_path: Path, kind: str):
    same = rows(12) * 8
    runs = [pair(thoughts_of, tmp_path / kind, same, seed=seed, learning_rate=0.0, **KINDS[kind]) for seed in (3, 3, 4)]
    for first, again, other in zip(*runs, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))
        assert not torch.equal(first[0], other[0])
    here, there = runs[0]
    assert (here[0] == there[0]).float().mean() < 0.5


@pytest.mark.parametrize(
    ("case", "kind"),
    mostly_long(product(["plain", "checkpointing"], KINDS), [("plain", "ddp"), ("checkpointing", "fsdp2")]),
)
def test_processes_make_the_same_passes_whatever_their_rows_look_like(pair: Pair, tmp_path: Path, kind: str, case: str):
    """A row of one token, and one without any label, beside long ones: nobody waits for a pass that never comes."""
    texts = rows(1, 40, 2, 3, 33, 1, 2, 28)
    texts[3]["labels"] = [-100] * 3
    learned = pair(learn, tmp_path / kind, texts, 2, think_fraction=0.5, **KINDS[kind], **CASES[case])
    for name, value in learned[0]["parameters"].items():
        assert torch.equal(value, learned[1]["parameters"][name]), name
        assert value.isfinite().all()


def means_of_each_process(batches: list[dict[str, Tensor]], n_ahead_talk: int, processes: Processes) -> Any:
    """What the counts of all processes are if they are not added up."""
    counts = count_labels(batches, n_ahead_talk, ALONE)
    return type(counts)(base=counts.base * 2, talk=counts.talk * 2, complete=counts.complete * 2)


def learn_with_means_of_each_process(*args: Any, **kwargs: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quietstar.training.run_parts.count_labels", means_of_each_process)
        return learn(*args, **kwargs)


def test_means_of_each_process_alone_would_be_noticed(pair: Pair, tmp_path: Path):
    """The comparison with one process has teeth."""
    texts = with_thoughts(rows(*LENGTHS))
    alone = learn(tmp_path / "one", texts, 1)
    wrong, _ = pair(learn_with_means_of_each_process, tmp_path / "two", texts, 2)
    assert abs(wrong["losses"][0] / alone["losses"][0] - 1) > 1e-2


def rows_of_a_stream(folder: Path, n_workers: int, resumed_from: str | None = None) -> list[tuple[int, list]]:
    """The epoch and the rows of each step of a process that learns from a stream."""
    files = [[f"{file}.{i}" for i in range(n)] for file, n in enumerate((5, 3, 4))]
    texts = stream_of_files(files)
    run = QuietStarTrainer(
        tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0, base=dict(vocab_size=300)),
        arguments(
            folder,
            max_steps=9,
            dataloader_num_workers=n_workers,
            save_strategy="steps",
            save_steps=4,
            save_total_limit=9,
        ),
        train_dataset=StreamedTextWindows(texts, byte_tokenizer(), 9, block_size=2),
    )
    step, seen = run.training_step, []

    def noted(model: Any, inputs: Any, *args: Any) -> Any:
        seen.append((run.parts.place.places[run.parts.place.next_worker - 1][2], inputs["input_ids"].tolist()))
        return step(model, inputs, *args)

    run.training_step = noted  # type: ignore[method-assign]
    run.train(resumed_from)
    return seen


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_stream_is_split_and_each_process_resumes_at_its_place(pair: Pair, tmp_path: Path, n_workers: int):
    first, second = pair(rows_of_a_stream, tmp_path / "run", n_workers)
    of_each = [[tuple(row) for epoch, batch in rows if epoch == 0 for row in batch] for rows in (first, second)]
    assert len({*of_each[0], *of_each[1]}) == len(of_each[0]) + len(of_each[1]) == 12
    resumed = pair(rows_of_a_stream, tmp_path / "resumed", n_workers, str(tmp_path / "run" / "checkpoint-4"))
    assert resumed == [first[4:], second[4:]]


# ---------------------------------------------------------------------- evaluation


def evaluated(folder: Path, texts: list[dict[str, Any]], **settings: Any) -> dict[str, float]:
    """Figures of held-out text, before anything is learned and after a step."""
    if settings.get("fsdp"):
        shard_on_cpus()
    model = tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0)
    how = dict(eval_on_start=True, eval_steps=1, max_steps=1, learning_rate=0.0, per_device_eval_batch_size=2)
    made = QuietStarTrainer(
        model, arguments(folder, **(how | settings)), train_dataset=texts, eval_dataset=texts[:n_held_out]
    )
    made.train()
    return [line for line in made.state.log_history if "eval_nll" in line]


n_held_out = 7


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_over_two_processes_gives_the_figures_of_one(pair: Pair, tmp_path: Path, kind: str):
    """Seven rows in batches of two: the last batch of the second process is filled up with rows that come twice."""
    texts = rows(*LENGTHS)
    alone = evaluated(tmp_path / "one", texts)
    for ours in pair(evaluated, tmp_path / kind, texts, **KINDS[kind]):
        assert len(ours) == len(alone) == 2
        for line, expected in zip(ours, alone, strict=True):
            for name, value in expected.items():
                if "runtime" not in name and "per_second" not in name and name != "epoch":
                    assert line[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


# ---------------------------------------------------------------------- bad steps


def learn_from_a_bad_batch(folder: Path, texts: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """The loss of the second step is not finite on the second process."""
    compute = QuietStarTrainer.compute_loss
    calls = []

    def broken(self: QuietStarTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        calls.append(1)
        return loss * float("nan") if len(calls) == 2 and self.args.process_index == 1 else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QuietStarTrainer, "compute_loss", broken)
        return learn(folder, texts, 2, gradient_accumulation_steps=1, max_steps=3, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_bad_on_one_process_is_skipped_on_all(pair: Pair, tmp_path: Path, kind: str):
    learned = pair(learn_from_a_bad_batch, tmp_path / kind, with_thoughts(rows(*LENGTHS)), **KINDS[kind])
    for ours in learned:
        assert [line["bad_steps"] for line in ours["log"] if "bad_steps" in line] == [0, 1, 1]
        for name, value in ours["parameters"].items():
            assert value.isfinite().all(), name
            assert torch.equal(value, learned[0]["parameters"][name]), name
    assert sorted(file.name for file in (tmp_path / kind / "bad-steps").iterdir()) == [
        "step-000002-rank-0.json",
        "step-000002-rank-1.json",
    ]


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("case", "kind"),
    mostly_long(
        product(["plain", "tied", "lora", "a reference, policy epochs"], KINDS),
        [("plain", "ddp"), ("a reference, policy epochs", "fsdp2")],
    ),
)
def test_two_processes_resume_bit_by_bit(pair: Pair, tmp_path: Path, kind: str, case: str):
    """Sampled thoughts, AdamW, accumulated batches, in the middle of a line of figures."""
    how = KINDS[kind] | CASES[case]
    how |= dict(optim="adamw_torch", logging_steps=3, save_strategy="steps", save_steps=4, save_total_limit=9)
    texts = rows(*LENGTHS, *LENGTHS)
    how |= dict(max_steps=7)
    straight = pair(learn, tmp_path / "straight", texts, 2, **how)
    stopped = tmp_path / "straight" / "checkpoint-4"
    resumed = pair(learn, tmp_path / "resumed", texts, 2, resumed_from=str(stopped), **how)
    for ours, theirs in zip(resumed, straight, strict=True):
        for name, value in theirs["parameters"].items():
            assert torch.equal(ours["parameters"][name], value), name
        for line, expected in zip(ours["log"], theirs["log"], strict=True):
            clocks = {name for name in expected if "runtime" in name or "per_second" in name}
            assert {name: line[name] for name in line.keys() - clocks} == {
                name: expected[name] for name in expected.keys() - clocks
            }


@pytest.mark.parametrize("case", ["plain", "tied", "lora"])
def test_shards_are_merged_into_their_model(pair: Pair, tmp_path: Path, case: str):
    how = FSDP2 | CASES[case] | dict(max_steps=2, save_strategy="steps", save_steps=2)
    learned, _ = pair(learn, tmp_path / "run", rows(*LENGTHS), 2, **how)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert not (checkpoint / "model.safetensors").exists()
    assert len(list((checkpoint / "model-shards").glob("*.safetensors"))) == 2
    assert convert(str(checkpoint), tmp_path / "model") == "quietstar"
    model = QuietStarForCausalLM.from_pretrained(tmp_path / "model")
    for name, value in model.named_parameters():
        assert torch.equal(value, learned["parameters"][name]), name


def a_sharded_run(inputs: Path, folder: Path, original: bool, **settings: Any) -> dict[str, float]:
    """A whole run, from names to a folder with the model."""
    shard_on_cpus()
    method = {} if original else dict(n_ahead=4, n_ahead_talk=2)
    often = dict(save_strategy="steps", save_steps=2, learning_rate=1e-2)
    adapters = dict(lora=not original, lora_r=4, merge=settings.pop("merge", False))
    return run_training(
        ModelArguments(model=str(inputs / "base"), original=original, **adapters),
        DataArguments(dataset=str(inputs / "texts"), eval_size=4, max_length=12),
        arguments(folder, **(method | often | FSDP2 | settings)),
    )


@pytest.mark.parametrize("original", [False, True], ids=["merge", "original"])
def test_a_sharded_run_saves_a_whole_model(pair: Pair, inputs: Path, tmp_path: Path, original: bool):
    """Adapters that are merged in after a run was resumed, or the base model alone: what the last shards are."""
    folder = tmp_path / "run"
    if not original:
        pair(a_sharded_run, inputs, folder, original, max_steps=2)
    pair(a_sharded_run, inputs, folder, original, max_steps=4, resume=True, merge=not original)
    convert(str(folder / "checkpoint-4"), tmp_path / "model")
    expected = QuietStarForCausalLM.from_pretrained(tmp_path / "model")
    expected.merge_lora()
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(found, QuietStarForCausalLM) != original
    weights = dict((expected.base_lm if original else expected).named_parameters())
    before = dict(AutoModelForCausalLM.from_pretrained(inputs / "base").named_parameters())
    for name, value in found.named_parameters():
        assert torch.equal(value, weights[name]), name
        if name.endswith("q_proj.weight"):
            assert not torch.equal(value, before[name.removeprefix("base_lm.")])


def test_shards_of_another_model_are_not_merged(pair: Pair, tmp_path: Path):
    pair(learn, tmp_path / "run", rows(*LENGTHS), 2, **FSDP2 | dict(max_steps=1, save_strategy="steps", save_steps=1))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    fields = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "model").mkdir()
    for changed, told in (
        ({"intermediate_size": 24}, "belong together"),
        ({"num_hidden_layers": 3}, "lacks .* weights"),
        ({"num_attention_heads": 0}, "base_config is not a valid config for model_type"),
    ):
        of = {"base_config": fields["base_config"] | changed}
        (checkpoint / "config.json").write_text(json.dumps(fields | of))
        refused(lambda: consolidate(checkpoint, tmp_path / "model"), told)
    (checkpoint / "config.json").unlink()
    refused(lambda: consolidate(checkpoint, tmp_path / "model"), "has no config.json", CheckpointError)
    assert not list((tmp_path / "model").iterdir())


def test_a_checkpoint_has_no_pickle_that_could_run_code(pair: Pair, tmp_path: Path):
    for kind, settings in KINDS.items():
        how = settings | dict(max_steps=1, save_strategy="steps", save_steps=1, optim="adamw_torch")
        pair(learn, tmp_path / kind, rows(*LENGTHS), 2, **how)
        for file in (tmp_path / kind / "checkpoint-1").rglob("*"):
            if file.is_file() and file.suffix not in (".json", ".safetensors"):
                with trainer.safe_globals():  # numpy's, of its random numbers
                    torch.load(file, weights_only=True)


def learn_the_best(folder: Path, texts: list[dict[str, Any]], **settings: Any) -> tuple[str, dict[str, Tensor]]:
    """Which checkpoint is the best, and the parameters at the end, which are its."""
    if settings.get("fsdp"):
        shard_on_cpus()
    best = dict(load_best_model_at_end=True, metric_for_best_model="nll", greater_is_better=True, save_total_limit=1)
    how = dict(max_steps=6, save_strategy="steps", save_steps=2, eval_steps=2, eval_on_start=False) | best
    run = QuietStarTrainer(
        tiny_model(n_ahead=4, n_ahead_talk=2, policy_weight=1.0),
        arguments(folder, **(how | settings)),
        train_dataset=texts,
        eval_dataset=texts,
    )
    run.train()
    found = {name: whole(parameter).clone() for name, parameter in run.model.named_parameters()}
    return Path(str(run.state.best_model_checkpoint)).name, found


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_end_with_the_best_model(pair: Pair, tmp_path: Path, kind: str):
    (best, ours), (of_other, theirs) = pair(learn_the_best, tmp_path / kind, rows(*LENGTHS), **KINDS[kind])
    assert best == of_other == "checkpoint-2"
    assert (tmp_path / kind / best).is_dir()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    last = pair(learn, tmp_path / "other", rows(*LENGTHS), 2, max_steps=1, **KINDS[kind])[0]["parameters"]
    assert any(not torch.equal(value, last[name]) for name, value in ours.items())


def test_a_sharded_checkpoint_is_not_resumed_unsharded(pair: Pair, tmp_path: Path):
    how = dict(max_steps=2, save_strategy="steps", save_steps=2)
    pair(learn, tmp_path / "run", rows(*LENGTHS), 2, **how, **FSDP2)
    stopped = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(CheckpointError, match="was written under FSDP, and this run is under no sharding; launch it"):
        learn(tmp_path / "other", rows(*LENGTHS), 1, resumed_from=stopped, allow_changes=True, **how)

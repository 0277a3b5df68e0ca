"""What docs/ecosystem.md says goes together goes together, by public names alone."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soak
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    GenerationConfig,
    LogitsProcessor,
    PrinterCallback,
    ProgressCallback,
    StoppingCriteria,
    TextIteratorStreamer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from quietstar import QuietStarForCausalLM, QuietStarTrainer, QuietStarTrainingArguments
from tests.tiny_tokenizer import thinking_folders

PAGE = Path(__file__).parents[1] / "docs" / "ecosystem.md"
TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
CHECKS: dict[str, Callable[[Any], None]] = {}
"""row of the page -> its check"""


def row(name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def add(check: Callable[[Any], None]) -> Callable[[Any], None]:
        CHECKS[name] = check
        return check

    return add


@pytest.fixture(scope="module")
def the(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A thinking model, its base model, their tokenizer, a prompt, and what is said greedily."""
    folder = thinking_folders(tmp_path_factory.mktemp("models"), n_ahead=4)
    tokenizer = AutoTokenizer.from_pretrained(folder / "thinking", padding_side="left")
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(folder / "thinking")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    inputs = tokenizer("ab cd", return_tensors="pt")
    said = model.generate(**inputs, **GREEDY)
    assert not torch.equal(said, base.generate(**inputs, **GREEDY)), "thoughts change what is said"
    return SimpleNamespace(folder=folder, model=model, base=base, tokenizer=tokenizer, inputs=inputs, said=said)


@pytest.mark.parametrize("name", re.findall(r"^\| (?!what )(.+?) \|", PAGE.read_text(), re.MULTILINE))
def test_it_goes_together(the: Any, name: str) -> None:
    CHECKS[name](the)


def test_every_check_is_a_row() -> None:
    assert len(CHECKS) >= 23
    assert all(f"| {name} |" in PAGE.read_text() for name in CHECKS)


@row("`AutoModelForCausalLM`")
def _(the: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(the.folder / "thinking", dtype=torch.bfloat16, device_map="cpu")
    assert isinstance(model, QuietStarForCausalLM)
    assert (model.dtype, model.device.type) == (torch.bfloat16, "cpu")


@row("`pipeline`")
def _(the: Any) -> None:
    by_name = pipeline("text-generation", model=str(the.folder / "thinking"))
    (found,) = by_name("ab cd", **GREEDY)
    assert found["generated_text"] == the.tokenizer.decode(the.said[0], skip_special_tokens=True)
    speak = pipeline("text-generation", model=the.model, tokenizer=the.tokenizer, batch_size=2)
    texts = ["ab cd", "ab cd ef gh"]
    alone = [speak(text, **GREEDY)[0]["generated_text"] for text in texts]
    assert [each[0]["generated_text"] for each in speak(texts, **GREEDY)] == alone


@row("chat templates")
def _(the: Any) -> None:
    messages = [{"role": "user", "content": "ab cd"}]
    speak = pipeline("text-generation", model=the.model, tokenizer=the.tokenizer)
    (found,) = speak(messages, **GREEDY)
    ids = the.tokenizer.apply_chat_template(messages, return_tensors="pt", add_generation_prompt=True)["input_ids"]
    said = the.model.generate(ids, **GREEDY)[0, ids.shape[1] :]
    assert found["generated_text"][-1]["content"] == the.tokenizer.decode(said, skip_special_tokens=True)


@row("`TextIteratorStreamer`")
def _(the: Any) -> None:
    streamer = TextIteratorStreamer(the.tokenizer)
    the.model.generate(**the.inputs, **GREEDY, streamer=streamer)
    assert "".join(streamer) == the.tokenizer.decode(the.said[0])


@row("sampling and beams")
def _(the: Any) -> None:
    n = the.inputs["input_ids"].shape[1] + 4
    sampled = the.model.generate(
        **the.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=True, min_p=0.01, num_return_sequences=3
    )
    beams = the.model.generate(**the.inputs, max_new_tokens=4, min_new_tokens=4, num_beams=3, num_return_sequences=2)
    assert (sampled.shape, beams.shape) == ((3, n), (2, n))


@row("stopping")
def _(the: Any) -> None:
    class After(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= n + 2)

    n = the.inputs["input_ids"].shape[1]
    assert torch.equal(the.model.generate(**the.inputs, **GREEDY, stopping_criteria=[After()]), the.said[:, : n + 2])
    letter = next(word for word in the.tokenizer.convert_ids_to_tokens(the.said[0, n:]) if word.isascii())
    stopped = the.model.generate(**the.inputs, **GREEDY, stop_strings=[letter], tokenizer=the.tokenizer)
    assert the.tokenizer.convert_ids_to_tokens(stopped[0])[-1] == letter
    assert torch.equal(stopped, the.said[:, : stopped.shape[1]])


@row("logits processors")
def _(the: Any) -> None:
    class Only(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([7]), 0.0)

    said = the.model.generate(**the.inputs, **GREEDY, logits_processor=[Only()])
    assert set(said[0, the.inputs["input_ids"].shape[1] :].tolist()) == {7}


@row("scores")
def _(the: Any) -> None:
    found = the.model.generate(**the.inputs, **GREEDY, return_dict_in_generate=True, output_scores=True)
    logprob = the.model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)[0]
    n = the.inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole = the.model(found.sequences).logits[0, n - 1 : -1].log_softmax(-1)
    expected = whole.gather(1, found.sequences[0, n:, None])[:, 0]
    torch.testing.assert_close(logprob, expected, rtol=1e-4, atol=1e-4)


@row("`assistant_model`")
def _(the: Any) -> None:
    assert torch.equal(the.model.generate(**the.inputs, **GREEDY, assistant_model=the.base), the.said)


@row("as an assistant")
def _(the: Any) -> None:
    alone = the.base.generate(**the.inputs, **GREEDY)
    assert torch.equal(the.base.generate(**the.inputs, **GREEDY, assistant_model=the.model), alone)


@row("prompt lookup")
def _(the: Any) -> None:
    assert torch.equal(the.model.generate(**the.inputs, **GREEDY, prompt_lookup_num_tokens=2), the.said)


@row("static cache")
def _(the: Any) -> None:
    assert torch.equal(the.model.generate(**the.inputs, **GREEDY, cache_implementation="static"), the.said)


def trainer_of(the: Any, rows: Any, *callbacks: Any, **settings: Any) -> QuietStarTrainer:
    how: dict[str, Any] = {"max_steps": 6, "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    how |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.0}
    how |= {"thoughts_shown": 0, "use_cpu": True, "disable_tqdm": True}
    folder = the.folder / f"run-{len(list(the.folder.iterdir()))}"
    args = QuietStarTrainingArguments(output_dir=str(folder), **how | settings)
    texts = {"train_dataset": rows, "eval_dataset": rows, "processing_class": the.tokenizer}
    return QuietStarTrainer(str(the.folder / "thinking"), args, **texts, callbacks=list(callbacks))


def train(the: Any, rows: Any, *callbacks: Any, **settings: Any) -> QuietStarTrainer:
    trainer = trainer_of(the, rows, *callbacks, **settings)
    trainer.train()
    return trainer


ROWS = [{"input_ids": list(range(3 + i, 15 + i))} for i in range(8)]


@row("transformers' `Trainer`")
def _(the: Any) -> None:
    before = [parameter.clone() for parameter in the.model.parameters()]
    model = AutoModelForCausalLM.from_pretrained(the.folder / "thinking")
    args = TrainingArguments(str(the.folder / "plain-trainer"), max_steps=2, use_cpu=True, report_to="none")
    collator = DataCollatorForLanguageModeling(the.tokenizer, mlm=False)
    Trainer(model, args, collator, train_dataset=ROWS).train()
    learned = [
        name
        for (name, parameter), old in zip(model.named_parameters(), before, strict=True)
        if not torch.equal(parameter, old)
    ]
    assert {name.split(".")[0] for name in learned} == {"base_lm", "mixing_head", "thought_embeddings"}


@row("transformers' callbacks")
def _(the: Any) -> None:
    class Count(TrainerCallback):
        steps = 0

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1

    count = Count()
    trainer = train(the, ROWS, count, EarlyStoppingCallback(early_stopping_patience=1))
    assert count.steps == trainer.state.global_step < 6, "nothing gets better, and it stops"


class Terminal(StringIO):
    """Where bars are drawn."""

    def isatty(self) -> bool:
        return True


@row("its lines and bars")
def _(the: Any) -> None:
    with redirect_stdout(StringIO()) as said, redirect_stderr(Terminal()) as shown:
        train(the, ROWS, PrinterCallback, ProgressCallback, max_steps=2, logging_steps=1)
    assert "'eval_talk_nll_0': " in said.getvalue(), "PrinterCallback"
    assert re.search(r"2/2 .*it/s|2/2 .*s/it", shown.getvalue()), "ProgressCallback"


@row("TRL's `RichProgressCallback`")
def _(the: Any) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (extra: dev)")
    with redirect_stdout(StringIO()) as said:
        trainer = train(the, ROWS, trl.RichProgressCallback, max_steps=2, logging_steps=1)
    assert trainer.state.global_step == 2
    assert re.search(r"Training .*100%", said.getvalue())
    assert "Step 2" in said.getvalue()


@row("TRL's `LogCompletionsCallback`")
def _(the: Any) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (extra: dev)")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")

    rows = datasets.Dataset.from_list([{"prompt": "ab cd"} | each for each in ROWS])
    trainer = trainer_of(the, rows, remove_unused_columns=True, max_steps=2)
    greedy = GenerationConfig(**GREEDY, pad_token_id=the.tokenizer.pad_token_id)
    completions = trl.LogCompletionsCallback(trainer, greedy, num_prompts=1, freq=2)
    trainer.add_callback(completions)
    trainer.train()
    n = the.inputs["input_ids"].shape[1]
    assert completions.table == [("2", "ab cd", the.tokenizer.decode(the.said[0, n:], skip_special_tokens=True))]


@row("TRL's `BEMACallback`")
def _(the: Any) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (extra: dev)")
    trainer = train(the, ROWS, trl.BEMACallback(update_freq=1), max_steps=1, learning_rate=0.01, warmup_steps=0)
    found = AutoModelForCausalLM.from_pretrained(Path(trainer.args.output_dir) / "bema")
    begun, now = (dict(model.named_parameters()) for model in (the.model, trainer.model))
    share = 11**-0.5 + 11**-0.2  # the average's share of the step, and the correction's
    assert any(not torch.equal(begun[name], now[name]) for name in now)
    for name, weight in found.named_parameters():
        torch.testing.assert_close(weight, begun[name] + share * (now[name] - begun[name]), msg=name)


@row("trackers")
def _(the: Any) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra: trackers")
    trainer = train(the, ROWS, report_to="tensorboard", max_steps=2, logging_steps=1)
    (folder,) = Path(trainer.args.output_dir, "runs").iterdir()
    found = {event.step: event.value for event in reader.EventAccumulator(str(folder)).Reload().Scalars("eval/gain")}
    assert found == {
        line["step"]: pytest.approx(line["eval_gain"], rel=1e-5)
        for line in trainer.state.log_history
        if "eval_gain" in line
    }
    assert list(found) == [0, 1, 2]


SCRIPT = """
import sys
from quietstar import QuietStarTrainer, QuietStarTrainingArguments

rows = [{"input_ids": list(range(3 + i, 15 + i))} for i in range(8)]
args = QuietStarTrainingArguments(
    output_dir=sys.argv[2],
    max_steps=2,
    save_steps=2,
    gradient_accumulation_steps=1,
    use_cpu=True,
    report_to="tensorboard",
)
QuietStarTrainer(sys.argv[1], args, train_dataset=rows).train()
"""


@row("`accelerate launch`")
def _(the: Any) -> None:
    script, folder = the.folder / "script.py", the.folder / "launched"
    script.write_text(SCRIPT)
    recipe = str(PAGE.parents[1] / "recipes" / "accelerate" / "ddp.yaml")
    how = [
        "--config_file",
        recipe,
        "--num_processes=2",
        "--mixed_precision=no",
        f"--main_process_port={soak.free_port()}",
    ]
    words = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *how,
        str(script),
        str(the.folder / "thinking"),
        str(folder),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"world_size": 2' in (folder / "checkpoint-2" / "complete.json").read_text()
    assert len(list(folder.glob("runs/*/*"))) == 1, "only the first process reports"


@row("peft")
def _(the: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    base = AutoModelForCausalLM.from_pretrained(the.folder / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model = QuietStarForCausalLM.from_base(
        adapted.merge_and_unload(), tokenizer=the.tokenizer, lora={"r": 2}, n_ahead=4
    )
    assert any("lora_" in name for name, _ in model.named_parameters())
    assert model.generate(**the.inputs, **GREEDY).shape == the.said.shape


@row("`datasets`")
def _(the: Any) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: data)")
    trainer = train(the, datasets.Dataset.from_list(ROWS))
    assert trainer.state.global_step == 6


@row("`save_pretrained`")
def _(the: Any) -> None:
    the.model.save_pretrained(the.folder / "again")
    again = AutoModelForCausalLM.from_pretrained(the.folder / "again").state_dict()
    assert again.keys() == the.model.state_dict().keys()
    assert all(torch.equal(again[name], weight) for name, weight in the.model.state_dict().items())


@row("safetensors")
def _(the: Any) -> None:
    from safetensors import safe_open

    with safe_open(the.folder / "thinking" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.split(".")[0] for name in names} == {"base_lm", "mixing_head", "thought_embeddings"}

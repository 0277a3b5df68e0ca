"""Predictions before training equal those of the plain model itself on the same tokens."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quietstar import QuietStarForCausalLM
from quietstar.cli import main
from quietstar.errors import CheckpointError, SettingsError
from quietstar.inspection.before import ADAPTERS_OFF
from quietstar.inspection.observe import trace
from quietstar.inspection.settings import TextToTrace, TraceSettings
from quietstar.inspection.trace import Trace
from tests.base.test_lora import perturb
from tests.tiny import make_thoughtful, tiny_base
from tests.tiny_tokenizer import byte_tokenizer, tiny_folder

TEXT = "What is 2 and 2? It is 4, as it always was, and as it will be."
TOKENIZER = byte_tokenizer()
LORA = {"r": 4, "lora_alpha": 8}


def trained(base: Path, **settings: object) -> QuietStarForCausalLM:
    """Return a thinking model as if trained, with every trainable parameter changed."""
    model = QuietStarForCausalLM.from_base(str(base), n_ahead=5, **settings)
    if "lora" in settings:
        perturb(model)
    else:
        make_thoughtful(model)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for parameter in model.base_lm.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a plain model to `base`, and thinking models trained from it to `full` and `lora`."""
    where = tmp_path_factory.mktemp("models")
    tiny_folder(where / "base", max_position_embeddings=256)
    for name, settings in (("full", {}), ("lora", {"lora": dict(LORA)})):
        trained(where / "base", **settings).save_pretrained(where / name)
        TOKENIZER.save_pretrained(where / name)
    return where


@torch.no_grad()
def plain_logprob(base: Path, ids: list[int]) -> list[float]:
    """Return the log-probability of each next token by the model itself, one token at a time."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    found = []
    for n in range(1, len(ids)):
        logits = model(torch.tensor([ids[:n]])).logits[0, -1]
        found.append(float(logits.log_softmax(-1)[ids[n]]))
    return found


@pytest.mark.parametrize("name", ["full", "lora"])
def test_it_equals_the_plain_model(here: Path, tmp_path: Path, name: str) -> None:
    words = ["--prompt", TEXT, *([] if name == "lora" else ["--before", str(here / "base")])]
    assert main(["inspect", str(here / name), *words, "--output_dir", str(tmp_path / "out")]) == 0
    found = Trace.load(tmp_path / "out")
    values = found.columns["before_logprob"]
    assert values[-1] is None
    assert values[:-1] == pytest.approx(plain_logprob(here / "base", found.columns["token_id"]), abs=1e-4)
    base = [each[0] for each in found.columns["base_logprob"][:-1]]
    assert max(abs(a - b) for a, b in zip(base, values, strict=False)) > 0.1  # otherwise nothing is tested
    summary = found.summary
    for of, with_thoughts in ((summary.over_before, True), (summary.base_over_before, False)):
        gain = found.columns["gain"][:-1] if with_thoughts else [0.0] * len(base)
        each = [g + b - v for g, b, v in zip(gain, base, values, strict=False)]
        assert of is not None
        assert of.value == pytest.approx(sum(each) / len(each), abs=1e-6)
    assert "before training" in summary.sentences[0]
    assert found.settings["before"] == (ADAPTERS_OFF if name == "lora" else str(here / "base"))
    assert list(json.loads((tmp_path / "out" / "trace.jsonl").read_text().split("\n")[0])) == list(found.columns)
    assert found.to_pandas()["before_logprob"][0] == values[0]


def test_it_may_be_given_in_python_as_a_name_or_a_model(here: Path) -> None:
    model = QuietStarForCausalLM.from_pretrained(here / "full").eval()
    plain = AutoModelForCausalLM.from_pretrained(here / "base").train()
    of_name, of_path, of_model = (
        model.inspect(TEXT, TOKENIZER, before=before).columns["before_logprob"]
        for before in (str(here / "base"), here / "base", plain)
    )
    assert of_name == of_path == of_model
    assert plain.training
    assert model.inspect(TEXT, TOKENIZER).columns["before_logprob"] == [None] * len(of_name)


def test_every_text_is_read_alone_and_what_has_no_label_has_none(here: Path) -> None:
    model = QuietStarForCausalLM.from_pretrained(here / "lora").eval()
    ids = list(TOKENIZER(TEXT)["input_ids"])
    cut = model.inspect(TEXT, TOKENIZER, max_length=20).columns["before_logprob"]
    alone = [
        model.inspect(TOKENIZER.decode(ids[i : i + 20]), TOKENIZER).columns["before_logprob"]
        for i in range(0, len(ids), 20)
    ]
    assert cut == [value for values in alone for value in values]
    labelled = TextToTrace(ids=ids[:5], labels=[-100, -100, *ids[2:5]])
    found = trace(model, TOKENIZER, [labelled], TraceSettings()).columns["before_logprob"]
    assert [each is None for each in found] == [True, False, False, False, True]


def test_a_model_with_adapters_is_left_as_it_was(here: Path) -> None:
    model = QuietStarForCausalLM.from_pretrained(here / "lora").train()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    first, second = (model.inspect(TEXT, TOKENIZER).columns for _ in range(2))
    assert first == second
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trains
    assert model.training


def test_fresh_adapters_have_changed_nothing_to_the_last_bit(here: Path) -> None:
    model = QuietStarForCausalLM.from_base(str(here / "base"), n_ahead=5, lora=dict(LORA)).eval()
    found = model.inspect(TEXT, TOKENIZER)
    assert found.columns["before_logprob"][:-1] == [each[0] for each in found.columns["base_logprob"][:-1]]
    assert "It predicts this text as well as before training (0.000 nats" in found.summary.sentences[0]


def test_merged_adapters_need_a_given_model(here: Path) -> None:
    model = QuietStarForCausalLM.from_pretrained(here / "lora").eval()
    expected = model.inspect(TEXT, TOKENIZER).columns["before_logprob"]
    model.merge_lora()
    assert model.inspect(TEXT, TOKENIZER).columns["before_logprob"] == [None] * len(expected)
    given = model.inspect(TEXT, TOKENIZER, before=here / "base").columns["before_logprob"]
    assert given[:-1] == pytest.approx(expected[:-1], abs=1e-4)


def test_a_model_that_is_given_goes_before_adapters(here: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", "llama", max_position_embeddings=256)
    model = QuietStarForCausalLM.from_pretrained(here / "lora").eval()
    found = model.inspect(TEXT, TOKENIZER, before=other)
    assert found.columns["before_logprob"][:-1] == pytest.approx(
        plain_logprob(other, found.columns["token_id"]), abs=1e-4
    )
    assert found.settings["before"] == str(other)


def test_a_base_model_in_4_bits_is_taken_as_training_saw_it(here: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra: quant)")
    from transformers import BitsAndBytesConfig

    base = tiny_folder(tmp_path / "base", "llama", hidden_size=64, intermediate_size=128)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = QuietStarForCausalLM.from_base(
        str(base), n_ahead=5, lora=dict(LORA), quantization_config=how, dtype=torch.float32
    ).eval()
    perturb(model)
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=torch.float32).eval()
    found = model.inspect(TEXT, TOKENIZER).columns
    row = torch.tensor([found["token_id"]])
    with torch.no_grad():
        logprob = packed(row).logits[0].log_softmax(-1)
    expected = logprob[:-1].gather(1, row[0, 1:, None]).squeeze(1).tolist()
    assert found["before_logprob"][:-1] == pytest.approx(expected, abs=2e-2)


def inspect(here: Path, out: Path, *words: str) -> int:
    return main(["inspect", str(here / "full"), "--prompt", TEXT, *words, "--output_dir", str(out)])


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("full", "before is a thinking model ("),
        ("swapped", "its token 100 is '"),
        ("small", "the text has token "),
        ("short", "reach position 62, but gpt2 has learned 32 positions"),
        ("none", "no tokenizer could be loaded from"),
        ("empty", "before is empty; give the folder or hub name of the plain model"),
    ],
)
def test_a_model_that_cannot_be_compared_with_is_one_line(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str, said: str
) -> None:
    folder = here / before
    if before == "swapped":  # the same size, with two tokens swapped
        folder = tiny_folder(tmp_path / before)
        path = folder / "tokenizer.json"
        vocabulary = json.loads(path.read_text())
        words = {id: word for word, id in vocabulary["model"]["vocab"].items()}
        vocabulary["model"]["vocab"] |= {words[100]: 101, words[101]: 100}
        path.write_text(json.dumps(vocabulary))
    if before == "small":
        folder = tiny_folder(tmp_path / before, vocab_size=20)
    if before == "short":
        folder = tiny_folder(tmp_path / before, "gpt2", n_positions=32)
    if before == "none":
        folder = tmp_path / before
        AutoModelForCausalLM.from_pretrained(here / "base").save_pretrained(folder)
    assert inspect(here, tmp_path / "out", "--before", "" if before == "empty" else str(folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_knows_more_tokens_is_the_same(here: Path, tmp_path: Path) -> None:
    """Released checkpoints have two more tokens than their base model."""
    model = QuietStarForCausalLM.from_pretrained(here / "full").eval()
    more = AutoTokenizer.from_pretrained(here / "full")
    more.add_tokens(["<|startthought|>", "<|endthought|>"])
    assert model.inspect(TEXT, more, before=here / "base").columns["before_logprob"][0] is not None


def test_bad_models_in_python(here: Path) -> None:
    model = QuietStarForCausalLM.from_pretrained(here / "full").eval()
    other = tiny_base()  # of another vocabulary
    for before, said in [
        (model, r"before is a thinking model \("),
        (model.base_lm, "before is this model's own base_lm, which was trained with it"),
        (other, f"before has 61 embeddings and the model {len(TOKENIZER)}"),
        (3, "before is a int; give a model of transformers, or its name"),
    ]:
        with pytest.raises(SettingsError, match=said):
            model.inspect(TEXT, TOKENIZER, before=before)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError):
        model.inspect(TEXT, TOKENIZER, before=here / "no-such")


def test_a_model_inside_the_folder_is_not_deleted(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert inspect(here, out) == 0
    tiny_folder(out / "base")
    assert inspect(here, out, "--before", str(out / "base"), "--overwrite") == 2
    assert "which this run reads; give another output_dir" in capsys.readouterr().err
    assert (out / "base" / "config.json").exists()

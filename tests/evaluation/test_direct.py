"""Direct answers: reading tasks, the released metric computed by hand, and what scores must not depend on."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from quietstar import QuietStarForCausalLM
from quietstar.errors import DataError, SettingsError
from quietstar.evaluation.alphabet import digits, letters
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.evaluation.direct import DirectScores, after_marker, alphabet_of, encode, score_items
from quietstar.evaluation.scoring import Continuation, Speaker, score
from quietstar.evaluation.sweep import sweep, swept_rule
from quietstar.evaluation.tasks import TASKS, Item, find_task, load_items, parse_data
from quietstar.policy import ThinkPolicy
from tests.elsewhere import with_images
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

DATA = Path(__file__).parents[1] / "data"
TOKENIZER = byte_tokenizer()
ITEMS = [
    Item(0, "2 + 2?", " 4"),
    Item(1, "How many sheep are in the very long field, all in all?", " 1,250"),
    Item(2, "Cold?", " -7"),
    Item(3, "A: or\nA: is it?", " 12"),
]


def thinking(**how: object) -> QuietStarForCausalLM:
    """A thinking model over bytes."""
    base = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 512}
    return tiny_model("llama", n_ahead=4, base=base, **how)


def mistral_like() -> PreTrainedTokenizerFast:
    """A tokenizer like Mistral's: a bare space before a number, single digits, one token per letter after a space."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        "\n",
        "▁",
        "Q",
        ":",
        *"ABCDE",
        "x",
        "?",
        ",",
        "-",
        "▁Q",
        "▁A",
        "▁B",
        "▁C",
        "▁D",
        "▁E",
    ]
    pieces += [str(digit) for digit in range(10)] + ["<0x31>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", each) for each in "QABCDE" if each in vocabulary]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def by_hand(model: QuietStarForCausalLM, item: Item, alphabet: set[int], thoughts: bool) -> tuple[float, bool]:
    """The released metric in its simplest form: one sequence, all logits, a product over tokens of the alphabet."""
    before = TOKENIZER(f"Q: {item.question}\nA:")["input_ids"]
    ids = TOKENIZER(f"Q: {item.question}\nA:{item.answer}\n")["input_ids"]
    row = torch.tensor([ids])
    with torch.no_grad():
        logits = (model(row) if thoughts else model.base_lm(row)).logits[0]
    probability, exact = 1.0, True
    for j in range(len(before) - 1, len(ids) - 1):
        true = ids[j + 1]
        exact &= int(logits[j].argmax()) == true
        if true in alphabet:
            p = logits[j].softmax(-1)
            probability *= float(p[true] / sum(p[other] for other in alphabet))
    return probability, exact


@pytest.mark.parametrize("thoughts", [False, True], ids=["base", "thinking"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_released_metric(thoughts: bool, batch_size: int) -> None:
    """Answers with commas, minus signs and several digits, and a question that contains the marker itself."""
    model = thinking()
    alphabet = digits(TOKENIZER)
    sequences, n_cut = encode(ITEMS, TOKENIZER, alphabet)
    speaker = Speaker(model, ThinkPolicy.parse("always") if thoughts else None)
    found = score_items(speaker, sequences, batch_size)
    expected = [by_hand(model, item, set(alphabet.ids), thoughts) for item in ITEMS]
    assert n_cut == 0
    torch.testing.assert_close(
        found.answer_probability, torch.tensor([p for p, _ in expected]).double(), rtol=1e-3, atol=1e-9
    )
    assert found.exact_match.tolist() == [exact for _, exact in expected]
    assert found.share_thought == thoughts


def test_exact_match_is_what_greedy_decoding_writes() -> None:
    """For answers that the model would write, and for others."""
    model = thinking()
    written = []
    for item in ITEMS:
        prompt = TOKENIZER(f"Q: {item.question}\nA:", return_tensors="pt")["input_ids"]
        new = model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=2, eos_token_id=None)[0, -3:]
        ids = [*prompt[0].tolist(), *new.tolist()]
        written += [Continuation(ids, prompt.shape[1]), Continuation([*ids[:-1], 70], prompt.shape[1])]
    found = score_items(Speaker(model, ThinkPolicy.parse("always")), written, 4)
    assert found.exact_match.tolist() == [True, False] * len(ITEMS)


def test_alphabets() -> None:
    """Digits or letters after a space, and the newline. Byte tokens are not digits; merged digits cause a note."""
    tokenizer = mistral_like()
    vocabulary = tokenizer.get_vocab()
    assert set(digits(tokenizer).ids) == {vocabulary[str(digit)] for digit in range(10)} | {vocabulary["\n"]}
    assert digits(tokenizer).note == ""
    assert set(letters(tokenizer).ids) == {vocabulary[f"▁{each}"] for each in "ABCDE"} | {vocabulary["\n"]}
    assert {TOKENIZER.decode([id]) for id in letters(TOKENIZER).ids} == set("ABCDE\n")
    merged = byte_tokenizer()
    merged.add_tokens(["12", "345"])
    assert "merges digits: the alphabet is all 12 tokens" in digits(merged).note


def test_an_answer_begins_after_its_marker() -> None:
    """It starts after the last marker; a bare space is skipped, as it is not a digit."""
    tokenizer = mistral_like()
    ids, first = after_marker("Q: A:\nA:x\nA: 12\n", tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids[first:]) == ["▁", "1", "2", "\n"]
    sequences, _ = encode([Item(0, "x", " 12")], tokenizer, digits(tokenizer))
    assert tokenizer.convert_ids_to_tokens(sequences[0].ids[sequences[0].first :]) == ["▁", "1", "2", "\n"]


def test_a_long_item_loses_its_beginning() -> None:
    """An answer that does not fit is refused."""
    item = Item(0, "x" * 300, " 4")
    (sequence,), n_cut = encode([item], TOKENIZER, digits(TOKENIZER), 64)
    assert n_cut == 1
    assert TOKENIZER.decode(sequence.ids).endswith("x\nA: 4\n")
    assert len(sequence.ids) == 64
    assert TOKENIZER.decode(sequence.ids[sequence.first :]) == " 4\n"
    with pytest.raises(DataError, match="max_length"):
        encode([Item(0, "x", " " + "4" * 99)], TOKENIZER, digits(TOKENIZER), 64)


def test_scores_do_not_depend_on_the_batch() -> None:
    """One at a time, all together, in another order; with thoughts at some positions only."""
    model = thinking()
    sequences, _ = encode(ITEMS, TOKENIZER, digits(TOKENIZER))
    speaker = Speaker(model, ThinkPolicy.parse("entropy:3,budget:2"))
    together = score(speaker, sequences, 4, measure="entropy")
    alone = [score(speaker, [sequence], 1, measure="entropy")[0] for sequence in sequences]
    assert 0 < sum(int(each.thought.sum()) for each in together) < sum(len(each.thought) for each in together)
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.thought, b.thought)
        assert torch.equal(a.is_likeliest, b.is_likeliest)
        for name in ("logprob", "within", "measured"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4)


def test_thoughts_are_written_at_scored_positions_only() -> None:
    """There are as many columns as scored tokens."""
    sequences, _ = encode(ITEMS, TOKENIZER, digits(TOKENIZER))
    found = score(Speaker(thinking(), ThinkPolicy.parse("always")), sequences, 4)
    assert [len(each.thought) for each in found] == [len(item.answer) + 1 for item in ITEMS]
    assert all(each.thought.all() for each in found)


def test_a_plain_model_is_scored_as_the_thinking_ones_base() -> None:
    """`--original` and the mode `base` do the same computation."""
    model = thinking()
    sequences, _ = encode(ITEMS, TOKENIZER, digits(TOKENIZER))
    plain, base = (score_items(Speaker(lm), sequences, 2) for lm in (model.base_lm, model))
    assert torch.equal(plain.answer_probability, base.answer_probability)


@pytest.mark.parametrize("rule", ["entropy", "margin", "mixing_head"])
def test_a_sweep_equals_runs_with_each_threshold(rule: str) -> None:
    """Its points, computed from two passes, equal runs with that policy."""
    model = thinking()
    sequences, _ = encode(ITEMS, TOKENIZER, digits(TOKENIZER))
    base = score_items(Speaker(model), sequences, 4, measure=rule)
    points = sweep(rule, base, score_items(Speaker(model, ThinkPolicy.parse("always")), sequences, 4))
    assert points[0].share_thought == 0
    assert points[-1].share_thought == 1
    shares = [point.share_thought for point in points]
    assert shares == sorted(shares)
    assert len(set(shares)) > 4
    for point in points:
        direct: DirectScores = score_items(Speaker(model, ThinkPolicy.parse(point.policy)), sequences, 4)
        assert abs(direct.share_thought - point.share_thought) < 0.1  # thresholds are rounded to four digits
        if direct.share_thought == point.share_thought:
            assert float(direct.answer_probability.mean()) == pytest.approx(point.answer_probability, rel=1e-4)
            assert float(direct.exact_match.float().mean()) == pytest.approx(point.exact_match)


@pytest.mark.parametrize("policy", ["always", "every:2", "entropy:1,budget:2", "probability:0.5"])
def test_a_sweep_needs_one_threshold(policy: str) -> None:
    """The error has one line."""
    with pytest.raises(SettingsError, match="single threshold"):
        swept_rule(policy)


CSQA = [
    {
        "answerKey": "B",
        "question": {
            "stem": "Where?",
            "choices": [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}],
        },
    },
    {"answerKey": "B", "question": "Where?", "choices": {"label": ["A", "B"], "text": ["here", "there"]}},
    {
        "answerKey": "B",
        "question": "Where?",
        "choices": [{"label": "A", "text": "here"}, {"label": "B", "text": "there"}],
    },
]


def write(path: Path, rows: list) -> str:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_tasks_are_read(tmp_path: Path) -> None:
    """Every task, csqa in both layouts, in the paper's format."""
    items = load_items(TASKS["csqa"], write(tmp_path / "csqa.jsonl", CSQA))
    assert {item.text for item in items} == {"Q: Where?\n(A) here\n(B) there\nA: B\n"}
    gsm8k = [{"question": "How many?", "answer": "2+2=<<2+2=4>>4\n#### 4"}]
    assert load_items(TASKS["gsm8k"], write(tmp_path / "a.jsonl", gsm8k))[0].text == "Q: How many?\nA: 4\n"
    piqa = [{"goal": "Open it.", "sol1": "push", "sol2": "pull", "label": 1}]
    assert (
        load_items(TASKS["piqa"], write(tmp_path / "b.jsonl", piqa))[0].text
        == "Q: Open it.\n(A) push\n(B) pull\nA: B\n"
    )
    siqa = [{"context": "It rained.", "question": "And?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"}]
    text = load_items(TASKS["siqa"], write(tmp_path / "c.jsonl", siqa))[0].text
    assert text == "Q: It rained. And?\n(A) a\n(B) b\n(C) c\nA: C\n"


def test_real_data_are_read() -> None:
    """The first rows of gsm8k and csqa, as published."""
    gsm8k = load_items(TASKS["gsm8k"], str(DATA / "gsm8k"))
    assert len(gsm8k) == 20
    assert gsm8k[0].answer == " 18"
    csqa = load_items(TASKS["csqa"], str(DATA / "csqa/validation.jsonl"), limit=10)
    assert len(csqa) == 10
    assert csqa[0].text.endswith("\n(E) new york\nA: A\n")


def test_real_data_read_the_same_as_the_hub_nests_them(tmp_path: Path) -> None:
    """On the hub the question is a string, and choices are two lists."""

    def on_the_hub(row: dict) -> dict:
        choices = row["question"]["choices"]
        lists = {name: [choice[name] for choice in choices] for name in ("label", "text")}
        return {"question": row["question"]["stem"], "choices": lists, "answerKey": row["answerKey"]}

    released = DATA / "csqa/validation.jsonl"
    rows = [json.loads(line) for line in released.open(encoding="utf-8")]
    hub = write(tmp_path / "hub.jsonl", [on_the_hub(row) for row in rows])
    assert load_items(TASKS["csqa"], hub) == load_items(TASKS["csqa"], str(released))


def test_files_of_other_formats_are_read_or_refused(tmp_path: Path) -> None:
    """From JSON and Parquet; other files give one line."""
    (tmp_path / "a.json").write_text(json.dumps(CSQA))
    assert len(load_items(TASKS["csqa"], str(tmp_path / "a.json"))) == 3
    import datasets

    datasets.Dataset.from_list(CSQA[1:2]).to_parquet(str(tmp_path / "a.parquet"))
    assert load_items(TASKS["csqa"], str(tmp_path / "a.parquet"))[0].answer == " B"
    # as a glob pattern, this name would match the other file
    datasets.Dataset.from_list([CSQA[1] | {"question": "Who?"}]).to_parquet(str(tmp_path / "[a].parquet"))
    assert load_items(TASKS["csqa"], str(tmp_path / "[a].parquet"))[0].question.startswith("Who?")


def test_files_that_a_row_names_are_not_opened(tmp_path: Path) -> None:
    with_images(tmp_path / "a.parquet", [CSQA[1]])
    assert len(load_items(TASKS["csqa"], str(tmp_path / "a.parquet"))) == 1


REFUSED = {
    "no file": ("nothing.jsonl", None, "does not exist"),
    "another ending": ("a.csv", "question,answer\n", "unknown suffix"),
    "no JSON": ("a.jsonl", "{'question'}\n", "line 1 of"),
    "no JSON list": ("a.json", '{"question": 1}', "no column answer"),
    "a column that is missing": ("a.jsonl", '{"question": "x", "reply": "4"}\n', "no column answer"),
    "a row that is none": ("a.jsonl", "[1]\n", "row 1 of"),
    "a value of another type": ("a.jsonl", '{"question": "x", "answer": 4}\n', "not a valid gsm8k"),
    "an answer without a number": ("a.jsonl", '{"question": "x", "answer": "#### four"}\n', "no number"),
    "a question of another type": ("a.jsonl", '{"question": null, "answer": "#### 4"}\n', "question is None, not text"),
    "a broken Parquet file": ("a.parquet", "no parquet", "not a valid Parquet"),
    "an empty question": ("a.jsonl", '{"question": " ", "answer": "#### 4"}\n', "empty question"),
    "no rows": ("a.jsonl", "\n", "has no items"),
    "a folder without it": (".", None, "no test file"),
    "no text": ("a.jsonl", b"\xe9", "byte 1 of line 1 is 0xE9"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_data_are_refused_in_one_line(what: str, tmp_path: Path) -> None:
    """With the position, and what to do."""
    name, content, says = REFUSED[what]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=says) as raised:
        load_items(TASKS["gsm8k"], str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_the_hub_cannot_be_reached() -> None:
    """The error has one line, and says how a local file is given."""
    with pytest.raises(DataError, match=r"give a local file instead: --data gsm8k=FILE$"):
        load_items(TASKS["gsm8k"])


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("csqa", {"answerKey": "E", "question": "x", "choices": {"label": ["A", "B"], "text": ["a", "b"]}}),
        ("csqa", {"answerKey": "F", "question": "x", "choices": {"label": ["A", "F"], "text": ["a", "b"]}}),
        ("csqa", {"answerKey": "", "question": "x", "choices": {"label": ["A", "B"], "text": ["a", "b"]}}),
        ("piqa", {"goal": "x", "sol1": "a", "sol2": "b", "label": -1}),
        ("siqa", {"context": "x", "question": "y", "answerA": "a", "answerB": "b", "answerC": "c", "label": "0"}),
    ],
)
def test_hidden_labels_are_no_answers(task: str, row: dict, tmp_path: Path) -> None:
    """Splits without labels have such values."""
    with pytest.raises(DataError, match=f"not a valid {task}"):
        load_items(TASKS[task], write(tmp_path / "a.jsonl", [row]))


def test_a_line_must_end_with_a_token_of_its_own() -> None:
    """Otherwise answers would get probability that belongs to other text."""
    merged = byte_tokenizer()
    merged.add_tokens(["1\n"])
    with pytest.raises(SettingsError, match="newline token of its own"):
        digits(merged)
    merged = byte_tokenizer()
    merged.add_tokens(["4\n"])
    with pytest.raises(DataError, match="outside the task's alphabet"):
        encode([Item(0, "x", " 4")], merged, digits(merged))


def test_unknown_tasks_and_data() -> None:
    """By name."""
    with pytest.raises(SettingsError, match=r"choose from gsm8k, csqa, piqa, siqa$"):
        find_task("gsm9k")
    with pytest.raises(SettingsError, match=r"siqa, or give --lm_eval arc_easy$"):
        EvaluateArguments(tasks=["arc_easy"])
    with pytest.raises(SettingsError, match="give a task and a file"):
        parse_data(["gsm8k"])
    assert alphabet_of(TASKS["gsm8k"], TOKENIZER) != alphabet_of(TASKS["csqa"], TOKENIZER)

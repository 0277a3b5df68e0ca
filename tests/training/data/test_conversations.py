"""Messages are rendered by the chat template, with labels on the requested tokens only."""

import json
from pathlib import Path

import pytest

from quietstar.errors import DataError, SettingsError
from quietstar.training.data.conversations import ConversationEncoder
from quietstar.training.data.datasets import DataArguments, TextCollator, build_datasets
from quietstar.training.data.stream import StreamedTextWindows
from tests.training.some_texts import SPECIAL, tokenizer_of_characters

PLAIN = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}</s>{% endgeneration %}{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETS = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}]{% if loop.last %}({{ m['content'] }}){% else %}"
    "{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ROWS = [
    [("user", "2+2?"), ("assistant", "4"), ("user", "sure?"), ("assistant", "yes")],
    [("system", "s"), ("user", "hi"), ("assistant", "hello")],
]
CONVERSATIONS = [[{"role": role, "content": content} for role, content in row] for row in ROWS]
RENDERED = "<s>[user]2+2?</s>[assistant]4</s>[user]sure?</s>[assistant]yes</s>"


def chat_tokenizer(template=PLAIN, **special):
    tokenizer = tokenizer_of_characters(adds_bos=True, **(special or SPECIAL))
    tokenizer.chat_template = template
    return tokenizer


def written(folder: Path, rows=CONVERSATIONS, **more) -> str:
    file = folder / "chat.jsonl"
    file.write_text("".join(json.dumps({"id": str(i), "messages": row, **more}) + "\n" for i, row in enumerate(rows)))
    return str(file)


def learned(tokenizer, row):
    """Return the text of a sequence's labels, with a dot for each token without label."""
    return "".join("." if label == -100 else tokenizer.convert_ids_to_tokens(label) for label in row["labels"])


def rows_of(dataset, tokenizer, **settings):
    args = DataArguments(dataset=dataset, **{"eval_size": 0, "max_length": 200, "shuffle_block": 1} | settings)
    train, _ = build_datasets(args, tokenizer, 0)
    assert isinstance(train, StreamedTextWindows) == bool(args.streaming)
    return list(train)


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_are_what_the_template_makes_of_them(tmp_path, streaming):
    """One bos, nothing added, and labels on all tokens."""
    tokenizer = chat_tokenizer()
    first, _ = rows_of(written(tmp_path), tokenizer, streaming=streaming)
    assert "".join(tokenizer.convert_ids_to_tokens(first["input_ids"])) == RENDERED
    assert "labels" not in first
    as_text = tmp_path / "rendered.jsonl"
    as_text.write_text(json.dumps({"text": RENDERED}))
    assert rows_of(str(as_text), tokenizer, streaming=streaming)[0]["input_ids"] == first["input_ids"]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["compared", "marked"])
@pytest.mark.parametrize("streaming", [False, True])
def test_only_the_assistants_tokens_have_labels(tmp_path, streaming, template):
    tokenizer = chat_tokenizer(template)
    settings = {"streaming": streaming, "assistant_only_loss": True}
    rows = rows_of(written(tmp_path), tokenizer, **settings)
    assert [learned(tokenizer, row).replace(".", "") for row in rows] == ["4</s>yes</s>", "hello</s>"]
    alike = rows_of(written(tmp_path), tokenizer, streaming=streaming)
    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in alike]
    for row in rows:
        assert all(label in (token, -100) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_labels_stay_with_their_tokens(tmp_path, streaming, packing):
    """In windows, in packed sequences and in batches."""
    tokenizer = chat_tokenizer()
    settings = {"streaming": streaming, "packing": packing, "max_length": 7, "assistant_only_loss": True}
    rows = rows_of(written(tmp_path), tokenizer, **settings)
    assert {len(row["input_ids"]) for row in rows} == {7}
    for row in rows:
        assert all(label in (token, -100) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    if packing:
        assert "".join(learned(tokenizer, row) for row in rows).replace(".", "").startswith("4</s>yes</s>")
    batch = TextCollator(0)(rows)
    assert batch["labels"].tolist() == [row["labels"] for row in rows]


def test_a_conversation_without_an_assistant_is_skipped(tmp_path):
    args = DataArguments(dataset=written(tmp_path, [CONVERSATIONS[0], CONVERSATIONS[0][:1], []]), eval_size=0)
    assert build_datasets(args, chat_tokenizer(), 0)[0].n_skipped == 1
    args.assistant_only_loss = True
    assert build_datasets(args, chat_tokenizer(), 0)[0].n_skipped == 2


def test_an_assistant_may_speak_first(tmp_path):
    """Nothing predicts the first token, so alone it gives no label."""
    template = "{{ 's' if messages[0]['role'] == 'system' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = chat_tokenizer(template)
    rows = [[{"role": "assistant", "content": said}, {"role": "user", "content": "no"}] for said in ("a", "ab")]
    (row,) = rows_of(written(tmp_path, rows), tokenizer, assistant_only_loss=True)
    assert learned(tokenizer, row) == "ab.."


@pytest.mark.parametrize(
    ("template", "rows", "assistant_only", "says"),
    [
        (None, CONVERSATIONS, False, "no chat template"),
        (FORGETS, CONVERSATIONS, True, r"message 2 of a conversation .*\{% generation %\}"),
        ("{{ raise_exception('no\nsystem') }}", CONVERSATIONS, False, "chat template fails .*no system"),
        ("{{ raise_exception('no system') }}", CONVERSATIONS[1:], False, "remove the row with .*'role': 'system'"),
        (PLAIN, [["hello"]], False, "has a message 'hello'"),
        (PLAIN, [[{"role": "user", "value": "x"}]], False, "has a message .*'value': 'x'"),
        (PLAIN, [[{"role": None, "content": "x"}]], False, "has a message .*'role': None"),
        (PLAIN, [[{"role": "user", "content": [{"type": "image"}]}]], False, "content .*'image'.*: give a text, or"),
        (PLAIN, [[{"role": "user", "content": "\ud83d"}]], False, "line 1' has half a character"),
        (
            PLAIN,
            [[{"role": "user", "content": "x"}, {"role": "model", "content": "y"}]],
            True,
            "1 conversations .*role",
        ),
    ],
)
def test_messages_that_cannot_be_rendered_give_one_line(tmp_path, template, rows, assistant_only, says):
    with pytest.raises(DataError, match=says) as raised:
        rows_of(written(tmp_path, rows), chat_tokenizer(template), assistant_only_loss=assistant_only)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_are_those_that_a_server_would_hand_on(tmp_path, streaming):
    """Parts of text are joined, and null keys are left out."""
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ 'calls' if 'tool_calls' in m }}{% endfor %}"
        "{{ tools[0]['name'] if tools is not none else '' }}"
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rows = [
        {"role": "user", "content": parts, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
    ]
    tokenizer = chat_tokenizer(template)
    for tools, shown in ((None, ""), ([{"name": "sum"}], "sum"), ('[{"name": "sum"}]', "sum")):
        (row,) = rows_of(written(tmp_path, [rows], tools=tools), tokenizer, streaming=streaming)
        assert "".join(tokenizer.convert_ids_to_tokens(row["input_ids"])) == f"[user]ab[assistant]calls{shown}"


@pytest.mark.parametrize("tools", ["[", "{}", 3])
def test_invalid_tools_give_one_line(tmp_path, tools):
    with pytest.raises(DataError, match=r"column 'tools' of .*line 1' has "):
        rows_of(written(tmp_path, tools=tools), chat_tokenizer())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_every_row_has_something_to_learn(tmp_path, streaming, packing):
    """Also if the assistant's tokens are a small part of a long conversation."""
    row = [{"role": "user", "content": "q" * 150}, {"role": "assistant", "content": "yes"}]
    settings = {"streaming": streaming, "packing": packing, "max_length": 10, "assistant_only_loss": True}
    tokenizer = chat_tokenizer()
    dataset = written(tmp_path, [row, [*row, *row[:1]]] * 10)
    rows = rows_of(dataset, tokenizer, **settings)
    assert len(rows) >= 20
    for row in rows:
        assert any(label != -100 for label in row["labels"][1:])
    seen = [learned(tokenizer, row) for row in rows]
    if not packing:  # in other places, and cut
        assert len(set(seen)) > 5
    assert any("yes</s>" in each for each in seen)


def test_plain_texts_have_no_assistant(tmp_path):
    dataset = written(tmp_path, text="plain")
    assert len(rows_of(dataset, chat_tokenizer())[0]["input_ids"]) == len("plain") + 2
    with pytest.raises(DataError, match=r"assistant_only_loss was given.*has plain texts"):
        rows_of(dataset, chat_tokenizer(), assistant_only_loss=True)
    assert rows_of(dataset, chat_tokenizer(), assistant_only_loss=True, text_column="messages")
    with pytest.raises(SettingsError, match="template gives plain texts"):
        DataArguments(template="{a}", assistant_only_loss=True)


def test_messages_of_parquet_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"messages": row} for row in CONVERSATIONS]).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        rows = rows_of(str(tmp_path / "a.parquet"), chat_tokenizer(), streaming=streaming)
        expected = rows_of(written(tmp_path), chat_tokenizer(), streaming=streaming)
        assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in expected]


def test_numbers_in_messages_are_numbers():
    """As in a tool's arguments."""
    template = "{% for m in messages %}{{ m['n'] + 1 }}{{ m['content'] }}{% endfor %}"
    tokenizer = chat_tokenizer(template)
    conversation = {"messages": [{"role": "user", "n": 2, "content": "x"}], "tools": None}
    (ids,) = ConversationEncoder(tokenizer)([json.dumps(conversation)])
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "3x"

"""Conversations as training data: messages rendered by the tokenizer's chat template, and the tokens to train on."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError, reason, shown

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""mark in a chat template before the assistant's tokens, as transformers matches it"""

Render = Callable[..., Any]
"""a function that applies the chat template to messages"""


class ConversationEncoder:
    """Tokenizes conversations as the chat template renders them, without adding anything, not even eos.

    With `assistant_only`, only the assistant's tokens get labels: those from {% generation %} to {% endgeneration %}
    if the template has them, otherwise all after the generation prompt up to the end of the message, its closing tokens
    included.

    As a server does, messages are passed to the template without null keys, and with parts of text joined.

    Args:
        tokenizer: has a chat template.
        assistant_only: train on the assistant's tokens only.
        source: name of the dataset, for messages.

    Raises:
        DataError: the tokenizer has no chat template; when called, a row is not a conversation, or the template fails
            or hides which tokens are the assistant's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool = False, source: str = "dataset"
    ) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{source!r} has messages, but the tokenizer has no chat template; give a --template such as "
                '"{messages[0][content]}", or give the tokenizer a chat_template.jinja'
            )
        self.tokenizer, self.has_labels, self.source = tokenizer, assistant_only, source
        template = tokenizer.chat_template
        self._is_marked = isinstance(template, str) and GENERATION.search(template) is not None

    def __call__(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Return the tokens of each conversation, ~id for a token without label, and no tokens if none has a label.

        Args:
            texts: JSON of {"messages": [...], "tools": [...]}; tools may be null.
        """
        return [self._encode(**json.loads(text)) if text else [] for text in texts]

    def _encode(self, messages: list[Any], tools: list[Any] | None) -> list[int]:
        messages = [self._for_template(each) for each in messages]
        if not messages:
            return []
        render = partial(self._render, tools=tools)
        if not self.has_labels:
            ids = list(render(messages, tokenize=True, return_dict=False))
            return ids if len(ids) > 1 else []
        ids, learned = self._marked(messages, render) if self._is_marked else self._compared(messages, render)
        if not any(learned[1:]):
            return []
        return [token if is_learned else ~token for token, is_learned in zip(ids, learned, strict=True)]

    def _for_template(self, message: Any) -> dict[str, Any]:
        """Return a message without null keys, with the texts of its parts joined."""
        items = message.items() if isinstance(message, dict) else ()
        given = {name: value for name, value in items if value is not None}
        if not isinstance(given.get("role"), str) or given.keys().isdisjoint(("content", "tool_calls")):
            raise DataError(
                f'{self.source!r} has a message {shown(message)}: give each as {{"role": "user", "content": "..."}}'
            )
        if isinstance(parts := given.get("content"), list):
            if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
                raise DataError(
                    f"{self.source!r} has a message with content {shown(parts)}: give a text, or a list of "
                    '{"type": "text", "text": "..."}'
                )
            given["content"] = "".join(part["text"] for part in parts)
        return given

    def _marked(self, messages: list[dict[str, Any]], render: Render) -> tuple[list[int], list[bool]]:
        """Return ids [S], and a mask of those that the template marks as the assistant's."""
        encoded = render(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(encoded["input_ids"]), [bool(is_marked) for is_marked in encoded["assistant_masks"]]

    def _compared(self, messages: list[dict[str, Any]], render: Render) -> tuple[list[int], list[bool]]:
        """Return ids [S], and a mask of those that an assistant's message adds to the text before it."""
        text = render(messages, tokenize=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = render(messages[:i], tokenize=False, add_generation_prompt=True) if i else ""
                after = render(messages[: i + 1], tokenize=False)
                if not (text.startswith(before) and text.startswith(after)):
                    raise DataError(
                        f"the chat template renders message {i + 1} of a conversation of {self.source!r} differently "
                        "when others follow, so the assistant's tokens are unknown: put {% generation %} around them "
                        "in the template, or leave --assistant_only_loss out"
                    )
                spans.append((len(before), len(after)))
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except NotImplementedError as error:
            raise DataError(
                "assistant_only_loss needs a fast tokenizer, which has token offsets, or a chat template with "
                "{% generation %}: leave it out, or convert the tokenizer"
            ) from error
        offsets = encoded["offset_mapping"]
        learned = [any(first < end and begin < last for begin, end in spans) for first, last in offsets]
        return list(encoded["input_ids"]), learned

    def _render(self, messages: list[dict[str, Any]], **how: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, **how)
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"the tokenizer's chat template fails on messages of {self.source!r} ({reason(error)}): fix or remove "
                f"the row with {shown(messages)}"
            ) from error

"""Conversations to learn from: messages rendered by the tokenizer's chat template, and which tokens are learned."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError, reason, shown

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""marks in a chat template where what the assistant says begins, as transformers looks for it"""

Render = Callable[..., Any]
"""messages -> what the chat template makes of them"""


class ConversationEncoder:
    """Makes tokens of conversations, as the chat template renders them: nothing is added, no eos either.

    With `assistant_only`, tokens of what the assistant says are learned, and no others: those between {% generation %}
    and {% endgeneration %} where the template has them, and else all after the prompt for an answer up to the end of
    the message, its closing tokens included.

    Messages reach the template as a server hands them on: without keys that are null, and parts of text joined.

    Args:
        tokenizer: has a chat template.
        assistant_only: learn the assistant's tokens alone.
        source: name of the dataset, for messages.

    Raises:
        DataError: the tokenizer has no chat template; when called, rows are no conversations, or the template refuses
            them or does not show what the assistant says.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool = False, source: str = "dataset"
    ) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{source!r} holds messages, and the tokenizer has no chat template to make a text of them: pass a "
                '--template such as "{messages[0][content]}", or give the tokenizer a chat_template.jinja'
            )
        self.tokenizer, self.has_labels, self.source = tokenizer, assistant_only, source
        template = tokenizer.chat_template
        self._is_marked = isinstance(template, str) and GENERATION.search(template) is not None

    def __call__(self, texts: Sequence[str | None]) -> list[list[int]]:
        """Tokens of each conversation; ~id is one that is not learned. None where nothing can be learned.

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
        """A message without keys that are null, the texts of its parts joined."""
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
        """Ids [S], and which of them the template marks as the assistant's."""
        found = render(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]]

    def _compared(self, messages: list[dict[str, Any]], render: Render) -> tuple[list[int], list[bool]]:
        """Ids [S], and which of them are in what an assistant's message adds to the text before it."""
        text = render(messages, tokenize=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = render(messages[:i], tokenize=False, add_generation_prompt=True) if i else ""
                after = render(messages[: i + 1], tokenize=False)
                if not (text.startswith(before) and text.startswith(after)):
                    raise DataError(
                        f"the chat template renders message {i + 1} of a conversation of {self.source!r} otherwise "
                        "when others follow, so that the assistant's tokens cannot be told: put {% generation %} "
                        "around them in the template, or leave --assistant_only_loss out"
                    )
                spans.append((len(before), len(after)))
        try:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except NotImplementedError as error:
            raise DataError(
                "assistant_only_loss needs a fast tokenizer, which knows where tokens stand in a text, or a chat "
                "template with {% generation %}: leave it out, or convert the tokenizer"
            ) from error
        learned = [any(first < end and begin < last for begin, end in spans) for first, last in found["offset_mapping"]]
        return list(found["input_ids"]), learned

    def _render(self, messages: list[dict[str, Any]], **how: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, **how)
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"the tokenizer's chat template refuses messages of {self.source!r} ({reason(error)}): fix or leave "
                f"out the row with {shown(messages)}"
            ) from error

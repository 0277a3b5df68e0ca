"""Conversations to learn from: messages rendered by the tokenizer's chat template, and which tokens are learned."""

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from quietstar.errors import DataError
from quietstar.untrusted import reason, shown

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""marks in a chat template where what the assistant says begins, as transformers looks for it"""


class ConversationEncoder:
    """Makes tokens of conversations, as the chat template renders them: nothing is added, no eos either.

    With `assistant_only`, tokens of what the assistant says are learned, and no others: those between {% generation %}
    and {% endgeneration %} where the template has them, and else all after the prompt for an answer up to the end of
    the message, its closing tokens included.

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
        """Tokens of each conversation in JSON; ~id is one that is not learned. None where nothing can be learned."""
        return [self._encode(json.loads(text)) if text else [] for text in texts]

    def _encode(self, messages: list[Any]) -> list[int]:
        if wrong := next((each for each in messages if not isinstance(each, dict) or "role" not in each), None):
            raise DataError(
                f'{self.source!r} has a message {shown(wrong)}: give each as {{"role": "user", "content": "..."}}'
            )
        if not messages:
            return []
        if not self.has_labels:
            ids = list(self._render(messages, tokenize=True, return_dict=False))
            return ids if len(ids) > 1 else []
        ids, learned = self._marked(messages) if self._is_marked else self._compared(messages)
        if not any(learned[1:]):
            return []
        return [token if is_learned else ~token for token, is_learned in zip(ids, learned, strict=True)]

    def _marked(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
        """Ids [S], and which of them the template marks as the assistant's."""
        found = self._render(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), [bool(each) for each in found["assistant_masks"]]

    def _compared(self, messages: list[dict[str, Any]]) -> tuple[list[int], list[bool]]:
        """Ids [S], and which of them are in what an assistant's message adds to the text before it."""
        text = self._render(messages, tokenize=False)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self._render(messages[:i], tokenize=False, add_generation_prompt=True) if i else ""
                after = self._render(messages[: i + 1], tokenize=False)
                if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
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
                "out that row"
            ) from error

"""Continue prompts on a command line, token by token, optionally showing the thoughts."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from quietstar.base.ids import check_ids
from quietstar.config import room_beside_thought
from quietstar.errors import DataError, SettingsError
from quietstar.inference.loading import UseArguments, context_length, load_model, prompt_ids
from quietstar.inference.text_settings import eos_ids, say_what_is_set_aside, text_settings
from quietstar.journal import Journal
from quietstar.model import QuietStarForCausalLM
from quietstar.output import tokens_of
from quietstar.policy import ThinkPolicy
from quietstar.runs.fields import option
from quietstar.text.files import lines_of, read_lines
from quietstar.text.pieces import Pieces, one_line
from quietstar.text.unicode import check_text

logger = logging.getLogger(__name__)

TEXT = "text"


@dataclass(kw_only=True)
class SpeakArguments(UseArguments):
    """How the visible tokens are chosen.

    Raises:
        SettingsError: a value is invalid.
    """

    temperature: float = option(0.0, "temperature of the text; 0 is greedy", TEXT)
    top_p: float = option(1.0, "sample tokens from the likeliest ones whose probabilities add up to this", TEXT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature >= 0:
            raise SettingsError(f"temperature is {self.temperature}; give a number of at least 0")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is {self.top_p}; give a number above 0, at most 1")
        if self.top_p < 1 and not self.temperature:
            raise SettingsError(
                "top_p was given, but a temperature of 0 samples nothing; give a temperature above 0, too"
            )


@dataclass(kw_only=True)
class GenerateArguments(SpeakArguments):
    """What to continue, and how.

    Raises:
        SettingsError: a value is invalid.
    """

    prompts_file: str | None = option(None, "read prompts from this file, one per line; - is standard input", TEXT)
    max_new_tokens: int = option(128, "number of tokens to generate at most", TEXT)
    stop: list[str] = option([], "strings that end the text", TEXT)
    original: bool = option(False, "use a plain model, or the base model of a thinking one, without thoughts", "model")
    show_thoughts: bool = option(False, "show each token's thought before it, in grey", "thoughts")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens is {self.max_new_tokens}; give a number of at least 1")
        if self.original and (given := "show_thoughts" if self.show_thoughts else "n_ahead" if self.n_ahead else None):
            raise SettingsError(f"{given} was given, but with original there are no thoughts; leave one of them out")


def read_prompts(prompt: str | None, file: str | None, stdin: TextIO) -> Iterator[str]:
    """Yield the given prompt, or the lines of a file or of standard input.

    Raises:
        DataError: there is no prompt, one is empty, or the file cannot be read.
        SettingsError: a prompt and a file were both given.
    """
    if prompt is not None and file is not None:
        raise SettingsError("a prompt and prompts_file were both given; give one of them")
    if prompt is not None:
        yield _not_empty(prompt, "the prompt")
        return
    if file is None and stdin.isatty():
        raise DataError('no prompt was given; write it after the model ("..."), or give --prompts_file, or pipe it in')
    name = "standard input" if file in (None, "-") else str(file)
    lines = list(lines_of(stdin.buffer, name) if file in (None, "-") else read_lines(name))
    if not any(map(str.strip, lines)):
        raise DataError(f"{name} has no prompts; give one per line")
    for number, line in enumerate(lines, start=1):
        yield _not_empty(line, f"line {number} of {name}")


def _not_empty(prompt: str, what: str) -> str:
    check_text(what, prompt)
    if not prompt.strip():
        raise DataError(f"{what} is empty; give some text to continue")
    return prompt


def speak(model_name: str, prompt: str | None, args: GenerateArguments, out: TextIO | None = None) -> None:
    """Continue each prompt, and write the text to `out` (standard output if None) as it is generated.

    Raises:
        QuietStarError: the settings, the model or the prompts are invalid.
    """
    prompts = list(read_prompts(prompt, args.prompts_file, sys.stdin))
    model, tokenizer = load_model(model_name, args, original=args.original)
    encoded = [torch.tensor([prompt_ids(tokenizer, each)]) for each in prompts]
    for each in encoded:
        _check_length(model, each.shape[1], args.n_ahead)
        check_ids(model, each[0].tolist(), "a prompt")
    say_what_is_set_aside(model)
    torch.manual_seed(args.seed)
    console = Console(file=out or sys.stdout, highlight=False, soft_wrap=True)
    for number, (text, ids) in enumerate(zip(prompts, encoded, strict=True)):
        if number:
            console.print()
        console.print(Text(text), end="", style="bold")
        n_new = continue_one(model, tokenizer, ids.to(model.device), args, console)
        console.print()
        if n_new is not None:
            logger.warning(
                "the text ends after %d of %d tokens: there the model's context of %d tokens is full%s",
                n_new,
                args.max_new_tokens,
                context_length(model),
                ", with room for a thought" if isinstance(model, QuietStarForCausalLM) else "",
            )


def _check_length(model: PreTrainedModel, n_tokens: int, n_ahead: int | None) -> None:
    if n_tokens == 0:
        raise DataError("the prompt has no tokens; give some text to continue")
    limit, room = context_length(model), room_beside_thought(model.config, n_ahead)
    if limit is not None and room is not None and n_tokens > room:
        raise DataError(
            f"a prompt has {n_tokens} tokens and a thought {limit - room}, but the model's context is {limit}; "
            f"give at most {room} tokens"
        )


def continue_one(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Tensor,
    args: GenerateArguments,
    console: Console,
) -> int | None:
    """Write the continuation of a prompt [1, S] to the console, token by token.

    Returns:
        The number of new tokens if the model's context ended the text, else None.
    """
    thoughts: dict[str, Any] = {}
    journal = None
    if isinstance(model, QuietStarForCausalLM):
        journal = Journal(ThinkPolicy.parse(args.think), keep=args.show_thoughts, top_k=1)
        thoughts = {**args.thought_settings, "output_thoughts": journal}
    stop = {"stop_strings": args.stop, "tokenizer": tokenizer} if args.stop else {}
    room, n_prompt, most = room_beside_thought(model.config, args.n_ahead), input_ids.shape[1], args.max_new_tokens
    if room is not None:
        most = min(most, room + 1 - n_prompt)  # the last token is not read
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=most,
        streamer=Writer(tokenizer, console, journal if args.show_thoughts else None),
        **text_settings(model, tokenizer, args.temperature, args.top_p) | {"return_dict_in_generate": True},
        **thoughts,
        **stop,
    )
    new = output.sequences[0, n_prompt:].tolist()
    is_cut = len(new) == most < args.max_new_tokens and new[-1] not in eos_ids(model, tokenizer)
    return most if is_cut else None


class Writer(BaseStreamer):
    """Writes tokens as they are generated, each after its thought if there is a journal."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, console: Console, journal: Journal | None) -> None:
        self.tokenizer, self.console, self.journal = tokenizer, console, journal
        self.pieces: Pieces | None = None

    def put(self, value: Tensor) -> None:
        """Receive the prompt first, then one token at a time."""
        if self.pieces is None:
            self.pieces = Pieces(self.tokenizer, value.flatten().tolist(), skip_special_tokens=True)
            return
        if self.journal is not None and bool(self.journal.steps[-1].thought[0]):
            thought = self.tokenizer.decode(tokens_of(self.journal.steps[-1].tokens)[0])
            self.console.print(Text(f"⟨{one_line(thought)}⟩", style="bright_black"), end="")
        for token in value.flatten().tolist():
            self._write(self.pieces.add(token))

    def end(self) -> None:
        """Write what is left."""
        if self.pieces is not None:
            self._write(self.pieces.rest())

    def _write(self, text: str) -> None:
        self.console.print(Text(text), end="")
        self.console.file.flush()

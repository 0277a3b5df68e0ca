"""Models to generate and to evaluate with, and their tokenizers, from a folder or a hub name."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.attention import BACKENDS
from quietstar.base.ids import suppress_padding
from quietstar.base.loading import check_head, holds_thinking_model, load_base, load_tokenizer
from quietstar.base.sources import SUFFIX, find_source
from quietstar.errors import CheckpointError, SettingsError, first_line
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.runs.fields import option
from quietstar.text.tokens import token_ids
from quietstar.think import check_sampling

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXAMPLES = "always, never, every:4, probability:0.25, entropy:2.5, margin:0.2, mixing_head:0.1, budget:16"
MODEL = "model"
THOUGHTS = "thoughts"


@dataclass(kw_only=True)
class UseArguments:
    """Which model to use, where, and how it thinks."""

    dtype: str = option("auto", f"weights are loaded as: {', '.join(DTYPES)} (auto: as they are stored)", MODEL)
    device: str = option("auto", "auto (a GPU where there is one), cpu, cuda, cuda:1, ...", MODEL)
    attention_backend: str = option(
        "auto", f"how branches attend at many positions at once: auto, {', '.join(BACKENDS)}", MODEL
    )
    trust_remote_code: bool = option(False, "run code that lies beside the model on the hub", MODEL)
    think: str = option(
        "always",
        f"where to think: {EXAMPLES}; several with commas between them must all agree",
        THOUGHTS,
    )
    thought_temperature: float = option(
        0.0, "temperature at which thoughts are sampled; 0 takes the likeliest tokens", THOUGHTS
    )
    thought_top_p: float = option(
        1.0, "thought tokens are drawn among the likeliest that together reach this probability", THOUGHTS
    )
    seed: int = option(0, "seed of everything that is drawn", MODEL)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SettingsError(f"dtype is {self.dtype!r}; choose from {', '.join(DTYPES)}")
        check_sampling(**self.thought_settings)
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        ThinkPolicy.parse(self.think)

    @property
    def thought_settings(self) -> dict[str, float]:
        """How thoughts are drawn, as `forward` and `generate` take it."""
        return {"thought_temperature": self.thought_temperature, "thought_top_p": self.thought_top_p}


def load_model(
    name: str | Path, args: UseArguments, *, original: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode, and its tokenizer.

    Args:
        name: folder, hub name or GGUF file, of a thinking model unless `original`.
        args: where and how.
        original: it is a plain model, or a thinking model's base model is wanted.

    Raises:
        CheckpointError: there is no model, no tokenizer, or it does not think.
        SettingsError: there is no such device.
    """
    device = pick_device(args.device)
    thinks = holds_thinking_model(name)
    if not (thinks or original) and (find_source(name).gguf_file or Path(name, "config.json").is_file()):
        raise _does_not_think(name, args)
    tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    how = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    model: PreTrainedModel = (
        QuietStarForCausalLM.from_pretrained(str(name), **how) if thinks else load_base(name, **how)
    )
    if tokenizer is None:
        raise CheckpointError(
            f"no tokenizer could be loaded from {str(name)!r}; give a folder with tokenizer files beside the model "
            "(code that it brings is run only with --trust_remote_code)"
        )
    if isinstance(model, QuietStarForCausalLM):
        suppress_padding(model, tokenizer)
        if args.attention_backend != "auto":
            model.set_attention_backend(args.attention_backend)
        model = model.base_lm if original else model
    elif not original:
        raise _does_not_think(name, args)
    else:
        check_head(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "left"
    return model.to(device).eval(), tokenizer


def _does_not_think(name: str | Path, args: UseArguments) -> CheckpointError:
    hint = ", or add --original to use it as it is" if hasattr(args, "original") else " (quietstar train --model ...)"
    return CheckpointError(f"{str(name)!r} is a plain model that does not think: train it{hint}")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text that is to be gone on from: without the eos that some tokenizers end every text with."""
    (ids,) = token_ids(tokenizer, [text])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def text_after(tokenizer: PreTrainedTokenizerBase, ids: list[int], n_before: int) -> str:
    """What the tokens after the first n_before add to the text: alone, they may lose the space in front of them."""
    before = tokenizer.decode(ids[:n_before], skip_special_tokens=True)
    return tokenizer.decode(ids, skip_special_tokens=True)[len(before) :]


def name_of(model: str) -> str:
    """The last part of a folder's or a hub name, or of a GGUF file's without its suffix; "." has one of its own."""
    path = Path(model).resolve()
    return (path.stem if path.suffix.lower() == SUFFIX else path.name) if model else ""


def pick_device(name: str) -> torch.device:
    """The device of that name; a GPU where there is one, for auto.

    Raises:
        SettingsError: there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used: {first_line(error)}; give cpu or cuda") from error


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that a model was made for; None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)

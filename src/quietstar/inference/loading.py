"""Load a model and its tokenizer for generation or evaluation, from a folder, a GGUF file or the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from quietstar.attention import BACKENDS
from quietstar.base.checks import check_head
from quietstar.base.ids import set_token_ids
from quietstar.base.loading import holds_thinking_model, load_base, load_tokenizer
from quietstar.base.sources import SUFFIX, find_source
from quietstar.config import check_n_ahead
from quietstar.errors import CheckpointError, SettingsError, first_line
from quietstar.model import QuietStarForCausalLM
from quietstar.policy import ThinkPolicy
from quietstar.runs.fields import check_values, option
from quietstar.text.tokens import token_ids
from quietstar.think import check_sampling

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXAMPLES = "always, never, every:4, probability:0.25, entropy:2.5, margin:0.2, mixing_head:0.1, budget:16"
MODEL = "model"
THOUGHTS = "thoughts"


@dataclass(kw_only=True)
class UseArguments:
    """How to load a model, and how it thinks."""

    dtype: str = option("auto", f"dtype of the weights: {', '.join(DTYPES)} (auto: as stored)", MODEL, DTYPES)
    device: str = option("auto", "auto (a GPU if available), cpu, cuda, cuda:1, ...", MODEL)
    attention_backend: str = option(
        "auto",
        f"attention of branches at many positions at once: auto, {', '.join(BACKENDS)}",
        MODEL,
        ("auto", *BACKENDS),
    )
    trust_remote_code: bool = option(False, "run the code that comes with the model on the hub", MODEL)
    think: str = option(
        "always",
        f"where to think: {EXAMPLES}; of several, separated by commas, all must agree",
        THOUGHTS,
    )
    n_ahead: int | None = option(
        None, "tokens of a thought, start and end included; 2 samples none (default: as in training)", THOUGHTS
    )
    thought_temperature: float = option(0.0, "temperature at which thoughts are sampled; 0 is greedy", THOUGHTS)
    thought_top_p: float = option(
        1.0, "sample thought tokens from the likeliest ones whose probabilities add up to this", THOUGHTS
    )
    seed: int = option(0, "seed of all sampling", MODEL)

    def __post_init__(self) -> None:
        check_values(self)
        check_sampling(self.thought_temperature, self.thought_top_p)
        if self.n_ahead is not None:
            check_n_ahead(self.n_ahead)
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")
        ThinkPolicy.parse(self.think)

    @property
    def thought_settings(self) -> dict[str, Any]:
        """How long thoughts are, and how they are sampled: arguments of `forward` and `generate`."""
        return {name: getattr(self, name) for name in ("n_ahead", "thought_temperature", "thought_top_p")}


def load_model(
    name: str | Path, args: UseArguments, *, original: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in evaluation mode, and its tokenizer, from a folder, a hub name or a GGUF file.

    It must be a thinking model, unless `original` asks for a plain one, or the base model of a thinking one.

    Raises:
        CheckpointError: there is no model or no tokenizer, or the model does not think.
        SettingsError: the device does not exist.
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
            f"no tokenizer could be loaded from {str(name)!r}; give a folder that has tokenizer files, too "
            "(code that comes with it runs only with --trust_remote_code)"
        )
    if isinstance(model, QuietStarForCausalLM):
        set_token_ids(model.config, model, tokenizer)
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
    """Return the tokens of a prompt, without the eos that some tokenizers append to every text."""
    (ids,) = token_ids(tokenizer, [text])
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def text_after(tokenizer: PreTrainedTokenizerBase, ids: list[int], n_before: int) -> str:
    """Return the text of the tokens after the first n_before; decoded alone, it might lose its leading space."""
    before = tokenizer.decode(ids[:n_before], skip_special_tokens=True)
    return tokenizer.decode(ids, skip_special_tokens=True)[len(before) :]


def name_of(model: str) -> str:
    """Return the last part of a folder or hub name, or the stem of a GGUF file; "." is resolved first."""
    path = Path(model).resolve()
    return (path.stem if path.suffix.lower() == SUFFIX else path.name) if model else ""


def pick_device(name: str) -> torch.device:
    """Return the device of that name; for "auto", a GPU if available.

    Raises:
        SettingsError: the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used: {first_line(error)}; give cpu or cuda") from error


def context_length(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a model can read; None if its config does not tell."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)

"""`quietstar inspect` without its command line: read or generate a text, trace it, write the results."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from quietstar.base.untrusted import is_whole
from quietstar.errors import DataError
from quietstar.inference.loading import load_model, name_of
from quietstar.inference.text_settings import say_what_is_set_aside
from quietstar.inspection.arguments import InspectArguments
from quietstar.inspection.before import load_before
from quietstar.inspection.figures import need_matplotlib
from quietstar.inspection.observe import trace
from quietstar.inspection.results import write_results
from quietstar.inspection.settings import TextToTrace
from quietstar.inspection.tables import effects_table
from quietstar.inspection.texts import MAX_LENGTH, windows, written
from quietstar.inspection.trace import check_format
from quietstar.model import QuietStarForCausalLM
from quietstar.runs.folders import check_inputs, check_output_folder, claim, read_settings
from quietstar.text.files import read_texts

logger = logging.getLogger(__name__)


def inspect(
    model_name: str, args: InspectArguments, console: Console | None = None, *, config: str | None = None
) -> Path:
    """Trace a text, write the results, and return their folder.

    `config` is the file that settings came from, which `overwrite` must not delete.

    Raises:
        QuietStarError: settings, model or text need to be corrected by the user.
    """
    args.output_dir = args.output_dir or f"runs/{name_of(model_name)}-inspection"
    check_output_folder(args.output_dir, overwrite=args.overwrite)
    check_inputs(args.output_dir, [model_name, args.text, args.before, config])
    check_format(args.format)
    if args.figures:
        need_matplotlib()
    texts = [args.prompt or ""] if args.text is None else read_texts(args.text)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{args.text or 'the prompt'} is empty; give a text to read")
    model, tokenizer = load_model(model_name, args)
    assert isinstance(model, QuietStarForCausalLM)
    before = None
    if args.before is not None:
        before = load_before(args.before, model, tokenizer, trust_remote_code=args.trust_remote_code)
    torch.manual_seed(args.seed)
    settings, sampling = args.trace_settings, {"temperature": args.temperature, "top_p": args.top_p}
    if args.generate:
        say_what_is_set_aside(model)
        rows = [written(model, tokenizer, texts[0], args.generate, settings, **sampling)]
    else:
        rows, n_read, usual = list[TextToTrace](), 0, trained_length(model_name) or MAX_LENGTH
        for text in texts:
            if n_read != args.limit:
                left = None if args.limit is None else args.limit - n_read
                size = {"max_length": args.max_length, "limit": left}
                rows += windows(model, tokenizer, text, settings, **size, usual_length=usual)
                n_read = sum(len(row.ids) for row in rows)
        longest = max(len(row.ids) for row in rows)
        told = f"{len(texts):,} text{'' if len(texts) == 1 else 's'}: {n_read:,} tokens, at most {longest:,} at a time"
        logger.info("reading %s", told)
    console = console or Console(highlight=False)
    with _progress() as bar:
        task = bar.add_task("thinking")
        found = trace(
            model,
            tokenizer,
            rows,
            settings,
            name=name_of(model_name),
            origin={"model": model_name, **args.origin},
            before=before,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        bar.update(task, description="writing")
        arguments = {"model": model_name, **asdict(args)}
        folder = claim(args.output_dir, {**found.about, "arguments": arguments}, overwrite=args.overwrite)
        write_results(found, folder, format=args.format, report=args.report, figures=args.figures)
    for sentence in found.summary.sentences:
        console.print(sentence)
    if found.summary.interventions:
        console.print(effects_table(found.summary))
    return folder


def trained_length(model_name: str) -> int | None:
    """Return the tokens of the sequences that a folder's model was trained on, or None if that is not known."""
    data = read_settings(model_name).get("data")
    length: Any = data.get("max_length") if isinstance(data, dict) else None
    return length if is_whole(length) and length > 1 else None


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )

"""What a command says on the terminal besides its results."""

import logging
import os
import sys

from transformers.utils import logging as transformers_logging


def log_to_terminal() -> None:
    """Log warnings and this library's messages to stderr, one line each; no progress bars where that is a file."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("quietstar").setLevel(logging.INFO)
    for library in ("datasets", "transformers.configuration_utils"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # our own error, on one line, follows
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # a kernel that few need is missing
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

"""What a command says on the terminal besides its results."""

import logging


def log_to_terminal() -> None:
    """Log warnings and this library's messages to stderr, one line each."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("quietstar").setLevel(logging.INFO)
    for library in ("datasets", "transformers.configuration_utils"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # our own error, on one line, follows

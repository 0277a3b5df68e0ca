"""The `quietstar` command: one module for each verb, and no logic of its own."""

import importlib
import logging
import sys

VERBS = {
    "demo": "the whole story in minutes: a tiny model learns a small language, then learns to think",
    "plan": "what a training step takes, and how to run it on given GPUs",
    "train": "teach a model to think from plain text",
    "generate": "continue a prompt, thinking before each token",
    "evaluate": "how well it answers and predicts, with thoughts and without",
    "inspect": "what it thinks over a text, and whether the thoughts matter",
    "serve": "an HTTP server that speaks OpenAI's protocol, and a page to watch thoughts on",
    "convert": "checkpoints of the released code, in and out",
}


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Exit code 0 where it worked, 2 where something needs the user, said in one line.

    75 where a signal has ended a training run that can be resumed.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    verb, *rest = argv
    if verb in ("--version", "-V"):
        import quietstar

        print(f"quietstar {quietstar.__version__}")
        return 0
    if verb not in VERBS:
        print(f"quietstar: {verb!r} is no verb; choose from {', '.join(VERBS)}", file=sys.stderr)
        return 2
    from quietstar.errors import QuietStarError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("quietstar").setLevel(logging.INFO)
    for library in ("datasets", "transformers.configuration_utils"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # what is wrong is said in one line, and by us
    try:
        importlib.import_module(f"quietstar.cli.{verb}").main(rest)
    except QuietStarError as error:
        print(f"quietstar {verb}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"quietstar {verb}: stopped", file=sys.stderr)
        return 130
    return 0


def overview() -> str:
    """What `quietstar --help` says."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return f"usage: quietstar VERB [options]\n\n{verbs}\n\nquietstar VERB --help lists a verb's options."

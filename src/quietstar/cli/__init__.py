"""The `quietstar` command: one module per subcommand, and no logic of its own."""
# PYTHON_ARGCOMPLETE_OK

import importlib
import os
import sys

COMMANDS = {
    "demo": "the whole method in minutes: a tiny model learns a small language, then learns to think",
    "plan": "what a training step takes, and how to run it on given GPUs",
    "train": "teach a model to think from plain text",
    "generate": "continue a prompt, thinking before each token",
    "evaluate": "how well a model answers and predicts, with thoughts and without",
    "distill": "teach an ordinary model what a thinking model predicts",
    "study": "do thoughts pay, beside every control? trains and compares arms of a recipe",
    "inspect": "what a model thinks over a text, and whether the thoughts matter",
    "serve": "an HTTP server with OpenAI's protocol, and a web page that shows the thoughts",
    "export": "write a plain model as a GGUF file for llama.cpp, or as a folder for any other engine",
    "convert": "convert checkpoints from and to the released code's format",
    "env": "versions, devices, and which extras are installed",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success, 2 an error that the user can fix, printed on one line, 75 a training run that a signal has ended and
    that can be resumed, 130 an interrupt from the keyboard.
    """
    if "_ARGCOMPLETE" in os.environ:
        from quietstar.cli.completion import complete

        complete(COMMANDS)
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    command, *rest = argv
    if command in ("--version", "-V"):
        import quietstar

        print(f"quietstar {quietstar.__version__}")
        return 0
    from quietstar.errors import QuietStarError, did_you_mean

    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        print(f"quietstar: unknown command {command!r}{hint}", file=sys.stderr)
        return 2
    from quietstar.runs.log import log_to_terminal

    log_to_terminal()
    try:
        importlib.import_module(f"quietstar.cli.{command}").main(rest)
    except QuietStarError as error:
        print(f"quietstar {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"quietstar {command}: stopped", file=sys.stderr)
        return 130
    return 0


def overview() -> str:
    """Return what `quietstar --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {command:<{width}}  {what}" for command, what in COMMANDS.items())
    return (
        f"usage: quietstar COMMAND [options]\n\n{commands}\n\n"
        "quietstar COMMAND --help lists a command's options; quietstar --version and quietstar env say what this is."
    )

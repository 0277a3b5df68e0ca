"""All measurements that need a GPU, most valuable first, within a time budget.

    python benchmarks/gpu.py --minutes 12 --out gpu                      on a machine with one GPU
    python benchmarks/gpu.py --minutes 12 --out gpu --parts speed memory --smollm2 DIR
    python benchmarks/gpu.py --minutes 2 --out gpu --dry_run             every part, tiny, on a CPU
    python benchmarks/gpu.py --minutes 9 --out gpu --parts study         do thoughts pay? see gpu_study.py

Each part of `gpu_parts.PARTS` runs in a separate process with a time limit; unused time goes to later parts. OUT
contains results.json and gpu.md, both rewritten after each figure, and log.txt with the output of all parts. A part
that fails or runs out of time keeps its figures so far, and the next one begins. No network is needed; missing packages
are named. The exit code is 1 if a part failed or missed its target.
"""

import argparse
import contextlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from gpu_setting import MARK

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE.parent), str(HERE.parent / "src")]
"""where `tests` and `quietstar` are, which need not be installed"""
LEAST = 1.0
"""least seconds left to begin a part"""


@dataclass
class Outcome:
    """Outcome of a part."""

    part: str
    says: str
    state: str = "running"
    """running, done, failed, out of time, or not begun"""
    seconds: float = 0.0
    why: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether it completed and met its targets."""
        return self.state == "done" and all(figure["met"] is not False for figure in self.figures)


class Report:
    """The files in OUT, rewritten after each figure.

    Args:
        folder: OUT.
        about: the machine and installed versions.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder, self.about = folder, about
        self.outcomes: list[Outcome] = []
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Write both files."""
        parts = [vars(outcome) for outcome in self.outcomes]
        self._replace("results.json", json.dumps({"about": self.about, "parts": parts}, indent=1) + "\n")
        self._replace("gpu.md", self.markdown())

    def markdown(self) -> str:
        """Return a table of all parts, after a line about the machine."""
        lines = [", ".join(f"{name} {value}" for name, value in self.about.items()), ""]
        lines += ["| part | what | found | aimed at | met |", "|---|---|---|---|---|"]
        for outcome in self.outcomes:
            state = f"{outcome.state}, {outcome.seconds:.0f} s" + (f": {outcome.why}" if outcome.why else "")
            lines.append(_line(f"**{outcome.part}**", outcome.says, state, "", ""))
            for figure in outcome.figures:
                met = {True: "yes", False: "**no**", None: ""}[figure["met"]]
                lines.append(_line("", figure["what"], figure["found"], figure["aim"], met))
        return "\n".join(lines) + "\n"

    def _replace(self, name: str, text: str) -> None:
        aside = self.folder / f".{name}"
        aside.write_text(text)
        aside.replace(self.folder / name)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def run_part(outcome: Outcome, command: list[str], seconds: float, report: Report, log: Any) -> None:
    """Run a part, and record its figures as they come.

    Args:
        outcome: to fill in.
        command: of the part's process.
        seconds: time limit.
        report: rewritten after each figure.
        log: receives all output of the part.
    """
    began = time.monotonic()
    paths = [*PATHS, os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={"HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def listen() -> None:
        for line in process.stdout:  # type: ignore[union-attr]
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    last = ""
    while True:
        try:
            line = lines.get(timeout=max(0.0, began + seconds - time.monotonic()))
        except queue.Empty:
            outcome.state = "out of time"
            break
        if line is None:
            outcome.state = "done" if process.wait() == 0 else "failed"
            break
        log.write(line)
        log.flush()
        if line.startswith(MARK):
            outcome.figures.append(json.loads(line.removeprefix(MARK)))
            outcome.seconds = time.monotonic() - began
            report.write()
        elif line.strip():
            last = line.strip()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the part and its children
    process.wait()
    outcome.why = last[:200] if outcome.state == "failed" else ""
    outcome.seconds = time.monotonic() - began


def about_the_machine(dry_run: bool) -> dict[str, str]:
    """Return the machine and versions."""
    import torch
    import transformers

    name = "CPU, dry run: figures mean nothing" if dry_run else torch.cuda.get_device_name()
    return {
        "date": str(date.today()),
        "machine": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
    }


def main() -> int:
    """Run all parts, and return the exit code."""
    sys.path += PATHS
    from gpu_parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json, gpu.md and log.txt")
    parser.add_argument("--parts", nargs="+", help="names of parts (default: all)")
    parser.add_argument("--smollm2", type=Path, help="folder or GGUF file of SmolLM2-135M, for the part of that name")
    parser.add_argument("--gsm8k", type=Path, help="folder of the published train.jsonl and test.jsonl, for the study")
    parser.add_argument("--dry_run", action="store_true", help="every part tiny, on a CPU")
    options = parser.parse_args()
    began = time.monotonic()
    chosen = {part.name: part for part in PARTS}
    if unknown := sorted(set(options.parts or []) - chosen.keys()):
        parser.error(f"no part is named {', '.join(unknown)}; choose from {', '.join(chosen)}")
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes}; give a number above 0")
    about = about_the_machine(options.dry_run) if options.dry_run or _has_gpu() else None
    if about is None:
        parser.error("no CUDA device found; add --dry_run to try every part on a CPU")
    parts = [part for part in PARTS if (part.name in options.parts if options.parts else not part.if_named)]
    report = Report(options.out, about)
    whole, ends = sum(part.seconds for part in parts), 0.0
    with (options.out / "log.txt").open("w") as log:
        for part in parts:
            ends += 60 * options.minutes * part.seconds / whole
            left = began + ends - time.monotonic()
            outcome = Outcome(part.name, part.says)
            report.outcomes.append(outcome)
            report.write()
            if left < LEAST:
                outcome.state = "not begun"
            else:
                print(f"{part.name}: at most {left:.0f} s", flush=True)
                log.write(f"\n===== {part.name}\n")
                command = [sys.executable, str(HERE / "gpu_parts.py"), part.name]
                command += ["--dry_run"] * options.dry_run
                for name in ("smollm2", "gsm8k"):
                    command += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
                command += ["--out", str(options.out), "--seconds", str(left)]
                run_part(outcome, command, left, report, log)
            print(f"{part.name}: {outcome.state}, {outcome.seconds:.0f} s {outcome.why}", flush=True)
            report.write()
    return 0 if all(outcome.is_well for outcome in report.outcomes) else 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())

"""Everything that only a GPU can say, in the order of its worth, within so many minutes.

    python benchmarks/gpu.py --minutes 12 --out gpu                      on a machine with one GPU
    python benchmarks/gpu.py --minutes 12 --out gpu --parts speed memory --smollm2 DIR
    python benchmarks/gpu.py --minutes 2 --out gpu --dry_run             every part, tiny, on a CPU

Each part of `gpu_parts.PARTS` runs in a process of its own with a time limit; what it leaves unused goes to the parts
after it. OUT holds results.json and gpu.md, both written anew as soon as there is a figure, and log.txt with all that
the parts print. A part that fails or runs out of time keeps the figures that it has, and the next one begins. No
network is needed; a package that is missing is named. The exit code is 1 where a part failed or missed its aim.
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

HERE = Path(__file__).resolve().parent
MARK = "FIGURE "
"""begins a line that a part prints with a figure as JSON"""
LEAST = 1.0
"""seconds that a part must have left to be begun"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a part runs."""

    dry_run: bool
    smollm2: Path | None = None

    @property
    def device(self) -> str:
        """cpu in a dry run, otherwise cuda."""
        return "cpu" if self.dry_run else "cuda"


def figure(what: str, found: str, aim: str = "", met: bool | None = None) -> dict[str, Any]:
    """A line of the table."""
    return {"what": what, "found": found, "aim": aim, "met": met}


@dataclass
class Outcome:
    """What became of a part."""

    part: str
    says: str
    state: str = "running"
    """running, done, failed, out of time, or not begun"""
    seconds: float = 0.0
    why: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether it ran to its end and met what is aimed at."""
        return self.state == "done" and all(of["met"] is not False for of in self.figures)


class Report:
    """The files in OUT, written whole after each figure.

    Args:
        folder: OUT.
        about: the machine and what is installed.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder, self.about = folder, about
        self.outcomes: list[Outcome] = []
        folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Both files."""
        parts = [vars(outcome) for outcome in self.outcomes]
        self._replace("results.json", json.dumps({"about": self.about, "parts": parts}, indent=1) + "\n")
        self._replace("gpu.md", self.markdown())

    def markdown(self) -> str:
        """A table over all parts, after a line on the machine."""
        lines = [", ".join(f"{name} {value}" for name, value in self.about.items()), ""]
        lines += ["| part | what | found | aimed at | met |", "|---|---|---|---|---|"]
        for of in self.outcomes:
            state = f"{of.state}, {of.seconds:.0f} s" + (f": {of.why}" if of.why else "")
            lines.append(_line(f"**{of.part}**", of.says, state, "", ""))
            for figure in of.figures:
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
    """Run a part, and take up its figures as they come.

    Args:
        outcome: is filled in.
        command: of the part's process.
        seconds: after which it is ended.
        report: is written after each figure.
        log: gets all lines that the part prints.
    """
    began = time.monotonic()
    paths = [str(HERE.parent), str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
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
        os.killpg(process.pid, signal.SIGKILL)  # the part, and whatever it has begun
    process.wait()
    outcome.why = last[:200] if outcome.state == "failed" else ""
    outcome.seconds = time.monotonic() - began


def about_the_machine(dry_run: bool) -> dict[str, str]:
    """What it runs on."""
    import torch
    import transformers

    name = "CPU, a dry run: figures mean nothing" if dry_run else torch.cuda.get_device_name()
    return {
        "date": str(date.today()),
        "machine": name,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
    }


def main() -> int:
    """Run all parts, and say how they went."""
    from gpu_parts import PARTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json, gpu.md and log.txt")
    parser.add_argument("--parts", nargs="+", help="names of parts (default: all)")
    parser.add_argument("--smollm2", type=Path, help="folder or GGUF file of SmolLM2-135M, for the part of that name")
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
        parser.error("there is no CUDA device; add --dry_run to try every part on a CPU")
    parts = [part for part in PARTS if part.name in (options.parts or chosen)]
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
                command += ["--smollm2", str(options.smollm2)] if options.smollm2 else []
                run_part(outcome, command, left, report, log)
            print(f"{part.name}: {outcome.state}, {outcome.seconds:.0f} s {outcome.why}", flush=True)
            report.write()
    return 0 if all(outcome.is_well for outcome in report.outcomes) else 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())

"""How a part of benchmarks/gpu.py runs, and how it reports a figure."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "FIGURE "
"""prefix of a line with a figure as JSON"""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of a part."""

    dry_run: bool
    smollm2: Path | None = None
    gsm8k: Path | None = None
    out: Path | None = None
    """folder for files that a part leaves"""
    seconds: float = math.inf
    """until the part is killed"""

    @property
    def device(self) -> str:
        """cpu in a dry run, otherwise cuda."""
        return "cpu" if self.dry_run else "cuda"


def figure(what: str, found: str, aim: str = "", met: bool | None = None) -> dict[str, Any]:
    """Return a line of the table."""
    return {"what": what, "found": found, "aim": aim, "met": met}

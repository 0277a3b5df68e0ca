"""What this machine has that a run depends on: versions, devices, and which extras are installed."""

import importlib.metadata
import os
import platform
import re

import torch

from quietstar.runs.folders import versions

PACKAGE = "quietstar"
EXTRA = re.compile(r"""^(?P<name>[\w.-]+).*;.*\bextra\s*==\s*["'](?P<extra>[\w.-]+)["']""")
"""a requirement of an extra, as the package's metadata has it"""


def environment() -> dict[str, str]:
    """Return what a report of a fault needs, by what it is."""
    n = torch.cuda.device_count()
    devices = [f"{torch.cuda.get_device_name(i)}, {_memory(i):.0f} GiB" for i in range(n)]
    needed = extras()
    found = {name: _version(name) for names in needed.values() for name in names}
    lacking = {extra: [name for name in names if found[name] is None] for extra, names in needed.items()}
    return {
        **versions(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": f"{os.cpu_count()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "GPUs": "; ".join(devices) or "none",
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(found.items()) if version) or "none",
        "extras": ", ".join(sorted(extra for extra, names in lacking.items() if not names)) or "none",
        "extras that lack packages": "; ".join(
            f"{extra} ({', '.join(names)})" for extra, names in sorted(lacking.items()) if names
        )
        or "none",
    }


def extras() -> dict[str, list[str]]:
    """Return the packages that each extra installs, besides those of other extras."""
    found: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(PACKAGE) or []:
        if (match := EXTRA.match(requirement)) and match["name"] != PACKAGE:
            found.setdefault(match["extra"], []).append(match["name"])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory(index: int) -> float:
    """Return the memory of a GPU in GiB."""
    return float(torch.cuda.get_device_properties(index).total_memory / 2**30)

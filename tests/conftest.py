"""Tests run offline, on one thread, and repeat exactly, whoever runs them."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# On some processors MKL rounds products by where in memory their factors lie: weights from a file lie elsewhere.
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.several import Pair

PREFIXES = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "QUIETSTAR_")
NAMES = ("COLUMNS", "LINES", "FORCE_COLOR", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit what is set here
    # A shell may have set another cache, a key for the server, a launcher's ranks or the width of its terminal.
    for name in [name for name in os.environ if name.startswith(PREFIXES) or name in NAMES]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The cache of whoever runs the tests may hold the models and data sets that must not be found.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="quietstar-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # tests speak to servers of their own

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees a GPU: a trainer or a command takes one unasked, and all other tests compare with a CPU."""
    asked = config.getoption("markexpr")
    if "gpu" not in asked or "not gpu" in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: begun last, one of them would leave the other core with nothing to do."""

    def is_long(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None or "pair" in getattr(item, "fixturenames", ())

    long = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out; each worker of xdist leaves out its own, and reports nothing of them."""
    if config.getoption("markexpr") == "not long":
        terminalreporter.write_line("The long tail was left out (tests marked long): make test-all runs it too.")


@pytest.fixture(scope="module", autouse=True)
def nothing_old_is_searched() -> None:
    """Each run of a trainer collects garbage: it would search modules and what other files keep, for a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def pair():
    """Two processes of one world, for the tests of a module."""
    made = Pair()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of a module that need it; they are skipped where there is none."""
    from tests.browser import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("there is no Chromium; make browser installs it")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, as `make docs` builds it."""
    build = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is not installed (extra: docs)")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(Path(__file__).parents[1] / "mkdocs.yml"), site_dir=str(folder))
    assert config.strict, "a warning fails the build"
    build.build(config)
    return folder


@pytest.fixture(autouse=True)
def always_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of tests are so small that the split backend would never attend in two parts."""
    monkeypatch.setattr("quietstar.attention.split.FEW_BRANCHES", 0)

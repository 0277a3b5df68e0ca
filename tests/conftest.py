"""Tests run offline, on one thread, and repeat exactly."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On some processors MKL rounds products by where in memory their factors lie: weights from a file lie elsewhere.
os.environ.setdefault("MKL_CBWR", "AUTO")

import pytest
import torch
from hypothesis import HealthCheck, settings

from .several import Pair

torch.set_num_threads(1)  # tiny tensors: a second thread costs more than it brings
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: begun last, one of them would leave the other core with nothing to do."""

    def is_long(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None or "pair" in getattr(item, "fixturenames", ())

    long = {item.path for item in items if is_long(item)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="module")
def pair():
    """Two processes of one world, for the tests of a module."""
    made = Pair()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def always_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids of tests are so small that the split backend would never attend in two parts."""
    monkeypatch.setattr("quietstar.attention.split.FEW_BRANCHES", 0)

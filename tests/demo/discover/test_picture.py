"""The picture of --discover is drawn, for any number of arms and seeds."""

import pytest

from quietstar.demo.discover.picture import draw
from quietstar.demo.discover.report import Findings
from tests.demo.discover.test_report import line


@pytest.mark.parametrize(("arms", "n_seeds"), [(["positive"], 1), (["positive", "leave_one_out", "no_policy"], 3)])
def test_a_picture_is_drawn(tmp_path, arms, n_seeds):
    curve = [line(0, 20, 20, 15), line(9, 120, 20, 150)]
    draw(tmp_path / "picture.png", Findings(curves={arm: dict.fromkeys(range(n_seeds), curve) for arm in arms}))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")

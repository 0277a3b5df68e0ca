"""The page of a study shows what study.json says, takes nothing from elsewhere, and fits narrow screens."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from quietstar.study.page import curves_of, study_html
from quietstar.study.report import findings_of, study_markdown
from quietstar.study.tables import arms
from tests.browser import watched
from tests.study.test_comparison import recipe_of, record

LEVELS = {"base": 1.0, "finetune-compute": 0.97, "filler": 0.99, "quietstar": 0.95}
NASTY = '<script>alert(1)</script> & "it" \''


def findings(where: Path = Path("nowhere"), seeds: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    records = [record("base", None, LEVELS["base"])]
    for seed in seeds:
        for arm in ("finetune-compute", "filler", "quietstar"):
            each = record(arm, seed, LEVELS[arm])
            each.n_steps, each.chosen_step, each.step_flops, each.train_seconds = 40, 20, 2e12, 30.0
            each.curve = [[0, 2.0], [20, 1.9 - seed / 50], [40, 1.95]]
            each.passes_a_token = 1.0 if arm == "finetune-compute" else 7.0
            each.samples = (
                [{"before": NASTY, "thought": NASTY, "next": NASTY, "gain": 0.5}] if arm == "quietstar" else []
            )
            records.append(each)
    for each in records:
        each.seconds_a_token = 0.01
    files = {where / "part" / "runs" / each.arm / f"seed-{each.seed}" / "measured.json": each for each in records}
    return findings_of(recipe_of(*LEVELS), files, where / "study")


def words(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_verdict_comes_first_and_every_figure_is_there() -> None:
    found = findings()
    page, text = words(study_html(found)), study_markdown(found)
    for sentence in found["verdict"]:
        assert sentence in page
        assert f"- {sentence}\n" in text
    assert page.index(found["verdict"][0]) < page.index("What training bought")
    for each in found["differences"]:
        value = f"{each['estimate']['value']:+.4f}"
        assert value in page
        assert value in text


def test_figures_that_no_run_has_are_no_column() -> None:
    found = findings()
    found["runs"][-1]["figures"] = {"eval_mixing_weight": 0.25, "eval_thought_length": None}
    headings, rows = arms(found)
    assert [name for name in headings if name in ("mixing weight", "thought length")] == ["mixing weight"]
    column = [row[headings.index("mixing weight")] for row in rows]
    assert column == ["", "", "", "0.25"]


def test_curves_are_means_over_seeds_against_operations() -> None:
    (*_, curve) = curves_of(findings())
    assert curve.name == "quietstar"
    assert curve.points == [
        (0.0, 2.0, 2.0, 2.0),
        (pytest.approx(0.04), pytest.approx(1.89), pytest.approx(1.88), 1.9),
        (pytest.approx(0.08), 1.95, 1.95, 1.95),
    ]


def test_text_from_models_is_text() -> None:
    page = study_html(findings())
    assert "<script>alert" not in page
    assert NASTY.replace("<", "&lt;").replace(">", "&gt;").split("&lt;/")[0] in page
    assert "default-src 'none'; script-src 'none'" in page


def test_runs_link_to_their_thoughts_from_the_folder_of_the_report(tmp_path: Path) -> None:
    paths = [f"runs/{arm}/seed-{seed}/thoughts/report.html" for arm in ("filler", "quietstar") for seed in (0, 1)]
    for path in paths:
        file = tmp_path / "part" / path
        file.parent.mkdir(parents=True)
        file.touch()
    links = re.findall(r'href="([^"]+)">(\w+)</a>', study_html(findings(tmp_path)))
    assert sorted(links) == [(f"../part/{path}", path.split("/")[1]) for path in paths]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_the_colours_that_the_system_asks_for(browser: Any, tmp_path: Any, scheme: str) -> None:
    file = tmp_path / "study.html"
    file.write_text(study_html(findings()), encoding="utf-8")
    with watched(browser, file, color_scheme=scheme) as page:
        paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")

"""Every page at three widths, light and dark: nothing that axe-core objects to, nothing cut off; what is read aloud."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quietstar.inspection.report import report_html
from quietstar.study.page import study_html
from tests.browser import watched
from tests.inspection.payloads import payload
from tests.inspection.test_observe import IDS, thinker, traced
from tests.looks import cut_off, violations
from tests.serving.running import served
from tests.serving.test_page import EOS, ask, expect, finished, pieces
from tests.study.test_page import findings
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

REPORTS = ("report", "report of hostile text", "report without interventions", "report of a trace")
SERVED = ("server's page", "server's page with a thought")
OF_SITE = {
    "index": "",
    "a guide": "start/",
    "a guide with a diagram": "method/",
    "commands": "reference/commands/",
    "Python": "reference/python/",
    "files": "files/",
    "evidence": "evidence/",
    "wide tables": "performance/",
    "a notebook": "examples/1_first_thoughts/",
    "not found": "404.html",
}
"""pages of the site, one of each kind"""
NAMES = [*REPORTS, "study", *SERVED]
CONTROLS = "button|link|textbox|searchbox|checkbox|radio|combobox|spinbutton|listbox|option|region|img|dialog"


def report(name: str) -> str:
    """Return a report of inspection as HTML."""
    if name == "report of a trace":
        return traced(thinker(), IDS, IDS[:3], thought="hm", think="every:2").html()
    made = payload(150, 2, hostile="hostile" in name)
    if name == "report without interventions":
        made.update(interventions=[], difficulty=[])
        for row in made["rows"]:
            row["what_if"] = {}
    return report_html(made)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with a tiny model."""
    settings = {"vocab_size": len(byte_tokenizer()), "max_position_embeddings": 4096}
    with served(tiny_model("llama", n_ahead=5, base=settings, suppressed_token_ids=[EOS])) as (address, _):
        yield address


@pytest.fixture(scope="module")
def site_address(site: Path) -> Iterator[str]:
    """The address of the site, served from its folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, scheme), id=f"{name}-{scheme}", marks=pytest.mark.long if name in OF_SITE else ())
        for name in [*NAMES, *OF_SITE]
        for scheme in ("light", "dark")
    ],
)
def opened(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page's name and the page in one of two colour schemes, everything on it unfolded."""
    name, scheme = request.param
    if name in OF_SITE:
        where = request.getfixturevalue("site_address") + OF_SITE[name]
    elif name in SERVED:
        where = request.getfixturevalue("server") + "/"
    else:
        where = tmp_path_factory.mktemp("page") / "page.html"
        where.write_text(study_html(findings()) if name == "study" else report(name), encoding="utf-8")
    with watched(browser, where, color_scheme=scheme) as page:
        page.locator("main details").evaluate_all("all => all.forEach((each) => (each.open = true))")
        if name == SERVED[1]:
            ask(page, "Two dozen eggs", max_tokens=24, think="every:2")
            finished(page, "on"), finished(page, "off")
            pieces(page, "on").nth(4).click()
            page.locator("#thought").fill("add them up")
            page.locator("#what-if button").click()
            expect(page.locator("#answer section")).to_have_count(3)
        yield name, page


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_nothing_is_wrong_at_any_width(opened: tuple[str, Any], width: int) -> None:
    name, page = opened
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)  # until the site's scripts have moved what they move
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert cut_off(page, "article" if name in OF_SITE else "body") == []
    assert violations(page) == []


def test_all_that_can_be_used_has_a_name(opened: tuple[str, Any]) -> None:
    _, page = opened
    lines = page.locator("body").aria_snapshot().splitlines()
    found = [line for line in lines if re.match(rf" *- '?({CONTROLS})\b", line)]
    assert found
    assert [line for line in found if not re.match(r""" *- '?\w+ ("[^"]|/)""", line)] == []


def told(page: Any) -> list[str]:
    """Return what a screen reader tells, line by line, without quotation marks."""
    return [
        line.strip(" -").replace("'", "").replace('"', "") for line in page.locator("body").aria_snapshot().splitlines()
    ]


def places(lines: list[str], *beginnings: str) -> list[int]:
    """Return where each line is that begins so, and fail unless each is there after the last."""
    found, at = [], -1
    for beginning in beginnings:
        later = [place for place, line in enumerate(lines) if place > at and line.startswith(beginning)]
        assert later, f"{beginning} is not told after {beginnings[: len(found)]}"
        at = later[0]
        found.append(at)
    return found


def test_a_report_is_told_verdict_first_then_the_text(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report("report"), encoding="utf-8")
    verdict = payload(150, 2)["summary"]
    with watched(browser, path) as page:
        lines = told(page)
        boxes = [page.locator(each).bounding_box()["y"] for each in ("h1", "#summary", "#tokens", "#interventions")]
        n_tokens = page.locator("#tokens [role=option]").count()
    assert boxes == sorted(boxes)
    found = places(
        lines,
        "heading Thoughts about eggs [level=1]",
        "heading Do the thoughts matter?",
        f"strong: {verdict[0]}",
        "heading Text",
        "listbox Tokens of the text",
        "region The selected token",
        "heading With other thoughts",
        "table",
        "heading Distributions",
        "img Histogram of reward: ",
        "img Histogram of mixing weight: ",
        "img Reward against base nll of the next token: mean ",
        "heading Every position",
        "heading The run",
    )
    options = [line for line in lines[found[4] : found[5]] if re.match(r"option .*: (mixing weight|no mixing)", line)]
    assert len(options) == n_tokens == 150


def test_a_study_is_told_verdict_first_and_its_charts_in_numbers(browser: Any, tmp_path: Path) -> None:
    path, found = tmp_path / "study.html", findings()
    path.write_text(study_html(found), encoding="utf-8")
    with watched(browser, path) as page:
        lines = told(page)
    value = next(each["estimate"]["value"] for each in found["differences"])
    places(
        lines,
        "heading Do thoughts pay? [level=1]",
        "listitem: " + found["verdict"][0],
        "paragraph: Base model m",
        "heading quietstar: differences on all tokens",
        "img differences with their intervals",
        "heading Thoughts that changed the next token most",
        "heading What training bought",
        "img nll of the selection text against FLOPs of training: finetune-compute from 2.0000 to 1.9500",
        "heading Arms",
    )
    assert any(line.startswith("img") and f"{value:+.4f}" in line for line in lines)


def test_the_servers_page_is_told_from_the_prompt_to_the_thought(browser: Any, server: str) -> None:
    with watched(browser, server + "/") as page:
        ask(page, "Two", max_tokens=6, think="always")
        finished(page, "on"), finished(page, "off")
        pieces(page, "on").nth(2).click()
        lines = told(page)
    places(
        lines,
        "heading quietstar [level=1]",
        "textbox Prompt",
        "button Start",
        "heading Output",
        "listbox With thoughts",
        "option",
        "status: 6 tokens",
        "listbox Without thoughts",
        "region Its thought and predictions",
        "heading Thought",
        "textbox Try another thought",
    )

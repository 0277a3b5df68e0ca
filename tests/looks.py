"""How a page looks: axe-core's checks, and what is cut off or lies on something else."""

from typing import Any

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing (dev)")

CUT_OFF = """root => {
  const found = [];
  const tell = (what, each) => found.push(`${what}: ${each.tagName} ${each.getAttribute("class")} ${each.textContent}`);
  const scrolls = (box) => /auto|scroll/.test(getComputedStyle(box).overflowX);
  for (const each of document.querySelectorAll(`${root} *`)) {
    const box = each.getBoundingClientRect();
    if (!each.checkVisibility({ visibilityProperty: true }) || !box.width || each.closest(".unseen, .skip")) continue;
    const style = getComputedStyle(each);
    if (/hidden|clip/.test(style.overflowX) && each.scrollWidth > each.clientWidth + 1) tell("hides a part", each);
    if (style.textOverflow === "ellipsis") tell("ends in dots", each);
    let frame = each.parentElement;
    while (frame && !scrolls(frame)) frame = frame.parentElement;
    if (!frame && (box.left < -1 || box.right > innerWidth + 1)) tell("beyond the page", each);
  }
  for (const chart of document.querySelectorAll(`${root} svg[role=img]`)) {
    const words = [...chart.querySelectorAll("text")].map((each) => [each, each.getBoundingClientRect()]);
    const space = chart.getBoundingClientRect();
    for (const [each, box] of words) {
      const isInside = box.left > space.left - 1 && box.right < space.right + 1 && box.bottom < space.bottom + 1;
      if (!isInside) tell("beyond its chart", each);
      const { a, b } = each.getScreenCTM();
      if (parseFloat(getComputedStyle(each).fontSize) * Math.hypot(a, b) < 9) tell("too small", each);
      for (const [other, there] of words) {
        const isApart = box.right <= there.left || there.right <= box.left || box.bottom <= there.top + 2;
        if (each !== other && box.top <= there.top && !isApart) tell(`on ${other.textContent}`, each);
      }
    }
  }
  return found;
}"""


def violations(page: Any) -> list[str]:
    """Return what axe-core objects to, each with the rule, the place and the reason."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']} {node['target']}: {node['failureSummary']}" for each in found for node in each["nodes"]]


def cut_off(page: Any, root: str = "body") -> list[str]:
    """Return elements that reach beyond the page or hide a part, and letters of charts that are tiny or overlap."""
    return page.evaluate(CUT_OFF, root)

"""The report in a real browser shows the payload, and never interprets text."""

import csv
import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from quietstar.inspection.figures import draw_distributions
from quietstar.inspection.payload import shown
from quietstar.inspection.report import report_html, script_json
from quietstar.web import scale
from tests.browser import watched
from tests.inspection.payloads import HOSTILE, payload
from tests.inspection.test_observe import IDS, thinker, traced

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def written(folder: Path, made: dict[str, Any]) -> Path:
    """Write a report to disk."""
    path = folder / "report.html"
    path.write_text(report_html(made), encoding="utf-8")
    return path


def tokens(page: Any) -> Any:
    """The tokens of the text."""
    return page.locator("#tokens [role=option]")


def numbers(page: Any, column: int) -> list[float | None]:
    """Return a column of numbers of the table, as shown."""
    cells = page.locator(f"#records tbody td:nth-child({column})").all_text_contents()
    return [None if cell == "–" else float(cell.replace("−", "-")) for cell in cells]  # noqa: RUF001


def test_hostile_text_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    made = payload(3 * len(HOSTILE), 2, hostile=True)
    made["summary"] = made["interventions"][0]["label"] = "<b onclick=alert(3)>\N{RIGHT-TO-LEFT OVERRIDE}</b>"
    made["summary"] = [made["summary"]]
    made["settings"] = {"<i>": "</script><script>alert(4)</script>\x00"}
    with watched(browser, written(tmp_path, made)) as page:
        assert tokens(page).count() == 3 * len(HOSTILE)
        for index, text in enumerate(HOSTILE):
            tokens(page).nth(index).click()
            shown = tokens(page).nth(index).text_content()
            assert not CONTROL.search(shown.replace("\n", ""))
            if text.isascii() and text.isprintable():
                assert shown == text
            page.locator("#detail h3").wait_for()
        assert page.locator("main img, main b, main i:not(.swatches i), main script").count() == 0
        assert not CONTROL.search(page.locator("body").inner_text().replace("\n", "").replace("\t", ""))
        assert page.title().startswith("Thoughts about <eggs> &")


def test_every_token_is_seen_even_where_it_adds_no_text(browser: Any, tmp_path: Path) -> None:
    made = payload(len(HOSTILE), hostile=True)
    with watched(browser, written(tmp_path, made)) as page:
        boxes = tokens(page).evaluate_all("all => all.map(each => each.getClientRects()[0].width)")
        assert min(boxes) > 1


def test_a_token_opens_its_thought_predictions_and_interventions(browser: Any, tmp_path: Path) -> None:
    made = payload(60, 2)
    row, i = made["rows"][1], next(i for i in range(5, 29) if made["rows"][1]["thought"][i])
    thought = made["thoughts"][row["thought_ids"][i]]
    words = {int(key): text.replace(" ", "␣").replace("\n", "↵") for key, text in made["tokens"].items()}
    with watched(browser, written(tmp_path, made)) as page:
        tokens(page).nth(30 + i).click()
        detail = page.locator("#detail")
        assert detail.locator(".chips .token").all_text_contents() == [words[each] for each in thought]
        assert row["reason"][i] in detail.inner_text()
        assert detail.locator("h3 mark").text_content() == words[row["ids"][i + 1]]
        for place, name in enumerate(("base_top", "mixed_top", "alone_top")):
            shown = detail.locator(".three section").nth(place).locator(".token").all_text_contents()
            assert shown == [words[each] for each, _ in row[name][i]]
        effects = detail.locator("tbody tr")
        assert effects.count() == len(row["what_if"])
        for place, what in enumerate(row["what_if"].values()):
            cells = effects.nth(place).locator("td").all_text_contents()
            assert float(cells[0].replace("−", "-")) == pytest.approx(what["delta"][i], abs=6e-4)  # noqa: RUF001
            top = what["top"][i] if what["flips"][i] else row["mixed_top"][i][0][0]
            assert cells[2].removesuffix(" (changed)") == words[top]
            assert cells[2].endswith("(changed)") == bool(what["flips"][i])
        cut = detail.locator("tbody tr", has_text="truncated after 2").locator(".token").first.text_content()
        assert cut == " ".join(words[each] for each in thought[:2])


def test_the_verdict_comes_first(browser: Any, tmp_path: Path) -> None:
    made = payload(20)
    with watched(browser, written(tmp_path, made)) as page:
        assert page.locator("#summary li").all_text_contents() == made["summary"]


def test_nll_before_training_is_shown_where_it_is_known(browser: Any, tmp_path: Path) -> None:
    made = payload(20)
    (row,) = made["rows"]
    with watched(browser, written(tmp_path, made)) as page:
        assert page.locator("#records th").last.text_content() == "nll before training"
        expected = [None if each is None else pytest.approx(-each, abs=6e-4) for each in row["before_logprob"]]
        assert numbers(page, page.locator("#records th").count()) == expected
        tokens(page).nth(3).click()
        assert "nll before training" in page.locator("#detail").inner_text()
    row["before_logprob"] = [None] * 20
    with watched(browser, written(tmp_path, made)) as page:
        assert "before training" not in page.locator("main").inner_text()


def test_keys_move_through_the_text(browser: Any, tmp_path: Path) -> None:
    with watched(browser, written(tmp_path, payload(300, 2))) as page:

        def focused() -> int:
            return page.evaluate("Number(document.activeElement.dataset.index)")

        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the text"
        tokens(page).first.focus()
        for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 299), ("ArrowRight", 299)):
            page.keyboard.press(key)
            assert focused() == place
        page.keyboard.press("Home")
        tops = tokens(page).evaluate_all("all => all.map(each => each.getClientRects()[0].top)")
        second_line = next(index for index, top in enumerate(tops) if top > tops[0] + 5)
        page.keyboard.press("ArrowDown")
        assert tops[focused()] == tops[second_line]
        page.keyboard.press("ArrowUp")
        assert focused() == 0
        page.keyboard.press("ArrowUp")
        assert focused() == 0
        assert page.locator("#tokens [aria-selected=true]").count() == 1
        assert page.locator("#tokens [tabindex='0']").count() == 1
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"


@pytest.mark.parametrize("name", ["weight", "reward", "gain"])
def test_colours_are_those_of_the_scale(browser: Any, tmp_path: Path, name: str) -> None:
    made = payload(200, 3)
    values = [value for row in made["rows"] for value in row[name]]
    end = scale.limit(values)
    with watched(browser, written(tmp_path, made), color_scheme="light") as page:
        page.locator(f"input[value={name}]").check()
        shown = tokens(page).evaluate_all(
            "all => all.map(each => 'step' in each.dataset ? getComputedStyle(each).backgroundColor : null)"
        )
        labels = tokens(page).evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
        legend = page.locator("#legend").inner_text()
    assert f"{end:.2f}" in legend or f"{end:.3f}" in legend
    for value, colour, label in zip(values, shown, labels, strict=True):
        if value is None:
            assert colour is None
            assert ": no " in label
            continue
        hexadecimal = scale.colours()[scale.index(value, end)]
        red, green, blue = (int(hexadecimal[place : place + 2], 16) for place in (1, 3, 5))
        middle = scale.index(value, end) == scale.N_STEPS
        assert colour == ("rgba(0, 0, 0, 0)" if middle else f"rgb({red}, {green}, {blue})")
        assert float(label.split()[-1].replace("−", "-")) == pytest.approx(value, abs=6e-4)  # noqa: RUF001


def test_the_table_sorts_filters_and_leads_to_the_text(browser: Any, tmp_path: Path) -> None:
    made = payload(250, 2)
    rewards = [value for row in made["rows"] for value in row["reward"]]
    with watched(browser, written(tmp_path, made)) as page:
        head = page.locator("#records th").nth(9)
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        known = sorted(value for value in rewards if value is not None)
        assert numbers(page, 10) == [pytest.approx(value, abs=6e-4) for value in known[:100]]
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert numbers(page, 10) == [pytest.approx(value, abs=6e-4) for value in known[::-1][:100]]
        page.locator("#on").click()
        page.locator("#on").click()
        assert set(numbers(page, 10)[-5:]) == {None}
        assert page.locator("#shown").text_content() == "Rows 201 to 250 of 250"
        assert page.locator("#on").is_disabled()
        page.locator("#only").check()
        n_thought = sum(map(sum, (row["thought"] for row in made["rows"])))
        assert page.locator("#shown").text_content().endswith(f"of {n_thought}")
        page.locator("#filter").fill("VILLAGE")
        texts = page.locator("#records tbody tr").all_text_contents()
        assert texts
        assert all("village" in text for text in texts)
        page.locator("#filter").fill("no such text")
        assert page.locator("#shown").text_content() == "No rows"
        page.locator("#filter").fill("")
        page.locator("#only").uncheck()
        page.locator("#records th button").first.click()
        page.locator("#records .pick").nth(17).click()
        assert page.evaluate("document.activeElement.dataset.index") == "17"
        assert tokens(page).nth(17).get_attribute("aria-selected") == "true"


def test_csv_holds_the_filtered_table_and_no_formula(browser: Any, tmp_path: Path) -> None:
    made = payload(2 * len(HOSTILE), hostile=True)
    row = made["rows"][0]
    with watched(browser, written(tmp_path, made), accept_downloads=True) as page:

        def exported() -> list[dict[str, str]]:
            with page.expect_download() as download:
                page.locator("#export").click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            raw = path.read_bytes()
            assert raw.startswith(b"\xef\xbb\xbf")
            assert b"\x00" not in raw
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, strict=True))

        rows = exported()
        page.locator("#only").check()
        page.locator("#filter").fill("quote")
        some = exported()
    assert len(rows) == len(row["ids"])
    for i, line in enumerate(rows):
        assert set(line) >= {"context", "thought", "why", "weight", "next without", "next with", "true next", "reward"}
        assert line["weight"] == "" or float(line["weight"]) == pytest.approx(row["weight"][i], abs=1e-5)
        for name, cell in line.items():
            if name not in ("weight", "reward", "gain"):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        if i + 1 < len(row["ids"]) and (text := made["tokens"][str(row["ids"][i + 1])]).isprintable():
            assert line["true next"].removeprefix("'") == text
    assert [int(line["position"]) for line in some] == [
        i + 1 for i, line in enumerate(rows) if row["thought"][i] and "quote" in " ".join(line.values())
    ]


def test_dark_and_light_follow_the_system_and_the_switch(browser: Any, tmp_path: Path) -> None:
    def paper(page: Any) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    path = written(tmp_path, payload(20))
    with watched(browser, path, color_scheme="light") as page:
        light = paper(page)
        page.locator("input[name=theme][value=dark]").check()
        dark = paper(page)
        page.reload()
        assert paper(page) == dark
        page.locator("input[name=theme][value=auto]").check()
        assert paper(page) == light
    with watched(browser, path, color_scheme="dark") as page:
        assert paper(page) == dark
        page.locator("input[name=theme][value=light]").check()
        assert paper(page) == light
    assert dark != light


@pytest.mark.parametrize("dark", [False, True])
def test_letters_have_contrast_on_every_colour(dark: bool) -> None:
    """WCAG AA: a contrast of at least 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        darker, lighter = sorted((luminance(one), luminance(other)))
        return (lighter + 0.05) / (darker + 0.05)

    style = (Path(scale.__file__).parent / "style.css").read_text()
    named = {name: pair[dark] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    for colour in scale.colours(dark=dark):
        assert contrast(named["ink"], colour) >= 4.5
    for name in ("ink", "muted", "accent", "warm", "alert"):
        for ground in ("paper", "panel"):
            assert contrast(named[name], named[ground]) >= 4.5
    assert contrast(named["ink"], named["bar"]) >= 4.5
    assert contrast(named["muted"], named["bar"]) >= 4.5
    assert contrast(named["field"], named["paper"]) >= 3  # borders of fields


def test_a_narrow_screen_has_no_sideways_scroll_and_the_detail_below(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, payload(120, hostile=True))
    with watched(browser, path, viewport={"width": 375, "height": 720}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        tokens(page).nth(3).click()
        text, detail = page.locator("#tokens").bounding_box(), page.locator("#detail").bounding_box()
        assert detail["y"] >= text["y"] + text["height"]
        assert detail["width"] <= 375


def test_ten_thousand_positions_stay_usable(browser: Any, tmp_path: Path) -> None:
    with watched(browser, written(tmp_path, payload(10_000, 3, K=2))) as page:
        tokens(page).nth(9_000).click()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.index") == "9001"
        page.locator("input[value=reward]").check()
        page.locator("#records th button").nth(9).click()
        assert page.locator("#records tbody tr").count() == 100


@pytest.mark.parametrize("K", [6, 48])
def test_two_thousand_positions_take_less_than_five_megabytes(K: int) -> None:
    """With thoughts everywhere, from a vocabulary in which nearly every token occurs once."""
    assert len(report_html(payload(2_000, 4, K=K, thinks=1.0, n_words=20_000)).encode()) < 5e6


def test_figures_by_difficulty_can_be_switched(browser: Any, tmp_path: Path) -> None:
    made = payload(60)
    made["difficulty"][0]["interventions"][0] |= {
        "delta": {"value": -0.25, "low": None, "high": None},
        "kl": {"value": 0.5, "low": 0.25, "high": 0.75},
        "flips": {"value": 0.125, "low": 0.05, "high": 0.2},
    }
    made["difficulty"][0]["interventions"][1] |= dict.fromkeys(("delta", "kl", "flips"))
    with watched(browser, written(tmp_path, made)) as page:
        page.locator("#difficulty summary").click()
        cells = page.locator("#difficulty-table tbody tr").first.locator("td")
        for figure, shown in (
            ("delta", "\N{MINUS SIGN}0.250"),
            ("kl", "0.500 (0.250 to 0.750)"),
            ("flips", "12.5 % (5.0 % to 20.0 %)"),
        ):
            page.locator(f"input[value={figure}]").check()
            assert cells.nth(2).text_content() == shown
            assert cells.nth(3).text_content() == "\N{EN DASH}"
        page.locator("input[value=kl]").focus()
        page.keyboard.press("ArrowLeft")
        assert cells.nth(2).text_content() == "\N{MINUS SIGN}0.250"


def test_few_positions_have_means_without_intervals(browser: Any, tmp_path: Path) -> None:
    found = traced(thinker(), IDS[:5])
    path = tmp_path / "report.html"
    path.write_text(found.html(), encoding="utf-8")
    with watched(browser, path) as page:
        row = page.locator("#interventions tbody tr").first
        assert re.fullmatch(r"[+\N{MINUS SIGN}]?\d+\.\d{3}", row.locator("td").nth(2).text_content())
        assert row.locator("circle").count() == 1
        assert row.locator("path.mean").count() == 0
        assert page.locator("#difficulty-chart path.mean").count() > 0


@pytest.mark.parametrize("n_positions", [1, 7])
def test_a_text_without_thoughts_and_interventions_can_be_read(browser: Any, tmp_path: Path, n_positions: int) -> None:
    made = payload(n_positions)
    made.update(interventions=[], difficulty=[], summary=[])
    (row,) = made["rows"]
    row["thought"], row["what_if"] = [False] * n_positions, {}
    for name in ("thought_ids", "thought_logprob", "weight", "reward", "gain", "alone_logprob", "alone_top"):
        row[name] = [None] * n_positions
    with watched(browser, written(tmp_path, made)) as page:
        tokens(page).last.click()
        assert "No thought" in page.locator("#detail").inner_text()
        assert "end of the text" in page.locator("#detail").inner_text()
        assert page.locator("#records tbody tr").count() == n_positions


def test_values_that_are_small_are_seen(browser: Any, tmp_path: Path) -> None:
    """As early in training, when the mixing head is nearly zero."""
    made = payload(60)
    (row,) = made["rows"]
    for name in ("weight", "reward", "gain"):
        row[name] = [None if value is None else 2.7e-7 * value for value in row[name]]
    made["interventions"][0]["delta"] = {"value": -2.7e-7, "low": -3e-7, "high": -2e-7}
    with watched(browser, written(tmp_path, made)) as page:
        steps = tokens(page).evaluate_all("all => all.map(each => each.dataset.step)")
        assert len({step for step in steps if step is not None}) > 3
        assert all(step is None or re.fullmatch(r"m?[0-5]", step) for step in steps)
        assert "e-" in page.locator("#legend").inner_text()
        shown = page.locator("#interventions tbody td").nth(2).text_content()
        assert shown == "\N{MINUS SIGN}2.7e-7 (\N{MINUS SIGN}3.0e-7 to \N{MINUS SIGN}2.0e-7)"
        assert "NaN" not in page.content().partition('id="payload"')[0]


@pytest.mark.parametrize("value", [1e17, -1e29, 1e-300])
def test_values_of_any_size_open(browser: Any, tmp_path: Path, value: float) -> None:
    made = payload(30)
    (row,) = made["rows"]
    for name in ("weight", "reward", "gain"):
        row[name] = [None if each is None else value for each in row[name]]
    draw_distributions(made)
    with watched(browser, written(tmp_path, made)) as page:
        tokens(page).nth(3).click()
        assert page.locator("#weight-chart svg").count() == 1


def test_ticks_are_round_and_numbers_short(browser: Any, tmp_path: Path) -> None:
    with watched(browser, written(tmp_path, payload(5))) as page:
        texts = page.evaluate("QS.ticks(-0.3, 0.3).map(({ text }) => text.replace('\N{MINUS SIGN}', '-'))")
        shown = page.evaluate("[0.0009996, 0.00044, 999999.9996, 0, -0.5, 2.7e-7].map((value) => QS.number(value))")
        for _ in range(200):
            low, high = sorted(random.uniform(-9, 9) * 10 ** random.randint(-3, 4) for _ in range(2))
            found = page.evaluate("([low, high]) => QS.ticks(low, high).map(({ text }) => text)", [low, high])
            assert not [text for text in found if re.fullmatch(r".?[19]\.\de-\d", text)], (low, high, found)
    assert texts == ["-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"]
    assert shown == ["0.001", "4.4e-4", "1.0e+6", "0.000", "\N{MINUS SIGN}0.500", "2.7e-7"]


def test_steps_of_the_scale_are_those_of_the_figures(browser: Any, tmp_path: Path) -> None:
    values = [round(0.05 * i, 2) for i in range(-24, 25)]
    with watched(browser, written(tmp_path, payload(5))) as page:
        found = page.evaluate("values => values.map((value) => QS.step(value, 1))", values)
    assert found == [f"m{-step}" if step < 0 else str(step) for step in (scale.index(v, 1.0) - 5 for v in values)]


def test_of_many_shortened_thoughts_some_are_shown_of_each_position() -> None:
    names = ["removed", *(f"truncated_{n}" for n in range(32)), "given"]
    found = shown(names)
    assert found[:2] == ["removed", "truncated_0"]
    assert found[-2:] == ["truncated_31", "given"]
    assert len(found) == 2 + 8
    assert shown(names[:9]) == names[:9]


def test_the_document_allows_no_script_but_its_own(browser: Any, tmp_path: Path) -> None:
    path = written(tmp_path, payload(5))
    path.write_text(path.read_text().replace("</main>", "</main><script>document.title = 'taken'</script>"))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "Thoughts about eggs"
    assert page.locator("#tokens [role=option]").count() == 5
    page.close()


@pytest.mark.parametrize("path", sorted(Path(scale.__file__).parent.glob("*.js")), ids=lambda path: path.name)
def test_no_script_can_turn_text_into_markup_or_code(path: Path) -> None:
    ways = r"(inner|outer)HTML|insertAdjacent|document\.write|DOMParser|Fragment\(|srcdoc|eval\(|Function\("
    assert not re.search(ways, path.read_text())


def test_a_real_trace_opens(browser: Any, tmp_path: Path) -> None:
    found = traced(thinker(), IDS, IDS[:3], thought="hm", think="every:2")
    path = tmp_path / "report.html"
    path.write_text(found.html(), encoding="utf-8")
    with watched(browser, path) as page:
        assert tokens(page).count() == len(IDS) + 3
        tokens(page).nth(1).click()
        shown = page.locator("#detail .chips .token").all_text_contents()
        assert len(shown) == len(found.columns["thought_ids"][1])
        labels = page.locator("#detail tbody th").all_text_contents()
        assert len(labels) == page.locator("#interventions tbody tr").count() > 5


def test_text_cannot_leave_the_element_that_holds_the_payload() -> None:
    made = payload(len(HOSTILE), hostile=True)
    document = report_html(made)
    start = document.index('id="payload">') + len('id="payload">')
    data = document[start : document.index("</script>", start)]
    assert not set(data) & set("<>&")
    assert json.loads(data)["tokens"] == made["tokens"]
    assert html.escape(made["title"].replace("\N{RIGHT-TO-LEFT OVERRIDE}", " ")) in document


def test_values_that_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json({"value": float("nan")})

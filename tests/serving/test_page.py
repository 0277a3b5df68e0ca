"""The page at / in a real browser, with a real server: it shows what the server responds."""

import json
import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from quietstar.serving.run import Server
from tests.browser import sync_api, watched
from tests.inspection.payloads import HOSTILE
from tests.serving.running import served
from tests.tiny import tiny_model
from tests.tiny_tokenizer import byte_tokenizer

expect = sync_api.expect
EOS = 2
REFUSED = "Failed to load resource"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Server]]:
    """The address and the server of a model that writes any bytes and never ends a text."""
    settings = {"vocab_size": len(byte_tokenizer()), "max_position_embeddings": 4096}
    with served(tiny_model("llama", n_ahead=5, base=settings, suppressed_token_ids=[EOS])) as found:
        yield found


def ask(page: Any, prompt: str, **fields: object) -> None:
    """Fill in the form and submit it."""
    page.locator("#prompt").fill(prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))
    page.locator("#start").click()


def finished(page: Any, column: str) -> str:
    """Wait for a column to end, and return its status line."""
    expect(page.locator(f"#{column}-status")).not_to_be_empty(timeout=30_000)
    return page.locator(f"#{column}-status").text_content()


def pieces(page: Any, column: str) -> Any:
    """Return the tokens of a column."""
    return page.locator(f"#{column} [role=option]")


def answered(address: str, **body: object) -> dict[str, Any]:
    """Return the server's response to the same request, without streaming."""
    how = {"max_tokens": 12, "temperature": 0, "seed": 0, "thoughts": True}
    response = httpx.post(f"{address}/v1/completions", json={**how, **body}, timeout=60)
    response.raise_for_status()
    return response.json()


def visible(text: str) -> str:
    """Return a token's text as the page shows it, if it is plain text."""
    return text.replace(" ", "␣")


def test_tokens_arrive_in_both_columns_as_the_server_writes_them(browser: Any, server: tuple[str, Server]) -> None:
    address, _ = server
    with watched(browser, address + "/") as page:
        expect(page.locator("#model")).to_have_text("tiny")
        ask(page, "Two dozen eggs", max_tokens=12, think="every:2")
        said = {"on": finished(page, "on"), "off": finished(page, "off")}
        for column, think in (("on", "every:2"), ("off", "never")):
            choice = answered(address, prompt="Two dozen eggs", think=think)["choices"][0]
            assert pieces(page, column).count() == len(choice["thoughts"]) == 12
            coloured = pieces(page, column).evaluate_all("all => all.map(each => 'step' in each.dataset)")
            assert coloured == [entry["thought"] for entry in choice["thoughts"]]
            n_thoughts = sum(coloured)
            assert said[column].startswith(f"12 tokens, {n_thoughts or 'no'} thoughts")
        assert page.locator("#alert").text_content() == ""
        expect(page.locator("#stop")).to_be_disabled()


def test_colours_reach_as_far_as_the_largest_mixing_weight(browser: Any, server: tuple[str, Server]) -> None:
    """Real weights are small, and would have no colour on a scale up to 1."""
    address, _ = server
    entries = answered(address, prompt="Two dozen eggs", think="always")["choices"][0]["thoughts"]
    weights = [entry["mixing_weight"] for entry in entries]
    end = next((end for end in (0.02, 0.05, 0.1, 0.2, 0.5) if max(map(abs, weights)) <= end), 1)
    with watched(browser, address + "/") as page:
        ask(page, "Two dozen eggs", max_tokens=12, think="always")
        finished(page, "on")
        assert float(page.locator("#legend").inner_text().split()[0][1:]) == end
        steps = pieces(page, "on").evaluate_all("all => all.map(each => each.dataset.step)")
    sizes = [math.floor(5 * min(1, abs(weight) / end) + 0.5) for weight in weights]
    assert steps == [
        f"m{size}" if weight < 0 < size else str(size) for weight, size in zip(weights, sizes, strict=True)
    ]
    assert len(set(steps)) > 1


def test_a_token_opens_its_thought_and_another_thought_can_be_tried(browser: Any, server: tuple[str, Server]) -> None:
    address, _ = server
    whole = answered(address, prompt="Two dozen eggs", think="always")
    entries = whole["choices"][0]["thoughts"]
    with watched(browser, address + "/") as page:
        ask(page, "Two dozen eggs", max_tokens=12, think="always")
        finished(page, "on")
        pieces(page, "on").nth(3).click()
        page.keyboard.press("ArrowRight")
        detail = page.locator("#detail")
        assert detail.locator(".chips .token").count() == len(entries[4]["thought_ids"])
        assert entries[4]["reason"] in detail.inner_text()

        def shares(place: int) -> list[str]:
            return page.locator("#answer section").nth(place).locator(".number").all_text_contents()

        page.locator("#what-if button").click()
        expect(page.locator("#answer section")).to_have_count(3)
        assert shares(0) == shares(1)  # its own thought

        page.locator("#thought").fill("add them up")
        page.locator("#thought").press("Control+Enter")
        expect(page.locator("#answer .chips li")).to_have_count(len("add them up"))
        ids = whole["prompt_token_ids"] + [entry["id"] for entry in entries[:4]]
        found = httpx.post(f"{address}/v1/thoughts", json={"token_ids": ids, "thought": "add them up"}).json()
        shown = page.locator("#answer section").nth(1).locator(".token").all_text_contents()
        for text, entry in zip(shown, found["mixed"], strict=True):
            if entry["token"].isprintable():
                assert text == visible(entry["token"])
        assert f"{abs(found['mixing_weight']):.3f}" in page.locator("#answer").inner_text()
        assert shares(0) != shares(1)

        pieces(page, "off").nth(0).click()
        assert page.locator("#answer").text_content() == ""
        assert page.locator("#output [aria-selected=true]").count() == 1
        assert "No thought" in detail.inner_text()


def test_the_keyboard_alone_will_do(browser: Any, server: tuple[str, Server]) -> None:
    with watched(browser, server[0] + "/") as page:
        page.locator("#prompt").focus()
        page.keyboard.type("Two")
        page.keyboard.press("Control+Enter")
        finished(page, "on")
        page.locator("#compare").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('#on') !== null")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
        assert page.evaluate("Number(document.activeElement.dataset.index)") == 47
        page.locator("#detail h3").wait_for()


def test_stop_ends_the_writing_here_and_at_the_server(browser: Any, server: tuple[str, Server]) -> None:
    address, running = server
    with watched(browser, address + "/") as page:
        ask(page, "Two dozen eggs", max_tokens=2000)
        expect(pieces(page, "on")).not_to_have_count(0)
        page.locator("#stop").click()
        assert finished(page, "on").startswith("stopped")
        expect(page.locator("#stop")).to_be_disabled()
        n_written = pieces(page, "on").count()
        assert 0 < n_written < 2000
        until = time.monotonic() + 30
        while running.engine.running and time.monotonic() < until:
            time.sleep(0.05)
        assert not running.engine.running
        assert pieces(page, "on").count() == n_written
        page.locator("#compare").uncheck()
        ask(page, "again", max_tokens=3)
        expect(pieces(page, "on")).to_have_count(3)
        assert page.locator("#off-column").is_hidden()
        assert finished(page, "on").startswith("3 tokens")


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"think": "entropy:much"}, "entropy"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"prompt": "x" * 10_000}, "10000 tokens"),
    ],
)
def test_what_the_server_refuses_is_told_in_one_line(
    browser: Any, server: tuple[str, Server], fields: dict[str, Any], part: str
) -> None:
    with watched(browser, server[0] + "/", expected=REFUSED) as page:
        ask(page, **{"prompt": "Two", **fields})
        expect(page.locator("#alert")).to_contain_text(part)
        assert "\n" not in page.locator("#alert").text_content()
        expect(page.locator("#stop")).to_be_disabled(timeout=30_000)


def test_a_key_is_asked_for_and_kept_for_this_page_only(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETSTAR_API_KEY", "open-sesame")
    settings = {"vocab_size": len(byte_tokenizer())}
    with (
        served(tiny_model("llama", n_ahead=4, base=settings, suppressed_token_ids=[EOS])) as (address, _),
        watched(browser, address + "/", expected=REFUSED) as page,
    ):
        ask(page, "Two", max_tokens=2)
        expect(page.locator("#alert")).to_contain_text("key")
        ask(page, "Two", max_tokens=2, key="open-sesame")
        expect(pieces(page, "on")).to_have_count(2)
        assert page.locator("#alert").text_content() == ""
        assert page.evaluate("JSON.stringify(localStorage) + JSON.stringify(sessionStorage)") == "{}{}"


def test_a_hostile_prompt_is_shown_and_does_nothing(browser: Any, server: tuple[str, Server]) -> None:
    prompt = "".join(text for text in HOSTILE if text.isascii()) + "\N{RIGHT-TO-LEFT OVERRIDE}\N{FAMILY}"
    with watched(browser, server[0] + "/") as page:
        ask(page, prompt, max_tokens=64)
        finished(page, "on")
        shown = page.locator("#on .fixed").text_content()
        assert "<script>alert(1)</script>" in shown
        assert "⟨NUL⟩" in shown
        assert "⟨U+202E⟩" in shown
        for index in (0, 20, 40, 63):
            pieces(page, "on").nth(index).click()
        assert page.locator("#output script, #output img, #output b").count() == 0


def stream(texts: list[str], last: str = "data: [DONE]\n\n") -> str:
    """Return a stream of events with one token per text, which is also its thought."""
    ids = {"id": 7, "reason": "<b>always</b>", "thought": True, "thought_ids": [7], "mixing_weight": 0.5}
    chunks = []
    for text in texts:
        top = [{"id": 7, "token": text, "logprob": -0.1}]
        entry = {**ids, "token": text, "thought_text": text, "thought_tokens": [text]}
        entry |= {"base": top, "mixed": top, "thought_alone": top}
        chunks.append({"choices": [{"index": 0, "text": text, "thoughts": [entry], "finish_reason": None}]})
    chunks[0]["prompt_token_ids"] = [7]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + last


def answers(page: Any, body: str) -> None:
    """Give the page this stream instead of the server's response."""
    page.route("**/v1/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def test_line_breaks_of_a_thought_stay_what_they_are(browser: Any, server: tuple[str, Server]) -> None:
    """Unchanged, the thought is sent as its tokens; with one more letter, as its text."""
    asked: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        top = [{"id": 7, "token": "a", "logprob": -0.1}]
        three = dict.fromkeys(("base", "mixed", "thought_alone"), top)
        route.fulfill(json={"thought": {"ids": [7], "tokens": ["a"]}, "mixing_weight": 0.5} | three)

    with watched(browser, server[0] + "/") as page:
        answers(page, stream(["x\r\n⏎y"]))
        page.route("**/v1/thoughts", answer)
        ask(page, "Two")
        pieces(page, "on").first.click()
        page.locator("#what-if button[type=submit]").click()
        expect(page.locator("#answer .three")).to_be_visible()
        page.locator("#thought").focus()
        page.keyboard.press("Control+End")
        page.keyboard.type("z")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answer .three")).to_be_visible()
        page.wait_for_timeout(200)
    assert [each.get("thought_ids") for each in asked] == [[7], None]
    assert asked[1]["thought"] == "x\n⏎yz"


def test_hostile_tokens_of_a_model_are_shown_and_do_nothing(browser: Any, server: tuple[str, Server]) -> None:
    with watched(browser, server[0] + "/") as page:
        answers(page, stream(HOSTILE))
        ask(page, "Two")
        expect(pieces(page, "on")).to_have_count(len(HOSTILE))
        for index, text in enumerate(HOSTILE):
            pieces(page, "on").nth(index).click()
            if text.isascii() and text.isprintable() and text:
                assert pieces(page, "on").nth(index).text_content() == text
                assert page.locator("#detail .chips .token").text_content() == visible(text)
        assert page.locator("#output script, #output img, #output b").count() == 0


def test_ten_thousand_tokens_can_be_read(browser: Any, server: tuple[str, Server]) -> None:
    with watched(browser, server[0] + "/") as page:
        answers(page, stream([" egg"] * 10_000))
        page.locator("#compare").uncheck()
        ask(page, "Two")
        assert finished(page, "on").startswith("10000 tokens")
        pieces(page, "on").nth(9_990).click()
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.dataset.index") == "9999"


@pytest.mark.parametrize(
    ("last", "part"),
    [('data: {"error": {"message": "<i>too slow</i>"}}\n\n', "<i>too slow</i>"), ("", "closed the connection")],
)
def test_a_stream_that_fails_keeps_what_came_and_says_why(
    browser: Any, server: tuple[str, Server], last: str, part: str
) -> None:
    with watched(browser, server[0] + "/") as page:
        answers(page, stream([" a", " b"], last))
        ask(page, "Two")
        expect(page.locator("#alert")).to_contain_text(part)
        assert pieces(page, "on").count() == 2
        expect(page.locator("#stop")).to_be_disabled()


def test_a_server_that_is_gone_is_told_of(browser: Any, server: tuple[str, Server]) -> None:
    with watched(browser, server[0] + "/", expected=REFUSED) as page:
        page.route("**/v1/completions", lambda route: route.abort())
        ask(page, "Two")
        expect(page.locator("#alert")).to_contain_text("cannot be reached")


def test_a_narrow_screen_has_no_sideways_scroll_and_dark_is_dark(browser: Any, server: tuple[str, Server]) -> None:
    how = {"viewport": {"width": 375, "height": 720}, "color_scheme": "dark"}
    with watched(browser, server[0] + "/", **how) as page:
        answers(page, stream(HOSTILE))
        ask(page, "a" * 500)
        expect(pieces(page, "on")).to_have_count(len(HOSTILE))
        pieces(page, "on").nth(0).click()
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"

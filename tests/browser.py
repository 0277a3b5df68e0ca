"""A real Chromium for tests: what it complains of and what it asks of the network is kept, and fails the test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator["sync_api.Browser"]:
    """A browser, for as long as it is needed."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page of a browser, and what should not have happened on it.

    Args:
        browser: of `chromium`.
        allowed: beginnings of addresses that may be asked for.
        expected: part of a line of the console that is no complaint: a browser tells of every answer above 399.
        settings: of the page: viewport, color_scheme, reduced_motion, ...
    """

    def __init__(
        self, browser: "sync_api.Browser", allowed: tuple[str, ...], expected: str | None = None, **settings: object
    ) -> None:
        self.expected = expected
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self._see(request.url, allowed))

    def _hear(self, message: "sync_api.ConsoleMessage") -> None:
        is_expected = self.expected is not None and self.expected in message.text
        if message.type in ("error", "warning") and not is_expected:
            self.complaints.append(f"{message.type}: {message.text}")

    def _dismiss(self, dialog: "sync_api.Dialog") -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _see(self, address: str, allowed: tuple[str, ...]) -> None:
        if not address.startswith(allowed):
            self.complaints.append(f"request: {address[:200]}")


@contextmanager
def watched(browser: "sync_api.Browser", address: str | Path, **settings: object) -> Iterator["sync_api.Page"]:
    """A page at an address, or a file; fails at the end where the console complained or anything else was loaded."""
    where = address.as_uri() if isinstance(address, Path) else address
    base = where if isinstance(address, Path) else "/".join(where.split("/")[:3])
    seen = Watched(browser, (base, "blob:"), **settings)
    try:
        seen.page.goto(where)
        yield seen.page
    finally:
        seen.context.close()
    assert not seen.complaints

"""Takes the screenshots of report and page, for the model of `make real`.

python docs/pictures.py [RUNS]      RUNS contains real and real-thoughts; needs Chromium (make browser)
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).resolve().parent
RUNS = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "runs").resolve()
PORT, WIDTH = 8321, 1120
PROMPT = "Q: A box holds two dozen eggs. How many eggs do three boxes hold?\nA:"


def report(page: Page) -> None:
    """Take the report: the text coloured by gain, with the token of the largest gain opened."""
    page.goto((RUNS / "real-thoughts" / "report.html").as_uri())
    page.get_by_label("gain in log-probability").check()
    lines = (RUNS / "real-thoughts" / "trace.jsonl").read_text().splitlines()
    first_text = [each for each in map(json.loads, lines) if each["row"] == 0]
    gains = [each["gain"] or 0 for each in first_text]
    page.locator("#tokens [role=option]").nth(gains.index(max(gains))).click()
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("section[aria-labelledby=text-heading]").bounding_box()
    page.screenshot(
        path=HERE / "report.png",
        clip={"x": 0, "y": box["y"] - 16, "width": WIDTH, "height": box["height"] + 32},
        full_page=True,
    )


def served(page: Page) -> None:
    """Take the page: a prompt, its completions with and without thoughts, one thought opened and another tried."""
    page.goto(f"http://127.0.0.1:{PORT}")
    page.locator("#prompt").fill(PROMPT)
    page.locator("#max_tokens").fill("24")
    page.locator("#start").click()
    for column in ("on", "off"):
        expect(page.locator(f"#{column}-status")).not_to_be_empty(timeout=300_000)
    page.locator("#on [role=option]").nth(-12).click()
    page.locator("#thought").fill(" 24 * 3 = 72")
    page.locator("#what-if button").click()
    expect(page.locator("#answer")).to_contain_text("mixing weight", timeout=60_000)
    page.screenshot(path=HERE / "page.png", full_page=True)


def main() -> None:
    """Take both screenshots."""
    command = [sys.executable, "-m", "quietstar", "serve", RUNS / "real", "--port", str(PORT)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": 860})
            report(page)
            next(line for line in server.stderr if "http" in line)  # wait until the server listens
            served(page)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()

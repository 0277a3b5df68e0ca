"""Takes the screenshots of the docs that show a trained model: report.png and page.png.

    python docs/pictures.py MODEL      MODEL is a folder that `quietstar train` wrote, such as runs/real of `make real`

Needs Chromium (make browser). The text is recipes/gsm8k/held_out.txt, which no training here has seen.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "recipes" / "gsm8k" / "held_out.txt"
PORT, WIDTH, SHARP = 8321, 1120, 2
N_COLOURS = 128
PROMPT = "Q: A box holds two dozen eggs. How many eggs do three boxes hold?\nA:"
OTHER_THOUGHT = " 24 * 3 = 72"


def inspect(model: Path, folder: Path) -> None:
    """Trace the text's first tokens, as `make real` does."""
    options = ["--max_length", "128", "--limit", "256", "--interventions", "removed", "filler", "random"]
    command = [sys.executable, "-m", "quietstar", "inspect", model, "--text", TEXT, "--output_dir", folder, *options]
    subprocess.run(command, check=True)


def report(page: Page, folder: Path) -> None:
    """Take the report's beginning: the verdict, the text coloured by gain, the token of the largest gain opened."""
    page.goto((folder / "report.html").as_uri())
    page.get_by_label("gain in log-probability").check()
    lines = (folder / "trace.jsonl").read_text().splitlines()
    gains = [each["gain"] or 0 for each in map(json.loads, lines) if each["row"] == 0]
    page.locator("#tokens [role=option]").nth(gains.index(max(gains))).click()
    page.evaluate("scrollTo(0, 0)")
    text = page.locator("section[aria-labelledby=text-heading]").bounding_box()
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": text["y"] + text["height"] + 16}
    take(page, "report.png", clip=clip, full_page=True)


def served(page: Page, model: Path) -> None:
    """Take the page: a prompt, its completions with and without thoughts, one thought opened and another tried."""
    command = [sys.executable, "-m", "quietstar", "serve", model, "--port", str(PORT)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        next(line for line in server.stderr if "http" in line)  # wait until the server listens
        page.goto(f"http://127.0.0.1:{PORT}")
        page.locator("#prompt").fill(PROMPT)
        page.locator("#max_tokens").fill("24")
        page.locator("#start").click()
        for column in ("on", "off"):
            expect(page.locator(f"#{column}-status")).not_to_be_empty(timeout=300_000)
        page.locator("#on [role=option]").nth(-12).click()
        page.locator("#thought").fill(OTHER_THOUGHT)
        page.locator("#what-if button").click()
        expect(page.locator("#answer")).to_contain_text("mixing weight", timeout=60_000)
        take(page, "page.png", full_page=True)
    finally:
        server.terminate()


def take(page: Page, name: str, **what: object) -> None:
    """Take a screenshot, with few colours, as a file of a page needs no more."""
    path = HERE / name
    page.screenshot(path=path, **what)
    Image.open(path).convert("RGB").quantize(N_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{name}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Take both screenshots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a trained model")
    model = parser.parse_args().model.resolve()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch) / "thoughts"
        inspect(model, folder)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = {"width": WIDTH, "height": 860}
        page = browser.new_page(viewport=view, device_scale_factor=SHARP, color_scheme="light")
        report(page, folder)
        served(page, model)


if __name__ == "__main__":
    main()

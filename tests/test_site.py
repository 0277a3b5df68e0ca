"""The site: built without a warning, read without a network, with every guide and every command."""

import re
from pathlib import Path

from quietstar.cli import COMMANDS

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(https?:)?//""")
"""tags that make a browser fetch something from elsewhere"""


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = [
            tag for tag in re.findall(r"<[^>]+>", page.read_text()) if FETCHED.match(tag) and "canonical" not in tag
        ]
        assert found == [], page


def test_every_guide_is_in_the_navigation() -> None:
    """A page that is left out would be found by nobody."""
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in text, page


def test_every_command_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "commands" / "index.html").read_text()
    for name in COMMANDS:
        assert f"usage: quietstar {name}" in page, name
    assert "--think_fraction" in page


def test_public_names_are_in_the_reference_with_their_words(site: Path) -> None:
    import quietstar

    page = (site / "reference" / "python" / "index.html").read_text()
    for name in quietstar.__all__:
        assert re.search(rf'id="quietstar\.[\w.]*{name}"', page), name


def test_links_to_files_of_the_project_lead_to_pages_that_show_them(site: Path) -> None:
    shown = (site / "files" / "index.html").read_text()
    for file in [*(ROOT / "recipes").rglob("*.yaml"), ROOT / "Dockerfile", ROOT / "LICENSE"]:
        assert f">{file.relative_to(ROOT)}<" in shown, file
    assert 'href="../files/#recipes-rlp-yaml"' in (site / "method" / "index.html").read_text()

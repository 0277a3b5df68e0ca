"""The site: built without a warning, read without a network, with every guide and every command."""

import dataclasses
import html
import re
from pathlib import Path

import pytest

from quietstar import DataArguments, QuietStarConfig, QuietStarTrainingArguments
from quietstar.cli import COMMANDS
from quietstar.evaluation.arguments import EvaluateArguments
from quietstar.runs.fields import Help

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
    assert "how to run it on given GPUs." in page


def test_public_names_are_in_the_reference_with_their_words(site: Path) -> None:
    import quietstar

    page = (site / "reference" / "python" / "index.html").read_text()
    for name in quietstar.__all__:
        assert re.search(rf'id="quietstar\.[\w.]*{name}"', page), name


@pytest.mark.parametrize("kind", [QuietStarConfig, QuietStarTrainingArguments, DataArguments, EvaluateArguments])
def test_fields_are_in_the_reference_with_type_default_and_what_they_are(site: Path, kind: type) -> None:
    page = (site / "reference" / "python" / "index.html").read_text()
    table = re.search(rf'id="{kind.__module__}.{kind.__name__}" class=.*?</table>', page, re.DOTALL)
    assert table
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in table[0].split("<tr")]
    words = [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in row] for row in rows]
    listed = {row[0]: row[1:] for row in words if row}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    ours = [name for name, field in fields.items() if isinstance(field.metadata.get("help"), Help)]
    assert listed.keys() == {*ours, *kind.__annotations__}  # those of transformers are not
    for name, (annotation, what, default) in listed.items():
        assert annotation, name
        assert len(what) > 5, name
        is_made = fields[name].default is dataclasses.MISSING
        assert default == repr(fields[name].default_factory() if is_made else fields[name].default), name


def test_links_to_files_of_the_project_lead_to_pages_that_show_them(site: Path) -> None:
    shown = (site / "files" / "index.html").read_text()
    for file in [*(ROOT / "recipes").rglob("*.yaml"), ROOT / "Dockerfile", ROOT / "LICENSE"]:
        assert f">{file.relative_to(ROOT)}<" in shown, file
    assert 'href="../files/#recipes-rlp-yaml"' in (site / "method" / "index.html").read_text()

"""What `make docs` adds to the pages of docs/: the README and its like, the options of all commands, and the recipes.

mkdocs calls these functions by their names.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from mkdocs.structure.files import File, Files

from quietstar.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""files that are pages of their own"""
SHOWN = ["Dockerfile", "CITATION.cff", "LICENSE"]
"""files that are shown on one page with the recipes"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {page: in_site((ROOT / name).read_text(encoding="utf-8")) for name, page in PAGES.items()}
    pages |= {"reference/commands.md": commands(), "files.md": shown_files()}
    pages |= {f"examples/{path.stem}.md": notebook(path) for path in sorted((ROOT / "examples").glob("*.ipynb"))}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Let links to files outside docs/ lead to the pages that show them; from docs/reference/, ../ leads into docs/."""
    if "/" in page.file.src_uri:
        return markdown
    return re.sub(r"\]\(\.\./([\w./-]+)\)", lambda link: f"]({page_of(link[1])})", markdown)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Make headings of tables without a word cells: a screen reader would announce a heading, and nothing of it."""
    return re.sub(r"<th([^>]*)></th>", r"<td\1></td>", html)


def on_post_page(output: str, **kwargs: Any) -> str:
    """Name what the theme leaves without a name, and hide its icons, whose buttons have names, from screen readers."""
    named = output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
    return named.replace("<svg xmlns", '<svg aria-hidden="true" xmlns')


def on_post_template(output: str, **kwargs: Any) -> str:
    """The same for the page of addresses that lead nowhere."""
    return on_post_page(output)


def in_site(text: str) -> str:
    """Return a text from the project's folder with its links as pages of docs/ have them."""
    text = re.sub(r"\]\(docs/", "](", text).replace("](examples)", "](examples/1_first_thoughts.md)")
    return re.sub(r"\]\((recipes/[\w./-]+|[A-Z][\w.]+)\)", lambda link: f"]({page_of(link[1])})", text)


def page_of(file: str) -> str:
    """Return the page that shows a file of the project."""
    if file.startswith("examples/"):
        return file.replace(".ipynb", ".md")
    return PAGES.get(file, f"files.md#{anchor(file)}")


def anchor(file: str) -> str:
    """Return the anchor of a shown file's heading."""
    return re.sub(r"[^\w-]", "", file.lower().replace("/", "-").replace(".", "-"))


def commands() -> str:
    """Return a page with what each command prints for --help."""
    os.environ["COLUMNS"] = "110"
    sections = ["# Commands", "What `quietstar COMMAND --help` prints."]
    for name, what in COMMANDS.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([name, "--help"])
        what = what[0].upper() + what[1:]
        sections.append(f"## quietstar {name}\n\n{what}.\n\n```text\n{printed.getvalue().strip()}\n```")
    return "\n\n".join(sections) + "\n"


def notebook(path: Path) -> str:
    """Return a notebook as a page; with RUN_EXAMPLES set, it is run first, and the page has what it printed."""
    found = nbformat.read(path, as_version=4)
    if os.environ.get("RUN_EXAMPLES"):
        nbclient.NotebookClient(found, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    sections = []
    for cell in found.cells:
        source = cell.source.replace(".ipynb)", ".md)")
        sections.append(source if cell.cell_type == "markdown" else f"```python\n{source}\n```")
        if printed := "".join(map(_printed, cell.get("outputs", []))).strip():
            sections.append(f"```text\n{printed}\n```")
    return "\n\n".join(sections) + "\n"


def _printed(output: Any) -> str:
    """Return what a cell printed or returned, as text."""
    if output.output_type == "stream":
        return str(output.text) if output.name == "stdout" else ""
    return str(output.get("data", {}).get("text/plain", ""))


def shown_files() -> str:
    """Return a page with the recipes and other files of the project."""
    sections = [
        "# Files",
        "Recipes: options of `quietstar train`, studies, launchers, a deployment. A container. The licence.",
    ]
    recipes = sorted(path for kind in ("*.yaml", "*.py") for path in (ROOT / "recipes").rglob(kind))
    for path in [*recipes, *(ROOT / name for name in SHOWN)]:
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8").strip()
        language = {".yaml": "yaml", ".cff": "yaml", ".py": "python"}.get(path.suffix, "text")
        sections.append(f"## {name} {{ #{anchor(name)} }}\n\n```{language}\n{text}\n```")
    return "\n\n".join(sections) + "\n"

"""One self-contained HTML file out of a template, its style sheets and its scripts."""

import base64
import hashlib
import html
import re

from quietstar.web import read

_PARTS = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[\w.]+)">|<script src="(?P<script>[\w.]+)"></script>'
    r"|<!-- (?P<mark>\w+) -->"
)


def document(name: str, title: str, marks: dict[str, str]) -> str:
    """Return a template with its files inlined, and a content security policy that allows nothing else.

    Args:
        name: of the template.
        title: plain text, for its mark `title`.
        marks: mark `<!-- name -->` of the template -> HTML in its place.
    """
    template = read(name)
    known = marks | {"policy": _policy(template), "title": html.escape(_printable(title))}
    return _PARTS.sub(lambda found: _part(found, known), template)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _part(found: re.Match[str], marks: dict[str, str]) -> str:
    if name := found["style"]:
        return f"<style>{read(name)}</style>"
    if name := found["script"]:
        return f"<script>{read(name)}</script>"
    return marks[found["mark"]]


def _policy(template: str) -> str:
    """Return a content security policy that allows only the document's own styles and scripts, by their hashes."""

    def hashes(kind: str) -> str:
        names = [found[kind] for found in _PARTS.finditer(template) if found[kind]]
        digests = (base64.b64encode(hashlib.sha256(read(name).encode()).digest()).decode() for name in names)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    rules = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'

"""A trace as one self-contained HTML file: text, thoughts, interventions, charts, a table."""

import base64
import hashlib
import html
import json
import re
from typing import Any

from quietstar.web import read
from quietstar.web.scale import limit

COLOURED = ("weight", "reward", "gain")
"""per-position values that colour the text"""
DIGITS = 5
"""significant digits of every number in the file"""
_PARTS = re.compile(
    r'<link rel="stylesheet" href="(?P<style>[\w.]+)">|<script src="(?P<script>[\w.]+)"></script>'
    r"|<!-- (?P<mark>\w+) -->"
)


def report_html(payload: dict[str, Any]) -> str:
    """Return the report as one HTML document, from the plain JSON of `quietstar.inspection.payload`.

    Raises:
        ValueError: the payload contains NaN or infinity, which JSON does not have.
    """
    values = {name: [value for row in payload["rows"] for value in row[name]] for name in COLOURED}
    limits = {name: limit(numbers) for name, numbers in values.items()}
    data = script_json({**payload, "limits": limits})
    marks = {
        "policy": "",
        "title": html.escape(_printable(str(payload["title"]))),
        "payload": f'<script type="application/json" id="payload">{data}</script>',
    }
    template = read("report.html")
    marks["policy"] = _policy(template)
    return _PARTS.sub(lambda found: _part(found, marks), template)


def script_json(value: Any) -> str:
    """Return JSON in ASCII, with rounded numbers, that is safe inside a script element."""
    text = json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


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
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    rules = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'

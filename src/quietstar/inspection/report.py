"""A trace as one self-contained HTML file: text, thoughts, interventions, charts, a table."""

import json
from typing import Any

from quietstar.web.document import document
from quietstar.web.scale import limit

COLOURED = ("weight", "reward", "gain")
"""per-position values that colour the text"""
DIGITS = 5
"""significant digits of every number in the file"""


def report_html(payload: dict[str, Any]) -> str:
    """Return the report as one HTML document, from the plain JSON of `quietstar.inspection.payload`.

    Raises:
        ValueError: the payload contains NaN or infinity, which JSON does not have.
    """
    values = {name: [value for row in payload["rows"] for value in row[name]] for name in COLOURED}
    limits = {name: limit(numbers) for name, numbers in values.items()}
    data = script_json({**payload, "limits": limits})
    payload_element = f'<script type="application/json" id="payload">{data}</script>'
    return document("report.html", str(payload["title"]), {"payload": payload_element})


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

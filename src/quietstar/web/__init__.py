"""Style sheets, scripts and HTML of the report and of the server's page.

    style.css    colours, type, tokens, one token's detail; report.css and page.css add their own layouts
    base.js      elements, visible text, numbers, theme; loaded first, as it defines the namespace QS
    tokens.js    a text as tokens, which a click or a key selects
    detail.js    one token: its thought, the three predictions, interventions
    charts.js    histograms, scatter with binned means, intervals, as inline SVG
    table.js     a table to sort, filter and page through; csv.js exports it
    report.html  report.js   the report; `quietstar.inspection.report` inlines all of its files into one
    page.html    page.js     stream.js   the page at / of `quietstar serve`

These are plain scripts, as a document opened from disk cannot load modules. Data become text nodes, never markup.
"""

from importlib.resources import files


def read(name: str) -> str:
    """Return the content of one of these files."""
    return (files(__name__) / name).read_text(encoding="utf-8")

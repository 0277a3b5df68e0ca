"""What a browser shows: style, scripts and documents of the report and of the server's page.

    style.css    colours, type, tokens, one token's detail; report.css and page.css lay out what is theirs
    base.js      elements, text made visible, numbers, theme; first of all scripts, it makes the namespace QS
    tokens.js    a text as tokens that are chosen by click or key
    detail.js    one token: its thought, the three predictions, interventions
    charts.js    histograms, scatter with binned means, intervals, as inline SVG
    table.js     a table to sort, filter and turn over; csv.js writes it as a file
    report.html  report.js   one document that holds all of the above, made by `quietstar.inspection.report`
    page.html    page.js     stream.js   the page at / of `quietstar serve`

Plain scripts, as a document opened from disk cannot load modules. Data become text nodes, never markup.
"""

from importlib.resources import files


def read(name: str) -> str:
    """The text of one of the files above."""
    return (files(__name__) / name).read_text(encoding="utf-8")

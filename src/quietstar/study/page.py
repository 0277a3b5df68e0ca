"""study.html: the verdict, curves, differences, tables and samples of thoughts, in one file that needs nothing else."""

from html import escape
from typing import Any

from quietstar.study.comparison import ALL_TOKENS, HARD_TOKENS
from quietstar.study.pictures import Bar, Curve, curves, forest, legend
from quietstar.study.tables import TABLES, Table, about
from quietstar.web.document import document

UNIT = "nats a token; above 0, the arm is better"
LONG = 24
"""characters of a cell that may break over lines"""


def study_html(findings: dict[str, Any]) -> str:
    """Return what a study found as one HTML document."""
    recipe = findings["recipe"]
    drawn = curves_of(findings)
    parts = [_verdict(findings["verdict"]), f'<p class="muted">{escape(about(findings))}</p>']
    for where in (ALL_TOKENS, HARD_TOKENS):
        for arm in dict.fromkeys(each["arm"] for each in findings["differences"]):
            bars = [
                Bar(f"{arm} beside {each['control']}", *(each["estimate"][end] for end in ("value", "low", "high")))
                for each in findings["differences"]
                if each["arm"] == arm and each["where"] == where
            ]
            if bars:
                parts.append(
                    f"<h2>{escape(arm)}: differences on {where}</h2><figure>{forest(bars, UNIT)}"
                    "<figcaption>Seed by seed on the same tokens, with 95 % intervals for other seeds and other texts."
                    "</figcaption></figure>"
                )
    parts += [
        _samples(findings["runs"]),
        "<h2>What training bought</h2>",
        f"<figure>{curves(drawn)}{legend(curve.name for curve in drawn)}<figcaption>nll of the selection text, as each "
        "arm predicts, against the floating-point operations of its training. Bands reach from the lowest seed to the "
        "highest.</figcaption></figure>"
        if drawn
        else "<p>No arm has been trained yet.</p>",
    ]
    parts += [_section(table, findings) for table in TABLES]
    footer = ", ".join(f"{name} {version}" for name, version in findings["versions"].items())
    marks = {"body": "".join(parts), "footer": escape(footer)}
    return document("study.html", f"Do thoughts pay? {recipe['model']}", marks)


def _verdict(sentences: list[str]) -> str:
    items, before = [], ""
    for sentence in sentences:
        about = sentence.partition(":")[0]
        items.append(f"<li{'' if about == before else ' class=first'}>{escape(sentence)}</li>")
        before = about
    return f'<ul class="verdict">{"".join(items)}</ul>'


def curves_of(findings: dict[str, Any]) -> list[Curve]:
    """Return the curve of each arm that trained, over the evaluations that all of its seeds have."""
    found = []
    for name in findings["recipe"]["arms"]:
        runs = [run for run in findings["runs"] if run["arm"] == name and run["curve"]]
        by_step: dict[int, list[float]] = {}
        for run in runs:
            for step, nll in run["curve"]:
                by_step.setdefault(step, []).append(nll)
        points = [
            (step * runs[0]["step_flops"] / 1e15, sum(values) / len(values), min(values), max(values))
            for step, values in sorted(by_step.items())
            if len(values) == len(runs)
        ]
        if points:
            found.append(Curve(name, points))
    return found


def _section(table: Table, findings: dict[str, Any]) -> str:
    headings, rows = table.of(findings)
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col"{_kind(index, "", table.n_left)}>{escape(text)}</th>' for index, text in enumerate(headings)
    )
    reports = [run["report"] for run in findings["runs"]] if table.is_of_runs else [None] * len(rows)
    body = ""
    for row, report in zip(rows, reports, strict=True):
        first, *others = (escape(text) for text in row)
        name = first if report is None else f'<a href="{escape(report)}">{first}</a>'
        cells = (f"<td{_kind(i, cell, table.n_left)}>{cell}</td>" for i, cell in enumerate(others, start=1))
        body += f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'
    return (
        f"<h2>{escape(table.title)}</h2><p>{escape(table.about)}</p>"
        f"{_scrolled(table.title)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _scrolled(label: str) -> str:
    """Return the beginning of a table that scrolls on its own, also by the keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'


def _kind(index: int, text: str, n_left: int) -> str:
    """Return the class of a cell: a number, or text that may break over lines."""
    return ' class="number"' if index >= n_left else ' class="words"' if len(text) > LONG else ""


def _samples(runs: list[dict[str, Any]]) -> str:
    """Return thoughts that changed the next token's probability most, of each arm's first seed."""
    seen: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["samples"]:
            seen.setdefault(run["arm"], run["samples"])
    parts = []
    for arm, samples in seen.items():
        rows = "".join(
            f'<tr><td class="context">{escape(each["before"])}</td><td class="thought">{escape(each["thought"])}</td>'
            f'<td class="context">{escape(each["next"] or "")}</td><td class="number">{each["gain"]:+.2f}</td></tr>'
            for each in samples
        )
        parts.append(
            f"<h3>{escape(arm)}</h3>{_scrolled(f'thoughts of {arm}')}"
            '<thead><tr><th scope="col">after</th><th scope="col">thought</th><th scope="col">then</th>'
            f'<th scope="col" class="number">nats gained</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    if not parts:
        return ""
    return f"<h2>Thoughts that changed the next token most</h2>{''.join(parts)}"

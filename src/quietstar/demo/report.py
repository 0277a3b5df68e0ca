"""The demo's figures as tables, on the terminal and in Markdown."""

from rich.table import Table

from quietstar.demo.language import CHANCE, Language, question
from quietstar.demo.quiz import Answers, Quiz
from quietstar.reporting.interval import Share
from quietstar.reporting.tables import markdown

Figures = dict[str, Share]

ROWS = {
    "base": "base model, no thoughts",
    "base_pass": "after Quiet-STaR, no thoughts",
    "random_thoughts": "after Quiet-STaR, random thoughts",
    "own_thoughts": "after Quiet-STaR, its own thoughts",
    "spelled_out": "base model, spelling the way out",
}
"""figure -> its label, in the order of the table"""

HEADINGS = ("held-out problems", "right", "of", "share", "95 % interval")


def introduction(language: Language, problems: list[str], held_out: list[str]) -> str:
    """Return a description of the language and the number of problems."""
    short, spelled = (language.line(problems[0], spelled=spelled) for spelled in (False, True))
    return (
        f"A line of the language:      [bold]{short}[/]  (start, five moves, the letter where they end)\n"
        f"with its way spelled out:    [bold]{spelled}[/]\n"
        f"{len(problems)} problems to train on, {len(held_out)} held out"
    )


def percent(share: float) -> str:
    """0.0824 -> `8.2 %`"""
    return f"{100 * share:.1f} %"


def cells(name: str, share: Share) -> tuple[str, ...]:
    """Return a row of the table."""
    low, high = share.interval
    between = f"{100 * low:.1f} - {percent(high)}"
    return ROWS[name], str(share.right), str(share.n), percent(share.value), between


def figures_table(figures: Figures) -> Table:
    """Return a table of right answers for the terminal."""
    table = Table(title=f"Right answers (chance is {percent(CHANCE)})", title_justify="left", title_style="bold")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for name in ROWS:
        style = "bold" if name == "own_thoughts" else "dim" if name == "spelled_out" else None
        table.add_row(*cells(name, figures[name]), style=style)
    return table


def figures_markdown(figures: Figures) -> str:
    """Return the same table in Markdown."""
    return markdown(HEADINGS, [cells(name, figures[name]) for name in ROWS])


def thoughts_sentence(thoughts_are_ways: Share) -> str:
    """Return a sentence on how many thoughts equal the way."""
    low, high = thoughts_are_ways.interval
    return (
        f"{thoughts_are_ways.right} of {thoughts_are_ways.n} hidden thoughts are the way, letter by letter "
        f"({100 * low:.1f} - {percent(high)})"
    )


def examples(quiz: Quiz, own: Answers, n: int) -> list[dict[str, str]]:
    """Return the first problems of the quiz with their thoughts and answers."""
    columns = zip(quiz.problems, own.thoughts, own.letters, quiz.ways, quiz.answers, strict=True)
    names = ("question", "thought", "answer", "way", "right_answer")
    return [dict(zip(names, (question(problem), *rest), strict=True)) for problem, *rest in list(columns)[:n]]


def examples_table(rows: list[dict[str, str]]) -> Table:
    """Return a table of questions and thoughts for the terminal."""
    table = Table(title="What it thought", title_justify="left", title_style="bold")
    for heading in ("question", "hidden thought", "answer", "the way is", "the answer is"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(repr(text)[1:-1] for text in row.values()))
    return table

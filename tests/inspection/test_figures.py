"""Figures: files of both kinds, every token in its place, no text parsed as a formula, no warnings."""

import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quietstar.errors import MissingExtraError
from quietstar.inspection.figures import (
    COLUMNS,
    MISSING,
    MOST_LINES,
    draw_distributions,
    draw_figures,
    draw_text,
    lay_out,
)
from quietstar.web import scale
from tests.inspection.payloads import HOSTILE, payload

ASCII = set(range(32, 127))


def test_every_figure_is_written_as_png_and_pdf_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = draw_figures(payload(2 * len(HOSTILE), 2, hostile=True), tmp_path / "figures")
    assert [path.name for path in written] == [
        f"{name}{suffix}"
        for name in ("text_weight", "text_reward", "text_gain", "distributions")
        for suffix in (".png", ".pdf")
    ]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")


def test_pdf_files_of_equal_traces_are_equal(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_figures(payload(10), tmp_path / folder)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@given(st.lists(st.lists(st.text(max_size=9) | st.sampled_from(HOSTILE), min_size=1, max_size=30), max_size=4))
def test_tokens_lie_one_after_the_other_within_the_lines(rows: list[list[str]]) -> None:
    spans = lay_out(rows, ASCII)
    end: tuple[int, int] = (0, 0)
    for span in spans:
        assert span.text
        assert (span.line, span.column) >= end
        assert span.column + span.width <= COLUMNS
        end = (span.line, span.column + span.width)
    assert [span.index for span in spans] == sorted(span.index for span in spans)
    assert {span.index for span in spans} == set(range(sum(map(len, rows))))


def test_printable_characters_are_unchanged_and_others_are_symbols() -> None:
    def drawn(text: str) -> str:
        return "".join(run.text for run in lay_out([[text]], ASCII))

    assert drawn("plain $x$ \\text") == "plain $x$ \\text"
    assert drawn("a\N{RIGHT-TO-LEFT OVERRIDE}b\x00\N{CJK UNIFIED IDEOGRAPH-6F22}") == f"a⟨U+202E⟩b⟨U+0000⟩{MISSING}"
    assert drawn("a\n") == "a↵"
    assert drawn("") == "▏"
    assert unicodedata.combining(drawn("\N{COMBINING ACUTE ACCENT}")[0]) == 0


def test_only_the_first_tokens_are_plotted_and_a_note_says_so() -> None:
    made = payload(700, 2)
    texts = [text.get_text() for text in draw_text(made, "weight").axes[0].texts]
    assert any("the first 600 of 700 positions" in text for text in texts)
    texts = [text.get_text() for text in draw_text(payload(30), "weight").axes[0].texts]
    assert any(text.startswith("30 positions") for text in texts)


def test_a_picture_has_an_end() -> None:
    """Even of tokens that are all line ends."""
    spans = lay_out([["\n\n\n\n\n\n\n\n"] * 600], {ord("a")})
    assert max(span.line for span in spans) < MOST_LINES + 8


@pytest.mark.parametrize("name", ["weight", "reward", "gain"])
def test_tokens_have_the_colours_of_the_report(name: str) -> None:
    from matplotlib.colors import to_hex

    made = payload(40)
    values = [value for value in made["rows"][0][name] if value is not None]
    patches = draw_text(made, name).axes[0].patches[: len(values)]
    end = scale.limit(values)
    expected = [scale.colours()[scale.index(value, end)] for value in values]
    assert [to_hex(patch.get_facecolor()) for patch in patches] == expected


def test_a_trace_without_thoughts_and_interventions_has_figures() -> None:
    made: dict[str, Any] = payload(1)
    made.update(interventions=[], difficulty=[])
    for name in ("weight", "reward", "gain", "base_logprob"):
        made["rows"][0][name] = [None]
    draw_text(made, "weight")
    figure = draw_distributions(made)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["nothing to show"] * 4


def test_values_that_are_all_equal_have_figures() -> None:
    made = payload(20)
    made["rows"][0]["reward"] = [0.0] * 20
    draw_text(made, "reward")
    draw_distributions(made)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"quietstar\[inspect\]"):
        draw_figures(payload(3), tmp_path)


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=200))
def test_the_scale_is_round_and_holds_nearly_all_values(values: list[float | None]) -> None:
    end = scale.limit(values)
    sizes = [abs(value) for value in values if value is not None]
    assert end > 0
    assert sum(size > end * (1 + 1e-6) for size in sizes) <= (1 - scale.SHARE) * len(sizes) + 1
    assert float(f"{end:.1e}") == pytest.approx(end)
    for value in sizes:
        assert scale.index(value, end) + scale.index(-value, end) == 2 * scale.N_STEPS

"""The figures and the fonts: what is drawn, that it can be read, and the font in the page."""

import base64
import os
import re
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from xnli_gpt.report import curve_figures, figures, fonts
from xnli_gpt.report.curves import Chance

CSS = (Path(figures.__file__).parent / "style.css").read_text(encoding="utf-8")


def test_devanagari_is_drawn_and_shaped():
    assert fonts.drawable(["निष्कर्ष", "विरोधाभास"], "class", 16) == (["निष्कर्ष", "विरोधाभास"], "")

    def width(text: str) -> float:
        return figure.text(0, 0, text).get_window_extent().width

    with matplotlib.rc_context(figures.style()):
        figure = Figure()
        # The two letters of a conjunct melt into one narrower sign only where they are shaped.
        assert width("क्ष") < 0.8 * width("कष")


def test_without_a_font_numbers_stand_for_names(monkeypatch, recwarn):
    monkeypatch.setattr(fonts, "font_families", lambda: ("DejaVu Sans",))
    fonts.drawable_characters.cache_clear()
    try:
        with matplotlib.rc_context(figures.style()):
            figure = figures.draw_confusion(np.eye(2, dtype=int), ["हाँ", "नहीं"])
            figure.savefig(os.devnull, format="png")
    finally:
        fonts.drawable_characters.cache_clear()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 2"]
    assert "no font" in axes.get_title()
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


def test_counts_and_row_percentages_stand_in_the_matrix():
    figure = figures.draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["3\n75 %", "1\n25 %", "0", "0"]


def luminance(color: str) -> float:
    return np.dot(
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)],
        [0.2126, 0.7152, 0.0722],
    )


def contrast(first: str, second: str) -> float:
    """WCAG 2.2: 4.5 for text, 3 for lines."""
    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_the_page(scheme):
    colors = [
        {
            name: "#" + "".join(2 * c for c in value) if len(value) == 3 else f"#{value}"
            for name, value in re.findall(r"--(\w+): #(\w+)", block)
        }
        for block in re.findall(r":root {(.*?)}", CSS, re.DOTALL)
    ][scheme]
    for name in ("ink", "soft", "link", "wrong"):
        assert contrast(colors[name], colors["paper"]) >= 4.5
        assert contrast(colors[name], colors["shade"]) >= 4.5


def test_lines_and_shaded_numbers_stand_out():
    assert all(contrast(line["color"], "white") >= 3 for line in figures.LINES)
    shades = [figures.SHARES(share) for share in np.linspace(0, 1, 101)]
    assert min(contrast(figures.readable_on(shade), to_hex(shade)) for shade in shades) >= 4.5


TEXT = "क्षत्रिय विद्यार्थियों ने निष्कर्ष लिखा।"


def embedded(rule: str) -> TTFont:
    (source,) = re.findall(r"base64,(.*?)\"", rule)
    return TTFont(BytesIO(base64.b64decode(source)))


def test_the_page_has_a_font_with_the_devanagari_that_it_shows_and_no_more():
    rule = fonts.embedded_font(f"{TEXT} and English, اردو")
    font = embedded(rule)
    letters = {ord(c) for c in TEXT if c > "\u0900"}
    held = set(font.getBestCmap())
    assert letters <= held
    assert not set(range(ord("a"), ord("z") + 1)) & held and 0x0627 not in held
    # Conjuncts are signs that no character has, and the features lead to them.
    assert font["maxp"].numGlyphs > 2 * len(letters)
    assert "GSUB" in font and "fvar" not in font
    assert len(rule) < 150_000
    assert fonts.embedded_font(TEXT + " and English, اردو") == rule


def test_a_page_without_devanagari_or_a_place_without_the_font_has_none(monkeypatch):
    assert fonts.embedded_font("English, اردو, ไทย") == ""
    monkeypatch.setattr(fonts, "FONT_PACKAGE", "no_such_package")
    assert fonts.embedded_font(TEXT) == ""


def test_figures_warn_of_no_font(caplog):
    with figures.in_style():
        dots = [figures.Dot("हिन्दी", 0.7, [0.6, 0.8], text="0.7"), figures.Dot("x", 0.3)]
        figures.drawn(lambda: figures.draw_result_of_one(dots, figures.LINES[:2]))
        series = [figures.Series("model", [0.7, 0.6], [[0.6, 0.8], None])]
        figures.drawn(lambda: figures.draw_result(["macro average", "हिन्दी"], series))
    assert not caplog.records


def legend_box(figure: Figure) -> tuple[object, list[str]]:
    (legend,) = figure.legends
    return legend.get_window_extent(), [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("num_datasets", [2, 15])
def test_no_legend_hides_a_curve_or_leaves_the_figure(num_datasets):
    curves = {f"xnli_{i}": [(0, 0.3), (12_000, 0.7)] for i in range(num_datasets)}
    chance = Chance(0.333, "majority class", 1.1, 3)
    with figures.in_style():
        figure = figures.drawn(lambda: curve_figures.draw_curves_by_dataset(curves, chance, 12_000))
        box, names = legend_box(figure)
        assert names == [*curves, "majority class", "best step 12,000"]
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        (axes,) = figure.axes
        assert box.y1 <= axes.get_tightbbox().y0


def test_long_labels_are_laid_out_as_wide_as_outlines_draw_them():
    text = "25% to under 50% (n = 1,671)"
    with figures.in_style():
        dots = [figures.Dot(text, 0.7, [0.6, 0.8])]
        figure = figures.drawn(lambda: figures.draw_dots(dots, "accuracy", [0.7]))
        (label,) = figure.axes[0].get_yticklabels()
        box = label.get_window_extent()
        outlines = TextPath((0, 0), text, size=9.5).get_extents()
    assert box.x0 >= 0
    assert outlines.width <= 1.01 * box.width * 72 / figure.dpi


def test_four_digit_counts_fit_into_their_cells():
    counts = np.full((3, 3), 5010)
    with figures.in_style():
        figure = figures.drawn(
            lambda: figures.draw_confusion(counts, ["entailment", "neutral", "contradiction"])
        )
        (axes,) = figure.axes
        cell_width = axes.get_window_extent().width / 3
        assert axes.texts[0].get_text() == "5,010\n33 %"
        assert all(text.get_window_extent().width < 0.8 * cell_width for text in axes.texts)

"""The figures of a result: values with their intervals, confusion, reliability; and their style."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from xnli_gpt.report.fonts import drawable, font_families
from xnli_gpt.report.wording import count

# Of the Okabe-Ito palette, those that stand out from white by 3:1; told apart without colour by
# their line and marker.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
LINES = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": GREY, "linestyle": ":", "marker": "D"},
)
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#00427a"])
# A column of the page, and about a phone's screen, in inches.
WIDTH = 5.0


@dataclass(frozen=True)
class Dot:
    """A line of a dot plot."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    group: str = ""
    text: str = ""  # the value in writing


@dataclass(frozen=True)
class Series:
    """Values of one kind in the result's picture, by row; a row without one has None."""

    name: str
    values: Sequence[float | None]
    intervals: Sequence[Sequence[float] | None] = field(default_factory=tuple)
    look: Mapping = field(default_factory=lambda: LINES[0])


def saved(figure: Figure, kind: str) -> bytes:
    """Return the file of a figure as png, pdf or svg, the same for the same figure."""
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata[kind], transparent=kind == "svg", dpi=300)
    return buffer.getvalue()


def drawn(draw: Callable[[], Figure]) -> Figure:
    """Draw a figure in the report's style, laid out once for all of its files."""
    figure = draw()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def style() -> dict[str, object]:
    """Return matplotlib's settings for all figures."""
    return {
        "font.family": list(font_families()),
        # Laid out in fine pixels: in coarse ones hinting makes text narrower than the SVG's.
        "figure.dpi": 300,
        "text.hinting": "none",
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.edgecolor": "#7a7a7a",
        "xtick.color": "#333333",
        "ytick.color": "#333333",
        "grid.color": "#e2e2e2",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.handlelength": 1.8,
        "legend.columnspacing": 1.2,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        # A class may be called $x$.
        "text.parse_math": False,
        # Outlines, so that the page looks the same everywhere; without the salt, ids are random.
        "svg.fonttype": "path",
        "svg.hashsalt": "report",
        # Publishers refuse type 3.
        "pdf.fonttype": 42,
    }


def in_style() -> matplotlib.rc_context:
    """Set the report's style within a `with`."""
    return matplotlib.rc_context(style())


def legend_below(figure: Figure) -> None:
    """Put the legend of all axes under them, where it hides nothing, in as many columns as there
    is room for; every name once."""
    handles: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    # A handle and its margins take 3.8 ems, a character a little more than half of one.
    ems = 72 * figure.get_figwidth() / matplotlib.rcParams["legend.fontsize"]
    longest = max(len(line) for label in handles for line in label.splitlines())
    columns = max(1, min(len(handles), int(ems / (3.8 + 0.56 * longest))))
    # Rows of about one length.
    columns = math.ceil(len(handles) / math.ceil(len(handles) / columns))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def draw_result(rows: Sequence[str], series: Sequence[Series]) -> Figure:
    """Draw the accuracy of every row, and what it is held against, in a line each."""
    names, note = drawable(rows, "row", width=28)
    figure = Figure(figsize=(WIDTH, 1.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(series):
        # The first above the others, and first in the legend.
        over = {"zorder": 3 + len(series) - number}
        heights = [height for height, value in enumerate(one.values) if value is not None]
        for height, interval in enumerate(one.intervals):
            if interval is not None:
                axes.plot(interval, [height, height], color=one.look["color"], marker="|", **over)
        values = [one.values[height] for height in heights]
        axes.plot(values, heights, label=one.name, **dict(one.look) | {"linestyle": ""} | over)
    _rows_on_axis(axes, names, "accuracy", note)
    axes.margins(x=0.08)
    # The font with Devanagari has no bold.
    axes.get_yticklabels()[0].set(fontweight="bold", fontfamily="DejaVu Sans")
    legend_below(figure)
    return figure


def draw_result_of_one(dots: Sequence[Dot], looks: Sequence[Mapping]) -> Figure:
    """Draw the accuracy and under it the baselines, each with its number at the right."""
    names, note = drawable([dot.label for dot in dots], "row", width=28)
    figure = Figure(figsize=(WIDTH, 1.0 + 0.36 * len(dots)), layout="constrained")
    axes = figure.subplots()
    for height, (dot, look) in enumerate(zip(dots, looks, strict=True)):
        axes.plot([0, dot.value], [height, height], color=look["color"], alpha=0.35, linewidth=5)
        axes.plot(dot.value, height, **dict(look) | {"markersize": 7})
        if dot.interval is not None:
            ends = {"color": "black", "marker": "|", "markersize": 13}
            axes.plot(dot.interval, [height, height], linewidth=1.2, **ends)
        weight = "bold" if height == 0 else "normal"
        axes.annotate(
            dot.text,
            (max([dot.value, *(dot.interval or ())]), height),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontweight=weight,
            fontfamily="DejaVu Sans",
        )
    _rows_on_axis(axes, names, "accuracy", note)
    axes.set_xlim(0, 1.1)
    axes.set_xticks(np.linspace(0, 1, 6))
    return figure


def _rows_on_axis(axes: Axes, names: Sequence[str], title: str, note: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(title)
    axes.xaxis.get_major_locator().set_params(nbins=6)
    if note:
        axes.set_title(note)


def draw_confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw `counts` [C, C], rows the true classes, shaded by their share of the row."""
    names, note = drawable(classes, "class", width=16)
    side = max(3.5, 0.6 * len(names) + 1.2)
    figure = Figure(figsize=(max(WIDTH, side + 1.4), side), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(counts.shape):
        share = f"\n{100 * shares[i, j]:.0f} %" if totals[i, 0] else ""
        color = readable_on(SHARES(shares[i, j]))
        axes.text(j, i, count(counts[i, j]) + share, ha="center", va="center", color=color)
    many = len(names) > 4
    axes.set_xticks(range(len(names)), names, rotation=45 if many else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    if note:
        axes.set_title(note)
    return figure


def readable_on(color: Sequence[float]) -> str:
    """Return black or white, whichever has the higher contrast by WCAG 2.2: black, from a relative
    luminance of 0.179 upwards."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return "black" if np.dot(linear, [0.2126, 0.7152, 0.0722]) > 0.179 else "white"


def draw_reliability(bins: Sequence[Mapping], num_classes: int | None = None) -> Figure:
    """Draw accuracy by the probability of the answer, which is at least 1 in `num_classes`."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1.2])
    # The bin that holds the lowest possible probability is shown whole.
    left = math.floor(10 / num_classes) / 10 if num_classes else 0.0
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    confidences, accuracies = ([bin[key] for bin in bins] for key in ("confidence", "accuracy"))
    upper.plot(confidences, accuracies, label="model", clip_on=False, **LINES[0])
    upper.set(ylabel="accuracy", xlim=(left, 1), ylim=(0, 1))
    bars = lower.bar(
        [bin["from"] for bin in bins],
        [bin["count"] for bin in bins],
        [bin["to"] - bin["from"] for bin in bins],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    lower.bar_label(bars, [count(bin["count"]) for bin in bins], fontsize=8, padding=1)
    lower.margins(y=0.3)
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.set(xlabel="probability of the answer", ylabel="examples")
    legend_below(figure)
    return figure


def draw_dots(dots: Sequence[Dot], axis: str, lines: Sequence[float]) -> Figure:
    """Draw values with their intervals, one above the other; at `lines` a dashed one across."""
    rows = _rows_of_dots(dots)
    names, note = drawable([label for label, _ in rows], "row", width=32)
    figure = Figure(figsize=(WIDTH, 0.8 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for value in lines:
        axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
    for height, (_, dot) in enumerate(rows):
        if dot is None:
            continue
        if dot.interval is not None:
            axes.plot(dot.interval, [height, height], color=BLUE, marker="|")
        axes.plot(dot.value, height, color=BLUE, marker="o", markersize=5)
    _rows_on_axis(axes, names, axis, note)
    for label, (_, dot) in zip(axes.get_yticklabels(), rows, strict=True):
        if dot is None:
            label.set(fontweight="bold", fontfamily="DejaVu Sans")
    return figure


def _rows_of_dots(dots: Sequence[Dot]) -> list[tuple[str, Dot | None]]:
    """Return every dot with its label, under the title of its group, which has no dot."""
    rows: list[tuple[str, Dot | None]] = []
    for group, members in itertools.groupby(dots, key=lambda dot: dot.group):
        rows += [(f"by {group}", None)] if group else []
        rows += [(dot.label, dot) for dot in members]
    return rows

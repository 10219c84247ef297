"""The learning curves: the loss in training and on validation, and the metrics on validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.report.curves import Chance, StepCurve
from xnli_gpt.report.figures import GREY, LINES, VERMILION, WIDTH, legend_below
from xnli_gpt.report.fonts import drawable
from xnli_gpt.report.wording import METRIC_TITLES

MOST_MARKERS = 40
# Those of the loss and of the training loss come first.
METRIC_LOOKS = (LINES[0], *LINES[2:])
BEST_LINE = {"color": "black", "linestyle": "--", "linewidth": 0.9}
CHANCE_LINE = {"color": GREY, "linestyle": (0, (1, 2)), "linewidth": 1.2}


def draw_loss_curves(
    history: Sequence[Mapping], curve: StepCurve | None, chance: Chance | None, best: int | None
) -> Figure:
    """Draw the loss of every step, or its means between evaluations, and that on validation."""
    figure, axes = _curve_figure()
    if curve is not None:
        look = LINES[1] | {"linestyle": "-", "marker": "."}
        look |= {} if len(curve.steps) <= MOST_MARKERS else {"marker": ""}
        axes.plot(curve.steps, curve.losses, label="training", **look)
        if curve.steps_per_point > 1:
            axes.fill_between(curve.steps, curve.lows, curve.highs, color=VERMILION, alpha=0.2)
    else:
        _draw_curve(axes, history, "training", lambda line: line.get("train_loss"), LINES[1])
    _draw_curve(axes, history, "validation", lambda line: line["validation"].get("loss"), LINES[0])
    if chance is not None:
        title = f"chance, ln {chance.num_classes}"
        axes.axhline(chance.loss, label=title, **CHANCE_LINE)
    _finish_curves(figure, axes, best, "loss (nats)")
    return figure


def curves_shown() -> list[str]:
    """Return the metrics that stand together on one axis from 0 to 1."""
    return [name for name in main_metrics() if METRICS[name].is_share]


def draw_metric_curves(
    history: Sequence[Mapping], chance: Chance | None, best: int | None
) -> Figure:
    """Draw the validation metrics by step."""
    figure, axes = _curve_figure()
    for name, look in zip(curves_shown(), cycle(METRIC_LOOKS), strict=False):
        get = partial(_validation_metric, name)
        _draw_curve(axes, history, METRIC_TITLES[name], get, look)
    if chance is not None:
        axes.axhline(chance.accuracy, label=chance.accuracy_title, **CHANCE_LINE)
    _finish_curves(figure, axes, best, "validation metric")
    return figure


def draw_curves_by_dataset(
    curves: Mapping[str, Sequence[tuple[int, float]]], chance: Chance | None, best: int | None
) -> Figure:
    """Draw the validation accuracy of every dataset by step."""
    figure, axes = _curve_figure(0.2 * math.ceil(len(curves) / 4))
    names, note = drawable(list(curves), "dataset", width=16)
    for number, (points, name) in enumerate(zip(curves.values(), names, strict=True)):
        # Sixteen pairs of a colour and a line tell fifteen languages apart.
        look = LINES[number // len(LINES) % len(LINES)] | {
            "color": LINES[number % len(LINES)]["color"]
        }
        look |= {} if len(points) <= MOST_MARKERS else {"marker": ""}
        axes.plot(*zip(*points, strict=True), label=name, **look)
    if chance is not None:
        axes.axhline(chance.accuracy, label=chance.accuracy_title, **CHANCE_LINE)
    axes.set_title(note)
    _finish_curves(figure, axes, best, "validation accuracy")
    return figure


def _validation_metric(name: str, line: Mapping) -> float | None:
    return line["validation"].get(name)


def _curve_figure(more_height: float = 0.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.5 + more_height), layout="constrained")
    return figure, figure.subplots()


def _finish_curves(figure: Figure, axes: Axes, best: int | None, title: str) -> None:
    if best is not None:
        axes.axvline(best, label=f"best step {best:,}", **BEST_LINE)
    axes.set(xlabel="optimizer steps", ylabel=title)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    legend_below(figure)


def _draw_curve(
    axes: Axes,
    history: Sequence[Mapping],
    label: str,
    get: Callable[[Mapping], float | None],
    look: Mapping,
) -> None:
    points = [(line["step"], get(line)) for line in history if get(line) is not None]
    if points:
        look = dict(look) if len(points) <= MOST_MARKERS else dict(look) | {"marker": ""}
        axes.plot(*zip(*points, strict=True), label=label, **look)

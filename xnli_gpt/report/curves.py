"""Learning curves as numbers: what steps.jsonl and metrics.jsonl hold, made fit to be drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# With more steps than twice this, every point is the mean of several.
SMOOTH_POINTS = 60


@dataclass(frozen=True)
class StepCurve:
    """Training loss by step [points]; of several steps a point their mean, and the range of the
    middle 80 % of them."""

    steps: np.ndarray
    losses: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    steps_per_point: int


def read_steps(path: str | Path) -> list[dict]:
    """Return the lines of a steps.jsonl; none where there is no such file.

    A kill leaves half a line at the end, which is left out. Of lines of one step the last counts:
    a run that goes on from a save does some steps again.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines: dict[int, dict] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            lines[int(line["step"])] = {**line, "loss": float(line["loss"])}
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
    return [lines[step] for step in sorted(lines)]


def training_curve(steps: Sequence[Mapping]) -> StepCurve | None:
    """Return the curve of the lines of steps.jsonl, smoothed where they are many; None where they
    are fewer than two."""
    finite = [line for line in steps if math.isfinite(line["loss"])]
    if len(finite) < 2:
        return None
    numbers = np.array([line["step"] for line in finite])
    losses = np.array([line["loss"] for line in finite])
    width = max(1, len(losses) // SMOOTH_POINTS)
    ends = list(range(width, len(losses) + 1, width))
    # The last steps, too few for a point of their own, go with those before them.
    ends[-1] = len(losses)
    parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    lows, highs = np.transpose([np.percentile(losses[part], [10, 90]) for part in parts])
    return StepCurve(
        np.array([numbers[part].mean() for part in parts]),
        np.array([losses[part].mean() for part in parts]),
        lows,
        highs,
        width,
    )


@dataclass(frozen=True)
class Chance:
    """What an answer that knows nothing reaches on validation."""

    accuracy: float
    accuracy_title: str
    loss: float
    num_classes: int


def chance_of(history: Sequence[Mapping], results: Mapping[str, Mapping]) -> Chance | None:
    """Return chance: the accuracy of the most frequent class where the history tells how often
    each stands, else one in so many classes; None where the classes are unknown."""
    last = history[-1]["validation"] if history else {}
    of_sets = list(last.get("sets", {}).values()) or [last]
    supports = [
        [figures["support"] for figures in one["per_class"].values()]
        for one in of_sets
        if one.get("per_class")
    ]
    if supports and len(supports) == len(of_sets) and all(map(sum, supports)):
        accuracy = float(np.mean([max(support) / sum(support) for support in supports]))
        return Chance(accuracy, "majority class", math.log(len(supports[0])), len(supports[0]))
    for metrics in results.values():
        if metrics.get("per_class"):
            num_classes = len(metrics["per_class"])
            title = f"chance, 1 in {num_classes}"
            return Chance(1 / num_classes, title, math.log(num_classes), num_classes)
    return None


def accuracies_by_dataset(history: Sequence[Mapping]) -> dict[str, list[tuple[int, float]]]:
    """Return (step, validation accuracy) of every dataset, where a run has several."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in history:
        for name, metrics in line["validation"].get("sets", {}).items():
            curves.setdefault(name, []).append((line["step"], metrics["accuracy"]))
    return curves

"""Numbers, names and facts as the report writes them."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence

from xnli_gpt.data.names import language_of_name
from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.report.content import Cell

METRIC_TITLES = {name: metric.title_with_unit for name, metric in METRICS.items()}
MISSING = "–"
# Draws that all agree tell nothing of how sure a figure is.
SMALLEST_WIDTH = 1e-9
LEVEL = "95\N{NO-BREAK SPACE}%"


def decimals_for(half_width: float) -> int:
    """Return how many digits after the point show the two leading digits of an uncertainty.

    Two digits are what the Guide to the expression of uncertainty in measurement (7.2.6) allows.
    """
    if not (math.isfinite(half_width) and half_width > 0):
        return 3
    return min(4, max(2, 1 - math.floor(math.log10(half_width))))


def decimals_of_rate(examples: float | None) -> int:
    """Return the same for a share of `examples`, whose 95 % interval is at most so wide."""
    return decimals_for(1 / math.sqrt(examples)) if examples else 3


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """Write a number with so many digits after the point; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "−")


def with_interval(
    value: float | None,
    interval: Sequence[float] | None,
    examples: float | None = None,
    sign: str = "",
) -> str:
    """Write 0.731 [0.718, 0.744], or 0.731 where there is no interval, or one without a width."""
    if interval is None or interval[1] - interval[0] < SMALLEST_WIDTH:
        return number(value, decimals_of_rate(examples), sign)
    low, high = interval
    decimals = decimals_for((high - low) / 2)
    return f"{number(value, decimals, sign)} [{number(low, decimals)}, {number(high, decimals)}]"


def metric_text(name: str, metrics: Mapping) -> str:
    """Write one of a dataset's metrics with its interval."""
    interval = metrics.get("intervals", {}).get(name)
    return with_interval(metrics.get(name), interval, metrics.get("examples"))


def rate_text(rate: float | None, metrics: Mapping) -> str:
    """Write a share of a dataset's examples."""
    return number(rate, decimals_of_rate(metrics.get("examples")))


def accuracy_beside(value: float | None, metrics: Mapping) -> str:
    """Write an accuracy with as many digits as the metrics' own, which it stands beside."""
    interval = (metrics.get("intervals") or {}).get("accuracy")
    if interval is None:
        return rate_text(value, metrics)
    return number(value, decimals_for((interval[1] - interval[0]) / 2))


def count(value: float | None) -> str:
    """Write a count, which over several models is a mean."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def p_value(p: float | None) -> str:
    """Write a p value with as many digits as mean something."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_equals(p: float | None) -> str:
    """Write a p value with its sign: p = 0.02, p < 0.001."""
    text = p_value(p)
    # In one line.
    return (f"p {text}" if text.startswith("<") else f"p = {text}").replace(" ", "\u00a0")


def probability(p: float) -> str:
    """Write a probability, never as certain by rounding."""
    return "> 0.999" if 0.9995 <= p < 1 else f"{p:.3f}"


def duration(seconds: float) -> str:
    """Write a time in its two largest units: 2 h 13 min, 4 min 9 s, 12 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def fact(value: object) -> str:
    """Write a fact in words; the parts of a mapping in lines."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {fact(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(fact, value))
    return str(value)


def command(words: str | Sequence[str]) -> Cell:
    """Write a command line as a shell takes it."""
    return Cell(words if isinstance(words, str) else shlex.join(words), is_code=True)


def language_of(dataset: str, text: str) -> str | None:
    """Tell the language of a dataset's texts by its name; else what the letters tell."""
    if named := language_of_name(dataset):
        return named
    return "hi" if re.search(r"[\u0900-\u097f]", text) else None

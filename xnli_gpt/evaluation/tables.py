"""What an evaluation prints: tables of scores, spread over seeds, comparisons, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xnli_gpt.evaluation.answers import one_class_warning, only_answers, other_order_warning
from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.messages import with_flags


def print_results(results: Mapping) -> None:
    """Print the tables of a run, and what it warns of."""
    lines = table_of(results)
    if "seeds" in results:
        lines += seed_lines(results["seeds"])
    if "comparison" in results:
        lines += comparison_lines(results["comparison"])
    for name, metrics in results["datasets"].items():
        lines += filter(None, [one_class_warning(only_answers(metrics, name))])
        lines += filter(None, [other_order_warning(metrics, name)])
    print(with_flags("\n".join(lines)))


def table_of(results: Mapping) -> list[str]:
    """Return the cross-lingual table: a line a dataset, and their mean."""
    rows = dict(results["datasets"])
    if len(rows) > 1:
        rows["macro average"] = results["macro_average"]
    width = max(map(len, rows))
    others = {name: metric.title for name, metric in METRICS.items() if name != "accuracy"}
    titles = "".join(f"  {title:>6}" for title in others.values())
    lines = [f"{'':<{width}}   rows  {'accuracy [95 %]':<24}{titles}"]
    for name, metrics in rows.items():
        figures = "".join(f"  {_figure(metrics[k]):>{max(6, len(t))}}" for k, t in others.items())
        baseline = metrics.get("hypothesis_only")
        beside = f"  (hypothesis only {baseline['accuracy']:.4f})" if baseline else ""
        lines.append(
            f"{name:<{width}}  {metrics.get('examples', ''):>5}  {metrics['accuracy']:.4f} "
            f"{_bounds(metrics['intervals']['accuracy']):<17}{figures}{beside}"
        )
    return lines


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bounds(interval: Sequence[float] | None, sign: str = "") -> str:
    return (
        "[no interval]"
        if interval is None
        else f"[{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"
    )


def seed_lines(seeds: Mapping) -> list[str]:
    """Return mean, standard deviation and interval of the accuracy over seeds, a line a dataset."""
    return [
        f"{name}: accuracy {figures['accuracy']['mean']:.4f} ± {figures['accuracy']['std']:.4f} "
        f"over {len(seeds['checkpoints'])} seeds, 95 % {_bounds(figures['accuracy']['interval'])}"
        for name, figures in _with_macro(seeds)
    ]


def comparison_lines(comparison: Mapping) -> list[str]:
    """Return the difference in accuracy with its interval and p, and McNemar's test, a line a
    dataset."""
    first, second = comparison["names"]
    lines = [f"{first} against {second}:"]
    for name, figures in _with_macro(comparison):
        accuracy, test = figures["accuracy"], figures.get("mcnemar")
        p = "" if accuracy["p"] is None else f", p {accuracy['p']:.4f}"
        mcnemar = f"; McNemar ({test['variant']}) p {test['p']:.4f}" if test else ""
        lines.append(
            f"{name}: accuracy {first} {accuracy['first']:.4f}, {second} {accuracy['second']:.4f}, "
            f"difference {accuracy['difference']:+.4f} {_bounds(accuracy['interval'], '+')}{p}"
            f"{mcnemar}"
        )
    return lines


def _with_macro(figures: Mapping) -> list[tuple[str, Mapping]]:
    macro = [("macro average", figures["macro_average"])] if len(figures["datasets"]) > 1 else []
    return [*figures["datasets"].items(), *macro]

"""What came out of a sweep: recipes by their validation scores, and the test scores of the best.

    python -m scripts.gather_sweep out/sweep/runs-NUMBER.txt

Reads the results.json of every run in the list (see sweep.sh), prints a table and writes it to
sweep.md and sweep.json beside the list. Test scores of other recipes than the selected one are
left out, so that nobody selects by them. Exit codes: 0 done, 1 no run is finished, 2 runs that
can't be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.errors import EXIT_FAILED, EXIT_REFUSED, RunError
from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.files import save_json, save_text

METRIC_NAMES = main_metrics()


@dataclass(frozen=True)
class Run:
    """A line of the list; `results` is None where a run is not finished, for the `reason`."""

    name: str
    results: dict | None
    reason: str = ""

    @property
    def recipe(self) -> str:
        return self.name.rpartition("/")[0]


def read_runs(list_path: Path) -> list[Run]:
    """Return all runs of the list, in its order."""
    lines = list_path.read_text(encoding="utf-8").splitlines()
    return [read_run(list_path.parent, line.split()[0]) for line in lines if line.strip()]


def read_run(folder: Path, name: str) -> Run:
    path = folder / name / "results.json"
    if not path.exists():
        started = path.parent.exists()
        return Run(name, None, "no results.json yet" if started else "not started")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        scores = {"validation": main_scores(results["validation"])}
        if results.get("test"):
            scores["test"] = main_scores(results["test"])
        facts = {key: results[key] for key in ("seed", "best_metric", "best_step")}
        if facts["best_metric"] not in scores["validation"]:
            raise KeyError(facts["best_metric"])
    except (ValueError, KeyError, TypeError) as error:
        return Run(name, None, f"results.json: {type(error).__name__}: {error}")
    return Run(name, scores | facts)


def main_scores(metrics: dict) -> dict[str, float]:
    """Return the main metrics of a split that are in its results."""
    return {name: float(metrics[name]) for name in METRIC_NAMES if name in metrics}


def gather(runs: list[Run]) -> dict:
    """Return what sweep.json holds; raise RunError for runs picked by different metrics."""
    finished = [run for run in runs if run.results is not None]
    metrics = sorted({run.results["best_metric"] for run in finished})
    if len(metrics) > 1:
        raise RunError(f"runs picked by different metrics: {', '.join(metrics)}")
    (metric,) = metrics
    by_recipe: dict[str, list[Run]] = {}
    for run in finished:
        by_recipe.setdefault(run.recipe, []).append(run)
    recipes = [summary_of(name, some, runs) for name, some in by_recipe.items()]
    recipes.sort(key=lambda recipe: rank(recipe["validation"][metric]["mean"], metric))
    selected = by_recipe[recipes[0]["recipe"]]
    return {
        "best_metric": metric,
        "recipes": recipes,
        "selected": {
            "recipe": recipes[0]["recipe"],
            "test": averages([run.results for run in selected], "test"),
            "runs": {run.name: run.results for run in selected},
        },
        "unfinished": {run.name: run.reason for run in runs if run.results is None},
    }


def summary_of(name: str, finished: list[Run], runs: list[Run]) -> dict:
    return {
        "recipe": name,
        "finished": len(finished),
        "listed": sum(run.recipe == name for run in runs),
        "validation": averages([run.results for run in finished], "validation"),
    }


def rank(value: float, metric: str) -> float:
    """Smaller is better."""
    return value if METRICS[metric].lower_is_better else -value


def averages(of_runs: list[dict], split: str) -> dict[str, dict]:
    """Return mean and sample standard deviation over the seeds; None for that of a single one.

    A metric that a run does not have, because it had no such split or is older than the metric, is
    left out.
    """
    summary = {}
    for metric in METRIC_NAMES:
        values = [results.get(split, {}).get(metric) for results in of_runs]
        if None in values:
            continue
        std = statistics.stdev(values) if len(values) > 1 else None
        summary[metric] = {"mean": statistics.fmean(values), "std": std}
    return summary


def as_markdown(summary: dict) -> str:
    selected, metric = summary["selected"], summary["best_metric"]
    lines = [
        f"Validation, mean ± standard deviation over seeds, best {metric} first:",
        "",
        f"| recipe | seeds | {' | '.join(METRIC_NAMES)} |",
        "|---" * (2 + len(METRIC_NAMES)) + "|",
    ]
    for recipe in summary["recipes"]:
        seeds = f"{recipe['finished']} of {recipe['listed']}"
        lines.append(f"| {recipe['recipe']} | {seeds} | {cells(recipe['validation'])} |")
    lines += _test_table(selected) if selected["test"] else ["", "No test split was scored."]
    if summary["unfinished"]:
        lines += ["", "Not finished, and left out:", ""]
        lines += [f"- {name}: {reason}" for name, reason in summary["unfinished"].items()]
    return "\n".join(lines) + "\n"


def _test_table(selected: dict) -> list[str]:
    """Return the lines of the test scores of the selected recipe, a seed each."""
    lines = [
        "",
        f"Test, of {selected['recipe']} alone, which validation selected:",
        "",
        f"| seed | best step | {' | '.join(METRIC_NAMES)} |",
        "|---" * (2 + len(METRIC_NAMES)) + "|",
    ]
    for results in selected["runs"].values():
        scores = cells(averages([results], "test"))
        lines.append(f"| {results['seed']} | {results['best_step']} | {scores} |")
    return [*lines, f"| mean ± std | | {cells(selected['test'])} |"]


def cells(scores: dict[str, dict]) -> str:
    """Return the cells of a row, one a metric; a dash for one that is not known."""
    return " | ".join(_cell(scores.get(metric)) for metric in METRIC_NAMES)


def _cell(score: dict | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.4f}" + ("" if score["std"] is None else f" ± {score['std']:.4f}")


def main() -> int:
    """Gather the list named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Gather the runs of a sweep.")
    parser.add_argument("list", type=Path, help="the list of runs that sweep.sh wrote")
    path = parser.parse_args().list
    try:
        runs = read_runs(path)
        if not any(run.results for run in runs):
            for run in runs:
                print(f"{run.name}: {run.reason}", file=sys.stderr)
            print(f"error: {path}: none of {len(runs)} runs is finished", file=sys.stderr)
            return EXIT_FAILED
        summary = gather(runs)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    text = as_markdown(summary)
    save_json(path.parent / "sweep.json", summary)
    save_text(path.parent / "sweep.md", text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

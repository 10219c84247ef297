"""The report of an evaluation, beside its results.json."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from xnli_gpt.evaluation.predictions import PREDICTIONS_FILE
from xnli_gpt.evaluation.sources import LogitSource
from xnli_gpt.provenance import code_commit
from xnli_gpt.report.content import ReportContent
from xnli_gpt.report.writing import write_report


def write_evaluation_report(
    folder: Path,
    results: Mapping,
    first: Sequence[LogitSource],
    second: Sequence[LogitSource],
    flags: Mapping[str, object],
) -> None:
    """Write report.html, report.md and figures/ about the content of results.json.

    `first` are the sources that were scored, `second` those that they are compared with.
    """
    comparison, split = results.get("comparison"), results["split"]
    title = _name_of(first) if comparison is None else " against ".join(comparison["names"])
    content = ReportContent(
        f"{title} on {', '.join(results['datasets'])} ({split})",
        results=results["datasets"],
        split=split,
        macro_average=results["macro_average"] if len(results["datasets"]) > 1 else None,
        random_trunk=_random_trunk(second, comparison),
        seeds=results.get("seeds"),
        comparison=comparison,
        predictions=_lines_of(folder / PREDICTIONS_FILE),
        facts=_facts(first, second, results),
        recipe=flags,
    )
    write_report(folder, content)


def _random_trunk(second: Sequence[LogitSource], comparison: Mapping | None) -> dict[str, float]:
    """Return the accuracies of what is compared with, where that is a trunk of random weights."""
    pretrained = [source.facts.get("pretrained") or {} for source in second]
    if comparison is None or not all(one.get("random_init") for one in pretrained):
        return {}
    return {name: one["accuracy"]["second"] for name, one in comparison["datasets"].items()}


def _name_of(sources: Sequence[LogitSource]) -> str:
    """Return what a recipe is called: the folder of its first checkpoint or predictions."""
    path = sources[0].path.resolve()
    name = path.parent.name if path.is_file() else path.name
    return name if len(sources) == 1 else f"{name} and {len(sources) - 1} more"


def _facts(
    first: Sequence[LogitSource], second: Sequence[LogitSource], results: Mapping
) -> dict[str, object]:
    return {
        "command": results["command"],
        "commit": code_commit(),
        "scored": [f"{source.path} {source.facts.get('sha256', '')}" for source in first],
        "compared with": [str(source.path) for source in second] or None,
        "pretrained": first[0].facts.get("pretrained"),
        "format": first[0].facts.get("format"),
        "data": {name: one["content_sha256"] for name, one in results["data"].items()} or None,
        "tokenizer": first[0].facts.get("tokenizer_sha256"),
        "bootstrap": results["bootstrap"],
        "machine": f"{platform.node()}, {results['device']}, {results['dtype']}",
        "versions": results["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines_of(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)

"""The content of an evaluation's results.json."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.intervals import over_seeds
from xnli_gpt.evaluation.options import IntervalOptions
from xnli_gpt.evaluation.scored_split import SCORES, ScoredSplit, scores_of_models
from xnli_gpt.evaluation.scores import macro_average, split_metrics
from xnli_gpt.evaluation.scoring import Scorer
from xnli_gpt.evaluation.sides import names_of_sides
from xnli_gpt.evaluation.sources import LogitSource

PACKAGES = ("torch", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Side:
    """The seeds of one recipe, and per dataset their rows with logits."""

    sources: Sequence[LogitSource]
    scored: Mapping[str, ScoredSplit]

    def seeds(self) -> dict:
        """Return the spread over models, per dataset and of the macro average."""
        of_sets = {name: scores_of_models(one) for name, one in self.scored.items()}
        given = set.intersection(*(set(scores) for scores in of_sets.values()))
        macro = {
            name: np.mean([scores[name] for scores in of_sets.values()], axis=0)
            for name in filter(given.__contains__, SCORES)
        }
        return {
            "checkpoints": [source.facts for source in self.sources],
            "datasets": {
                name: {score: over_seeds(values, score) for score, values in scores.items()}
                for name, scores in of_sets.items()
            },
            "macro_average": {score: over_seeds(values, score) for score, values in macro.items()},
        }


def results_of(
    first: Side,
    second: Side | None,
    names: Sequence[str] | None,
    intervals: IntervalOptions,
    hypothesis_only: Mapping[str, dict],
) -> dict:
    """Return the metrics of the first side with intervals, and its comparison with the second,
    if there is one, under the names of the two or those found by their paths."""
    draws = {"resamples": intervals.bootstrap_samples, "seed": intervals.seed}
    metrics = {name: split_metrics(one, **draws) for name, one in first.scored.items()}
    for name, figures in hypothesis_only.items():
        metrics[name]["hypothesis_only"] = figures
    results = {
        "datasets": metrics,
        "macro_average": macro_average(metrics, first.scored, **draws),
        "checkpoint": first.sources[0].facts,
    }
    if len(first.sources) > 1:
        results["seeds"] = first.seeds()
    if second is not None:
        paths = ([source.path for source in side.sources] for side in (first, second))
        results["comparison"] = {
            "names": list(names or names_of_sides(*paths)),
            "checkpoints": [source.facts for source in second.sources],
            **compare(first.scored, second.scored, **draws),
        }
        if len(second.sources) > 1:
            results["comparison"]["seeds"] = second.seeds()
    return results | {"bootstrap": draws}


def facts_of(scorer: Scorer, source: LogitSource) -> dict:
    """Return what results.json says of data and machine; nothing of the data of predictions."""
    split = scorer.reader.split
    data = {}
    if source.encoding is not None:
        data = {name: scorer.data_of(source, name) for name in scorer.rows}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "data": {
            name: {"content_sha256": one.content_hash, **one.statistics[split]}
            for name, one in data.items()
        },
        "device": str(scorer.device),
        "dtype": str(scorer.inference.dtype).removeprefix("torch."),
        "versions": versions | {"python": platform.python_version()},
        "command": sys.argv,
    }

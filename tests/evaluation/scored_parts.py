"""Splits with made-up logits."""

import numpy as np
import torch

from xnli_gpt.evaluation.scored_split import ScoredSplit

CLASSES = ("entailment", "neutral", "contradiction")


def logits_predicting(predictions: list[int], num_classes: int = 3) -> torch.Tensor:
    return 2.0 * torch.eye(num_classes)[torch.tensor(predictions)]


def scored_at_random(
    seed: int, num_premises: int = 100, models: int = 1, skill: float = 1.0
) -> ScoredSplit:
    """Three rows a premise, predicted better than by chance."""
    generator = np.random.default_rng(seed)
    rows = 3 * num_premises
    labels = np.tile([0, 1, 2], num_premises)
    logits = generator.standard_normal((models, rows, 3)) + skill * np.eye(3)[labels]
    return ScoredSplit(
        ids=range(rows),
        premises=[f"premise {i // 3}" for i in range(rows)],
        hypotheses=[f"hypothesis {i}" for i in range(rows)],
        labels=labels,
        logits=logits.astype(np.float32),
        classes=CLASSES,
        language="en",
    )


def scored_by_hand(
    premises: list[str], right: list[bool], hypotheses: list[str] | None = None
) -> ScoredSplit:
    """Rows of class 0, predicted as that or as class 1."""
    logits = logits_predicting([0 if good else 1 for good in right]).numpy()[None]
    return ScoredSplit(
        ids=range(len(right)),
        premises=premises,
        hypotheses=hypotheses or ["hypothesis"] * len(right),
        labels=np.zeros(len(right), dtype=np.int64),
        logits=logits,
        classes=CLASSES,
        language="en",
    )

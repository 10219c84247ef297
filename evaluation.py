"""Metrics of a classifier: from batches to logits, from logits to numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor

# Larger is better for all but the loss.
METRICS = ("accuracy", "macro_f1", "loss")


class EvaluationError(ValueError):
    """A model can't be scored; the message says what was seen and what to try."""


@torch.inference_mode()
def predict_logits(
    predict: Callable[[object], Tensor],
    batches: Iterable[tuple[np.ndarray, object]],
    num_rows: int,
    num_classes: int,
) -> Tensor:
    """Logits [num_rows, classes], float32 on the CPU, in the order of the rows.

    `batches` gives (positions of the rows, inputs) in any order and cut, and `predict(inputs)`
    their logits [B, classes].
    """
    logits = torch.full((num_rows, num_classes), torch.nan)
    for positions, inputs in batches:
        logits[torch.from_numpy(positions)] = predict(inputs).float().cpu()
    return logits


def classification_metrics(logits: Tensor, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Accuracy, macro F1, loss (mean cross-entropy in nats) and figures of every class.

    `logits` [N, classes], `labels` [N]. Macro F1 is the mean over all classes, 0 for one that is
    neither there nor predicted. Raises EvaluationError for logits that are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            "logits are not finite: lower --learning_rate, or use --dtype float32"
        )
    predictions = logits.argmax(dim=-1).numpy()
    ids = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=ids, zero_division=0
    )
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(np.mean(f1)),
        "loss": float(F.cross_entropy(logits, torch.from_numpy(np.asarray(labels)))),
        "examples": len(labels),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, predictions, labels=ids).tolist(),
    }


def is_better(metric: str, new: float, best: float | None) -> bool:
    """Whether `new` beats `best` (None: nothing yet) in `metric`; a tie is not better."""
    if best is None:
        return True
    return new < best if metric == "loss" else new > best

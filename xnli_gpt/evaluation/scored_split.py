"""The rows of a split with the logits of one model or several, and the sums over rows that all
scores are computed from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xnli_gpt.evaluation.metrics import METRICS, Counts, scores

# What intervals and comparisons are given for.
SCORES = scores()


@dataclass(frozen=True)
class ScoredSplit:
    """The rows of one dataset's split with the logits of one model, or of several models of one
    recipe (seeds) on the same rows."""

    ids: Sequence[int]  # [N] places in the split
    premises: Sequence[str]  # [N]
    hypotheses: Sequence[str]  # [N]
    labels: np.ndarray  # [N] int64
    logits: np.ndarray  # [models, N, classes] float32
    classes: tuple[str, ...]
    language: str | None = None  # None: by the words that are found
    carried: Mapping[str, Sequence[str]] = field(default_factory=dict)  # other columns [N]
    # Of predictions of other tools: else logits say no more than the answer, or texts are unknown.
    has_probabilities: bool = True
    has_texts: bool = True

    @property
    def scores(self) -> tuple[str, ...]:
        """Return the names of SCORES that can be given."""
        return tuple(
            s for s in SCORES if self.has_probabilities or not METRICS[s].needs_probabilities
        )

    def of_model(self, number: int) -> ScoredSplit:
        """Return the same rows with the logits of one model."""
        return replace(self, logits=self.logits[number : number + 1])

    @property
    def answers_one_class(self) -> bool:
        """Return whether every model gives all rows the same answer."""
        answers = self.logits.argmax(axis=-1)  # [models, N]
        return bool((answers == answers[:, :1]).all())

    @property
    def probabilities(self) -> np.ndarray:
        """Return [models, N, classes] float64."""
        import scipy.special

        return scipy.special.softmax(self.logits.astype(np.float64), axis=-1)


def score_columns(scored: ScoredSplit) -> np.ndarray:
    """Return [N, models · (classes² + 1)], see `sums_of_rows`."""
    return sums_of_rows(scored.logits, scored.labels)


def sums_of_rows(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return [N, models · (classes² + 1)] from logits [models, N, classes]: sums of rows of this
    are all that the scores need, for each model the cells of its confusion matrix and its loss."""
    import scipy.special

    num_classes = logits.shape[-1]
    cells = labels * num_classes + logits.argmax(axis=-1)  # [models, N]
    confusion = np.eye(num_classes**2)[cells]  # [models, N, classes²]
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    losses = -log_probabilities[:, np.arange(len(labels)), labels]  # [models, N]
    columns = np.concatenate([confusion, losses[..., None]], axis=-1)
    return columns.transpose(1, 0, 2).reshape(len(labels), -1)


def counts_of(sums: np.ndarray, num_classes: int) -> Counts:
    """Return the counts [..., models] that sums of `score_columns` [..., columns] stand for."""
    sums = sums.reshape(*sums.shape[:-1], -1, num_classes**2 + 1)  # [..., models, classes² + 1]
    confusion = sums[..., :-1].reshape(*sums.shape[:-1], num_classes, num_classes)
    return Counts(confusion, sums[..., -1])


def scores_of_sums(sums: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Return every one of SCORES [B], the mean over models, from sums of `score_columns` [B,
    columns]."""
    counts = counts_of(sums, num_classes)  # [B, models]
    return {name: METRICS[name].of_counts(counts).mean(axis=-1) for name in SCORES}


def scores_of_models(scored: ScoredSplit) -> dict[str, np.ndarray]:
    """Return every one of SCORES [models], model by model."""
    of_models = [
        scores_of_sums(score_columns(scored.of_model(i)).sum(axis=0)[None], len(scored.classes))
        for i in range(len(scored.logits))
    ]
    return {name: np.concatenate([one[name] for one in of_models]) for name in scored.scores}

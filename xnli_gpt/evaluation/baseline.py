"""A classifier that never sees a premise, to hold scores against."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from xnli_gpt.evaluation.slices import NEGATIONS, is_negated, words_of


def hypothesis_only(
    train_hypotheses: Sequence[str],
    train_labels: np.ndarray,
    hypotheses: Sequence[str],
    labels: np.ndarray,
    language: str | None = None,
) -> dict:
    """Return accuracy and macro F1 of a classifier that never sees a premise (Poliak et al. 2018;
    Gururangan et al. 2018): TF-IDF of the hypothesis' words and pairs of words, each word of a
    negated hypothesis once more as such, and logistic regression. What it gets right, the data
    gives away without inference.

    The mean of macro F1 is over the classes of train, two or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    vectorizer = TfidfVectorizer(
        analyzer=lambda text: _hypothesis_features(text, language), dtype=np.float32
    )
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(vectorizer.fit_transform(train_hypotheses), train_labels)
    predictions = classifier.predict(vectorizer.transform(hypotheses))
    f1 = f1_score(labels, predictions, labels=classifier.classes_, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(labels, predictions)), "macro_f1": float(f1)}


def _hypothesis_features(text: str, language: str | None) -> list[str]:
    words = words_of(text, language)
    pairs = [f"{word} {following}" for word, following in pairwise(words)]
    # A topic that is mostly denied, or mostly not, is an artefact that no single word shows.
    negated = language in NEGATIONS and is_negated(text, language)
    return [*words, *pairs, *(f"!{word}" for word in words if negated)]

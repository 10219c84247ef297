"""What a model's answers on a split are like, whatever is right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def only_answer(metrics: Mapping[str, object]) -> str | None:
    """Return the class, of two or more, that a model gives to every row of a split; None where it
    gives several.

    `metrics` are those of one split, with its "confusion" (rows by class, columns by answer) and
    "per_class" in the order of the classes. Of several models, all of them have to agree.
    """
    if not metrics.get("confusion") or len(metrics.get("per_class", ())) < 2:
        return None
    answers = [sum(column) for column in zip(*metrics["confusion"], strict=True)]
    given = [name for name, count in zip(metrics["per_class"], answers, strict=True) if count]
    return given[0] if len(given) == 1 else None


def only_answers(metrics: Mapping[str, object], name: str) -> dict[str, str]:
    """Return the same by what was scored: `name`, or each of the sets of a mean over several."""
    of_sets = metrics.get("sets") or {name: metrics}
    answers = {place: only_answer(of_set) for place, of_set in of_sets.items()}
    return {place: answer for place, answer in answers.items() if answer is not None}


def one_class_warning(answers: Mapping[str, str]) -> str | None:
    """Return what is to be said of such a model, by the places of `only_answers`; None without."""
    if not answers:
        return None
    told = ", ".join(f"{answer} on {place}" for place, answer in answers.items())
    return (
        f"warning: the model answers one class alone, whatever the pair ({told}): it tells nothing "
        "apart, and its accuracy is the share of that class"
    )


# How much better another order of the classes must fit, and on so many rows how much at least by
# chance: three standard deviations of an accuracy.
CLEARLY_BETTER = 0.15


def other_order_warning(metrics: Mapping[str, object], place: str) -> str | None:
    """Return what is to be said where the answers fit the labels far better once the classes are
    put in another order: the labels may be numbers of another order. None where they don't.

    `metrics` as of `only_answer`; `place` is what was scored.
    """
    if not metrics.get("confusion"):
        return None
    # Only here: an import of half a second.
    from scipy.optimize import linear_sum_assignment

    confusion = np.array(metrics["confusion"])
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    total = confusion.sum()
    now, best = np.trace(confusion) / total, confusion[rows, columns].sum() / total
    if best - now < max(CLEARLY_BETTER, 1.5 / np.sqrt(total)):
        return None
    classes = list(metrics["per_class"])
    meant = " ".join(classes[column] for column in columns)
    return (
        f"warning: {place}: the answers fit {best:.4f} of the labels instead of {now:.4f} if "
        f"{' '.join(classes)} are {meant}: the numbers of the labels may be in another order, "
        "which `label_names` says"
    )

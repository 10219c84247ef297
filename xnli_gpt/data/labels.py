"""Labels: matched by name, and the classes that they are of, in the order of their ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xnli_gpt.data.request import DataRequest
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed, shown

NLI_CLASSES = ("entailment", "neutral", "contradiction")
LABEL_ALIASES = {"contradictory": "contradiction"}


Label = str | int


def label_name(value: object, names: Sequence[str] | None) -> Label | None:
    """Return a label as a name (lower case) or, where nothing says what numbers mean, as a number;
    None for what is none: a missing value, -1, an empty string, a dash, a float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip().casefold()
        if re.fullmatch(r"-|[+-]?(\d+\.\d*|\.\d+|\d+e[+-]?\d+|nan)", value):
            return None
        if not re.fullmatch(r"-?\d{1,6}", value):
            return LABEL_ALIASES.get(value, value) or None
        value = int(value)
    if not isinstance(value, int) or value < 0:
        return None
    if names is None:
        return value
    return label_name(names[value], None) if value < len(names) else None


def classes_of(
    labels: Mapping[str, Sequence[Label | None]], name: str, request: DataRequest
) -> tuple[str, ...]:
    """Return the classes in the order of their ids, from the labels of train (else of the first
    split). Raises DataError where they can't be told, or are not those asked for."""
    basis = "train" if "train" in labels else next(iter(labels))
    found = {label for label in labels[basis] if label is not None}
    if not found:
        raise DataError(f"{name}: {basis} has no labels; expected {', '.join(NLI_CLASSES)}")
    require_one_kind(labels, name, request)
    if all(isinstance(label, int) for label in found):
        classes, present = _numbered_classes(found, basis, name, request)
    else:
        classes, present = _named_classes(found, request), found
    wanted = request.num_classes
    if wanted is not None and len(classes) != wanted:
        raise DataError(
            f"`num_classes` {wanted}, but {name} has {len(classes)} classes in {basis}: "
            f"{listed(classes)}; leave the flag out or correct it"
        )
    absent = [label for label in classes if label not in present]
    if absent and basis == "train":
        seen = [
            f"row {labels[basis].index(label) + 1} has {label}"
            for label in sorted(found, reverse=True)
        ]
        raise DataError(
            f"{name}: no example of {listed(absent)} in train, so it can't be learned "
            f"({listed(seen)}); add examples, or say `num_classes` for a set with fewer classes"
        )
    if len(classes) < 2:
        raise DataError(f"{name}: only one class, {classes[0]}, in {basis}; expected two or more")
    return classes


def require_one_kind(
    labels: Mapping[str, Sequence[Label | None]], name: str, request: DataRequest
) -> None:
    """Raise DataError where some labels are names and others numbers, which may be of any order."""
    first: dict[type, str] = {}
    for split, of_split in labels.items():
        for number, label in enumerate(of_split, start=1):
            if label is not None and len(first) < 2:
                first.setdefault(type(label), f"{split} row {number}: {shown(label)}")
    if len(first) > 1 and request.label_names is None:
        raise DataError(
            f"{name}: has labels that are names ({first[str]}) and labels that are numbers "
            f"({first[int]}): which name each number has is not known; say it by `label_names`, "
            "the names in the order of their numbers"
        )


def _numbered_classes(
    found: set[int], basis: str, name: str, request: DataRequest
) -> tuple[tuple[str, ...], set[str]]:
    """Return the classes that numbers are of, and those of them that are there."""
    count = request.num_classes or max(found) + 1
    if count > 1000:
        raise DataError(f"{name}: a label {max(found)} in {basis}; expected ids from 0 upwards")
    classes = NLI_CLASSES if count == 3 else tuple(str(i) for i in range(count))
    return classes, {classes[i] for i in found if i < count}


def _named_classes(found: set[str], request: DataRequest) -> tuple[str, ...]:
    # All three and a fourth: that one is a mistake, not a class, unless it is asked for.
    nli = found <= set(NLI_CLASSES) or found >= set(NLI_CLASSES)
    if nli and request.num_classes in (None, len(NLI_CLASSES)):
        return NLI_CLASSES
    given = tuple(label_name(name, None) for name in request.label_names or ())
    return given if found <= set(given) else tuple(sorted(found))


def label_ids(labels: Sequence[Label | None], classes: Sequence[str], where: str) -> np.ndarray:
    """Return the ids [N] of labels, -1 of those that are None. Raises DataError for others than
    the classes."""
    ids: dict[Label | None, int] = {label: i for i, label in enumerate(classes)}
    if classes == NLI_CLASSES or "0" in classes:
        ids |= {i: i for i in range(len(classes))}
    bad = [
        f"row {n} has {label!r}"
        for n, label in enumerate(labels, start=1)
        if label is not None and label not in ids
    ]
    if bad:
        raise DataError(f"{where}: unknown label, expected {', '.join(classes)}; {listed(bad)}")
    return np.array([ids.get(label, -1) for label in labels], dtype=np.int64)


def note_of_numbers(labels: Iterable[Label | None], classes: Sequence[str]) -> str | None:
    """Return what to say where numbers alone were taken for names, in the order of XNLI."""
    is_number = any(isinstance(label, int) for label in labels)
    if classes != NLI_CLASSES or not is_number:
        return None
    told = ", ".join(f"{number} as {name}" for number, name in enumerate(classes))
    return (
        f"note: its labels are numbers, taken in XNLI's order: {told}; another order is said by "
        "`label_names`"
    )


def any_label(labels: Iterable[Label | None]) -> bool:
    """Return whether any row has a label."""
    return any(label is not None for label in labels)

"""Labels: matched by name, and the classes that they are of, in the order of their ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from xnli_gpt.data.request import DataRequest
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed

NLI_CLASSES = ("entailment", "neutral", "contradiction")
LABEL_ALIASES = {"contradictory": "contradiction"}


def label_names(
    values: Iterable[object], names: Sequence[str] | None, column: str, where: str
) -> list[str | int]:
    """Labels as names (lower case) or, where the data has only numbers, as numbers."""
    labels: list[str | int] = []
    bad = []
    for number, value in enumerate(values, start=1):
        label = _label_name(value, names)
        if label is None:
            bad.append(f"row {number} has {value!r}")
        else:
            labels.append(label)
    if bad:
        raise DataError(f"{where}: column {column} must be a label, but {listed(bad)}")
    return labels


def _label_name(value: object, names: Sequence[str] | None) -> str | int | None:
    """One label, or None for what is none: a missing value, -1, an empty string, a float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip().casefold()
        if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+e[+-]?\d+|nan)", value):
            return None
        if not re.fullmatch(r"-?\d{1,6}", value):
            return LABEL_ALIASES.get(value, value) or None
        value = int(value)
    if not isinstance(value, int) or value < 0:
        return None
    if names is None:
        return value
    return _label_name(names[value], None) if value < len(names) else None


def classes_of(
    labels: Mapping[str, Sequence[str | int]], name: str, request: DataRequest
) -> tuple[str, ...]:
    """The classes in the order of their ids, from the labels of train (else of the first split)."""
    basis = "train" if "train" in labels else request.splits[0]
    found = set(labels[basis])
    wanted = request.num_classes
    if len({type(label) for label in found}) > 1:
        first = {type(label): number for number, label in reversed([*enumerate(labels[basis], 1)])}
        raise DataError(
            f"{name}: {basis} has labels that are names (row {first[str]}) and labels that are "
            f"numbers (row {first[int]})"
        )
    if all(isinstance(label, int) for label in found):
        count = wanted or max(found) + 1
        if count > 1000:
            raise DataError(f"{name}: a label {max(found)} in {basis}; expected ids from 0 upwards")
        classes = NLI_CLASSES if count == 3 else tuple(str(i) for i in range(count))
        present = {classes[i] for i in found if i < count}
    else:
        # All three and a fourth: that one is a mistake, not a class, unless it is asked for.
        nli = found <= set(NLI_CLASSES) or found >= set(NLI_CLASSES)
        is_nli = nli and wanted in (None, len(NLI_CLASSES))
        classes = NLI_CLASSES if is_nli else tuple(sorted(found))
        present = found
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


def label_ids(labels: Sequence[str | int], classes: Sequence[str], where: str) -> np.ndarray:
    ids: dict[str | int, int] = {label: i for i, label in enumerate(classes)}
    if classes == NLI_CLASSES or "0" in classes:
        ids |= {i: i for i in range(len(classes))}
    bad = [f"row {n} has {label!r}" for n, label in enumerate(labels, start=1) if label not in ids]
    if bad:
        raise DataError(f"{where}: unknown label, expected {', '.join(classes)}; {listed(bad)}")
    return np.array([ids[label] for label in labels], dtype=np.int64)

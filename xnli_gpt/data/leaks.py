"""Pairs that stand in train and in another split, too, and pairs with several labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xnli_gpt.data.selection import SelectedRows


def find_leaks(
    selected: Mapping[str, SelectedRows], where: Mapping[str, str]
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the rows of every split but train whose pair stands in train, too, and notes of them
    and of pairs with several labels."""
    leaked, notes = {}, []
    seen = set(_pairs(selected["train"])) if "train" in selected else set()
    for split, rows in selected.items():
        found = [row for row, pair in enumerate(_pairs(rows)) if pair in seen]
        if split != "train" and found:
            leaked[split] = found
            notes.append(
                f"warning: {where[split]}: {len(found)} of {len(rows.labels)} pairs stand in "
                "train, too: a model may know them by heart"
            )
        if number := _contradictory(rows):
            notes.append(
                f"warning: {where[split]}: {number} pairs stand more than once, with different "
                "labels"
            )
    return leaked, notes


def _pairs(rows: SelectedRows) -> Iterator[tuple[str, str]]:
    return zip(rows.premises, rows.hypotheses, strict=True)


def _contradictory(rows: SelectedRows) -> int:
    labels: dict[tuple[str, str], set] = {}
    for pair, label in zip(_pairs(rows), rows.labels, strict=True):
        labels.setdefault(pair, set()).add(label)
    return sum(len(found) > 1 for found in labels.values())

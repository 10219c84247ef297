"""Bytes, JSON and words that are wrong in any way, for every kind of input."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable

END = "<|endoftext|>"
TEXTS = [
    "राम ने बाज़ार से किताबें खरीदीं और घर लौट आया।",
    "किसी ने भी दरवाज़ा नहीं खोला।",
    "A plain line, with 12 numbers",
    f"  spaces \t and {END} <pad> [UNK] spelled out ",
    "e\u0301 \u00e9 \U0001f600 क्\u200dष \ufeff \u2028 \x00 \x7f",
    "x",
]
ODD_WORDS = [
    "", " ", "a", "नहीं", "0", "1", "-1", "1.0", "nan", "NaN", "inf", "1e5", "1e999", "true",
    "null",
    "None", "2020-01-01", "x" * 1000, "a\nb", "a\r\nb", "a\rb", "\u2028", "\x85", "\x00",
    "\x1b[31m",
    "\ufeff", "\u202e", "'", '"', '""', '"a"', "a,b", "a\tb", "#", "\\", "\\n", "{}", "[]", "٣",
    "१",
    "9" * 25, "-0", "+1", "entailment", "NEUTRAL", "contradictory", "🤷",
]  # fmt: skip


def changed_bytes(data: bytes, generator: random.Random) -> bytes:
    """A few bytes flipped, replaced, lost or added, or the end cut off."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at, length = generator.randrange(len(changed) + 1), generator.choice([1, 1, 2, 8, 100])
        kind = generator.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[at : at + length] = generator.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            word = generator.choice(ODD_WORDS).encode()
            changed[at:at] = generator.choice([word, b"\xff", b"\x00", b"\r", b"\n", b'"', b","])
        elif kind == 4:
            source = generator.randrange(len(changed) + 1)
            changed[at:at] = changed[source : source + length]
        else:
            del changed[at:]
    return bytes(changed)


ODD_JSON: list[object] = [
    None, True, False, 0, 1, -1, 5, 255, 1 << 31, 1 << 32, 1 << 64, 10**400, 0.5, -1.5, 1e300,
    math.nan, math.inf, "", "x", END, "a b", "ab", "\ud800", "\x00", "BPE", "Unigram", "WordPiece",
    "ByteLevel", "Regex", "(", "[", [], {}, [[]], [None], ["a", "b"], ["a b c"], [["a", "b", "c"]],
    {"type": "BPE"}, {"type": "x"}, {"Regex": "("}, {"Regex": ".*"}, {"String": ""}, {"Regex": ""},
    {"id": 0, "content": END, "special": True}, {"": {"": {}}},
]  # fmt: skip


def changed_json(tree: object, generator: random.Random) -> object:
    """A random node replaced, lost, doubled, renamed, nested or swapped."""
    places = list(_places(tree))
    # Else nearly every place is in the vocabulary or the merges.
    shallow = [place for place in places if len(place) < 3]
    place = generator.choice(shallow if generator.random() < 0.6 else places)
    if not place:
        return _odd_json(generator)
    parent = tree
    for step in place[:-1]:
        parent = parent[step]
    step, kind = place[-1], generator.randrange(8)
    if kind <= 2:
        parent[step] = _odd_json(generator)
    elif kind == 3:
        del parent[step]
    elif kind == 4:
        other = generator.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[step], parent[other] = parent[other], parent[step]
    elif kind == 5 and isinstance(parent, dict):
        parent[str(generator.choice(ODD_JSON))] = parent.pop(step)
    elif kind == 6 and isinstance(parent, list):
        parent.append(parent[step])
    else:
        for _ in range(generator.choice([1, 2, 100, 300])):
            parent[step] = [parent[step]]
    return tree


def _odd_json(generator: random.Random) -> object:
    # The next change may fall into it.
    return copy.deepcopy(generator.choice(ODD_JSON))


def _places(tree: object, place: tuple = ()) -> Iterable[tuple]:
    yield place
    if len(place) > 8:
        return
    steps = tree.items() if isinstance(tree, dict) else []
    steps = enumerate(tree) if isinstance(tree, list) else steps
    for step, node in steps:
        yield from _places(node, (*place, step))

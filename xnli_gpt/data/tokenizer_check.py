"""What a tokenizer does to the texts at hand that its user should know before training: letters
that it loses, and forms of one letter that it tells apart."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from tokenizers import Tokenizer

from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.messages import shown

# Enough for every letter of a script, and few enough to take no time.
SAMPLED_TEXTS, SAMPLED_WORDS = 20_000, 5_000
# What a text may hold beside the plain form, and how a note calls it.
JOINERS = "\u200c\u200d"
NO_BREAK_SPACES = "\u00a0\u202f"


def notes_of_encoding(texts: Iterable[str], encoding: PairEncoding) -> list[str]:
    """Return warnings of letters that the tokenizer loses, and notes of forms that change its
    tokens, both counted on the texts."""
    sample = list(islice(texts, SAMPLED_TEXTS))
    counts = Counter(word for text in sample for word in text.split())
    words = [word for word, _ in counts.most_common(SAMPLED_WORDS)]
    notes = [_lost_letters(words, encoding.tokenizer), _forms(sample, encoding.tokenizer)]
    return [note for note in notes if note is not None]


def _lost_letters(words: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """Return a warning with the commonest word that loses letters, and what is left of it."""
    unknown = _unknown_id(tokenizer)
    lost: list[tuple[str, str]] = []
    for word, encoded in zip(
        words, tokenizer.encode_batch(list(words), add_special_tokens=False), strict=True
    ):
        normalized = word
        if tokenizer.normalizer is not None:
            normalized = tokenizer.normalizer.normalize_str(word)
        if _letters(word) - _letters(normalized):
            lost.append((word, normalized))
        elif (unknown is not None and unknown in encoded.ids) or (
            word == normalized and _letters(word) - _letters(_covered(word, encoded.offsets))
        ):
            lost.append((word, tokenizer.decode(encoded.ids, skip_special_tokens=False)))
    if not lost:
        return None
    word, left = lost[0]
    return (
        f"warning: the tokenizer loses letters in {len(lost)} of the {len(words)} commonest words "
        f"of these texts: of {shown(word)} there is left {shown(left) or 'nothing'}; is it the "
        "tokenizer of the pretraining?"
    )


def _covered(word: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return the characters of a word that any token is of."""
    places = {place for begin, end in spans for place in range(begin, end)}
    return "".join(character for place, character in enumerate(word) if place in places)


def _letters(text: str) -> Counter[str]:
    """Return the letters and signs of a text, whatever their case and composition."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    return Counter(c for c in folded if unicodedata.category(c)[0] in "LM")


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the token of what the tokenizer does not know, where it has one."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return model["unk_id"]
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def _forms(texts: Sequence[str], tokenizer: Tokenizer) -> str | None:
    """Return a note of the texts that hold joiners, no-break spaces or letters in another form
    than NFC, where that changes their tokens."""
    plain = {
        "letters in another form than NFC (nukta and others)": lambda text: unicodedata.normalize(
            "NFC", text
        ),
        "zero-width joiners": lambda text: re.sub(f"[{JOINERS}]", "", text),
        "no-break spaces": lambda text: re.sub(f"[{NO_BREAK_SPACES}]", " ", text),
    }
    told = []
    for what, make_plain in plain.items():
        changed = [text for text in texts if make_plain(text) != text]
        if changed and _ids(tokenizer, changed[0]) != _ids(tokenizer, make_plain(changed[0])):
            told.append(f"{len(changed)} with {what}")
    if not told:
        return None
    return (
        f"note: of {len(texts)} different texts, {', '.join(told)}, which get other tokens than "
        "the plain form; `normalize` NFC makes one form of letters"
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids

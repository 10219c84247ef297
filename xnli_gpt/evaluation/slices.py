"""Words and negations of the languages of XNLI, and accuracy on the rows that they set apart."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from xnli_gpt.data.names import language_of_name
from xnli_gpt.evaluation.intervals import interval, premise_groups
from xnli_gpt.evaluation.scored_split import ScoredSplit

# Slices of one carried column.
MOST_VALUES = 12
# Thai and Chinese are written without spaces: there, characters and pairs of them stand for words.
UNSPACED_LANGUAGES = ("th", "zh")
LONGEST_PREMISES = {"words": (10, 20, 30), "characters": (20, 40, 80)}
OVERLAPS = (0.25, 0.5, 0.75, 1.0)
PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~।॥۔،؟؛٪“”„‘’«»‹›…–—¿¡·。，、？！：；「」『』（）《》"
)
# Words that negate. Turkish and Swahili mostly negate inside of the verb, which no list of words
# finds; words with another common meaning (French plus, Urdu بنا) are left out.
NEGATIONS = {
    language: frozenset(unicodedata.normalize("NFC", words).casefold().split())
    for language, words in {
        "hi": "नहीं नही न ना मत बिना",
        "en": "not no never none nobody nothing nowhere neither nor cannot without",
        "ur": "نہیں نہيں نهیں نہ مت بغیر",
        "ar": "لا لم لن ليس ليست ليسوا لست لسنا ولا ولم ولن وليس فلا فلم بلا بدون غير أبدا أبداً",
        "bg": "не няма нямат нямам нямаше нямаха нито никога нищо никой никаква никакво без",
        "de": "nicht kein keine keinen keinem keiner keines nie niemals nichts niemand ohne weder",
        "el": "δεν δε μη μην όχι ποτέ χωρίς κανένας καμία κανένα τίποτα ούτε",
        "es": "no nunca jamás nada nadie ningún ninguno ninguna tampoco sin ni",
        "fr": "ne pas non jamais rien aucun aucune sans ni",
        "ru": "не нет ни никогда ничего никто никого нельзя без никакой никакая никаких",
        "vi": "không chưa chẳng đừng chả",
        "zh": "不 没 沒 无 無",
        "th": "ไม่ ปราศจาก",
    }.items()
}
# Where a word is negated by a part of it: can't, n'est.
NEGATED_WORDS = {"en": re.compile(r".+n't"), "fr": re.compile(r"n'.+")}
# Fewer hypotheses with a language's negations than this are chance likeness of words.
SHARE_NEGATED = 0.02


def words_of(text: str, language: str | None = None) -> list[str]:
    """Return the words of a text without case and punctuation; of a language that is written
    without spaces its characters."""
    text = unicodedata.normalize("NFC", text).casefold().replace("’", "'")
    words = [word for part in text.split() if (word := part.strip(PUNCTUATION))]
    return list("".join(words)) if language in UNSPACED_LANGUAGES else words


def is_negated(text: str, language: str) -> bool:
    """Return whether a word of NEGATIONS[language] stands in the text."""
    negations = NEGATIONS[language]
    words = words_of(text, language)
    if language in UNSPACED_LANGUAGES:
        return any(negation in "".join(words) for negation in negations)
    part = NEGATED_WORDS.get(language)
    return any(word in negations or (part and part.fullmatch(word)) for word in words)


def language_of(dataset: str, hypotheses: Sequence[str]) -> str | None:
    """Return the language of a dataset by its name, else that whose negations most hypotheses
    hold; None where hardly any holds one."""
    if named := language_of_name(dataset):
        return named
    found = {
        language: sum(is_negated(hypothesis, language) for hypothesis in hypotheses)
        for language in NEGATIONS
    }
    likeliest = max(found, key=found.__getitem__)
    return likeliest if found[likeliest] > SHARE_NEGATED * len(hypotheses) else None


def word_overlap(premise: str, hypothesis: str, language: str | None = None) -> float:
    """Return the share of the hypothesis' different words that stand in the premise, too; of a
    language that is written without spaces, of its pairs of characters."""
    in_premise, in_hypothesis = (set(_units(text, language)) for text in (premise, hypothesis))
    return len(in_hypothesis & in_premise) / len(in_hypothesis) if in_hypothesis else 0.0


def _units(text: str, language: str | None) -> Iterable[object]:
    words = words_of(text, language)
    return pairwise(words) if language in UNSPACED_LANGUAGES else words


def slices_of(
    premises: Sequence[str], hypotheses: Sequence[str], language: str | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return rows by length of the premise, by the hypothesis' word overlap with it and by negation
    in the hypothesis: for each the masks [N] of its slices by name, without empty ones.

    "negation" has none where the language is unknown or NEGATIONS doesn't hold it.
    """
    unit = "characters" if language in UNSPACED_LANGUAGES else "words"
    lengths = np.array([len(words_of(premise, language)) for premise in premises])
    pairs = zip(premises, hypotheses, strict=True)
    overlaps = np.array(
        [word_overlap(premise, hypothesis, language) for premise, hypothesis in pairs]
    )
    slices = {
        "premise_length": _cut_by_length(lengths, LONGEST_PREMISES[unit], unit),
        "word_overlap": _cut_by_overlap(overlaps),
        "negation": {},
    }
    if language in NEGATIONS:
        negated = np.array([is_negated(hypothesis, language) for hypothesis in hypotheses])
        slices["negation"] = {"with negation": negated, "without negation": ~negated}
    return {
        kind: {name: mask for name, mask in cuts.items() if mask.any()}
        for kind, cuts in slices.items()
    }


def slices_by_columns(carried: Mapping[str, Sequence[str]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the rows of every value of the columns that were carried along, the commonest
    MOST_VALUES of each: a mask [N] by column and value."""
    slices = {}
    for column, values in carried.items():
        array = np.array(values)
        commonest = [value for value, _ in Counter(values).most_common(MOST_VALUES)]
        slices[column] = {value: array == value for value in commonest}
    return slices


def _cut_by_length(lengths: np.ndarray, longest: Sequence[int], unit: str) -> dict[str, np.ndarray]:
    cuts = {f"up to {longest[0]} {unit}": lengths <= longest[0]}
    for below, up_to in pairwise(longest):
        cuts[f"{below + 1} to {up_to} {unit}"] = (below < lengths) & (lengths <= up_to)
    return cuts | {f"more than {longest[-1]} {unit}": lengths > longest[-1]}


def _cut_by_overlap(overlaps: np.ndarray) -> dict[str, np.ndarray]:
    """Cut rows by word overlap. The last one is McCoy, Pavlick and Linzen's (2019) lexical overlap:
    a model that takes overlap for entailment is right there on entailed hypotheses only."""
    cuts = {}
    for low, high in pairwise((0.0, *OVERLAPS)):
        cuts[f"{low:.0%} to under {high:.0%}"] = (low <= overlaps) & (overlaps < high)
    return cuts | {"all words": overlaps == 1}


def slice_columns(scored: ScoredSplit, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return [N, 2 · masks]: of every mask the share of models that are right, and the count."""
    right = (scored.logits.argmax(axis=-1) == scored.labels).mean(axis=0)  # [N]
    columns = [column for mask in masks for column in (right * mask, mask)]
    return np.stack(columns, axis=1) if columns else np.empty((len(right), 0))


def slice_figures(
    scored: ScoredSplit, slices: Mapping[str, Mapping[str, np.ndarray]], drawn: np.ndarray
) -> dict[str, list[dict]]:
    """Return the accuracy of every slice; `drawn` [B, 2 · slices] are resampled sums of
    `slice_columns`."""
    groups = premise_groups(scored.premises)
    right = (scored.logits.argmax(axis=-1) == scored.labels).mean(axis=0)  # [N]
    sums = iter(drawn.T.reshape(-1, 2, len(drawn)))
    figures: dict[str, list[dict]] = {}
    for kind, cuts in slices.items():
        figures[kind] = []
        for name, mask in cuts.items():
            right_sum, count = next(sums)
            accuracies = np.full(len(drawn), np.nan)
            # Another draw may hold no row of a small slice.
            np.divide(right_sum, count, out=accuracies, where=count > 0)
            figures[kind].append(
                {
                    "slice": name,
                    "examples": int(mask.sum()),
                    "accuracy": float(right[mask].mean()),
                    "interval": interval(accuracies, scored.answers_one_class)
                    if len({*groups[mask]}) > 1
                    else None,
                }
            )
    return figures

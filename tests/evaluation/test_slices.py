"""Slices of a split, and the baseline that sees the hypothesis alone."""

import numpy as np
import pytest
from scored_parts import scored_by_hand

from xnli_gpt.evaluation.baseline import hypothesis_only
from xnli_gpt.evaluation.scores import (
    split_metrics,
)
from xnli_gpt.evaluation.slices import (
    NEGATIONS,
    is_negated,
    language_of,
    slices_of,
    word_overlap,
    words_of,
)


def test_words_are_without_case_and_punctuation():
    assert words_of("The “Cat” sat, DIDN’T it?") == ["the", "cat", "sat", "didn't", "it"]
    assert words_of("वह घर नहीं गया।") == ["वह", "घर", "नहीं", "गया"]
    assert words_of("我不 知道。", "zh") == ["我", "不", "知", "道"]


@pytest.mark.parametrize(
    ("language", "negated", "plain"),
    [
        ("hi", "वह घर नहीं गया।", "वह घर गया।"),
        ("hi", "बिना पानी के", "नानी के पानी"),
        ("en", "He can't go", "He cants a note"),
        ("en", "Nobody knows.", "Somebody knows nota bene."),
        ("ur", "وہ گھر نہیں گیا۔", "وہ گھر گیا۔"),
        ("fr", "Il n'est là", "Il est là"),
        ("de", "Das ist kein Hund.", "Das ist ein Hund."),
        ("ru", "Он не пришёл", "Он пришёл домой"),
        ("el", "Δεν ξέρω τίποτα", "Ξέρω κάτι"),
        ("es", "Nunca jamás", "Siempre"),
        ("zh", "他不知道", "他知道"),
        ("th", "เขาไม่ไป", "เขาไป"),
        ("vi", "Tôi không biết", "Tôi biết"),
        ("ar", "لم يذهب", "ذهب"),
        ("bg", "Той няма куче", "Той има куче"),
    ],
)
def test_negation_is_found_by_whole_words(language, negated, plain):
    assert is_negated(negated, language)
    assert not is_negated(plain, language)


def test_the_language_is_told_by_the_datasets_name_or_by_its_words():
    assert language_of("xnli_sw", ["He did not go"]) == "sw"
    assert language_of("hindi_xnli", []) == "hi"
    english = ["He did not go"] * 2 + ["He went without sin"] * 20
    assert language_of("pairs", english) == "en"
    assert language_of("pairs", ["वह घर नहीं गया", "वह गया"]) == "hi"
    assert language_of("pairs", ["He went"] * 100 + ["Pas de deux"]) is None
    assert set(NEGATIONS) <= set("ar bg de el en es fr hi ru sw th tr ur vi zh".split())


def test_word_overlap_is_the_share_of_the_hypothesis_words_in_the_premise():
    assert word_overlap("राम घर गया।", "राम गया") == 1.0
    assert word_overlap("The cat sat", "the the dog sat") == pytest.approx(2 / 3)
    assert word_overlap("我知道", "我知道不", "zh") == pytest.approx(2 / 3)
    assert word_overlap("word", "।") == 0.0


def test_slices_hold_every_row_once():
    premises = ["w " * count for count in (1, 10, 11, 20, 21, 31)]
    hypotheses = ["w", "w a", "w a b", "w a b c", "not w", "w a b c d"]
    slices = slices_of(premises, hypotheses, "en")
    assert {name: mask.tolist() for name, mask in slices["premise_length"].items()} == {
        "up to 10 words": [True, True, False, False, False, False],
        "11 to 20 words": [False, False, True, True, False, False],
        "21 to 30 words": [False, False, False, False, True, False],
        "more than 30 words": [False, False, False, False, False, True],
    }
    assert slices["word_overlap"]["all words"].tolist() == [True] + [False] * 5
    assert slices["negation"]["with negation"].tolist() == [False] * 4 + [True, False]
    for cuts in slices.values():
        assert (sum(mask.astype(int) for mask in cuts.values()) == 1).all()


def test_slices_are_scored_with_their_own_rows():
    scored = scored_by_hand(
        ["a", "a", "b", "b", "c", "c"],
        [True, False, False, True, False, True],
        ["not so", "so", "so", "not so", "so", "so"],
    )
    slices = split_metrics(scored, resamples=1000)["slices"]["negation"]
    assert [(cut["slice"], cut["examples"], cut["accuracy"]) for cut in slices] == [
        ("with negation", 2, 1.0),
        ("without negation", 4, 0.25),
    ]
    assert slices[0]["interval"] == [1.0, 1.0]
    low, high = slices[1]["interval"]
    assert low == 0 and 0.25 < high <= 0.5


def test_a_language_that_negates_inside_of_words_has_no_such_slices():
    assert slices_of(["a"], ["Gelmedi"], "tr")["negation"] == {}


def test_the_hypothesis_only_baseline_sees_what_is_mostly_denied():
    """One topic is true when denied, the other when not: neither word alone tells anything."""
    texts = [f"{topic} की ख़बर यहाँ {ending}" for topic in ("खेल", "देश") for ending in ("है", "नहीं है")]
    labels = np.array([0, 1, 1, 0])
    found = hypothesis_only(texts * 30, np.tile(labels, 30), texts, labels, "hi")
    assert found["accuracy"] == 1.0
    blind = hypothesis_only(texts * 30, np.tile(labels, 30), texts, labels, "tr")
    assert blind["accuracy"] <= 0.75


def test_the_hypothesis_only_baseline_finds_what_the_hypothesis_gives_away():
    generator = np.random.default_rng(0)
    words = generator.integers(0, 50, size=(300, 3))
    labels = generator.integers(0, 2, size=300)
    told = [
        f"w{a} w{b} {'नहीं' if label else 'है'} w{c}"
        for (a, b, c), label in zip(words, labels, strict=True)
    ]
    untold = [f"w{a} w{b} w{c}" for a, b, c in words]

    def accuracy(texts):
        return hypothesis_only(texts[:200], labels[:200], texts[200:], labels[200:])["accuracy"]

    assert accuracy(told) >= 0.98
    assert accuracy(untold) == pytest.approx(0.5, abs=0.15)

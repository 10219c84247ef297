import random
import re

import pytest
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from xnli_gpt.data import demo_grammar
from xnli_gpt.data.demo_grammar import LOCATION, SCALES, Amount, Event, Premise, State, label_of

SMALL = {"train": 60, "validation": 30, "test": 30}
PASSAGES = 3000


def scale_of(word):
    return next(scale for scale in SCALES if word in scale.words)


def is_(noun, word, quantifier="one", negated=False, owner=None):
    return State(noun, scale_of(word), (word,), negated, quantifier, owner)


def ate(agent, noun, form="some", number=0, when=None):
    return Event(agent, "खाया", noun, Amount(form, number), when)


@pytest.fixture(scope="module")
def splits():
    return demo_grammar.nli_splits()


@pytest.fixture(scope="module")
def passages():
    return list(demo_grammar.language_model_passages(PASSAGES))


def texts(rows, key):
    return [row[key] for row in rows]


def trained_accuracy(splits, model, features):
    model.fit([features(r) for r in splits["train"]], texts(splits["train"], "label"))
    return model.score([features(r) for r in splits["test"]], texts(splits["test"], "label"))


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    assert demo_grammar.nli_splits(3, SMALL) == demo_grammar.nli_splits(3, SMALL)
    assert demo_grammar.nli_splits(3, SMALL) != demo_grammar.nli_splits(4, SMALL)
    first, again, other = (list(demo_grammar.language_model_passages(50, s)) for s in (1, 1, 2))
    assert first == again != other


def test_default_sizes(splits):
    assert {name: len(rows) for name, rows in splits.items()} == demo_grammar.DEFAULT_SIZES


def test_every_hypothesis_stands_once_with_each_label(splits):
    for rows in splits.values():
        labels = {}
        for row in rows:
            labels.setdefault(row["hypothesis"], []).append(row["label"])
        assert all(sorted(found) == sorted(demo_grammar.LABELS) for found in labels.values())


def test_no_hypothesis_crosses_splits_even_of_another_seed(splits):
    other = demo_grammar.nli_splits(9, SMALL)
    for name, rows in splits.items():
        for other_name, other_rows in [*splits.items(), *other.items()]:
            if name != other_name:
                assert not set(texts(rows, "hypothesis")) & set(texts(other_rows, "hypothesis"))


def test_test_words_are_all_seen_in_training(splits):
    def words(rows):
        return {
            w for r in rows for w in f"{r['premise']} {r['hypothesis']}".replace("।", "").split()
        }

    assert words(splits["test"]) <= words(splits["train"])
    assert 200 <= len(words(splits["train"])) <= 350


def test_lengths(splits):
    for row in splits["train"]:
        assert 4 <= len(row["hypothesis"].split()) <= 9
        assert 5 <= len(row["premise"].split()) <= 18


def test_devanagari_only(splits, passages):
    written = [
        row[key] for rows in splits.values() for row in rows for key in ("premise", "hypothesis")
    ]
    assert all(re.fullmatch(r"[\u0900-\u0965 ,]+।", text) for text in written + passages)


def test_a_classifier_of_the_hypothesis_alone_stays_at_chance(splits):
    features = make_union(
        TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)),
        TfidfVectorizer(analyzer="char", ngram_range=(2, 3)),
    )
    model = make_pipeline(features, LogisticRegression(max_iter=200))
    assert abs(trained_accuracy(splits, model, lambda row: row["hypothesis"]) - 1 / 3) <= 0.02


def test_a_classifier_of_the_premise_alone_stays_below_half(splits):
    model = make_pipeline(
        CountVectorizer(token_pattern=r"[^\s।]+"), LogisticRegression(max_iter=300, C=0.3)
    )
    assert trained_accuracy(splits, model, lambda row: row["premise"]) < 0.5


def test_a_classifier_of_shared_words_stays_below_half(splits):
    def overlap(row):
        premise, hypothesis = (set(row[k].strip("।").split()) for k in ("premise", "hypothesis"))
        shared = len(premise & hypothesis)
        return [
            shared,
            shared / len(hypothesis),
            len(premise - hypothesis),
            len(hypothesis - premise),
        ]

    model = GradientBoostingClassifier(n_estimators=20, random_state=0)
    assert trained_accuracy(splits, model, overlap) < 0.5


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        (ate("राम", "आम"), ate("राम", "फल"), "entailment"),
        (ate("राम", "फल"), ate("राम", "आम"), "neutral"),
        (ate("राम", "फल", "none"), ate("राम", "आम"), "contradiction"),
        (ate("राम", "आम", "none"), ate("राम", "फल"), "neutral"),
        (ate("राम", "आम"), ate("सीता", "आम"), "neutral"),
        (ate("राम", "आम"), ate("कोई", "आम"), "entailment"),
        (ate("लड़का", "आम", "none"), ate("राम", "आम"), "contradiction"),
        (ate("लड़की", "आम", "none"), ate("राम", "आम"), "neutral"),
        (ate("राम", "आम", when="कल"), ate("राम", "आम"), "entailment"),
        (ate("राम", "आम"), ate("राम", "आम", when="कल"), "neutral"),
        (ate("राम", "आम", "bare", 3), ate("राम", "आम", "at_least", 2), "entailment"),
        (ate("राम", "आम", "exactly", 3), ate("राम", "आम", "more_than", 3), "contradiction"),
        (ate("राम", "आम", "at_least", 3), ate("राम", "आम", "exactly", 5), "neutral"),
        (ate("राम", "आम", "at_least", 3), ate("राम", "फल", "at_most", 2), "contradiction"),
        (ate("राम", "आम", "exactly", 3), ate("राम", "फल", "exactly", 3), "neutral"),
        (ate("राम", "आम", "exactly", 3), ate("राम", "आम", "fewer_than", 4), "entailment"),
        (is_("चाय", "गरम", owner="राम"), is_("चाय", "ठंडा", owner="राम"), "contradiction"),
        (
            is_("चाय", "गरम", owner="राम"),
            is_("चाय", "ठंडा", negated=True, owner="राम"),
            "entailment",
        ),
        (is_("चाय", "ठंडा", negated=True, owner="राम"), is_("चाय", "गरम", owner="राम"), "neutral"),
        (is_("आम", "पका", negated=True, owner="राम"), is_("आम", "कच्चा", owner="राम"), "entailment"),
        (is_("फल", "मीठा", "all"), is_("आम", "मीठा", "all"), "entailment"),
        (is_("आम", "मीठा", "all"), is_("फल", "मीठा", "all"), "neutral"),
        (is_("आम", "मीठा", "some"), is_("आम", "मीठा", "all"), "neutral"),
        (is_("आम", "मीठा", "some"), is_("फल", "मीठा", "some"), "entailment"),
        (is_("आम", "मीठा", "all", negated=True), is_("आम", "मीठा", "some"), "contradiction"),
        (is_("बच्चा", "खुश", "all"), is_("राम", "खुश"), "entailment"),
        (is_("लड़का", "खुश", "all"), is_("राम", "उदास"), "contradiction"),
        (is_("राम", "घर"), is_("राम", "स्कूल"), "contradiction"),
        (State("राम", LOCATION, ("घर", "स्कूल")), is_("राम", "घर"), "neutral"),
    ],
)
def test_label_follows_from_the_meanings(premise, hypothesis, label):
    assert label_of((premise,), hypothesis) == label


@pytest.mark.parametrize(
    ("premise", "hypothesis"),
    [
        (ate("राम", "आम", "bare", 3), ate("राम", "आम", "exactly", 3)),
        (ate("राम", "आम", "none"), ate("राम", "आम", "fewer_than", 6)),
        (ate("राम", "आम"), ate("राम", "सेब")),
        (is_("राम", "खुश"), is_("बच्चा", "खुश", "some")),
        (is_("आम", "मीठा", "some"), is_("आम", "मीठा", "some", negated=True)),
    ],
)
def test_pairs_that_people_would_dispute_have_no_label(premise, hypothesis):
    assert label_of((premise,), hypothesis) is None


def test_two_facts_are_read_together_and_a_hedged_one_says_nothing():
    yes, no = ate("सीता", "आम"), ate("राम", "आम", "none")
    assert label_of((no, yes), ate("राम", "आम")) == "contradiction"
    assert label_of((no, yes), ate("सीता", "फल")) == "entailment"
    assert label_of(Premise((no, yes), hedged=True).certain, ate("सीता", "फल")) == "neutral"
    assert label_of((no, ate("राम", "आम")), ate("राम", "आम")) is None


def renderings(fact):
    return {demo_grammar.render(random.Random(seed), fact) for seed in range(300)}


@pytest.mark.parametrize(
    ("fact", "sentences"),
    [
        (ate("राम", "आम"), ["राम ने आम खाया", "आम राम ने खाया", "राम द्वारा आम खाया गया"]),
        (ate("राम", "गाजर", "bare", 3), ["राम ने तीन गाजरें खाईं", "राम द्वारा तीन गाजरें खाई गईं"]),
        (ate("लड़का", "जलेबी", "none"), ["किसी लड़के ने एक भी जलेबी नहीं खाई"]),
        (Event("सीता", "पिया", "चाय"), ["सीता ने चाय पी", "सीता द्वारा चाय पी गई"]),
        (is_("गाय", "मोटा", "some"), ["कुछ गायें मोटी हैं"]),
        (is_("कुर्ता", "नया", "all"), ["सभी कुर्ते नए हैं", "हर कुर्ता नया है"]),
        (is_("साड़ी", "नया", owner="राम", negated=True), ["राम की साड़ी नई नहीं है"]),
        (is_("लड़की", "खुश", "all", negated=True), ["कोई लड़की खुश नहीं है"]),
    ],
)
def test_sentences_agree(fact, sentences):
    assert set(sentences) <= renderings(fact)


def test_passages_are_varied_and_short(passages):
    assert len(set(passages)) > 0.95 * PASSAGES
    assert all(3 <= passage.count("।") <= 10 for passage in passages)


def test_passages_state_no_test_hypothesis_and_no_test_pair(splits, passages):
    spoken = {sentence.strip() for passage in passages for sentence in passage.split("।")}
    whole = "\n".join(passages)
    for name in ("validation", "test"):
        assert not spoken & {row["hypothesis"].strip("।") for row in splits[name]}
        for row in splits[name]:
            assert f"{row['premise']} {row['hypothesis']}" not in whole
            assert f"कि {row['hypothesis'].strip('।')}," not in whole


def test_passages_hold_no_label_names(passages):
    names = {"entailment", "neutral", "contradiction", "premise", "hypothesis", "आधार", "परिकल्पना"}
    assert not any(name in passage for passage in passages for name in names)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        demo_grammar.nli_splits(0, {"train": 10})
    with pytest.raises(ValueError, match="unknown split"):
        demo_grammar.nli_splits(0, {"dev": 9})
    with pytest.raises(ValueError, match="negative"):
        demo_grammar.language_model_passages(-1)
    with pytest.raises(ValueError, match="generic agent"):
        ate("लड़का", "आम", "bare", 3)

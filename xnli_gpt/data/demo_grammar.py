"""A small grammar of Hindi for the offline demo: pretraining text and sentence pairs.

A sentence is first a meaning (`Event` or `State`), then a string. The label of a pair is computed
from the two meanings by checking possible worlds, never written beside a template.

A world is a bit mask: for a `State` the points of its scale that occur among the things spoken of,
for an `Event` one low bit for each thing counted. In both, `a & b == a` says that a situation with
world `a` can be part of one with world `b`, which is all that hypernyms, quantifiers, numbers,
times and places need.
"""

import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product

LABELS = ("entailment", "neutral", "contradiction")
DEFAULT_SIZES = {"train": 6000, "validation": 600, "test": 900}
HYPOTHESIS_WORDS = range(4, 10)
PREMISE_WORDS = range(5, 19)
# Premises drawn for a hypothesis; with fewer, a label is often missing or ill matched.
PROPOSALS = 40
# Upper ends, in percent of all meanings.
SPLIT_SHARES = (("validation", 15), ("test", 40), ("train", 100))

# kind: gender and plural of the kind | gender and plural of each member ("-": has no plural)
TAXONOMY = {
    "फल": "m फल | आम m आम | सेब m सेब | केला m केले | संतरा m संतरे | अमरूद m अमरूद",
    "सब्ज़ी": "f सब्ज़ियाँ | गाजर f गाजरें | मूली f मूलियाँ | बैंगन m बैंगन",
    "मिठाई": "f मिठाइयाँ | लड्डू m लड्डू | जलेबी f जलेबियाँ | पेड़ा m पेड़े",
    "पेय": "m - | चाय f - | दूध m - | लस्सी f - | शरबत m -",
    "जानवर": "m जानवर | गाय f गायें | कुत्ता m कुत्ते | बिल्ली f बिल्लियाँ | घोड़ा m घोड़े | बकरी f बकरियाँ",
    "पक्षी": "m पक्षी | तोता m तोते | मोर m मोर | कबूतर m कबूतर",
    "कपड़ा": "m कपड़े | कुर्ता m कुर्ते | साड़ी f साड़ियाँ | टोपी f टोपियाँ",
    "गाड़ी": "f गाड़ियाँ | कार f कारें | बस f बसें | ट्रक m ट्रक",
    "बर्तन": "m बर्तन | कटोरा m कटोरे | थाली f थालियाँ | गिलास m गिलास",
    "किताब": "f किताबें | उपन्यास m उपन्यास | शब्दकोश m शब्दकोश",
    "फूल": "m फूल | गुलाब m गुलाब | कमल m कमल",
    "लड़का": "m लड़के | राम m - | श्याम m - | मोहन m - | अर्जुन m -",
    "लड़की": "f लड़कियाँ | सीता f - | गीता f - | राधा f - | मीना f -",
    "बच्चा": "m बच्चे",
}
PEOPLE = ("लड़का", "लड़की", "बच्चा")
ANYONE = "कोई"
PARENT_OF_KIND = {"लड़का": "बच्चा", "लड़की": "बच्चा", "बच्चा": ANYONE}

# masculine singular perfective: kinds of things it is done to
VERBS = {
    "खाया": "फल सब्ज़ी मिठाई",
    "काटा": "फल सब्ज़ी",
    "पिया": "पेय",
    "बनाया": "मिठाई",
    "धोया": "फल सब्ज़ी कपड़ा बर्तन गाड़ी",
    "पहना": "कपड़ा",
    "पढ़ा": "किताब",
    "लिखा": "किताब",
    "पाला": "जानवर पक्षी",
    "पकड़ा": "जानवर पक्षी",
    "चलाया": "गाड़ी",
    "तोड़ा": "फल फूल",
    "चुराया": "फल मिठाई कपड़ा गाड़ी बर्तन किताब",
    "खरीदा": "फल सब्ज़ी मिठाई जानवर पक्षी कपड़ा गाड़ी बर्तन किताब फूल",
    "बेचा": "फल सब्ज़ी मिठाई जानवर पक्षी कपड़ा गाड़ी बर्तन किताब फूल",
}
IRREGULAR = {"पिई": "पी", "पिईं": "पीं"}
TIMES = ("आज", "कल", "परसों", "सुबह", "शाम को")
PLACES = ("घर", "स्कूल", "बाज़ार", "मंदिर", "अस्पताल", "बगीचे", "मेले")
NUMBERS = dict(zip(range(2, 11), "दो तीन चार पाँच छह सात आठ नौ दस".split(), strict=True))
COUNTED_FORMS = {
    "bare": ("{n}",),
    "exactly": ("ठीक {n}", "केवल {n}"),
    "at_least": ("कम से कम {n}",),
    "more_than": ("{n} से ज़्यादा",),
    "at_most": ("ज़्यादा से ज़्यादा {n}",),
    "fewer_than": ("{n} से कम",),
}
MOST_COUNTED = 12  # stands for "this many or more"; above every number word

CONJUNCTIONS = ("और", "लेकिन", "जबकि")
HEDGES = ("शायद", "हो सकता है कि")
ASSURANCES = ("यह सच है कि", "सब जानते हैं कि", "हमने देखा कि")
DENIAL = "यह गलत है कि"
LITTLE_WORDS = frozenset(
    "नहीं गलत सच शायद हो किसी लड़के लड़की लड़कियाँ बच्चे लड़का बच्चा कोई कुछ सभी हर एक या कम ज़्यादा ठीक केवल"
    " और लेकिन जबकि".split()
)
ANSWERS = {"entailment": "सही", "neutral": "पता नहीं", "contradiction": "गलत"}


@dataclass(frozen=True)
class Noun:
    gender: str
    plural: str | None
    kind: str | None


@dataclass(frozen=True)
class Scale:
    """Words that exclude one another; `gap`: a thing may be none of them, neither hot nor cold."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]
    gap: bool = True

    @property
    def everything(self) -> int:
        return (1 << (len(self.words) + self.gap)) - 1


def _scale(words: str, kinds: str, gap: bool = True) -> Scale:
    return Scale(tuple(words.split()), tuple(kinds.split()), gap)


LOCATION = Scale(PLACES, PEOPLE)
SCALES = (
    LOCATION,
    _scale("गरम ठंडा", "पेय"),
    _scale("मीठा खट्टा", "फल"),
    _scale("ताज़ा बासी", "फल सब्ज़ी मिठाई"),
    _scale("पका कच्चा", "फल", gap=False),
    _scale("बड़ा छोटा", "जानवर पक्षी बर्तन फूल गाड़ी"),
    _scale("नया पुराना", "कपड़ा गाड़ी बर्तन किताब"),
    _scale("साफ़ गंदा", "कपड़ा बर्तन गाड़ी"),
    _scale("महँगा सस्ता", "कपड़ा गाड़ी किताब मिठाई"),
    _scale("भारी हल्का", "बर्तन किताब"),
    _scale("मोटा पतला", "जानवर किताब"),
    _scale("सूखा गीला", "कपड़ा"),
    _scale("पालतू जंगली", "जानवर पक्षी", gap=False),
    _scale("खुश उदास", "लड़का लड़की बच्चा"),
    _scale("अमीर गरीब", "लड़का लड़की बच्चा"),
    _scale("लंबा नाटा", "लड़का लड़की बच्चा"),
    _scale("बहादुर डरपोक", "लड़का लड़की बच्चा"),
    _scale("बीमार स्वस्थ", "लड़का लड़की बच्चा", gap=False),
)


def _read_taxonomy() -> dict[str, Noun]:
    nouns = {}
    for kind, entry in TAXONOMY.items():
        own, *members = (part.split() for part in entry.split("|"))
        nouns[kind] = Noun(own[0], None if own[1] == "-" else own[1], PARENT_OF_KIND.get(kind))
        for word, gender, plural in members:
            nouns[word] = Noun(gender, None if plural == "-" else plural, kind)
    return nouns


NOUNS = _read_taxonomy()
MEMBERS = {kind: tuple(word for word in NOUNS if NOUNS[word].kind == kind) for kind in TAXONOMY}
NAMES = MEMBERS["लड़का"] + MEMBERS["लड़की"]
GENERIC_AGENTS = (ANYONE, *PEOPLE)


@dataclass(frozen=True)
class Amount:
    """How many: form "some", "none" or a key of `COUNTED_FORMS` with its number."""

    form: str
    number: int = 0

    def __post_init__(self) -> None:
        counted = self.form in COUNTED_FORMS
        if not counted and self.form not in ("some", "none"):
            raise ValueError(
                f"unknown amount {self.form!r}; known: some, none, {', '.join(COUNTED_FORMS)}"
            )
        if counted and self.number not in NUMBERS:
            raise ValueError(f"{self.form} needs a number of 2 to 10, not {self.number}")


@dataclass(frozen=True)
class Event:
    """`agent` did `verb` to `amount` of `noun`, at `when` and `where` (None: any time, anywhere).

    A generic agent ("कोई", "लड़का") means at least one such person, so it takes only "some" and
    "none": that one of several did it exactly three times says nothing about the total.
    """

    agent: str
    verb: str
    noun: str
    amount: Amount = Amount("some")
    when: str | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        if self.agent in GENERIC_AGENTS and self.amount.form in COUNTED_FORMS:
            raise ValueError(
                f"generic agent {self.agent!r} with the counted amount {self.amount.form!r}"
            )
        if NOUNS[self.noun].plural is None and self.amount.form in COUNTED_FORMS:
            raise ValueError(f"{self.noun!r} has no plural to be counted in")

    @property
    def topic(self) -> str:
        return self.verb

    @property
    def cell(self) -> tuple[str | None, ...]:
        return (self.agent, self.noun, self.when, self.where)


@dataclass(frozen=True)
class State:
    """`quantifier` ("one", "all", "some") of `noun` is, or with `negated` is not, of `words`."""

    noun: str
    scale: Scale
    words: tuple[str, ...]
    negated: bool = False
    quantifier: str = "one"
    owner: str | None = None

    def __post_init__(self) -> None:
        individual = self.owner is not None or self.noun in NAMES
        if individual != (self.quantifier == "one"):
            raise ValueError(
                f"quantifier {self.quantifier!r} does not fit {self.noun!r} of {self.owner!r}"
            )

    @property
    def topic(self) -> Scale:
        return self.scale

    @property
    def cell(self) -> tuple[str | None, ...]:
        return (self.noun, self.owner)

    @property
    def values(self) -> int:
        named = sum(1 << self.scale.words.index(word) for word in self.words)
        return self.scale.everything & ~named if self.negated else named


Fact = Event | State


@dataclass(frozen=True)
class Premise:
    """Facts said together; `hedged` makes the last of them a mere possibility."""

    facts: tuple[Fact, ...]
    hedged: bool = False

    @property
    def certain(self) -> tuple[Fact, ...]:
        return self.facts[:-1] if self.hedged else self.facts


def lies_in(inner: str | None, outer: str | None) -> bool:
    """Return whether every `inner` is an `outer`: the same word or a hyponym of it; None is
    anything."""
    while inner is not None and inner != outer:
        inner = NOUNS[inner].kind if inner in NOUNS else None
    return inner == outer or outer is None


def _counts(low: int, high: int) -> frozenset[int]:
    return frozenset((1 << count) - 1 for count in range(low, high + 1))


def _worlds_of_amount(amount: Amount) -> tuple[frozenset[int], ...]:
    """Return a set for each reading: "तीन आम" may be more than three, "तीन से कम आम" may be none."""
    n, most = amount.number, MOST_COUNTED
    bounds = {
        "some": [(1, most)],
        "none": [(0, 0)],
        "bare": [(n, n), (n, most)],
        "exactly": [(n, n)],
        "at_least": [(n, most)],
        "more_than": [(n + 1, most)],
        "at_most": [(0, n), (1, n)],
        "fewer_than": [(0, n - 1), (1, n - 1)],
    }
    return tuple(_counts(low, high) for low, high in bounds[amount.form])


@cache
def _worlds_of_quantifier(quantifier: str, values: int, everything: int) -> frozenset[int]:
    worlds = range(1, everything + 1)
    if quantifier == "some":
        return frozenset(world for world in worlds if world & values)
    single = quantifier == "one"
    return frozenset(w for w in worlds if w & values == w and not (single and w.bit_count() > 1))


def _readings(fact: Fact) -> tuple[frozenset[int], ...]:
    if isinstance(fact, Event):
        return _worlds_of_amount(fact.amount)
    return (_worlds_of_quantifier(fact.quantifier, fact.values, fact.scale.everything),)


def _all_worlds(fact: Fact) -> frozenset[int]:
    if isinstance(fact, Event):
        return _counts(0, MOST_COUNTED)
    everything = fact.scale.everything
    return _worlds_of_quantifier(
        "one" if fact.quantifier == "one" else "all", everything, everything
    )


@cache
def _carried_over(
    known: frozenset[int], inside: bool, around: bool, worlds: frozenset[int]
) -> frozenset[int]:
    """Return those `worlds` of a second situation that the `known` worlds of a first leave
    possible.

    The first is part of the second (`inside`), has it as a part (`around`), or is the same (both).
    """
    return frozenset(
        world
        for world in worlds
        if any((not inside or k & world == k) and (not around or k & world == world) for k in known)
    )


def _nesting(first: Fact, second: Fact) -> tuple[bool, bool]:
    if first.topic != second.topic:
        return False, False
    pairs = list(zip(first.cell, second.cell, strict=True))
    return all(lies_in(a, b) for a, b in pairs), all(lies_in(b, a) for a, b in pairs)


def _verdict(possible: frozenset[int], claimed: frozenset[int]) -> str:
    if possible <= claimed:
        return "entailment"
    return "neutral" if possible & claimed else "contradiction"


def _only_suggested(fact: Fact, hypothesis: Fact, verdict: str) -> bool:
    """Return whether listeners hear something else than the logic says, so that people would
    disagree."""
    if fact.topic != hypothesis.topic:
        return False
    if isinstance(fact, Event):
        same_doer = verdict == "neutral" and fact.agent == hypothesis.agent
        return same_doer and fact.amount.form != "none" and not any(_nesting(fact, hypothesis))
    if verdict == "entailment":
        return fact.quantifier == "one" and hypothesis.quantifier == "some"
    some_and_some_not = (
        fact.quantifier == hypothesis.quantifier == "some" and not fact.values & hypothesis.values
    )
    return verdict == "neutral" and some_and_some_not and fact.cell == hypothesis.cell


def label_of(facts: tuple[Fact, ...], hypothesis: Fact) -> str | None:
    """Return what `facts`, all true, say about `hypothesis`: one of `LABELS`.

    None where the readings of a number disagree, where people would, or where the facts contradict
    one another about what is asked.
    """
    nestings = [_nesting(fact, hypothesis) for fact in facts]
    worlds, verdicts = _all_worlds(hypothesis), set()
    for readings in product(*map(_readings, facts)):
        possible = worlds
        for known, (inside, around) in zip(readings, nestings, strict=True):
            if inside or around:
                possible &= _carried_over(known, inside, around, worlds)
        if not possible:
            return None
        verdicts.update(_verdict(possible, claimed) for claimed in _readings(hypothesis))
    if len(verdicts) > 1:
        return None
    verdict = verdicts.pop()
    return None if any(_only_suggested(fact, hypothesis, verdict) for fact in facts) else verdict


def inflect(word: str, gender: str, plural: bool, nasal: bool = False) -> str:
    """Return a word in -आ for a gender ("m", "f") and number; `nasal`: as a verb, with a plural in
    -ईं."""
    if not word.endswith("ा"):
        return word
    endings = ("या", "ए", "ई", "ईं") if word.endswith("या") else ("ा", "े", "ी", "ीं")
    form = (3 if nasal and plural else 2) if gender == "f" else int(plural)
    inflected = word.removesuffix(endings[0]) + endings[form]
    return IRREGULAR.get(inflected, inflected)


def _doer(agent: str, passive: bool) -> str:
    if agent == ANYONE:
        return "किसी के द्वारा" if passive else "किसी ने"
    if agent in GENERIC_AGENTS:
        agent = f"किसी {inflect(agent, NOUNS[agent].gender, True)}"
    return f"{agent} द्वारा" if passive else f"{agent} ने"


def _thing(rng: random.Random, event: Event) -> str:
    noun, amount = NOUNS[event.noun], event.amount
    if amount.form in COUNTED_FORMS:
        form = rng.choice(COUNTED_FORMS[amount.form])
        return f"{form.format(n=NUMBERS[amount.number])} {noun.plural}"
    emphatic = amount.form == "none" and noun.plural is not None and rng.random() < 0.3
    return f"एक भी {event.noun}" if emphatic else event.noun


def render_event(rng: random.Random, event: Event) -> str:
    """Return `event` as a sentence without its full stop, in a voice and a word order drawn from
    `rng`."""
    passive = rng.random() < 0.2
    plural = event.amount.form in COUNTED_FORMS
    gender = NOUNS[event.noun].gender
    where = event.where and f"{event.where} में"
    phrases = [event.when, where, _doer(event.agent, passive), _thing(rng, event)]
    if rng.random() < 0.2:
        rng.shuffle(phrases)
    if event.amount.form == "none":
        phrases.append("नहीं")
    phrases.append(inflect(event.verb, gender, plural, nasal=not passive))
    if passive:
        phrases.append(inflect("गया", gender, plural, nasal=True))
    return " ".join(phrase for phrase in phrases if phrase)


def _subject(rng: random.Random, state: State) -> tuple[str, bool]:
    """Return the subject phrase, and whether it is plural."""
    noun = NOUNS[state.noun]
    if state.owner:
        return f"{state.owner} {inflect('का', noun.gender, False)} {state.noun}", False
    if state.quantifier == "one":
        return state.noun, False
    if state.quantifier == "some":
        return f"कुछ {noun.plural}", True
    if state.negated:
        return f"{rng.choice(('कोई', 'कोई भी'))} {state.noun}", False
    return rng.choice(((f"सभी {noun.plural}", True), (f"हर {state.noun}", False)))


def render_state(rng: random.Random, state: State) -> str:
    """Return `state` as a sentence without its full stop."""
    subject, plural = _subject(rng, state)
    gender = NOUNS[state.noun].gender
    what = " या ".join(inflect(word, gender, plural) for word in state.words)
    if state.scale is LOCATION:
        what = " या ".join(state.words) + " में"
    return f"{subject} {what}{' नहीं' if state.negated else ''} {'हैं' if plural else 'है'}"


def render(rng: random.Random, fact: Fact) -> str:
    """Return `fact` as one of its sentences, without the full stop."""
    return render_event(rng, fact) if isinstance(fact, Event) else render_state(rng, fact)


def _opposite(fact: Fact) -> Fact | None:
    """Return the plain sentence that `fact` denies, or None where it is no plain denial."""
    if isinstance(fact, Event):
        return replace(fact, amount=Amount("some")) if fact.amount.form == "none" else None
    return replace(fact, negated=False) if fact.negated and fact.quantifier == "one" else None


def render_premise(rng: random.Random, premise: Premise) -> str:
    """Return `premise` as one sentence without the full stop."""
    *before, last = premise.facts
    opposite = _opposite(last)
    start = ""
    if premise.hedged:
        start = rng.choice(HEDGES)
    elif opposite and rng.random() < 0.15:
        start, last = DENIAL, opposite
    clauses = [render(rng, fact) for fact in before] + [f"{start} {render(rng, last)}".strip()]
    sentence = f" {rng.choice(CONJUNCTIONS)} ".join(clauses)
    assured = not start and rng.random() < 0.12
    return f"{rng.choice(ASSURANCES)} {sentence}" if assured else sentence


def _fitting_amount(rng: random.Random, agent: str, noun: str, near: int) -> Amount:
    countable = agent not in GENERIC_AGENTS and NOUNS[noun].plural is not None
    if not countable or rng.random() < 0.8:
        return Amount(rng.choice(("some", "none")))
    number = min(max(near + rng.randint(-2, 2), min(NUMBERS)), max(NUMBERS))
    return Amount(rng.choice(tuple(COUNTED_FORMS)), number)


def _fitting_state(rng: random.Random, noun: str, owner: str | None, scale: Scale) -> State:
    individual = owner is not None or noun in NAMES
    quantifier = "one" if individual else rng.choice(("all", "all", "some"))
    either_place = scale is LOCATION and individual and rng.random() < 0.2
    if either_place:
        return State(noun, scale, tuple(sorted(rng.sample(PLACES, 2))))
    return State(noun, scale, (rng.choice(scale.words),), rng.random() < 0.4, quantifier, owner)


def _random_event(rng: random.Random) -> Event:
    verb = rng.choice(tuple(VERBS))
    kind = rng.choice(VERBS[verb].split())
    noun = rng.choice((kind, *MEMBERS[kind]))
    agent = rng.choice(NAMES if rng.random() < 0.85 else GENERIC_AGENTS)
    when = rng.choice(TIMES) if rng.random() < 0.2 else None
    where = rng.choice(PLACES) if rng.random() < 0.1 else None
    amount = _fitting_amount(rng, agent, noun, rng.choice(tuple(NUMBERS)))
    return Event(agent, verb, noun, amount, when, where)


def _random_state(rng: random.Random) -> State:
    scale = rng.choice(SCALES)
    kind = rng.choice(scale.kinds)
    if kind in PEOPLE:
        return _fitting_state(rng, rng.choice((kind, rng.choice(NAMES))), None, scale)
    noun = rng.choice(MEMBERS[kind])
    if NOUNS[noun].plural is None or rng.random() < 0.45:
        return _fitting_state(rng, noun, rng.choice(NAMES), scale)
    return _fitting_state(rng, rng.choice((kind, noun)), None, scale)


def random_fact(rng: random.Random) -> Fact:
    """Return any event or state of the language."""
    return _random_event(rng) if rng.random() < 0.6 else _random_state(rng)


def _related(rng: random.Random, word: str) -> str:
    """Return a hypernym, a hyponym or a sibling of `word`."""
    kind = NOUNS[word].kind if word in NOUNS else None
    around = [kind] if kind in NOUNS else []
    hyponyms = MEMBERS.get(word, ())
    siblings = MEMBERS.get(kind, ())
    groups = [group for group in (around, around, hyponyms, hyponyms, siblings) if group]
    return rng.choice(rng.choice(groups)) if groups else word


def _is_any_of(noun: str, kinds: Iterable[str]) -> bool:
    return any(lies_in(noun, kind) for kind in kinds)


def _vary_event(rng: random.Random, event: Event) -> Event:
    agent, verb, noun, when, where = event.agent, event.verb, event.noun, event.when, event.where
    if rng.random() < 0.2:
        agent = rng.choice((_related(rng, agent), rng.choice(NAMES), ANYONE))
    if rng.random() < 0.4:
        noun = _related(rng, noun)
    if rng.random() < 0.08:
        verb = rng.choice([other for other in VERBS if _is_any_of(noun, VERBS[other].split())])
    if rng.random() < 0.12:
        when = None if when else rng.choice(TIMES)
    if rng.random() < 0.06:
        where = None if where else rng.choice(PLACES)
    amount = _fitting_amount(rng, agent, noun, event.amount.number or rng.choice(tuple(NUMBERS)))
    return Event(agent, verb, noun, amount, when, where)


def _vary_state(rng: random.Random, state: State) -> State:
    noun, owner, scale = state.noun, state.owner, state.scale
    if rng.random() < 0.4:
        if owner and rng.random() < 0.5 and NOUNS[noun].plural:
            owner = None
        elif owner:
            owner = rng.choice(NAMES)
        else:
            noun = _related(rng, noun)
    if rng.random() < 0.1:
        scale = rng.choice([other for other in SCALES if _is_any_of(noun, other.kinds)])
    varied = _fitting_state(rng, noun, owner, scale)
    if scale is LOCATION and state.scale is LOCATION and rng.random() < 0.7:
        return replace(varied, words=state.words[:1] if varied.negated else state.words)
    return varied


def vary(rng: random.Random, fact: Fact) -> Fact:
    """Return a fact that shares most of its words with `fact`."""
    return _vary_event(rng, fact) if isinstance(fact, Event) else _vary_state(rng, fact)


def _premise_about(rng: random.Random, fact: Fact) -> Premise:
    facts = [vary(rng, fact)]
    if rng.random() < 0.1:
        facts.append(vary(rng, fact) if rng.random() < 0.5 else random_fact(rng))
        rng.shuffle(facts)
    return Premise(tuple(facts), hedged=rng.random() < 0.03)


def _is_natural(premise: Premise) -> bool:
    """Return whether each of the facts leaves the others open: none is said twice, none clashes."""
    return all(
        label_of((one,), other) == "neutral" for one, other in permutations(premise.facts, 2)
    )


def split_of(fact: Fact) -> str:
    """Return the split that may ask about `fact`: the same for all its sentences and every seed."""
    percent = zlib.crc32(repr(fact).encode()) % 100
    return next(split for split, upper_end in SPLIT_SHARES if percent < upper_end)


def _surface_distance(one: str, other: str, hypothesis: str) -> float:
    """Return how far two premises differ in what shows without understanding them."""
    first, second, asked = (set(text.split()) for text in (one, other, hypothesis))
    little = len((first ^ second) & LITTLE_WORDS)
    shared = abs(len(first & asked) - len(second & asked))
    return 2 * little + shared + abs(len(first) - len(second)) / 4


def _matched_premises(rng: random.Random, hypothesis: Fact, sentence: str) -> dict[str, str] | None:
    """Return for each label a premise, alike on the surface; None where a label was not found."""
    found: dict[str, list[str]] = {label: [] for label in LABELS}
    for _ in range(PROPOSALS):
        premise = _premise_about(rng, hypothesis)
        label = label_of(premise.certain, hypothesis)
        if label is None or not _is_natural(premise):
            continue
        text = render_premise(rng, premise)
        if text != sentence and len(text.split()) in PREMISE_WORDS:
            found[label].append(text)
    if not all(found.values()):
        return None
    # the label with the fewest premises has the least to choose from, so the others follow it
    model = rng.choice(min(found.values(), key=len))
    return {
        label: min(texts, key=lambda text: _surface_distance(text, model, sentence))
        for label, texts in found.items()
    }


def _is_askable(hypothesis: Fact, sentence: str, split: str) -> bool:
    return split_of(hypothesis) == split and len(sentence.split()) in HYPOTHESIS_WORDS


@cache
def _rows_of_split(split: str, size: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(f"{split} {seed}")
    asked: dict[str, dict[str, str]] = {}
    draws_left = 200 + 20 * size
    while 3 * len(asked) < size and draws_left:
        draws_left -= 1
        hypothesis = random_fact(rng)
        sentence = render(rng, hypothesis)
        if sentence not in asked and _is_askable(hypothesis, sentence, split):
            premises = _matched_premises(rng, hypothesis, sentence)
            if premises:
                asked[sentence] = premises
    if 3 * len(asked) < size:
        raise ValueError(f"{size} rows asked for in {split}, the grammar gave {3 * len(asked)}")
    rows = [
        {"premise": f"{premise}।", "hypothesis": f"{sentence}।", "label": label}
        for sentence, premises in asked.items()
        for label, premise in premises.items()
    ]
    rng.shuffle(rows)
    return rows


def nli_splits(
    seed: int = 0, sizes: dict[str, int] = DEFAULT_SIZES
) -> dict[str, list[dict[str, str]]]:
    """Return sentence pairs for each split of `sizes` (train, validation, test: rows, divisible by
    3).

    A row has `premise`, `hypothesis` and `label`, a name of `LABELS`. Every hypothesis of a split
    stands in it three times, once with each label, so that the hypothesis alone tells nothing; no
    other split asks it, in any wording. Raises ValueError for other names or sizes, and for more
    rows than the grammar has.
    """
    known = {split for split, _ in SPLIT_SHARES}
    for split, size in sizes.items():
        if split not in known:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(sorted(known))}")
        if size < 0 or size % 3:
            raise ValueError(f"the size of {split} must be a multiple of 3, not {size}")
    # Copies: the rows are made once a process, and asked for by training and by its report.
    return {
        split: [dict(row) for row in _rows_of_split(split, size, seed)]
        for split, size in sizes.items()
    }


def _lesson(rng: random.Random) -> str:
    """Return a sentence about words or numbers themselves."""
    topic = rng.choice(("kind", "opposites", "numbers"))
    if topic == "kind":
        word = rng.choice([word for word, noun in NOUNS.items() if noun.kind in NOUNS])
        return f"{word} एक {NOUNS[word].kind} है"
    if topic == "opposites":
        scale = rng.choice(SCALES)
        one, other = rng.sample(scale.words, 2)
        ending = " में" if scale is LOCATION else ""
        return f"जो {one}{ending} है वह {other}{ending} नहीं है"
    small, large = sorted(rng.sample(tuple(NUMBERS), 2))
    if rng.random() < 0.5:
        return f"{NUMBERS[large]} {NUMBERS[small]} से ज़्यादा है"
    return f"{NUMBERS[small]} {NUMBERS[large]} से कम है"


def _is_held_out(facts: tuple[Fact, ...]) -> bool:
    return any(split_of(fact) != "train" for fact in facts)


def _is_plain(fact: Fact) -> bool:
    """Return whether an event has neither number nor time nor place; every state is plain."""
    if isinstance(fact, State):
        return True
    return not fact.when and not fact.where and fact.amount.form in ("some", "none")


def _stated_fact(rng: random.Random) -> Fact:
    """Return a fact that no other split asks about, mostly a plain one: simple things are said
    often."""
    while True:
        fact = random_fact(rng)
        if not _is_held_out((fact,)) and (_is_plain(fact) or rng.random() < 0.3):
            return fact


def _claim(rng: random.Random, fact: Fact, label: str) -> str | None:
    """Return a sentence that stands to `fact` as `label` says; None where none was drawn."""
    for _ in range(PROPOSALS):
        claim = vary(rng, fact)
        if label_of((fact,), claim) == label and not _is_held_out((claim,)):
            return render(rng, claim)
    return None


def _passage(rng: random.Random) -> str:
    fact = _stated_fact(rng)
    sentences = [_lesson(rng)] if rng.random() < 0.05 else []
    sentences.append(render(rng, fact))
    for label in (*rng.sample(LABELS, k=3), rng.choice(LABELS)):
        claim = _claim(rng, fact, label)
        if claim and claim not in sentences:
            sentences += [claim, ANSWERS[label]]
    return " ".join(f"{sentence}।" for sentence in sentences)


def language_model_passages(count: int, seed: int = 0) -> Iterator[str]:
    """Return `count` passages: a statement, then claims about it, each with the answer of one who
    knows only the statement (सही, गलत, पता नहीं); some facts about words and numbers between them.

    No fact that validation or test may ask about is stated in them, so a model pretrained on them
    has seen the words of the test, not its questions. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"count must not be negative, found {count}")
    rng = random.Random(f"passages {seed}")
    return (_passage(rng) for _ in range(count))

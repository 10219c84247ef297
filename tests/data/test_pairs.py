"""Pairs as rows of tokens: the template, what is cut, each text once, on all cores."""

import json
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from data_parts import (
    COLUMNS,
    END,
    SENTENCES,
    encode_rows,
    encoding_of,
    ids_of,
    rows_of,
    train_tokenizer,
)
from limits import HANG_S
from shell import ROOT
from tokenizers import Tokenizer, models, trainers
from tokenizers.processors import TemplateProcessing

from xnli_gpt.choices import SPLITS, TEMPLATES
from xnli_gpt.data.encoded import pack
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import PairEncoding, load_pair_encoding
from xnli_gpt.errors import DataError


@pytest.mark.parametrize(
    ("template", "parts"),
    [("documents", "EPEHE"), ("group", "PEH")],
)
def test_a_pair_as_tokens(tmp_path, tokenizer_path, tokenizer, template, parts):
    encoding = load_pair_encoding(str(tokenizer_path), template=template)
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    for i, row in enumerate(rows_of()):
        premise, hypothesis = (ids_of(tokenizer, row[column]) for column in COLUMNS[:2])
        pieces = {"E": [tokenizer.token_to_id(END)], "P": premise, "H": hypothesis}
        expected = [token for part in parts for token in pieces[part]]
        assert split.row(i).tolist() == expected
        assert split.premise(i).tolist() == premise
        assert split.lengths[i] == len(expected)
    assert len(split) == len(rows_of())
    assert split.labels.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("template", ["documents", "group"])
def test_only_the_premise_is_cut(tmp_path, tokenizer, tokenizer_path, template):
    short, long = SENTENCES[2], SENTENCES[0]
    room = len(ids_of(tokenizer, long)) - 4
    rows = [{"premise": long, "hypothesis": short, "label": label} for label in NLI_CLASSES] + [
        {"premise": "क", "hypothesis": short, "label": "neutral"}
    ]
    specials = 3 if template == "documents" else 1
    block_size = len(ids_of(tokenizer, short)) + room + specials
    encoding = load_pair_encoding(str(tokenizer_path), template=template, block_size=block_size)
    data = encode_rows(rows, encoding, tmp_path)
    split = data.splits["train"]
    assert split.premise(0).tolist() == ids_of(tokenizer, long)[:room]
    hypothesis = split.row(0)[split.premise_spans[0].sum() + 1 :].tolist()
    assert hypothesis[: len(ids_of(tokenizer, short))] == ids_of(tokenizer, short)
    assert split.lengths.max() == block_size
    statistics = data.statistics["train"]
    assert statistics["cut_premises"] == 3
    assert statistics["rows"] == 4
    assert statistics["longest_pair"] == block_size
    assert statistics["tokens_per_pair"] == split.lengths.mean()


def test_a_hypothesis_that_fills_the_block_is_an_error(tmp_path, tokenizer, tokenizer_path):
    block_size = len(ids_of(tokenizer, SENTENCES[1])) + 3
    encoding = load_pair_encoding(str(tokenizer_path), block_size=block_size)
    with pytest.raises(DataError, match=f"train row 1:.*`block_size` {block_size}"):
        encode_rows(rows_of(), encoding, tmp_path)


def test_token_id_zero_is_an_ordinary_token(tmp_path):
    tokenizer = train_tokenizer(special_tokens=[END])
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    assert vocabulary[END] == 0
    encoding = encoding_of(tokenizer, tmp_path / "zero.json")
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    row = split.row(0)
    assert row[0] == row[-1] == 0
    assert (row == 0).sum() == 3
    ids, lengths, _ = pack(split, [0, 2])
    assert lengths.tolist() == [len(split.row(0)), len(split.row(2))]
    assert ids[: lengths[0]].tolist() == row.tolist()


def test_what_the_file_says_of_rows_is_switched_off(tmp_path, tokenizer):
    dressed = Tokenizer.from_str(tokenizer.to_str())
    dressed.enable_truncation(3)
    dressed.enable_padding(length=50, pad_token="<pad>")
    dressed.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, dressed.token_to_id(END))]
    )
    parsed = json.loads(dressed.to_str())
    parsed["model"]["dropout"] = 0.9
    (tmp_path / "dressed.json").write_text(json.dumps(parsed))
    plain = encode_rows(rows_of(), encoding_of(tokenizer, tmp_path / "plain.json"), tmp_path)
    dressed = load_pair_encoding(str(tmp_path / "dressed.json"))
    got = encode_rows(rows_of(), dressed, tmp_path)
    assert got.splits["train"].tokens.tolist() == plain.splits["train"].tokens.tolist()


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_spelled_in_the_text_are_text(tmp_path, tokenizer, special):
    spelled = Tokenizer.from_str(tokenizer.to_str())
    parsed = json.loads(spelled.to_str())
    for added in parsed["added_tokens"]:
        added["special"] = special or added["content"] != END
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    encoding = load_pair_encoding(str(tmp_path))
    text = f"क {END} ख <pad>"
    rows = [{**row, "premise": text, "hypothesis": text} for row in rows_of()]
    split = encode_rows(rows, encoding, tmp_path).splits["train"]
    assert (split.row(0) == encoding.end_of_text).sum() == 3
    assert tokenizer.token_to_id("<pad>") not in split.row(0)
    assert tokenizer.decode(split.premise(0).tolist(), skip_special_tokens=False) == text


def test_each_distinct_text_is_encoded_once(tmp_path, encoding, monkeypatch):
    encoded = []
    tokenizer = type(encoding.tokenizer)
    original = tokenizer.encode_batch_fast

    class Watched:
        def __getattr__(self, name):
            return getattr(encoding.tokenizer, name)

        def encode_batch_fast(self, texts, **options):
            encoded.extend(texts)
            return original(encoding.tokenizer, texts, **options)

    watched = PairEncoding(
        Watched(), encoding.tokenizer_hash, encoding.end_of_text, "documents", 1024
    )
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 4)
    data = encode_rows(rows_of(), watched, tmp_path / "watched")
    assert sorted(encoded) == sorted(SENTENCES)
    plain = encode_rows(rows_of(), encoding, tmp_path / "plain")
    assert data.splits["test"].tokens.tolist() == plain.splits["test"].tokens.tolist()


def random_rows(num_rows):
    """Pairs of beginnings of one text, so that texts come again."""
    pick = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()
    lengths = pick.integers(1, 12, size=(num_rows, 2))
    labels = [*range(3), *pick.integers(3, size=num_rows - 3).tolist()]
    return [
        {"premise": " ".join(words[:p]), "hypothesis": " ".join(words[:h]), "label": label}
        for (p, h), label in zip(lengths, labels, strict=True)
    ]


def joined_row_by_row(rows, encoding):
    """Rows, premise spans and statistics, straight from the rule: the premise is cut to fit."""
    template = TEMPLATES[encoding.template]
    joined, spans, num_cut, num_text_tokens, num_words = [], [], 0, 0, 0
    for row in rows:
        premise, hypothesis = (ids_of(encoding.tokenizer, row[column]) for column in COLUMNS[:2])
        kept = premise[: encoding.block_size - encoding.num_special_tokens - len(hypothesis)]
        parts = {"premise": kept, "hypothesis": hypothesis, "end_of_text": [encoding.end_of_text]}
        joined.append([token for part in template for token in parts[part]])
        spans.append([template.index("premise"), len(kept)])
        num_cut += len(kept) < len(premise)
        num_text_tokens += len(premise) + len(hypothesis)
        num_words += len(row["premise"].split()) + len(row["hypothesis"].split())
    lengths = [len(row) for row in joined]
    statistics = {
        "rows": len(rows),
        "cut_premises": num_cut,
        "tokens_per_pair": sum(lengths) / len(rows),
        "longest_pair": max(lengths),
        "tokens_per_word": num_text_tokens / num_words,
    }
    return joined, spans, statistics


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("block_size", [45, 1024])
def test_rows_are_those_of_a_loop_over_rows(
    tmp_path, tokenizer_path, monkeypatch, template, block_size
):
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 5)
    monkeypatch.setattr("xnli_gpt.data.pairs.JOIN_CHUNK", 16)
    encoding = load_pair_encoding(str(tokenizer_path), template=template, block_size=block_size)
    rows = random_rows(50)
    expected, spans, statistics = joined_row_by_row(rows, encoding)
    data = encode_rows(rows, encoding, tmp_path)
    split = data.splits["train"]
    assert split.tokens.tolist() == [token for row in expected for token in row]
    assert split.offsets.tolist() == [0, *np.cumsum([len(row) for row in expected])]
    assert split.premise_spans.tolist() == spans
    assert split.labels.tolist() == [row["label"] for row in rows]
    arrays = (split.tokens, split.offsets, split.premise_spans, split.labels)
    assert [array.dtype for array in arrays] == [np.uint16, np.int64, np.int32, np.int64]
    assert data.statistics == dict.fromkeys(SPLITS, statistics)
    assert (statistics["cut_premises"] > 0) == (block_size == 45)
    pairs = [(row["premise"], row["hypothesis"]) for row in rows]
    assert [row.tolist() for row in encode_pairs(pairs, encoding)] == expected


def test_no_pairs_are_no_rows(encoding):
    assert encode_pairs([], encoding) == []


def test_the_first_row_that_can_not_be_joined_is_named(tmp_path, tokenizer_path):
    latin = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=[END], show_progress=False)
    latin.train_from_iterator(["abc"] * 4, trainer)
    encoding = encoding_of(latin, tmp_path / "latin.json", block_size=8)
    for pairs, said in [
        ([("a", "b"), ("a", "क"), ("क", "a")], "pair 2: .* no token for the hypothesis"),
        ([("a", "b"), ("क", "ख"), ("a", "क")], "pair 2: .* no token for the premise"),
        ([("a", "b"), ("क", "abacada"), ("a", "b")], "pair 2: .* no token for the premise"),
        ([("a", "b"), ("a", "b"), ("a", "bbbbb"), ("क", "b")], "pair 3: a hypothesis of 5 tokens"),
    ]:
        with pytest.raises(DataError, match=said):
            encode_pairs(pairs, encoding)


class WatchedTokenizer:
    """A tokenizer that calls `watch` before each batch."""

    def __init__(self, tokenizer, watch):
        self.tokenizer, self.watch = tokenizer, watch

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts, **options):
        self.watch()
        return self.tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("num_cores", [1, 3])
def test_as_many_chunks_at_a_time_as_the_process_has_cores(encoding, monkeypatch, num_cores):
    """Each batch waits until one has begun on every core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 1)
    barrier = threading.Barrier(num_cores)
    threads = set()

    def watch():
        threads.add(threading.get_ident())
        barrier.wait(timeout=HANG_S)

    watched = PairEncoding(
        WatchedTokenizer(encoding.tokenizer, watch), "", encoding.end_of_text, "documents", 1024
    )
    pairs = list(zip(SENTENCES[::2], SENTENCES[1::2], strict=True))
    rows = encode_pairs(pairs, watched)
    assert len(threads) == num_cores
    for row, expected in zip(rows, encode_pairs(pairs, encoding), strict=True):
        assert row.tolist() == expected.tolist()


@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_tokenising_before_and_after_a_fork(tokenizer_path, parallelism):
    program = f"""
        import os, signal
        from xnli_gpt.data.pairs import encode_pairs
        from xnli_gpt.data.tokenizer import load_pair_encoding
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        encoding = load_pair_encoding({str(tokenizer_path)!r})
        pairs = [(f"क {{i}}", f"ख {{i}}") for i in range(3000)]
        rows = [row.tolist() for row in encode_pairs(pairs, encoding)]
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
        child = os.fork()
        signal.alarm({HANG_S})
        again = [row.tolist() for row in encode_pairs(pairs, encoding)]
        if not child:
            os._exit(0 if again == rows else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if parallelism is not None:
        environment["TOKENIZERS_PARALLELISM"] = parallelism
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment,
    )
    assert (run.returncode, run.stderr) == (0, "")

"""From two texts to one row of token ids, by a template; every distinct text is encoded once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.encoded import CACHED_ARRAYS, offsets_of, places_of_rows
from xnli_gpt.data.tokenizer import PairEncoding, tokenizers_errors
from xnli_gpt.errors import DataError

ENCODE_CHUNK = 1024
JOIN_CHUNK = 65536


@dataclass(frozen=True)
class TextSplit:
    """The rows of one split as text, with label ids."""

    premises: list[str]
    hypotheses: list[str]
    labels: np.ndarray  # [N] int64, -1 where a row has none
    carried: Mapping[str, list[str]] = field(default_factory=dict)  # other columns of the data


def encode_pairs(pairs: Sequence[tuple[str, str]], encoding: PairEncoding) -> list[np.ndarray]:
    """Return one row of token ids for every (premise, hypothesis), as `load_encoded` makes them."""
    stripped = [text.strip("\r\n") for pair in pairs for text in pair]
    texts = _encode_texts(dict.fromkeys(stripped), encoding, show_progress=False)
    numbers = texts.numbers(stripped).reshape(-1, 2)  # [N, 2]
    tokens, offsets, _ = _join_pairs(texts, numbers, "pair", encoding)
    tokens = tokens.astype(np.int64)
    return [tokens[start:end] for start, end in pairwise(offsets)]


def premise_spans(rows: Sequence[np.ndarray], encoding: PairEncoding) -> np.ndarray:
    """Return where the premise of every row of `encode_pairs` begins, and its length [N, 2]: no
    text becomes an end-of-text token, so the one behind the premise tells."""
    start = TEMPLATES[encoding.template].index("premise")
    spans = np.zeros((len(rows), 2), dtype=np.int32)
    for number, row in enumerate(rows):
        ends = np.flatnonzero(row[start:] == encoding.end_of_text)
        spans[number] = start, ends[0] if len(ends) else 0
    return spans


@dataclass(frozen=True)
class _EncodedTexts:
    """Distinct texts as token ids."""

    number_of: dict[str, int]
    tokens: np.ndarray  # [sum of lengths + 1], the texts by number, then the end-of-text token
    offsets: np.ndarray  # [M + 1] int64, where the texts begin
    num_words: np.ndarray  # [M] int64

    @property
    def lengths(self) -> np.ndarray:
        """Return [M] tokens of every text."""
        return np.diff(self.offsets)

    def numbers(self, texts: Sequence[str]) -> np.ndarray:
        """Return [N] int64, the numbers of any of the texts."""
        return np.fromiter(map(self.number_of.__getitem__, texts), np.int64, len(texts))


def encode_distinct(texts: Mapping[str, TextSplit], encoding: PairEncoding) -> _EncodedTexts:
    """Return token ids of every distinct text, each encoded once, on all cores."""
    every = (column for rows in texts.values() for column in (rows.premises, rows.hypotheses))
    return _encode_texts(dict.fromkeys(chain.from_iterable(every)), encoding)


def _encode_texts(
    distinct: Iterable[str], encoding: PairEncoding, show_progress: bool = True
) -> _EncodedTexts:
    distinct = list(distinct)
    dtype = np.uint16 if encoding.num_tokens <= 1 << 16 else np.uint32
    chunks = [distinct[i : i + ENCODE_CHUNK] for i in range(0, len(distinct), ENCODE_CHUNK)]
    tokens, lengths, num_words = [], [], []
    hidden = None if show_progress else True
    with (
        _threads_of_tokenizers_off(),
        ThreadPoolExecutor(_num_cores()) as pool,
        tqdm(total=len(distinct), desc="tokenising", unit="text", disable=hidden) as progress,
    ):
        encoded = pool.map(partial(_encode_chunk, encoding.tokenizer, dtype), chunks)
        for chunk_tokens, chunk_lengths, chunk_words in encoded:
            tokens.append(chunk_tokens)
            lengths += chunk_lengths
            num_words += chunk_words
            progress.update(len(chunk_lengths))
    return _EncodedTexts(
        {text: number for number, text in enumerate(distinct)},
        np.concatenate([*tokens, np.array([encoding.end_of_text], dtype)]),
        offsets_of(lengths),
        np.array(num_words, dtype=np.int64),
    )


def _encode_chunk(
    tokenizer: Tokenizer, dtype: type, texts: list[str]
) -> tuple[np.ndarray, list[int], list[int]]:
    """Return the token ids of texts one after the other, and the tokens and words of each."""
    with tokenizers_errors("the tokenizer can't encode the texts", "is it the right one?"):
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    rows = [row.ids for row in encoded]
    tokens = np.fromiter(chain.from_iterable(rows), dtype)
    return tokens, [len(row) for row in rows], [len(text.split()) for text in texts]


@contextmanager
def _threads_of_tokenizers_off() -> Iterator[None]:
    """Keep the library to one thread. Its own don't survive a fork: once they have run, a forked
    process gets one core, or hangs if the environment asks for more."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _num_cores() -> int:
    """Return how many cores this process may use: a SLURM job has some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_split(
    split: str, rows: TextSplit, texts: _EncodedTexts, encoding: PairEncoding
) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays of a split that the cache keeps (CACHED_ARRAYS), and its statistics."""
    columns = (rows.premises, rows.hypotheses)
    numbers = np.stack([texts.numbers(column) for column in columns], axis=1)  # [N, 2]
    tokens, offsets, spans = _join_pairs(texts, numbers, f"{split} row", encoding)
    lengths = np.diff(offsets)
    text_lengths = texts.lengths[numbers]  # [N, 2]
    statistics = {
        "rows": len(lengths),
        "cut_premises": int((spans[:, 1] < text_lengths[:, 0]).sum()),
        "tokens_per_pair": int(lengths.sum()) / len(lengths),
        "longest_pair": int(lengths.max()),
        "tokens_per_word": int(text_lengths.sum()) / int(texts.num_words[numbers].sum()),
    }
    arrays = (tokens, offsets, spans, rows.labels)
    return dict(zip(CACHED_ARRAYS, arrays, strict=True)), statistics


def _join_pairs(
    texts: _EncodedTexts, numbers: np.ndarray, name: str, encoding: PairEncoding
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows by the template from the numbers [N, 2] of their texts, premises cut to fit:
    tokens, offsets and premise spans as in EncodedSplit. `name` is what messages call a row."""
    space = encoding.block_size - encoding.num_special_tokens
    lengths = texts.lengths[numbers]  # [N, 2]
    _require_tokens(lengths, space, name, encoding)
    lengths[:, 0] = np.minimum(lengths[:, 0], space - lengths[:, 1])
    template = TEMPLATES[encoding.template]
    order = [("premise", "hypothesis", "end_of_text").index(part) for part in template]
    end_of_text = np.full(len(numbers), texts.offsets[-1])
    # [N, 2] -> [N, 3], the end-of-text token as a third text -> [N, parts of the template]
    starts = np.column_stack([texts.offsets[numbers], end_of_text])[:, order]
    lengths = np.column_stack([lengths, np.ones_like(end_of_text)])[:, order]
    tokens = [texts.tokens[:0]]
    for i in range(0, len(numbers), JOIN_CHUNK):
        rows = slice(i, i + JOIN_CHUNK)
        tokens.append(texts.tokens[places_of_rows(starts[rows].ravel(), lengths[rows].ravel())])
    at = template.index("premise")
    spans = np.column_stack([np.full(len(numbers), at), lengths[:, at]]).astype(np.int32)
    return np.concatenate(tokens), offsets_of(lengths.sum(axis=1)), spans


def _require_tokens(lengths: np.ndarray, space: int, name: str, encoding: PairEncoding) -> None:
    """Raise for the first row whose texts, of these lengths [N, 2], can't be joined."""
    bad = (lengths == 0).any(axis=1) | (lengths[:, 1] >= space)
    if not bad.any():
        return
    where = f"{name} {bad.argmax() + 1}"
    premise_length, hypothesis_length = lengths[bad.argmax()]
    if not premise_length or not hypothesis_length:
        which = "premise" if not premise_length else "hypothesis"
        raise DataError(
            f"{where}: the tokenizer gives no token for the {which}; is it the right one?"
        )
    raise DataError(
        f"{where}: a hypothesis of {hypothesis_length} tokens leaves no room for the premise "
        f"in `block_size` {encoding.block_size}; a hypothesis is never cut: raise it"
    )

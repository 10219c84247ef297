"""Tokenizer files for the fuzzer; the tokenizers library tells what is right."""

from __future__ import annotations

import json
import random
from pathlib import Path

from fuzzing import Kind, Wrong, require_good_message
from odd_inputs import END, TEXTS, changed_bytes, changed_json
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import END_OF_TEXT_TOKENS, cuts_vowel_signs, load_pair_encoding
from xnli_gpt.errors import DataError


class Tokenizers(Kind):
    """Files of a tokenizer with other bytes, and with other JSON in them."""

    # The library says so on stderr, from below Python, before it raises.
    may_say = "panicked at"

    def __init__(self, folder: Path):
        self.path = folder / "tokenizer.json"
        self.bases = [tokenizer.to_str() for tokenizer in base_tokenizers()]

    def run(self, generator: random.Random) -> str:
        base = generator.choice(self.bases)
        self.doing = generator.choice(["other bytes", "other JSON", "other JSON"])
        if self.doing == "other bytes":
            data = changed_bytes(base.encode(), generator)
        else:
            data = self._other_json(base, generator)
        self.path.write_bytes(data)
        return self._check(data)

    def _other_json(self, base: str, generator: random.Random) -> bytes:
        tree = json.loads(base)
        if generator.random() < 0.05 and isinstance(vocab := tree["model"]["vocab"], dict):
            one, other = generator.sample(sorted(vocab), 2)
            vocab[one] = vocab[generator.choice([other, END])]
        for _ in range(generator.choice([0, 1, 1, 1, 2, 4])):
            tree = changed_json(tree, generator)
        text = json.dumps(tree, ensure_ascii=generator.random() < 0.5)
        if generator.random() < 0.05:
            text = text.replace("{", '{"type": "BPE", "model": 1,', 1)
        encodings = ["utf-8"] * 8 + ["utf-8-sig", "utf-16"]
        return text.encode(generator.choice(encodings), "surrogatepass")

    def _check(self, data: bytes) -> str:
        try:
            encoding = load_pair_encoding(str(self.path))
        except DataError as error:
            require_good_message(error, self.path)
            return "refused"
        num_tokens, pairs = encoding.num_tokens, [(a, b) for a in TEXTS for b in TEXTS[:2]]
        try:
            rows = encode_pairs(pairs, encoding)
        except DataError as error:
            require_good_message(error)
            return "loaded, but gives no tokens"
        if any(row.max() >= num_tokens or row.min() < 0 for row in rows):
            raise Wrong(f"token ids beyond num_tokens {num_tokens}")
        if encoding.tokenizer.id_to_token(encoding.end_of_text) not in END_OF_TEXT_TOKENS:
            raise Wrong("another token than end-of-text")
        vocab = encoding.tokenizer.get_vocab(with_added_tokens=True)
        if len(set(vocab.values())) < len(vocab):
            raise Wrong("two tokens of one id")
        library = library_tokenizer(data)
        if library is None:
            return "loaded, but not by the library"
        for pair, row in zip(pairs, rows, strict=True):
            if row.tolist() != joined(library, pair, encoding.end_of_text):
                raise Wrong(f"{pair} has other tokens than in the library")
        cuts_vowel_signs(encoding.tokenizer)
        return "loaded"


def base_tokenizers() -> list[Tokenizer]:
    """Byte-level BPE as in pretraining, with variants of it, and other models."""
    bases = []
    for pattern in (None, r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"):
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        words = pattern and pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Sequence([words, byte_level]) if words else byte_level
        )
        tokenizer.normalizer = normalizers.NFC() if words else None
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<pad>", END] if words else [END]
        trainer = trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
        bases.append(tokenizer)
    dressed = Tokenizer.from_str(bases[0].to_str())
    dressed.enable_truncation(5)
    dressed.enable_padding(length=9, pad_token=END)
    pieces = [(END, 0.0), ("<unk>", 0.0), *((c, -1.0) for c in sorted(set("".join(TEXTS))))]
    words = {word: i for i, word in enumerate([END, "[UNK]", *" ".join(TEXTS).split()])}
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return [*bases, *bases, dressed, unigram, word_level]


def library_tokenizer(data: bytes) -> Tokenizer | None:
    """The tokenizer of the same file as the library alone reads it, its additions switched off
    through its own interface; None where the library doesn't take the file."""
    try:
        tokenizer = Tokenizer.from_str(data.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        tokenizer.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().values()
    # The library raises Exception itself, and panics are no Exception.
    except BaseException:
        return None
    # Spelled out in a text, a token of the end is text for us whatever the file calls it.
    ends = [token for token in added if token.content in END_OF_TEXT_TOKENS]
    return tokenizer if all(token.special for token in ends) else None


def joined(tokenizer: Tokenizer, pair: tuple[str, str], end: int) -> list[int]:
    ids = [tokenizer.encode(text.strip("\r\n"), add_special_tokens=False).ids for text in pair]
    return [end, *ids[0], end, *ids[1], end]

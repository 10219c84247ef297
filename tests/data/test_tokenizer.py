"""Where a tokenizer is found, which are refused, and what is read of one."""

import json
import pickle
import re
import unicodedata

import pytest
from data_parts import (
    END,
    SENTENCES,
    WORDS_WITH_THEIR_SIGNS,
    encode_rows,
    encoding_of,
    ids_of,
    rows_of,
    train_tokenizer,
)
from shell import ROOT
from tokenizers import AddedToken, Tokenizer, models, normalizers

from xnli_gpt.data import tiktoken_files
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import (
    END_OF_TEXT_TOKENS,
    cuts_vowel_signs,
    load_pair_encoding,
    pair_encoding,
)
from xnli_gpt.data.tokenizer_check import notes_of_encoding
from xnli_gpt.errors import DataError

CASES = ROOT / "tests" / "cases"


@pytest.mark.parametrize("name", ["path", "stem", "file", "folder", "folder inside"])
def test_where_a_tokenizer_is_found(tmp_path, tokenizer, tokenizer_path, name):
    (tmp_path / "folder").mkdir()
    tokenizer.save(str(tmp_path / "folder" / "tokenizer.json"))
    arguments = {
        "path": (str(tokenizer_path), None),
        "stem": (tokenizer_path.stem, str(tokenizer_path.parent)),
        "file": (tokenizer_path.name, str(tokenizer_path.parent)),
        "folder": (str(tmp_path / "folder"), None),
        "folder inside": ("folder", str(tmp_path)),
    }
    path, tokenizer_dir = arguments[name]
    found = load_pair_encoding(path, tokenizer_dir=tokenizer_dir)
    assert found.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert found.end_of_text == tokenizer.token_to_id(END)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"{}", b"\xff\xff", b'{"model": {"type": "BPE"}}', b'{"model": 3}'],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError, match="bad.json: not a tokenizer file"):
        load_pair_encoding(str(tmp_path / "bad.json"))


def two_tokens_of_one_id(parsed):
    parsed["model"]["vocab"]["क"] = 7


def a_token_far_beyond_any_table(parsed):
    """The library would end the process: it counts up to it where it writes the vocabulary."""
    parsed["model"]["vocab"]["क"] = 1 << 31


def merges_without_their_prefix(parsed):
    """The library would end the process: it cuts a letter in two."""
    parsed["model"]["continuing_subword_prefix"] = "x"


def a_name_of_two_lines(parsed):
    parsed["model"]["type"] = "a\n\x1b[31mb"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (two_tokens_of_one_id, "are both token 7"),
        (a_token_far_beyond_any_table, "'क' is token 2147483648: no model has so many rows"),
        (merges_without_their_prefix, "the merge .* lacks the prefix 'x'"),
        (a_name_of_two_lines, "not a tokenizer file"),
    ],
)
def test_a_tokenizer_that_contradicts_itself(tmp_path, tokenizer, change, said):
    parsed = json.loads(tokenizer.to_str())
    change(parsed)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parsed))
    with pytest.raises(DataError, match=said) as caught:
        load_pair_encoding(str(path))
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_tokenizer_without_its_token_for_the_unknown(tmp_path):
    words = Tokenizer(models.WordLevel({END: 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"can't encode the texts \(.*is it the right one"):
        encode_pairs([("a", "b")], encoding_of(words, tmp_path / "words.json"))


def test_a_tokenizer_that_is_missing_names_the_places(tmp_path):
    with pytest.raises(DataError, match="looked at nothing.*nothing.json"):
        load_pair_encoding("nothing", tokenizer_dir=str(tmp_path))


@pytest.mark.parametrize("token", [*END_OF_TEXT_TOKENS, "<unk>"])
def test_the_end_of_text_token_is_one_of_the_list(tmp_path, token):
    tokenizer = train_tokenizer(special_tokens=["<pad>", token])
    if token == "<unk>":
        with pytest.raises(DataError, match="has none that is known .*<pad>, <unk>.*`end_of_text`"):
            encoding_of(tokenizer, tmp_path / "t.json")
    else:
        assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text == 1


def test_num_tokens_counts_added_tokens(tmp_path, tokenizer):
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens([AddedToken("दिल्ली"), AddedToken("मैदान")])
    num_tokens = encoding_of(tokenizer, tmp_path / "a.json").num_tokens
    assert encoding_of(larger, tmp_path / "b.json").num_tokens == num_tokens + 2


def test_ids_above_sixteen_bits(tmp_path, tokenizer):
    parsed = json.loads(tokenizer.to_str())
    (end,) = [added for added in parsed["added_tokens"] if added["content"] == END]
    end["id"] = parsed["model"]["vocab"][END] = 70_000
    (tmp_path / "wide.json").write_text(json.dumps(parsed))
    encoding = load_pair_encoding(str(tmp_path / "wide.json"))
    assert encoding.num_tokens == 70_001
    assert encode_rows(rows_of(), encoding, tmp_path).splits["train"].row(0)[0] == 70_000


def test_cuts_vowel_signs(tokenizer):
    assert cuts_vowel_signs(tokenizer)
    keeping = train_tokenizer(WORDS_WITH_THEIR_SIGNS)
    assert not cuts_vowel_signs(keeping)
    word = "किताबें"
    assert len(ids_of(tokenizer, word)) > len(ids_of(keeping, word))
    assert not cuts_vowel_signs(Tokenizer(models.BPE()))


@pytest.mark.parametrize(
    ("case", "token", "told"),
    [
        ("tok_two_eos", "</s>", "tokenizer_config.json"),
        ("tok_slow_folder", END, "tokenizer_config.json"),
        ("tok_strip_accents", END, "the only known one"),
    ],
)
def test_which_end_of_text_token_is_taken_is_said(case, token, told):
    encoding = load_pair_encoding(str(CASES / case))
    assert encoding.end_of_text_token == token
    assert told in encoding.notes[0] and token in encoding.notes[0]


def test_of_several_end_of_text_tokens_one_must_be_named(tmp_path):
    tokenizer = train_tokenizer(special_tokens=["</s>", END])
    with pytest.raises(DataError, match=f"several, {re.escape(END)} </s>.*`end_of_text`"):
        encoding_of(tokenizer, tmp_path / "t.json")
    assert encoding_of(tokenizer, tmp_path / "t.json", end_of_text="</s>").end_of_text == 0
    for content in ({"eos_token": "</s>"}, {"eos_token": {"content": "</s>", "lstrip": False}}):
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(content))
        assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text == 1
    with pytest.raises(DataError, match="has no such token"):
        encoding_of(tokenizer, tmp_path / "t.json", end_of_text="<none>")


def test_an_end_of_text_token_that_came_later_is_not_taken(tmp_path):
    tokenizer = train_tokenizer(special_tokens=[END])
    tokenizer.add_special_tokens(["</s>"])
    assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text_token == END
    with pytest.raises(DataError, match="was added later, and pretraining did not train it"):
        encoding_of(tokenizer, tmp_path / "t.json", end_of_text="</s>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(DataError, match="was added later"):
        encoding_of(tokenizer, tmp_path / "t.json")
    alone = train_tokenizer(special_tokens=["<pad>"])
    alone.add_special_tokens(["</s>"])
    assert "warning" in encoding_of(alone, tmp_path / "t.json").notes[1]


def test_a_named_end_of_text_token_in_a_text_is_text(tmp_path):
    tokenizer = train_tokenizer(special_tokens=["<pad>"])
    tokenizer.add_tokens(["<s>"])
    encoding = encoding_of(tokenizer, tmp_path / "t.json", end_of_text="<s>")
    (row,) = encode_pairs([("a<s>b", "c")], encoding)
    assert (row == encoding.end_of_text).sum() == 3


def test_vocabulary_and_merges_are_the_tokenizer_that_they_were(tmp_path, tokenizer):
    tokenizer.model.save(str(tmp_path))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": END}))
    for path in (tmp_path, tmp_path / "vocab.json"):
        encoding = load_pair_encoding(str(path))
        assert encoding.end_of_text_token == END
        for sentence in SENTENCES:
            assert ids_of(encoding.tokenizer, sentence) == ids_of(tokenizer, sentence)


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt"])
def test_tokenizers_of_other_kinds_are_called_by_name(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"{name}.*expected a tokenizer.json"):
        load_pair_encoding(str(tmp_path))


def test_normalisation_is_part_of_the_tokenizer(tmp_path, tokenizer):
    path = tmp_path / "t.json"
    plain = encoding_of(tokenizer, path)
    composed = load_pair_encoding(str(path), normalize="NFC")
    forms = ("\u0959", unicodedata.normalize("NFC", "\u0959"))
    assert forms[0] != forms[1]
    assert ids_of(plain.tokenizer, forms[0]) != ids_of(plain.tokenizer, forms[1])
    assert ids_of(composed.tokenizer, forms[0]) == ids_of(composed.tokenizer, forms[1])
    assert plain.tokenizer_hash != composed.tokenizer_hash
    saved = pair_encoding(composed.tokenizer.to_str(), "documents", 64, END)
    assert saved.tokenizer_hash == composed.tokenizer_hash
    assert ids_of(saved.tokenizer, forms[0]) == ids_of(saved.tokenizer, forms[1])


@pytest.mark.parametrize(
    ("case", "said"),
    [("tok_strip_accents", "of है there is left ह"), ("tok_unk", r"there is left \[UNK\]")],
)
def test_a_tokenizer_that_loses_letters_is_warned_of(case, said):
    texts = ["राम है", "सीता भी है"]
    notes = notes_of_encoding(texts, load_pair_encoding(str(CASES / case)))
    assert len(notes) == 1 and re.search(f"warning: .*loses letters.*{said}", notes[0])
    assert notes_of_encoding(texts, load_pair_encoding(str(CASES / "tokenizer.json"))) == []


def without_accents():
    return normalizing(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]))


def without_virama():
    return normalizing(normalizers.Replace("\u094d", ""))


def normalizing(normalizer):
    tokenizer = train_tokenizer()
    tokenizer.normalizer = normalizer
    return tokenizer


def without_alphabet():
    return Tokenizer(models.BPE({END: 0, "x": 1, "a": 2}, []))


def of_single_letters():
    return Tokenizer(models.Unigram([("<unk>", 0.0), (END, 0.0), ("x", -1.0)], 0))


LOSING = {
    "accents of Latin": (without_accents, "chó", "cho"),
    "a sign that is replaced": (without_virama, "क्या", "कया"),
    "no token for the unknown": (without_alphabet, "झx", "x"),
    "unigram": (of_single_letters, "झx", "<unk>"),
}


@pytest.mark.parametrize("make, word, left", LOSING.values(), ids=LOSING)
def test_letters_that_are_lost_in_any_way(tmp_path, make, word, left):
    notes = notes_of_encoding([word], encoding_of(make(), tmp_path / "t.json"))
    assert f"of {word} there is left {left}" in notes[0]


@pytest.mark.parametrize("change", [normalizers.NFC(), normalizers.NFKD(), normalizers.Lowercase()])
def test_another_form_of_the_same_letters_is_no_loss(tmp_path, change):
    words = ["Straße", "École", "ख़रीदा", "\u0958ल", "हैं", "Ελλάδα", "chó", "สวัสดี", "ہے"]
    encoding = encoding_of(normalizing(change), tmp_path / "t.json")
    assert not [note for note in notes_of_encoding(words, encoding) if "loses" in note]


def test_forms_of_letters_that_change_the_tokens_are_counted(tmp_path, tokenizer):
    encoding = encoding_of(tokenizer, tmp_path / "t.json")
    texts = ["राम", "क\u200dष", "क\u200cष", "क\u00a0ख", "\u0958ल", "अ\u0928\u093c"]
    (note,) = notes_of_encoding(texts, encoding)
    assert "of 6 different texts, 2 with letters in another form than NFC" in note
    assert "2 with zero-width joiners, 1 with no-break spaces" in note and "`normalize` NFC" in note
    assert notes_of_encoding(["राम", "सीता"], encoding) == []
    composed = load_pair_encoding(str(tmp_path / "t.json"), normalize="NFC")
    (note,) = notes_of_encoding(texts, composed)
    assert "NFC (nukta" not in note


NANOCHAT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


def tiktoken_of(tiktoken):
    """An encoding with the merges of a trained tokenizer, and nanochat's special tokens behind."""
    trained = json.loads(train_tokenizer(special_tokens=[]).to_str())["model"]["vocab"]
    letters = {letter: byte for byte, letter in tiktoken_files._LETTERS.items()}
    ranks = {bytes(letters[c] for c in token): rank for token, rank in trained.items()}
    special = {name: len(ranks) + i for i, name in enumerate(("<|bos|>", "<|user_start|>"))}
    return tiktoken.Encoding(
        "own", pat_str=NANOCHAT_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def test_a_pickled_tiktoken_encodes_as_tiktoken_does(tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    library = tiktoken_of(tiktoken)
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(library))
    encoding = load_pair_encoding(str(tmp_path))
    assert encoding.end_of_text_token == "<|bos|>"
    assert encoding.end_of_text == library.encode_single_token("<|bos|>")
    texts = [
        *SENTENCES,
        '12345 की\u200dमत, "उद्धरण"!\r\n\r\nनई',
        "don't  STOP",
        "क्या?।। 7",
        " ",
        "<|bos|>",
    ]
    for text in texts:
        assert ids_of(encoding.tokenizer, text) == library.encode_ordinary(text), text


@pytest.mark.parametrize("content", [b"", b"x", pickle.dumps({"a": 1}), pickle.dumps([1])])
def test_a_pickle_of_something_else_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.pkl: (its pickle|no pickled)"):
        load_pair_encoding(str(tmp_path))

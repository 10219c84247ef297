"""The cache of token ids: what it is keyed by, damage, and processes that write it together."""

import os
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
from data_parts import (
    SENTENCES,
    WORDS_WITH_THEIR_SIGNS,
    built_in,
    class_label_dataset,
    encode_rows,
    encoding_of,
    rows_of,
    train_tokenizer,
    write_folder,
    write_hub_repository,
)
from limits import HANG_S
from shell import ROOT

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import cache, sources, tables
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.errors import DataError


def forbid(monkeypatch, *names, room=cache):
    def refuse(*_, **__):
        raise AssertionError("not from the cache")

    for name in names:
        monkeypatch.setattr(room, name, refuse)


def same(one, other):
    return (
        one.classes == other.classes
        and one.statistics == other.statistics
        and one.content_hash == other.content_hash
        and all(
            np.array_equal(getattr(one.splits[split], a), getattr(other.splits[split], a))
            for split in SPLITS
            for a in ("tokens", "offsets", "premise_spans", "labels")
        )
    )


@pytest.mark.parametrize("source", ["files", "saved", "repository", "built-in"])
def test_a_second_start_reads_the_cache(tmp_path, encoding, monkeypatch, source):
    request = DataRequest(source, data_dir=str(tmp_path / "data"))
    if source == "files":
        write_folder(tmp_path / "data")
    elif source == "saved":
        rows = class_label_dataset(list(NLI_CLASSES))
        datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(tmp_path / "data"))
    elif source == "repository":
        write_hub_repository(tmp_path / "data")
        request = DataRequest("hindi_xnli", data_dir=str(tmp_path / "data"))
    monkeypatch.setitem(sources.BUILTIN, "built-in", lambda: dict.fromkeys(SPLITS, rows_of()))
    first = load_encoded(request, encoding, tmp_path / "cache")
    for room in (sources, tables):
        forbid(monkeypatch, "quiet_datasets", room=room)
    forbid(monkeypatch, "_checked_texts", "encode_distinct", "_write_cache")
    second = load_encoded(request, encoding, tmp_path / "cache")
    assert same(first, second)
    assert all(isinstance(split.tokens, np.memmap) for split in second.splits.values())


def cache_of(cache_dir):
    (folder,) = cache_dir.glob("encoded-*")
    return folder


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "test.offsets.npy").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: os.truncate(folder / "train.tokens.npy", 150),
        lambda folder: os.truncate(folder / "meta.json", 60),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: flip_byte(folder / "train.tokens.npy", -3),
        lambda folder: flip_byte(folder / "validation.labels.npy", -8),
        lambda folder: flip_byte(folder / "train.tokens.npy", 20),
        lambda folder: flip_byte(
            folder / "meta.json", (folder / "meta.json").read_bytes().index(b"neutral")
        ),
        lambda folder: folder.rename(folder.with_name(folder.name + ".partial-host-1")),
    ],
    ids="unlinked no-meta truncated cut-meta list-meta token label header class partial".split(),
)
def test_a_damaged_cache_is_written_anew(tmp_path, encoding, monkeypatch, damage):
    cache_dir = tmp_path / "cache"
    first = encode_rows(rows_of(), encoding, tmp_path / "other")
    encode_rows(rows_of(), encoding, cache_dir)
    damage(cache_of(cache_dir))
    assert same(encode_rows(rows_of(), encoding, cache_dir), first)
    forbid(monkeypatch, "_checked_texts")
    assert same(encode_rows(rows_of(), encoding, cache_dir), first)


def test_a_cache_of_another_layout_is_not_read(tmp_path, encoding, monkeypatch):
    first = encode_rows(rows_of(), encoding, tmp_path)
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    with monkeypatch.context() as patched:
        forbid(patched, "_checked_texts")
        with pytest.raises(AssertionError, match="not from the cache"):
            encode_rows(rows_of(), encoding, tmp_path)
    assert same(encode_rows(rows_of(), encoding, tmp_path), first)
    assert len(list(tmp_path.glob("encoded-*"))) == 2


def test_a_start_reads_only_the_splits_asked_for(tmp_path, encoding, monkeypatch):
    rows = class_label_dataset(list(NLI_CLASSES))
    folders = {"saved": tmp_path / "saved", "files": write_folder(tmp_path / "files")}
    datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(folders["saved"]))
    for name, folder in folders.items():
        request = DataRequest(str(folder), splits=("validation", "test"))
        load_encoded(request, encoding, tmp_path / name)
        for path in folder.rglob("*"):
            if path.is_file() and "train" in str(path.relative_to(folder)):
                path.write_bytes(b"changed")
        with monkeypatch.context() as patched:
            forbid(patched, "_checked_texts")
            assert set(load_encoded(request, encoding, tmp_path / name).splits) == {
                "validation",
                "test",
            }
        with pytest.raises(DataError):
            load_encoded(DataRequest(str(folder)), encoding, tmp_path / name)


def test_every_flipped_byte_of_the_cache_is_noticed(tmp_path, encoding):
    encode_rows(rows_of(), encoding, tmp_path)
    folder = cache_of(tmp_path)
    assert cache._read_cache(folder) is not None
    positions = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in positions.integers(len(whole), size=12):
            flip_byte(path, at)
            read = cache._read_cache(folder)
            # A flipped space between the values of the JSON changes none of them.
            assert read is None or (path.suffix == ".json" and chr(whole[at]).isspace())
            path.write_bytes(whole)


def test_an_interrupted_write_is_not_used(tmp_path, encoding, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_crc_of_meta", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode_rows(rows_of(), encoding, tmp_path / "cache")
    whole = encode_rows(rows_of(), encoding, tmp_path / "other")
    assert same(encode_rows(rows_of(), encoding, tmp_path / "cache"), whole)


def test_changed_data_of_the_same_size_and_time(tmp_path, encoding):
    folder = write_folder(tmp_path / "data")
    path = folder / "train.jsonl"
    before = path.stat()
    first = load_encoded(DataRequest(str(folder)), encoding, tmp_path / "cache")
    path.write_bytes(path.read_bytes().replace("राम".encode(), "काम".encode()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = load_encoded(DataRequest(str(folder)), encoding, tmp_path / "cache")
    premise = encoding.tokenizer.decode(second.splits["train"].premise(0).tolist())
    assert premise == SENTENCES[0].replace("राम", "काम")
    assert first.content_hash != second.content_hash


def test_whatever_shapes_the_tokens_is_in_the_key(tmp_path, tokenizer_path, monkeypatch):
    def plain(**options):
        return load_pair_encoding(str(tokenizer_path), **options)

    turned = [{**row, "a": row["premise"], "b": row["hypothesis"]} for row in rows_of()]
    other = encoding_of(train_tokenizer(WORDS_WITH_THEIR_SIGNS), tmp_path / "other.json")
    variants = [
        ({}, plain()),
        ({}, other),
        ({}, plain(template="group")),
        ({}, plain(block_size=50)),
        ({"text_columns": ("hypothesis", "premise")}, plain()),
        ({"splits": ("test",)}, plain()),
    ]
    for request, encoding in variants:
        with built_in(turned):
            load_encoded(DataRequest("built-in", **request), encoding, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("encoded-*"))) == len(variants)
    with built_in(turned):
        read = load_encoded(
            DataRequest("built-in", text_columns=("hypothesis", "premise")),
            plain(),
            tmp_path / "cache",
        )
    assert plain().tokenizer.decode(read.splits["train"].premise(0).tolist()) == SENTENCES[1]


def test_the_cache_goes_by_content_not_by_path(tmp_path, encoding, monkeypatch):
    load_encoded(DataRequest(str(write_folder(tmp_path / "a"))), encoding, tmp_path / "cache")
    forbid(monkeypatch, "_checked_texts")
    load_encoded(DataRequest(str(write_folder(tmp_path / "b"))), encoding, tmp_path / "cache")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_another_process_finished_meanwhile(tmp_path, encoding, monkeypatch, damaged):
    """The other one publishes while this one is tokenising; it then finds this one's there."""
    cache_dir = tmp_path / "cache"
    original = cache.encode_distinct
    others = []

    def encode_after_the_other(*arguments):
        monkeypatch.setattr(cache, "encode_distinct", original)
        monkeypatch.setattr(cache.os, "getpid", lambda: 1)
        others.append(encode_rows(rows_of(), encoding, cache_dir))
        if damaged:
            (published,) = cache_dir.glob("*/meta.json")
            flip_byte(published.with_name("train.labels.npy"), -1)
        monkeypatch.undo()
        return original(*arguments)

    whole = encode_rows(rows_of(), encoding, tmp_path / "whole")
    monkeypatch.setattr(cache, "encode_distinct", encode_after_the_other)
    mine = encode_rows(rows_of(), encoding, cache_dir)
    assert same(mine, whole)
    assert damaged or same(others[0], whole)
    assert [path.name for path in cache_dir.iterdir()] == [cache_of(cache_dir).name]
    assert same(cache._read_cache(cache_of(cache_dir)), whole)


def test_two_processes_write_one_cache(tmp_path, tokenizer_path):
    folder = write_folder(tmp_path / "data")
    program = f"""
        import sys, time
        from pathlib import Path
        from xnli_gpt.data import cache
        from xnli_gpt.data.request import DataRequest
        from xnli_gpt.data.tokenizer import load_pair_encoding
        import datasets
        encoding = load_pair_encoding({str(tokenizer_path)!r})
        write = cache._write_cache
        def write_together(folder, *rest):
            me, other = Path(sys.argv[1]), Path(sys.argv[2])
            me.touch()
            while not other.exists():
                time.sleep(0.001)
            return write(folder, *rest)
        cache._write_cache = write_together
        request = DataRequest({str(folder)!r})
        data = cache.load_encoded(request, encoding, {str(tmp_path / "cache")!r})
        print(data.splits["train"].tokens.tolist())
    """
    signs = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *order],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for order in (signs, signs[::-1])
    ]
    printed = [process.communicate(timeout=HANG_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1] != ""
    assert [path.name for path in (tmp_path / "cache").glob("encoded-*")] == [
        cache_of(tmp_path / "cache").name
    ]

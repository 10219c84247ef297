"""Files that are no checkpoint, or no longer whole: refused with a reason, never wrong weights."""

import argparse
import pickle
import random
import zipfile

import pytest
import torch
from loader_parts import (
    assert_exactly_right,
    assert_holds,
    assert_refused,
    load_or_refuse,
    rewritten,
    storage_spans,
    tiny_file,
    tiny_state,
)

from load_checkpoint_helper import (
    inspect_checkpoint,
    load_pretrained_checkpoint,
    main,
)
from xnli_gpt.errors import CheckpointError


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert_refused(tmp_path / "none.pt", "no such file", capsys)


def test_a_name_too_long_for_the_file_system(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="can't be read"):
        inspect_checkpoint(tmp_path / ("x" * 300))
    assert main([str(tmp_path / ("x" * 300))]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_directory(tmp_path, capsys):
    assert_refused(tmp_path, "a folder, not a file, and without a .*pt in it", capsys)
    for count, told in ((1, "give the checkpoint in it, .*step0.pt"), (2, "with 2 checkpoints")):
        (tmp_path / f"step{count - 1}.pt").touch()
        assert_refused(tmp_path, told, capsys)


def test_several_files_as_a_shell_makes_of_a_glob(tmp_path, capsys):
    assert main(["a_val1.pt", "b_val2.pt", "c.pt", "--json"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and line.startswith(
        "error: 3 checkpoints (a_val1.pt, b_val2.pt, c.pt): name one"
    )
    assert "the glob into quotes" in line


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04" + bytes(200), pickle.dumps({"model": {}})]
)
def test_a_file_that_is_not_a_zip(tmp_path, capsys, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    match = "not the zip that torch.save writes" if content else "an empty file; copy it again"
    assert_refused(path, match, capsys)


@pytest.mark.parametrize("members", [[], ["a/b.txt"], ["a/data.pkl", "b/data.pkl"]])
def test_a_zip_that_torch_did_not_write(tmp_path, capsys, members):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, b"N.")
    assert_refused(path, "not one that torch.save wrote", capsys)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), None])
def test_a_file_without_a_dict(tmp_path, capsys, content):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    assert_refused(path, "expected the dict", capsys)


def test_a_compressed_zip(tmp_path, capsys):
    path = rewritten(
        tiny_file(tmp_path, "medium"), lambda _, data: data, compression=zipfile.ZIP_DEFLATED
    )
    assert_refused(path, "compressed", capsys)


def test_a_zip_rewritten_without_compression_loads(tmp_path):
    """So that the other rewritten files fail by what was changed in them."""
    path = rewritten(tiny_file(tmp_path, "medium"), lambda _, data: data)
    assert inspect_checkpoint(path)[0]["num_layers"] == 12


def test_a_big_endian_file(tmp_path, capsys):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: b"big" if name.endswith("byteorder") else data,
    )
    assert_refused(path, "big-endian", capsys)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_storage_shorter_than_its_tensor(tmp_path, capsys, keep):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: data[:keep] if name.endswith("data/0") else data,
    )
    assert_refused(path, "embed.weight .* needs 5328 values, and its storage has", capsys)


@pytest.mark.parametrize(
    "old, new, match",
    [
        (b"M\x4d\x01K\x10\x86", b"M\x4e\x01K\x10\x86", "needs 5344 values"),
        (b"M\xd0\x14", b"M\xd1\x14", "its storage has 5328"),
        (b"K\x10K\x01\x86", b"K\x11K\x01\x86", "needs 5660 values"),
        (b"K\x10K\x01\x86", b"J\xf0\xff\xff\xffK\x01\x86", "impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"M\x4d\x01\x85", "impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"M\x4d\x01", "damaged|impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"\x8a\xff" + b"\x7f" * 255 + b"K\x10\x86", "impossible shape"),
    ],
    ids=["rows", "numel", "stride", "negative stride", "one dimension", "size no tuple", "vast"],
)
def test_a_tensor_that_does_not_fit_its_storage(tmp_path, capsys, old, new, match):
    def alter(name: str, data: bytes) -> bytes:
        assert old in data or not name.endswith("data.pkl")
        return data.replace(old, new, 1) if name.endswith("data.pkl") else data

    assert_refused(rewritten(tiny_file(tmp_path, "medium"), alter), match, capsys)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"}",
        b"}q\x00.x",
        b"r\xff\xff\xff\xff.",
        b"cos\nsystem\n(S'ls'\ntR.",
        b"\x80\x63.",
    ],
)
def test_a_pickle_of_any_bytes(tmp_path, capsys, pickled):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: pickled if name.endswith("data.pkl") else data,
    )
    assert_refused(path, "pickle|no weights|can't load", capsys)


def test_a_truncated_file(tmp_path):
    path = tiny_file(tmp_path, "medium")
    whole = path.read_bytes()
    ends = [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 30, len(whole))]
    for end in ends:
        path.write_bytes(whole[:end])
        assert load_or_refuse(path) is None, end


def test_a_flipped_bit_in_any_storage_of_the_model(tmp_path):
    path = tiny_file(tmp_path, "medium")
    whole, generator = path.read_bytes(), random.Random(0)
    spans = storage_spans(path)
    assert len(spans) == len(tiny_state("medium"))
    for span in spans.values():
        damaged = bytearray(whole)
        damaged[generator.choice(span)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="bytes of .* are damaged"):
            inspect_checkpoint(path)


def test_damage_in_the_optimizer_states_does_not_matter(tmp_path):
    moments = {"state": {0: {"exp_avg": torch.ones(500), "exp_avg_sq": torch.ones(500)}}}
    sound = storage_spans(tiny_file(tmp_path, "medium"))
    path = tiny_file(tmp_path, "medium", optimizers=[moments])
    damaged = bytearray(path.read_bytes())
    spans = [span for name, span in storage_spans(path).items() if name not in sound]
    assert [len(span) for span in spans] == [2000, 2000]
    for span in spans:
        damaged[span.start : span.stop] = bytes(len(span))
    path.write_bytes(damaged)
    trunk, _, checkpoint = load_pretrained_checkpoint(path)
    assert_exactly_right(checkpoint["model"])
    assert_holds(trunk, "medium", tiny_state("medium"))


def test_far_more_weights_than_stored_values(tmp_path, capsys):
    state = tiny_state("medium")
    buffer = torch.ones(max(tensor.numel() for tensor in state.values()))
    shared = {n: buffer[: t.numel()].view(t.shape) for n, t in state.items() if n != "scalars"}
    match = r"\d+ weights of only 6204 stored values"
    assert_refused(tiny_file(tmp_path, "medium", state | shared), match, capsys)


def test_a_value_that_stands_for_many(tmp_path, capsys):
    state = tiny_state("medium")
    rows = {n: t[:1, :1].clone().expand(t.shape) for n, t in state.items() if "embed" in n}
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium", state | rows))
    assert_holds(trunk, "medium", state | rows)
    many = {n: t.clone()[:1, :1].expand(1 << 40, 16) for n, t in state.items() if "embed" in n}
    many["lm_head_w"] = many["embed.weight"]
    assert_refused(tiny_file(tmp_path, "medium", state | many), "weights of only", capsys)


def test_a_tensor_that_is_not_just_its_storage(tmp_path, capsys):
    """What torch negates when it is used is stored as it was before."""
    negated = torch._neg_view(tiny_state("medium")["embed.weight"])
    path = tiny_file(tmp_path, "medium", tiny_state("medium") | {"embed.weight": negated})
    assert_refused(path, "not just its storage's values", capsys)


@pytest.mark.parametrize("start", [b"x" * 100, bytes(4096)])
def test_bytes_before_the_zip(tmp_path, start):
    path = tiny_file(tmp_path, "medium")
    path.write_bytes(start + path.read_bytes())
    state = load_or_refuse(path)
    if state is not None:
        assert_exactly_right(state)


def test_names_that_differ_in_case_alone(tmp_path, capsys):
    """torch takes any of them, zipfile the one that is asked for."""
    path = tiny_file(tmp_path, "medium")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("medium/DATA.PKL", archive.read("medium/data.pkl"))
    assert_refused(path, "not one that torch.save wrote", capsys)


def test_a_flipped_bit_elsewhere_never_gives_wrong_weights(tmp_path):
    path = tiny_file(tmp_path, "medium", args=argparse.Namespace(lr=0.1))
    whole, generator = path.read_bytes(), random.Random(0)
    in_storages = {i for span in storage_spans(path).values() for i in span}
    elsewhere = [i for i in range(len(whole)) if i not in in_storages]
    outcomes = {"loaded": 0, "refused": 0}
    for position in generator.sample(elsewhere, 400):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        state = load_or_refuse(path)
        outcomes["refused" if state is None else "loaded"] += 1
        if state is not None:
            assert_exactly_right(state)
    assert outcomes["refused"] > 100, "headers, directory and pickle must have been hit"

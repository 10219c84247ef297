"""Files of weights as people have them: each form loads the same weights, or is called by name."""

import struct

import pytest
import safetensors.torch
import torch
from loader_parts import BOTH, TINY, assert_holds, assert_refused, tiny_file, tiny_state

from load_checkpoint_helper import inspect_checkpoint, load_pretrained_checkpoint, main

HEADS = {fmt: size["heads"] for fmt, size in TINY.items()}


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def with_infix(state):
    """As of a model in which each block and its MLP were wrapped on their own."""
    return {
        name.replace(".mlp.", "._orig_mod.mlp.module."): tensor for name, tensor in state.items()
    }


FORMS = {
    "model": lambda path, state: saved(path, {"model": state}),
    "model_state": lambda path, state: saved(path, {"config": {}, "model_state": state}),
    "model_state_dict": lambda path, state: saved(path, {"model_state_dict": state, "epoch": 3}),
    "state_dict": lambda path, state: saved(path, {"state_dict": state, "lr": 0.1}),
    "flat": lambda path, state: saved(path, state),
    "flat beside a step": lambda path, state: saved(path, state | {"step": torch.tensor(3)}),
    "wrapped within": lambda path, state: saved(path, {"model": with_infix(state)}),
    "legacy": lambda path, state: saved(
        path, {"model": state, "note": {1}}, _use_new_zipfile_serialization=False
    ),
    "legacy flat": lambda path, state: saved(path, state, _use_new_zipfile_serialization=False),
}


@BOTH
@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_any_form_loads(tmp_path, fmt, form):
    path = FORMS[form](tmp_path / "file.pt", tiny_state(fmt))
    trunk, info, checkpoint = load_pretrained_checkpoint(path, num_heads=HEADS[fmt])
    assert info["checkpoint_format"] == fmt
    assert_holds(trunk, fmt, tiny_state(fmt))
    weights = checkpoint["model"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_state(fmt).items())


@BOTH
def test_safetensors_load(tmp_path, fmt):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tiny_state(fmt), path, metadata={"format": "pt"})
    trunk, _, _ = load_pretrained_checkpoint(path, num_heads=HEADS[fmt])
    assert_holds(trunk, fmt, tiny_state(fmt))


def test_the_same_weights_in_safetensors_are_damaged_or_whole(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tiny_state("medium"), path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    damages = {
        whole[:-7]: "the file is damaged",
        whole[: 8 + length // 2] + b"\xff" * 3 + whole[8 + length // 2 + 3 :]: "header",
        whole.replace(b'"dtype":"BF16"', b'"dtype":"XF16"', 1): "XF16",
        whole.replace(b'"data_offsets":[0,', b'"data_offsets":[1,', 1): "the file is damaged",
        whole.replace(b'"shape":[333', b'"shape":[33"', 1): "header|damaged",
    }
    assert len(damages) == 5 and whole not in damages
    for content, match in damages.items():
        path.write_bytes(content)
        assert_refused(path, match, capsys, num_heads=2)


def test_a_legacy_file_cut_short_is_damaged(tmp_path, capsys):
    state = {"model": tiny_state("medium")}
    path = saved(tmp_path / "file.pt", state, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) // 2, 600, 40):
        path.write_bytes(whole[:end])
        assert_refused(path, "damaged|CRC", capsys, num_heads=2)


@pytest.mark.parametrize(
    "dtype", [torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8]
)
def test_weights_of_a_type_that_is_no_plain_number_are_refused_as_that(tmp_path, capsys, dtype):
    state = tiny_state("medium")
    state["embed.weight"] = state["embed.weight"].to(dtype)
    match = f"embed.weight is {dtype}, expected floating point of 16, 32 or 64 bits"
    assert_refused(tiny_file(tmp_path, "medium", state), match, capsys)


@pytest.mark.parametrize(
    "content, match",
    [
        (struct.pack("<2i", 20240326, 3) + bytes(2000), "llm.c"),
        (struct.pack("<2i", 20240520, 1) + bytes(2000), "a shard of tokens"),
        (b"GGUF" + bytes(2000), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(2000), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
    ],
)
def test_files_of_other_programs_are_called_by_name(tmp_path, capsys, content, match):
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    assert_refused(path, match, capsys)


def test_the_same_weights_have_the_same_id_beside_other_things(tmp_path):
    ids = set()
    for number, beside in enumerate([{}, {"step": 5, "optimizers": [{1: torch.ones(3)}]}]):
        (tmp_path / str(number)).mkdir()
        path = tiny_file(tmp_path / str(number), "medium", **beside)
        ids.add(inspect_checkpoint(path)[0]["weights_id"])
    assert len(ids) == 1


@BOTH
@pytest.mark.parametrize("with_code", [True, False])
def test_converted_weights_load_as_the_checkpoint(tmp_path, capsys, fmt, with_code):
    prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in tiny_state(fmt).items()}
    options = {} if with_code else {"code": ""}
    path = tiny_file(tmp_path, fmt, prefixed, val_loss=3.25, **options)
    out = tmp_path / "plain.safetensors"
    assert main([str(path), "--convert", str(out), "--n_head", str(HEADS[fmt])]) == 0
    trunk, info, _ = load_pretrained_checkpoint(out)
    assert_holds(trunk, fmt, tiny_state(fmt))
    before, _ = inspect_checkpoint(path, num_heads=HEADS[fmt])
    same = ("checkpoint_format", "num_heads", "step", "val_loss", "num_parameters", "dtypes")
    assert {key: info[key] for key in same} == {key: before[key] for key in same}
    library = safetensors.torch.load_file(out)
    assert library.keys() == tiny_state(fmt).keys()
    capsys.readouterr()
    assert main([str(path), "--convert", str(out), "--n_head", str(HEADS[fmt])]) == 2
    assert f"--convert {out}: is there already" in capsys.readouterr().err
    assert main([str(path), "--convert", str(tmp_path / "none" / "x.safetensors")]) == 2


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_rotary_tables_must_be_those_that_are_computed(tmp_path, capsys, fmt, dtype):
    state = tiny_state(fmt)
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt), max_seq_len=64)
    tables = {
        f"blocks.{i}.attn.rotary.{name}": getattr(trunk.rotary, name).to(dtype)
        for i in (0, 3)
        for name in ("cos", "sin")
    }
    loaded, info, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, state | tables))
    assert_holds(loaded, fmt, state)
    assert info["num_parameters"] == sum(tensor.numel() for tensor in state.values())
    name = "blocks.3.attn.rotary.sin"
    for wrong in (tables[name] * 0.9, tables[name][:, :-1].clone(), tables[name].int()):
        path = tiny_file(tmp_path, fmt, state | tables | {name: wrong})
        assert_refused(path, f"rotary table {name} .*another network", capsys)


def test_a_whole_module_is_called_that(tmp_path, capsys):
    path = saved(tmp_path / "file.pt", torch.nn.Linear(2, 2))
    assert_refused(path, "an object of torch.nn.modules.linear.Linear.*state_dict", capsys)


@pytest.mark.parametrize(
    "name, match",
    [
        ("__0_0.distcp", "a distributed checkpoint.*dcp_to_torch"),
        ("pytorch_model.bin", "give the checkpoint in it, .*pytorch_model.bin"),
        ("model.safetensors", "give the checkpoint in it, .*model.safetensors"),
        ("notes.txt", r"without a \*\.pt, \*\.pth, \*\.bin"),
    ],
)
def test_what_lies_in_a_folder_is_said(tmp_path, capsys, name, match):
    (tmp_path / name).touch()
    assert_refused(tmp_path, match, capsys)

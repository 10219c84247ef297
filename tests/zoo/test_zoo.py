"""Every family of the line computes what its script computes, in every batch shape; what differs
from its table is refused."""

import json
import re
import shutil

import pytest
import torch
from zoo_files import DRAWN, FILES, SUPPORTED, numbers_of, path_of, state_of, write_entry

from load_checkpoint_helper import inspect_checkpoint, load_pretrained_checkpoint
from model import GPTClassification, GPTFlexAttention
from xnli_gpt.checkpoints.families import RELATIVES
from xnli_gpt.errors import CheckpointError
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.network.mixing import join_scalars
from xnli_gpt.network.packed_row import PackedRow, pack_padded

WITH_WINDOWS = [name for name in SUPPORTED if "window_ids" in numbers_of(name)]
# One of each way to mix embeddings and layers, and to look at the token before.
MIXING = ["R5", "M4", "M5", "M6b", "nanochat-5"]
RELATIVES_DRAWN = [name for name in DRAWN if name in SUPPORTED and name != "group-sft-small"]


@pytest.mark.parametrize("name", SUPPORTED)
def test_features_and_logits_are_those_of_the_script(tmp_path, name):
    trunk, info, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    numbers = numbers_of(name)
    ids, every = numbers["ids"].long(), int(numbers["every"])
    with torch.no_grad():
        features = trunk.forward_features(ids)[:, ::every]
        logits = trunk.lm_logits(features)[..., : numbers["logits"].size(-1)]
    torch.testing.assert_close(features, numbers["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, numbers["logits"], atol=1e-4, rtol=1e-5)
    # Where both were measured, the tables are those that the script rounded.
    for other in ("features_float32_tables", "features_bf16_tables"):
        if other in numbers:
            assert (features - numbers[other]).abs().max() > 5e-4
    assert info["fingerprint"]["verdict"] in ("by its names", "confirmed")


@pytest.mark.parametrize("name", WITH_WINDOWS)
def test_windows_are_those_of_the_script(tmp_path, name):
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    numbers = numbers_of(name)
    blocks = int(numbers["window_blocks"]) if "window_blocks" in numbers else None
    windows = None if blocks is None else (blocks, blocks // 2)
    ids = numbers["window_ids"].long()
    with torch.no_grad():
        features = trunk.forward_features(ids, windows=windows)[:, :: int(numbers["every"])]
    torch.testing.assert_close(features, numbers["window_features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_batches_of_any_shape_give_the_same_features(tmp_path, name):
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    ids = numbers_of(name)["ids"].long()
    lengths = torch.tensor([128, 77])
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    docs = torch.repeat_interleave(torch.arange(2), lengths)
    with torch.no_grad():
        alone = [trunk.forward_features(row[None])[0] for row in rows]
        padded = trunk.forward_features(ids)
        pooled = trunk.pooled_features(pack_padded(ids, lengths))
        packed = trunk.forward_features(torch.cat(rows), docs=docs)
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=0)
    for number, features in enumerate(alone):
        last = lengths[number] - 1
        torch.testing.assert_close(padded[number, : last + 1], features, atol=1e-4, rtol=0)
        torch.testing.assert_close(pooled[number], features[last], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_examples_that_share_their_beginning_have_the_same_features(tmp_path, name):
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    assert trunk.shares_beginnings
    one, other = numbers_of(name)["ids"].long()[:2]
    # The second is one token longer than what it shares: a smear at its end reads the beginning.
    docs = [(70, [30, 1, 20]), (5, [100]), (0, [1])]
    examples = [one[:100], torch.cat([one[:70], other[:1]]), torch.cat([one[:70], other[:20]])]
    examples += [other[:105], one[:1]]
    ids = torch.cat([one[:100], other[:1], other[:20], other[:105], one[:1]])
    with torch.no_grad():
        found = trunk.pooled_features(PackedRow.sharing(ids, docs, multiple=16))
        expected = [trunk.forward_features(example[None])[0, -1] for example in examples]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)
    trunk.row_attention = "flex"
    with torch.no_grad():
        found = trunk.pooled_features(PackedRow.sharing(ids, docs))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SUPPORTED)
def test_gradients_flow_into_every_weight_that_is_read(tmp_path, name):
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    ids = numbers_of(name)["ids"].long()[:, :20]
    loss = trunk.pooled_features(pack_padded(ids, torch.tensor([20, 9]))).square().sum()
    loss.backward()
    without = [key for key, weight in trunk.named_parameters() if weight.grad is None]
    assert not without
    direct = {key: weight.grad.clone() for key, weight in trunk.named_parameters()}
    trunk.zero_grad()
    trunk.gradient_checkpointing = True
    trunk.pooled_features(pack_padded(ids, torch.tensor([20, 9]))).square().sum().backward()
    for key, weight in trunk.named_parameters():
        torch.testing.assert_close(weight.grad, direct[key], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MIXING)
def test_the_pretraining_form_gives_the_same_features(tmp_path, name):
    """FlexAttention on one packed row, in which no document sees another one."""
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    flex = GPTFlexAttention.from_config(trunk.config)
    flex.load_state_dict(trunk.state_dict() | {"lm_head.weight": trunk.lm_head_weight})
    numbers = numbers_of(name)
    rows = numbers["ids"].long()
    docs = torch.arange(2).repeat_interleave(rows.size(1))
    every = int(numbers["every"])
    with torch.no_grad():
        features = flex.forward_features(rows.flatten(), docs=docs).view(*rows.shape, -1)
        logits = flex.lm_logits(features[:, ::every])[..., : numbers["logits"].size(-1)]
    torch.testing.assert_close(features[:, ::every], numbers["features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, numbers["logits"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["M5", "M6b"])
def test_compiled_blocks_give_the_same_classes_and_gradients(tmp_path, name, monkeypatch):
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    model = GPTClassification(trunk, 3)
    ids, lengths = numbers_of(name)["ids"].long()[:, :40], torch.tensor([40, 23])

    def logits_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(ids, lengths)
        logits.square().sum().backward()
        return [logits.detach(), *(weight.grad for weight in model.parameters())]

    expected = logits_and_gradients()
    compiled = []

    def compile_eagerly(function, **options):
        compiled.append(function)
        return torch_compile(function, backend="eager", **options)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    compile_trunk(trunk)
    for found, ours in zip(logits_and_gradients(), expected, strict=True):
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-4)
    assert len(compiled) == 2 * trunk.config.num_layers
    # As on a GPU, the walk as a whole.
    for block in trunk.blocks:
        del block.before_attention, block.after_attention
    walk = torch_compile(trunk._through_blocks, backend="eager", dynamic=True)
    monkeypatch.setattr(trunk, "_through_blocks", walk)
    for found, ours in zip(logits_and_gradients(), expected, strict=True):
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MIXING)
def test_an_older_fine_tuned_model_of_the_family_loads(tmp_path, name):
    """It has in one tensor what has names today, also of what the network never reads."""
    trunk, _, _ = load_pretrained_checkpoint(path_of(name, tmp_path))
    model = GPTClassification(trunk, 3).eval()
    state = model.state_dict()
    names = trunk.config.mixing_weights
    weights = {own: state.pop(f"pretrained_model.{own}") for own in names}
    assert "block_lambdas" in weights and ("skip_weights" in weights) == bool(trunk.config.skips)
    state["pretrained_model.scalars"] = join_scalars(weights, trunk.config)
    again = GPTClassification.from_saved(model.config.to_dict(), state)
    ids, lengths = numbers_of(name)["ids"].long()[:, :40], torch.tensor([40, 23])
    with torch.no_grad():
        assert torch.equal(again(ids, lengths), model(ids, lengths))


def test_what_stands_between_two_records_is_told_by_its_scalars(tmp_path):
    """M6 is M6b without the smear: with it, its features are those of M6b's script."""
    state = state_of("M6b")
    scalars = state.pop("_orig_mod.scalars")
    smear, kept = scalars[96], torch.cat([scalars[:96], scalars[97:]])
    path = write_entry("M6b", tmp_path, state | {"_orig_mod.scalars": kept})
    trunk, info, _ = load_pretrained_checkpoint(path)
    assert info["checkpoint_format"] == "M6" and info["fingerprint"]["verdict"] == "confirmed"
    numbers = numbers_of("M6b")
    with torch.no_grad():
        features = trunk.forward_features(numbers["ids"].long())
    features[:, 1:] += smear * features[:, :-1].clone()
    found = features[:, :: int(numbers["every"])]
    torch.testing.assert_close(found, numbers["features"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [80, 95, 97, 100, 104])
def test_scalars_of_another_number_are_of_no_record(tmp_path, size):
    state = state_of("M6b")
    state["_orig_mod.scalars"] = torch.cat([state["_orig_mod.scalars"], torch.ones(9)])[:size]
    with pytest.raises(CheckpointError, match=rf"those of M5, M6, M6b, but .*\({size},\)"):
        inspect_checkpoint(write_entry("M6b", tmp_path, state))
    with pytest.raises(CheckpointError, match=rf"of format M6b, but .*\({size},\), expected \(99,"):
        inspect_checkpoint(write_entry("M6b", tmp_path, state), family="M6b")


@pytest.mark.parametrize(("layers", "family"), [(8, "M5"), (11, "M6b")])
def test_layers_that_a_script_can_not_have_are_refused(tmp_path, layers, family):
    beyond = re.compile(r"\.blocks\.(\d+)\.")
    state = {
        name: tensor
        for name, tensor in state_of(family).items()
        if (match := beyond.search(name)) is None or int(match[1]) < layers
    }
    more = {"M5": 0, "M6b": 3}[family]
    state["_orig_mod.scalars"] = torch.ones(6 * layers + more)
    with pytest.raises(CheckpointError, match=f"has {layers} layers"):
        inspect_checkpoint(write_entry(family, tmp_path, state))
    with pytest.raises(CheckpointError, match=f"of format {family}, but {layers} layers, of which"):
        inspect_checkpoint(write_entry(family, tmp_path, state), family=family)


@pytest.mark.parametrize(
    ("name", "index", "said"),
    [
        ("M5", 0, "skip_weights[0]"),
        ("M5", 64 + 2 * 5 + 1, "sa_lambdas[5,1]"),
        ("M6b", 64 + 2 * 7, "the attention of block 7 is missing"),
    ],
)
def test_a_scalar_that_the_script_never_reads_speaks_against_it(tmp_path, name, index, said):
    state = state_of(name)
    state["_orig_mod.scalars"][index] = 0.7
    with pytest.raises(CheckpointError, match=re.escape(said)):
        inspect_checkpoint(write_entry(name, tmp_path, state))


def test_a_later_script_with_two_embeddings_is_named_and_refused(tmp_path):
    state = state_of("M5")
    state["_orig_mod.embed.weight"] = state.pop("_orig_mod.embed1.weight")
    with pytest.raises(CheckpointError, match="a second embedding.*not supported"):
        inspect_checkpoint(write_entry("M5", tmp_path, state))


@pytest.mark.parametrize("name", ["M5", "nanochat-5"])
def test_a_lost_tensor_is_named_where_other_scripts_have_such_names_too(tmp_path, name):
    state = state_of(name)
    lost = next(key for key in state if ".mlp." in key)
    del state[lost]
    with pytest.raises(CheckpointError, match="of format.*missing.*mlp"):
        inspect_checkpoint(write_entry(name, tmp_path, state))


@pytest.mark.parametrize("name", RELATIVES_DRAWN)
@pytest.mark.parametrize("change", ["renamed", "lost", "added", "turned", "of integers"])
def test_what_differs_from_a_table_is_refused(tmp_path, name, change):
    state = state_of(name)
    read = [key for key in state if "record" not in key and "inv_freq" not in key]
    for key in [key for key in read if "blocks.3" in key or "h.3" in key or "embed" in key][:6]:
        changed = dict(state)
        tensor = changed.pop(key)
        if change == "renamed":
            changed[f"{key}2"] = tensor
        elif change == "added":
            changed |= {key: tensor, f"{key}.more": tensor}
        elif change == "turned":
            if tensor.dim() < 2 or tensor.size(-1) == tensor.size(-2):
                continue
            changed[key] = tensor.mT.contiguous()
        elif change == "of integers":
            changed[key] = tensor.long()
        with pytest.raises(CheckpointError):
            inspect_checkpoint(write_entry(name, tmp_path, changed))


@pytest.mark.parametrize("name", [n for n in RELATIVES_DRAWN if not n.startswith("nanochat")])
def test_without_its_source_a_file_is_right_or_a_question(tmp_path, name):
    """Tables with the same names are told apart by layers, by ties, or by nothing."""
    path = write_entry(name, tmp_path, code="")
    numbers = numbers_of(name)
    try:
        trunk, _, _ = load_pretrained_checkpoint(path)
    except CheckpointError as error:
        assert "`family`" in str(error)
        trunk, _, _ = load_pretrained_checkpoint(path, family=name)
    with torch.no_grad():
        features = trunk.forward_features(numbers["ids"].long())[:, ::16]
    torch.testing.assert_close(features, numbers["features"], atol=1e-4, rtol=0)


def test_a_value_residual_of_the_source_is_no_other_record(tmp_path):
    code = "v = 0.5 * v + 0.5 * v1\nmodel = GPT(GPTConfig(n_layer=12, n_head=2, n_embd=256))"
    with pytest.raises(CheckpointError, match="by a constant of its source"):
        inspect_checkpoint(write_entry("R3", tmp_path, code=code))


def test_another_number_of_layers_is_no_record(tmp_path):
    state = {k: t for k, t in state_of("R11").items() if not re.search(r"\.1[01]\.", k)}
    state["_orig_mod.skip_weights"] = state["_orig_mod.skip_weights"][:5].clone()
    with pytest.raises(CheckpointError, match="has 10 layers.*`family`"):
        inspect_checkpoint(write_entry("R11", tmp_path, state))


@pytest.mark.parametrize("name", ["nanogpt-bias", "build-nanogpt"])
def test_two_gelus_are_never_told_apart_by_a_guess(tmp_path, name):
    content = torch.load(FILES[name], weights_only=False) if name == "nanogpt-bias" else None
    state = content["model"] if content else load_pretrained_checkpoint(FILES[name])[2]["model"]
    path = tmp_path / "file.pt"
    torch.save({"model": {key: tensor.clone() for key, tensor in state.items()}}, path)
    with pytest.raises(CheckpointError, match="nanoGPT.*build-nanogpt.*`family`"):
        inspect_checkpoint(path, num_heads=4)
    family = {"nanogpt-bias": "nanoGPT"}.get(name, name)
    numbers = numbers_of(name)
    trunk, _, _ = load_pretrained_checkpoint(path, num_heads=4, family=family)
    with torch.no_grad():
        features = trunk.forward_features(numbers["ids"].long())[:, ::16]
    torch.testing.assert_close(features, numbers["features"], atol=1e-4, rtol=0)
    with pytest.raises(CheckpointError, match="`family` LLaMA: by its names it is of GPT-2"):
        inspect_checkpoint(path, family="LLaMA")


@pytest.mark.parametrize("name", ["hf-gpt2", "hf-llama"])
def test_shards_are_one_model(tmp_path, name):
    import safetensors.torch

    folder = shutil.copytree(FILES[name], tmp_path / name)
    state = safetensors.torch.load_file(folder / "model.safetensors")
    names, places = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({key: state[key] for key in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    numbers = numbers_of(name)
    trunk, _, _ = load_pretrained_checkpoint(folder)
    with torch.no_grad():
        features = trunk.forward_features(numbers["ids"].long())[:, ::16]
    torch.testing.assert_close(features, numbers["features"], atol=1e-4, rtol=0)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors, which are not"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("hf-llama", {"model_type": "mistral"}, "is a mistral"),
        ("hf-llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "scales"),
        ("hf-llama", {"hidden_act": "gelu"}, "activation gelu"),
        ("hf-gpt2", {"activation_function": "relu"}, "activation relu"),
        ("hf-gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused(tmp_path, name, change, said):
    folder = shutil.copytree(FILES[name], tmp_path / name)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        inspect_checkpoint(folder)
    (folder / "config.json").unlink()
    if name == "hf-llama":
        with pytest.raises(CheckpointError, match=r"no config\.json beside it"):
            inspect_checkpoint(folder / "model.safetensors")


def test_nanochat_needs_its_meta(tmp_path):
    path = write_entry("nanochat-3", tmp_path)
    assert load_pretrained_checkpoint(path.parent)[1]["step"] == 650
    path.with_name("meta_000650.json").unlink()
    with pytest.raises(CheckpointError, match=r"no meta_NNNNNN\.json beside it"):
        inspect_checkpoint(path)


def test_names_of_families_are_for_a_command_line():
    assert all(name.isprintable() and name for name in RELATIVES)

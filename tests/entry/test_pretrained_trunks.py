"""The trunk of a run: does its checkpoint fit its tokenizer; and a call of the group's scripts."""

import argparse
import json
from pathlib import Path

import made_checkpoints
import pytest
import torch
from finetune_parts import read_json, weights_of
from small_run import NAMES, command, rows_about

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import load_pretrained_checkpoint
from model import GPTBatched, GPTClassification, GPTConfig
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.errors import UsageError
from xnli_gpt.network.mixing import join_scalars
from xnli_gpt.training.optimizer import configure_optimizers

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture(scope="module")
def pretrained(assets) -> Path:
    """A checkpoint that knows its texts by heart, with the tokenizer of `assets`."""
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    encoding = load_pair_encoding(str(assets.tokenizer))
    premises = sorted({row["premise"] for row in rows_about(NAMES)})
    rows = [
        torch.tensor([encoding.end_of_text, *encoding.tokenizer.encode(text).ids])
        for text in premises
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = pad([row[:-1] for row in rows], batch_first=True)
    targets = pad([row[1:] for row in rows], batch_first=True, padding_value=-100)
    # The random head's logits would hardly leave the middle of the cap.
    trunk.lm_head_weight *= 100
    optimizer = torch.optim.Adam(trunk.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        trunk.lm_loss(inputs, targets).backward()
        optimizer.step()
    state = {name: tensor.detach() for name, tensor in trunk.state_dict().items()}
    weights = {name: state.pop(name) for name in trunk.config.mixing_weights}
    state["scalars"] = join_scalars(weights, trunk.config)
    state["lm_head.weight"] = trunk.lm_head_weight
    return made_checkpoints.save_checkpoint(assets.folder / "state_step000130.pt", state)


@pytest.fixture(scope="module")
def wrong_tokenizer(assets) -> Path:
    """The same pieces under other ids."""
    tokenizer = read_json(assets.tokenizer)
    vocab = tokenizer["model"]["vocab"]
    last = len(vocab)
    tokenizer["model"]["vocab"] = {word: i and last - i for word, i in vocab.items()}
    path = assets.folder / "wrong.json"
    path.write_text(json.dumps(tokenizer))
    return path


@pytest.mark.parametrize(
    ("checkpoint", "tokenizer", "suspicious"),
    [
        ("pretrained", "tokenizer", False),
        ("pretrained", "wrong", True),
        ("random", "tokenizer", True),
    ],
)
def test_self_check_warns_of_a_wrong_tokenizer_and_of_structureless_weights(
    checkpoint, tokenizer, suspicious, assets, pretrained, wrong_tokenizer, tmp_path, capsys
):
    path = pretrained if checkpoint == "pretrained" else assets.checkpoint
    changes = ["--pretrained_ckpt_path", path, "--max_steps", 1]
    if tokenizer == "wrong":
        changes += ["--tokenizer_name", wrong_tokenizer]
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    # After one step a model may answer one class alone, which is another warning.
    told = [
        ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("warning: the trunk")
    ]
    assert bool(told) == suspicious
    check = read_json(tmp_path / "results.json")["self_check"]
    assert check["suspicious"] is suspicious


def test_random_init_has_the_checkpoints_network_and_none_of_its_weights(assets, tmp_path, capsys):
    changes = ("--random_init", "--max_steps", 1, "--learning_rate", 1e-9)
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    assert "self-check: left out" in capsys.readouterr().out
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    embedding = weights_of(tmp_path)["pretrained_model.embed.weight"]
    assert embedding.shape == trunk.embed.weight.shape
    assert not torch.allclose(embedding, trunk.embed.weight, atol=0.1)


def test_load_pretrained_model_takes_a_bare_namespace(assets):
    config = GPTConfig.of_family(
        "small", vocab_size=384, num_layers=6, num_heads=1, model_dim=128, max_seq_len=64
    )
    model = GPTClassification(GPTBatched(config), 3)
    args = argparse.Namespace(pretrained_ckpt_path=str(assets.checkpoint), device="cpu")
    returned, optimizer, scaler = finetune.load_pretrained_model(args, model)
    assert returned is model
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    ids = torch.arange(20)[None]
    expected = trunk.forward_features(ids)
    assert torch.equal(model.pretrained_model.forward_features(ids), expected)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in model.parameters()}
    assert isinstance(scaler, torch.amp.GradScaler) and not scaler.is_enabled()
    # The group's own recipe: the same rate on everything.
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}
    assert vars(args).keys() == {"pretrained_ckpt_path", "device"}
    again = configure_optimizers("cpu", model)
    assert isinstance(again, torch.optim.AdamW)


def test_load_pretrained_model_refuses_a_flag_that_contradicts_the_file(assets):
    args = argparse.Namespace(pretrained_ckpt_path=str(assets.checkpoint), n_layer=12)
    with pytest.raises(UsageError, match="--n_layer 12, but .* has 6"):
        finetune.load_pretrained_model(args, None)

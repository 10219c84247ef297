"""The same numbers on a GPU; skipped, with the reason, where there is none."""

import argparse

import numpy as np
import pytest
import torch
from checkpoints import GOLDEN_SIZES, golden_case, golden_state, gpt_call, save_checkpoint

import finetune_hindi_xnli
from load_checkpoint_helper import load_pretrained_checkpoint
from model import GPTBatched, GPTClassification, GPTFlexAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(params=GOLDEN_SIZES)
def loaded(request, tmp_path):
    size = GOLDEN_SIZES[request.param]
    path = save_checkpoint(
        tmp_path / "state.pt",
        golden_state(request.param),
        code=gpt_call(size["layers"], size["heads"], 128),
    )
    return golden_case(request.param), load_pretrained_checkpoint(path, device="cuda")[0]


def as_flex(trunk):
    flex = GPTFlexAttention.from_config(trunk.config)
    flex.load_state_dict({**trunk.state_dict(), "lm_head.weight": trunk.lm_head_weight})
    return flex.to("cuda")


@pytest.mark.parametrize("form", [lambda trunk: trunk, as_flex], ids=["batched", "flex"])
def test_golden_features_on_cuda(loaded, form):
    case, trunk = loaded
    model = form(trunk)
    ids, docs, long_ids = (
        torch.from_numpy(case[name]).cuda() for name in ("ids", "docs", "long_ids")
    )
    with torch.inference_mode():
        found = {
            "features": model.forward_features(ids),
            "features_docs": model.forward_features(ids, docs=docs),
            "features_long": model.forward_features(
                long_ids, windows=tuple(case["long_windows"].tolist())
            )[torch.from_numpy(case["long_at"]).cuda()],
        }
    for name, features in found.items():
        assert np.abs(features.cpu().numpy() - case[name]).max() < 1e-4, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_in_every_precision_moves_float32_masters(tmp_path, dtype):
    path = save_checkpoint(tmp_path / "state.pt", golden_state("small"), code=gpt_call(12, 1, 128))
    args = argparse.Namespace(pretrained_ckpt_path=str(path), device="cuda", dtype=dtype)
    config = load_pretrained_checkpoint(path)[0].config
    model = GPTClassification(GPTBatched(config), num_classes=3)
    model, optimizer, scaler = finetune_hindi_xnli.load_pretrained_model(args, model)
    assert scaler.is_enabled() == (dtype == "float16")
    before = model.pretrained_model.scalars.detach().clone()
    ids = torch.randint(0, 300, (4, 40), device="cuda")
    with torch.autocast("cuda", getattr(torch, dtype), enabled=dtype != "float32"):
        logits = model(ids, torch.tensor([40, 3, 17, 22], device="cuda"))
    scaler.scale(logits.logsumexp(-1).sum() - logits[:, 0].sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not torch.equal(model.pretrained_model.scalars, before)

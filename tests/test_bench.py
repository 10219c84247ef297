"""The benchmark measures what it says: its data, its padding, its peers, its start-up figures."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bench  # noqa: E402
import bench_peers  # noqa: E402
import bench_start  # noqa: E402

from xnli_gpt.network.config import GPTConfig  # noqa: E402


def test_lengths_are_those_of_hindi_xnli():
    lengths = bench_peers.synthetic_lengths(20_000, seed=3)
    assert lengths.mean() == pytest.approx(63, rel=0.01)
    assert np.percentile(lengths, [50, 95, 99]) == pytest.approx([58, 113, 134], rel=0.01)
    assert lengths.max() == 277


def test_a_step_of_pairs_touches_about_1200_embedding_rows():
    lengths = bench_peers.synthetic_lengths(6400, seed=0)
    ids = bench_peers.synthetic_ids(lengths, 50_048, seed=0)
    steps = np.split(ids, np.cumsum(lengths)[63:-1:64])
    assert np.mean([len(np.unique(step)) for step in steps]) == pytest.approx(1200, rel=0.05)


def test_public_practice_really_pads_to_1024_and_ignores_the_padding():
    torch.manual_seed(0)
    peer = bench_peers.PublicPractice((2, 16, 2, 50), torch.float32, "cpu")
    widths = []
    peer.model.blocks[0].register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape))
    peer.step(np.array([5, 9]), np.arange(14), np.array([0, 2]))
    assert widths == [(2, 1024, 16)]
    ids = torch.arange(20).view(2, 10)
    other = torch.where(torch.arange(10) < 4, ids, 33)
    lengths = torch.tensor([4, 4])
    with torch.no_grad():
        assert torch.allclose(peer.model(ids, lengths), peer.model(other, lengths), atol=1e-6)


@pytest.fixture
def ours(monkeypatch) -> bench.Ours:
    monkeypatch.setitem(bench.SIZES, "test", ("small", 6, 64, 2, 512))
    monkeypatch.setattr(bench, "WARM_UP_SECONDS", 0)
    return bench.Ours(bench.Contest("test", 16, "cpu", "float32", compiled=False))


def test_our_steps_train_and_count_real_tokens(ours):
    before = [parameter.detach().clone() for parameter in ours.model.parameters()]
    first = ours.stream.step * 16
    sample = ours.sample(3)
    assert sample["tokens"] == ours.stream.lengths[first : first + 48].sum()
    moved = [not torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True)]
    assert any(moved)
    assert set(ours.parts(2)) == {"data", "forward", "backward", "clip and update"}


@pytest.mark.parametrize("pairs", [64, 256])
def test_at_most_three_percent_of_the_arithmetic_is_padding(monkeypatch, pairs):
    monkeypatch.setattr(bench, "WARM_UP_SECONDS", 0)
    # Its steps are made, not computed.
    monkeypatch.setattr(bench.Ours, "sample", lambda ours, num_steps: {})
    monkeypatch.setitem(bench.SIZES, "test", ("small", 6, 256, 2, 512))
    ours = bench.Ours(bench.Contest("test", pairs, "cpu", "float32", compiled=False))
    assert 0 < ours.padding()["padding_share_max"] < 0.03


def test_loading_is_measured_on_a_file_that_is_two_thirds_optimizer(tmp_path):
    config = GPTConfig.of_family(
        "small", vocab_size=512, num_layers=6, num_heads=1, model_dim=128, max_seq_len=64
    )
    figures = bench_start.measure_load(config, rounds=1)
    assert figures["model_bytes"] == pytest.approx(figures["file_bytes"] / 3, rel=0.02)
    assert figures["seconds_load"] > 0 and figures["seconds_cold_read_of_model"] > 0


def test_tokenising_is_measured_on_pairs_of_xnli_length():
    figures = bench_start.measure_tokenising(num_pairs=600, rounds=1)
    assert figures["tokens_per_pair"] == pytest.approx(63, rel=0.1)
    assert figures["seconds_start_again"] > 0 and figures["seconds_tokenise_and_cache"] > 0

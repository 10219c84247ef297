"""The benchmark measures what it says: its data, its padding, its peers, its start-up figures."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from shell import ROOT

from benchmarks import bench, peers, start_up
from model import GPTConfig
from xnli_gpt.data.premises import premises_of


def test_the_benchmark_starts_as_a_module():
    words = [sys.executable, "-m", "benchmarks.bench", "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--everyone" in done.stdout, done.stderr


def test_lengths_are_those_of_hindi_xnli():
    lengths = peers.synthetic_lengths(20_000, seed=3)
    assert lengths.mean() == pytest.approx(63, rel=0.01)
    assert np.percentile(lengths, [50, 95, 99]) == pytest.approx([58, 113, 134], rel=0.01)
    assert lengths.max() == 277


def test_a_step_of_pairs_touches_about_1200_embedding_rows():
    lengths = peers.synthetic_lengths(6400, seed=0)
    ids = peers.synthetic_ids(lengths, 50_048, seed=0)
    steps = np.split(ids, np.cumsum(lengths)[63:-1:64])
    assert np.mean([len(np.unique(step)) for step in steps]) == pytest.approx(1200, rel=0.05)


def test_public_practice_really_pads_to_1024_and_ignores_the_padding():
    torch.manual_seed(0)
    peer = peers.PublicPractice((2, 16, 2, 50), torch.float32, "cpu")
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
    monkeypatch.setitem(bench.WARM_UP_SECONDS, "cpu", 0)
    return bench.Ours(bench.Contest("test", 16, "cpu", "float32", compiled=False))


def test_our_steps_train_and_count_real_tokens(ours):
    before = [parameter.detach().clone() for parameter in ours.model.parameters()]
    first, order = ours.trainer.state.step, ours.trainer.order
    sample = ours.sample(3)
    rows = np.concatenate([order.of_step(first + step) for step in range(3)])
    assert sample["tokens"] == ours.pairs.split.lengths[rows].sum() and sample["pairs"] == 48
    moved = [not torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True)]
    assert any(moved)
    assert set(ours.parts(2)) == {"data", "forward", "backward", "clip and update"}


def test_evaluation_is_measured_with_premises_once_and_for_every_pair(ours):
    assert set(ours.evaluation()) == {"once", "for every pair"}
    split = ours.pairs.split
    premises = premises_of(split, np.arange(len(split)))
    assert set(np.bincount(premises.numbers)) == {3}
    assert premises.shared.sum() / split.lengths.sum() == pytest.approx(0.68, abs=0.02)


def test_grouped_premises_are_whole_in_every_step(monkeypatch):
    monkeypatch.setitem(bench.SIZES, "test", ("small", 6, 64, 2, 512))
    monkeypatch.setitem(bench.WARM_UP_SECONDS, "cpu", 0)
    contest = bench.Contest("test", 16, "cpu", "float32", compiled=False, group_premises=True)
    ours = bench.Ours(contest)
    premises, step = premises_of(ours.pairs.split, np.arange(1056)), ours.trainer.order.of_step(5)
    assert set(np.bincount(premises.numbers[step])) == {0, 3}
    assert ours.sample(2)["pairs"] % 3 == 0


@pytest.mark.parametrize("pairs", [64, 256])
def test_at_most_three_percent_of_the_arithmetic_is_padding(monkeypatch, pairs):
    monkeypatch.setitem(bench.WARM_UP_SECONDS, "cpu", 0)
    # Its steps are made, not computed.
    monkeypatch.setattr(bench.Ours, "sample", lambda ours, num_steps: {})
    monkeypatch.setitem(bench.SIZES, "test", ("small", 6, 256, 2, 512))
    ours = bench.Ours(bench.Contest("test", pairs, "cpu", "float32", compiled=False))
    assert 0 < ours.padding()["padding_share_max"] < 0.03


def test_loading_is_measured_on_a_file_that_is_two_thirds_optimizer(tmp_path):
    config = GPTConfig.of_family(
        "small", vocab_size=512, num_layers=6, num_heads=1, model_dim=128, max_seq_len=64
    )
    figures = start_up.measure_load(config, rounds=1)
    assert figures["model_bytes"] == pytest.approx(figures["file_bytes"] / 3, rel=0.02)
    assert figures["seconds_load"] > 0 and figures["seconds_cold_read_of_model"] > 0


def test_tokenising_is_measured_on_pairs_of_xnli_length():
    figures = start_up.measure_tokenising(num_pairs=600, rounds=1)
    assert figures["tokens_per_pair"] == pytest.approx(63, rel=0.1)
    assert figures["seconds_start_again"] > 0 and figures["seconds_tokenise_and_cache"] > 0

"""Packed rows: the numbers of one example at a time, next to no padding, no recompilation."""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import create_block_mask

from model import (
    GPTBatched,
    GPTClassification,
    GPTConfig,
    PackedRow,
    attention_rule,
    dense_mask,
)
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.network.grouped_attention import GroupedAttention
from xnli_gpt.network.packed_row import row_multiple
from xnli_gpt.network.row_attention import FlexRowAttention, VarlenRowAttention
from xnli_gpt.training.order import cut_by_tokens

VOCAB, NUM_CLASSES = 50, 3
# In 8 layers the last block, the one that is computed at last tokens alone, has no attention.
SIZES = [("small", 8), ("small", 12), ("medium", 8), ("medium", 12)]
MIXED = [5, 63, 17, 200, 64, 31, 1]
LENGTHS = {
    "mixed": MIXED,
    "shortest first": sorted(MIXED),
    "longest first": sorted(MIXED, reverse=True),
    "one example": [70],
    "one token": [1],
    "single tokens": [1, 1, 1],
    "equal": [32, 32, 32, 32],
    "longer than a block": [129, 128, 257],
}
# Piecewise linear quantiles of the lengths of Hindi XNLI pairs in tokens.
SHARES, QUANTILES = [0, 0.5, 0.95, 0.99, 1], [12, 58, 113, 134, 277]
EXAMPLES_PER_STEP = 64

lengths_of_examples = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def flex_attention_without_dynamo(monkeypatch):
    """Eager FlexAttention traces every call of every layer anew, for half a second each."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def config_of(fmt: str, layers: int, windows=None, max_seq_len=300, dim=32, heads=2) -> GPTConfig:
    config = GPTConfig.of_family(
        fmt,
        vocab_size=VOCAB,
        num_layers=layers,
        num_heads=heads,
        model_dim=dim,
        max_seq_len=max_seq_len,
    )
    return config if windows is None else dataclasses.replace(config, windows=windows)


def classifier_of(config: GPTConfig) -> GPTClassification:
    """Random weights, none of them zero: a zero projection would hide all attention."""
    model = GPTClassification(GPTBatched(config), NUM_CLASSES)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("skip_weights", "lambdas")):
                parameter.add_(0.3 * noise)
            else:
                scale = 1.0 if "embed" in name else 0.6 * parameter.size(-1) ** -0.5
                parameter.copy_(scale * noise)
    return model


def random_examples(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (n,), generator=generator) for n in lengths]


def packed(examples: list[Tensor], multiple: int = 1) -> PackedRow:
    return PackedRow.of(torch.cat(examples), [len(ids) for ids in examples], multiple)


def one_at_a_time(model: GPTClassification, examples: list[Tensor]) -> Tensor:
    """Logits by `forward_features`, which knows neither packing nor pooling."""
    last = [model.pretrained_model.forward_features(ids)[-1] for ids in examples]
    return model.head.output(model.head.hidden(torch.stack(last)).relu())


def gradients(model: GPTClassification, logits: Tensor) -> dict[str, Tensor]:
    """Those of a random direction, other for every logit."""
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(
        zip(names, torch.autograd.grad((logits * direction).sum(), parameters), strict=True)
    )


def assert_same_numbers(model: GPTClassification, found: Tensor, expected: Tensor) -> None:
    """The same logits, and the same gradient of every parameter."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found, expected = gradients(model, found), gradients(model, expected)
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        assert largest > 0, f"{name} has no gradient"
        difference = float((found[name] - gradient).abs().max())
        assert difference <= 1e-5 * largest, f"{name}: {difference} of {largest}"


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("fmt", "layers"), SIZES)
def test_a_row_gives_the_logits_and_gradients_of_one_example_at_a_time(
    fmt, layers, lengths, multiple
):
    model, examples = classifier_of(config_of(fmt, layers)), random_examples(lengths)
    found = model(packed(examples, multiple))
    assert found.shape == (len(lengths), NUM_CLASSES)
    assert_same_numbers(model, found, one_at_a_time(model, examples))


@pytest.mark.parametrize(("fmt", "layers"), SIZES)
def test_a_padded_batch_gives_the_logits_and_gradients_of_one_example_at_a_time(fmt, layers):
    model, examples = classifier_of(config_of(fmt, layers)), random_examples(MIXED)
    batch = torch.full((len(MIXED), max(MIXED) + 3), VOCAB - 1)
    for ids, row in zip(batch, examples, strict=True):
        ids[: len(row)] = row
    found = model(batch, torch.tensor(MIXED))
    assert_same_numbers(model, found, one_at_a_time(model, examples))


@pytest.mark.parametrize("multiple", [1, 128])
@pytest.mark.parametrize(("fmt", "layers"), SIZES)
def test_windows_bind_in_a_row_as_in_the_example_alone(fmt, layers, multiple):
    """Window blocks count from the beginning of the example, wherever it stands in the row."""
    model = classifier_of(config_of(fmt, layers, windows=(2, 1)))
    examples = random_examples([40, 300, 130, 256, 257])
    found = model(packed(examples, multiple))
    assert_same_numbers(model, found, one_at_a_time(model, examples))
    unbound = classifier_of(config_of(fmt, layers))(packed(examples))
    changed = (found - unbound).abs().amax(1) > 1e-3
    assert changed.tolist() == [False, True, True, True, True], "a window of one block must bind"


@torch.no_grad()
def test_the_default_windows_bind_beyond_896_tokens():
    examples = random_examples([30, 1000, 896])
    model = classifier_of(config_of("small", 8, max_seq_len=1500))
    found = model(packed(examples, 64))
    torch.testing.assert_close(found, one_at_a_time(model, examples), atol=1e-5, rtol=0)
    wide = classifier_of(config_of("small", 8, windows=(14, 14), max_seq_len=1500))
    unbound = wide(packed(examples))
    assert ((found - unbound).abs().amax(1) > 1e-4).tolist() == [False, True, False]


@pytest.mark.parametrize(("fmt", "layers"), SIZES)
def test_gradient_checkpointing_gives_the_same(fmt, layers):
    model, row = classifier_of(config_of(fmt, layers)), packed(random_examples(MIXED), 32)
    plain = model(row)
    model.pretrained_model.gradient_checkpointing = True
    assert_same_numbers(model, model(row), plain)


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    """Else the flag would be one that nobody reads."""
    kept = []
    model, row = classifier_of(config_of("small", 8)), packed(random_examples(MIXED))
    for checkpointing in (False, True):
        sizes = []
        model.pretrained_model.gradient_checkpointing = checkpointing
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            model(row)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("multiple", [1, 128])
@pytest.mark.parametrize("windows", [None, (2, 1)])
@pytest.mark.parametrize(("fmt", "layers"), SIZES)
@torch.no_grad()
def test_flex_and_groups_agree(fmt, layers, windows, multiple):
    model = classifier_of(config_of(fmt, layers, windows))
    examples = random_examples([5, 63, 300, 17, 1, 64, 200])
    logits = {}
    for backend in ("groups", "flex"):
        model.pretrained_model.row_attention = backend
        logits[backend] = model(packed(examples, multiple))
    torch.testing.assert_close(logits["flex"], logits["groups"], atol=1e-5, rtol=0)
    assert not torch.equal(logits["flex"], logits["groups"]), "the backends must be two"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_and_groups_agree_on_more_examples_than_a_block_of_queries():
    model, examples = classifier_of(config_of("small", 12)), random_examples([1, 2, 3, 4] * 40)
    grouped = model(packed(examples))
    model.pretrained_model.row_attention = "flex"
    torch.testing.assert_close(model(packed(examples)), grouped, atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[100, 28], [100, 5]], ids=["no filler", "filler"])
def test_varlen_reaches_every_key_and_asks_for_no_filler(lengths):
    """The kernel's backward pass leaves what lies beyond the last bound as memory was."""
    row = packed(random_examples(lengths), multiple=128)
    attention = VarlenRowAttention(config_of("small", 8), row)
    assert (
        int(attention.cu_seqlens_k[-1]) == len(row.input_ids)
        and int(attention.cu_seqlens_q[-1]) == 2
    )
    assert attention.cu_seqlens_k.shape == attention.cu_seqlens_q.shape
    questions = attention.cu_seqlens_q.diff()
    assert questions.tolist() == [1, 1, 0]


def test_varlen_refuses_an_example_beyond_the_window_and_names_attention_flex():
    config = config_of("small", 8, windows=(2, 1))
    VarlenRowAttention(config, packed(random_examples([128, 128, 5])))
    with pytest.raises(ValueError, match="129 tokens.*1 blocks.*`attention` flex"):
        VarlenRowAttention(config, packed(random_examples([128, 129, 5])))


@pytest.mark.parametrize(
    "lengths", [[3, 4], [3, 6], [8, 0], [9, -1]], ids=["too few", "too many", "empty", "negative"]
)
def test_lengths_that_are_not_those_of_the_row_are_refused(lengths):
    with pytest.raises(ValueError, match=f"sum to {sum(lengths)}.*{min(lengths)}.*8 ids"):
        PackedRow.of(torch.zeros(8, dtype=torch.int64), lengths)


@pytest.mark.parametrize(
    ("shape", "lengths"), [((2, 5), None), ((5,), [5]), ((2, 5), [5, 3, 1]), ((2, 5), [5, 0])]
)
def test_a_padded_batch_with_the_wrong_lengths_is_refused(shape, lengths):
    model = classifier_of(config_of("small", 8))
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match="lengths"):
        model(torch.zeros(shape, dtype=torch.int64), lengths)


def test_an_example_longer_than_max_seq_len_is_refused():
    model = classifier_of(config_of("small", 8, max_seq_len=16))
    assert model(packed(random_examples([16, 3]))).shape == (2, NUM_CLASSES)
    with pytest.raises(ValueError, match="17 tokens.*max_seq_len 16.*larger max_seq_len"):
        model(packed(random_examples([3, 17])))


@torch.no_grad()
def test_a_filler_may_be_longer_than_max_seq_len():
    """It stands for nothing; a step of many short examples gets one of up to 127 tokens."""
    model, examples = classifier_of(config_of("small", 8, max_seq_len=16)), random_examples([16, 3])
    found = model(packed(examples, 128))
    torch.testing.assert_close(found, model(packed(examples)), atol=1e-6, rtol=0)


@settings(max_examples=30)
@given(lengths_of_examples, st.sampled_from([1, 16, 128]))
def test_flex_looks_at_the_blocks_of_create_block_mask(lengths, multiple):
    config = config_of("small", 8, max_seq_len=500)
    row = packed(random_examples(lengths), multiple)
    found = FlexRowAttention(config, row).masks[config.windows[0]]
    N = len(row.input_ids)
    rule = attention_rule(row.docs, config.windows[0], row.position_ids)
    expected = create_block_mask(rule, None, None, N, N, device="cpu")
    assert torch.equal(found.to_dense(), expected.to_dense())
    places = torch.arange(N)
    by_mask = found.mask_mod(None, None, places[:, None], places[None])
    assert torch.equal(by_mask, dense_mask(rule, N, torch.device("cpu")))


@settings(max_examples=30)
@given(lengths_of_examples, st.sampled_from([1, 16, 128]), st.sampled_from([1, 2, 3]))
def test_no_pair_that_may_look_stands_outside_of_the_blocks_of_flex(lengths, multiple, window):
    config = config_of("small", 8, windows=(window, window), max_seq_len=500)
    row = packed(random_examples(lengths), multiple)
    attention = FlexRowAttention(config, row)
    N, places = len(row.input_ids), torch.arange(len(row.input_ids))
    allowed = dense_mask(
        attention_rule(row.docs, window, row.position_ids), N, torch.device("cpu")
    )  # [N, N]
    of_last = allowed[row.last_token_idx]  # [B, N]
    for mask, pairs in (
        (attention.masks[window], allowed),
        (attention.pooled_masks[window], of_last),
    ):
        queries = torch.arange(len(pairs))
        listed = mask.to_dense()[0, 0].bool()  # [blocks of queries, blocks of keys]
        assert not (pairs & ~listed[queries[:, None] // 128, places // 128]).any()
        assert torch.equal(mask.mask_mod(None, None, queries[:, None], places[None]), pairs)


@torch.no_grad()
def test_the_logits_of_an_example_do_not_depend_on_its_companions():
    model, example = classifier_of(config_of("small", 12)), random_examples([63], seed=9)
    companions = random_examples(MIXED)
    alone = model(packed(example))[0]
    for before in range(len(companions) + 1):
        row = packed(companions[:before] + example + companions[before:], multiple=32)
        torch.testing.assert_close(model(row)[before], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("fmt", ["small", "medium"])
def test_bfloat16_autocast_keeps_the_stream_in_bfloat16_and_comes_near_float32(fmt):
    model, row = classifier_of(config_of(fmt, 12)), packed(random_examples(MIXED), 16)
    streams = []
    for block in model.pretrained_model.blocks:
        block.register_forward_hook(lambda _, __, output: streams.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.pretrained_model.pooled_features(row).dtype == torch.bfloat16
        logits = model(row)
    assert set(streams) == {torch.bfloat16}
    assert logits.dtype == torch.float32
    exact = model(row)
    assert 0 < (logits - exact).abs().max() < 0.1 * exact.abs().max()
    assert torch.cosine_similarity(logits.flatten(), exact.flatten(), dim=0) > 0.999
    found, expected = gradients(model, logits), gradients(model, exact)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        cosine = torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
        assert cosine > 0.98, name


@given(st.integers(1, 1_000_000))
def test_a_filler_is_at_most_three_percent_of_the_tokens(num_tokens):
    multiple = row_multiple(num_tokens)
    assert -num_tokens % multiple <= 0.03 * num_tokens
    assert 128 % multiple == 0, "a power of two, at most a block"


def shared_examples(
    docs: list[tuple[int, list[int]]], multiple: int = 1
) -> tuple[PackedRow, list[Tensor]]:
    """A row in which examples share their beginnings, and the same examples one by one."""
    parts = random_examples([n for first, others in docs for n in (first, *others)], seed=3)
    row = PackedRow.sharing(torch.cat(parts), docs, multiple)
    examples, remaining = [], iter(parts)
    for _, others in docs:
        beginning = next(remaining)
        examples += [torch.cat([beginning, next(remaining)]) for _ in others]
    return row, examples


SHARED = {
    "premises of three": [(40, [9, 17, 5]), (12, [8, 30, 3]), (63, [1, 2, 70])],
    "one of many": [(150, list(range(1, 60)))],
    "some alone": [(20, [4]), (0, [33]), (64, [64, 65]), (0, [1])],
    "across blocks": [(127, [1, 2, 140]), (1, [128, 127])],
}


@pytest.mark.parametrize("docs", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize(("fmt", "layers", "windows"), [("small", 8, None), ("medium", 12, (2, 1))])
def test_a_shared_beginning_is_that_of_each_example(fmt, layers, windows, docs):
    model = classifier_of(config_of(fmt, layers, windows))
    row, examples = shared_examples(docs)
    assert model.shares_beginnings
    with torch.no_grad():
        found, expected = model(row), one_at_a_time(model, examples)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("docs", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize(("fmt", "layers", "windows"), [("small", 8, None), ("medium", 12, (2, 1))])
def test_gradients_through_a_shared_beginning_are_those_of_each_example(
    fmt, layers, windows, docs, multiple
):
    model = classifier_of(config_of(fmt, layers, windows))
    row, examples = shared_examples(docs, multiple)
    found, expected = gradients(model, model(row)), gradients(model, one_at_a_time(model, examples))
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * largest, rtol=0, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("docs", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize(("fmt", "layers", "windows"), [("small", 8, None), ("medium", 12, (2, 1))])
def test_flex_knows_shared_beginnings(fmt, layers, windows, docs):
    model = classifier_of(config_of(fmt, layers, windows))
    row, examples = shared_examples(docs, 16)
    expected = one_at_a_time(model, examples)
    model.pretrained_model.row_attention = "flex"
    assert model.shares_beginnings
    torch.testing.assert_close(model(row), expected, atol=1e-5, rtol=0)
    attention = FlexRowAttention(model.pretrained_model.config, row)
    places = torch.arange(len(row.input_ids))
    for masks, queries in ((attention.masks, places), (attention.pooled_masks, row.last_token_idx)):
        for mask in masks.values():
            asking = torch.arange(len(queries))
            pairs = mask.mask_mod(None, None, asking[:, None], places[None])
            listed = mask.to_dense()[0, 0].bool()  # [blocks of queries, blocks of keys]
            assert not (pairs & ~listed[asking[:, None] // 128, places // 128]).any()


@pytest.mark.parametrize("docs", [[(3, [2, 3])], [(0, [0, 9])]])
def test_a_row_of_shared_beginnings_needs_all_its_ids(docs):
    with pytest.raises(ValueError, match="and all of them"):
        PackedRow.sharing(torch.arange(9), docs)


@given(lengths_of_examples, st.none() | st.sampled_from([1, 2, 8, 128]))
def test_a_row_tells_every_token_its_example_and_place(lengths, multiple):
    examples = random_examples(lengths)
    N = sum(lengths)
    multiple = multiple or row_multiple(N)
    row = packed(examples, multiple)
    assert len(row.input_ids) % multiple == 0 and len(row.input_ids) - N < multiple
    assert torch.equal(row.input_ids[:N], torch.cat(examples))
    filler = len(row.input_ids) - N
    sizes = lengths + [filler] if filler else lengths
    assert row.seq_lens == tuple(sizes)
    assert row.position_ids[:N].tolist() == [place for n in lengths for place in range(n)]
    assert row.docs.tolist() == [doc for doc, n in enumerate(sizes) for _ in range(n)]
    assert row.last_token_idx.tolist() == (np.cumsum(lengths) - 1).tolist()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=64), st.integers(1, 2000))
@example([10, 10, 5, 10], 20)  # a budget that is met exactly
def test_a_step_is_cut_within_the_budget_and_loses_no_example(lengths, max_tokens):
    lengths = np.array(lengths)
    cut = cut_by_tokens(lengths, max_tokens)
    assert sorted(np.concatenate(cut).tolist()) == list(range(len(lengths)))
    for positions in cut:
        assert len(positions) == 1 or lengths[positions].sum() <= max_tokens
    # No two neighbours that one micro-batch could have taken.
    for first, second in zip(cut, cut[1:], strict=False):
        assert lengths[first].sum() + lengths[second[0]] > max_tokens
    again = cut_by_tokens(lengths.copy(), max_tokens)
    assert [positions.tolist() for positions in again] == [p.tolist() for p in cut]


@pytest.mark.parametrize("dim", [256, 768])
def test_at_most_three_percent_of_the_arithmetic_is_on_padding(dim):
    """A step is a random draw, as it is in training: 24·D² a token and layer for the matrices,
    4·T²·D an example and layer for attention."""
    generator = np.random.default_rng(0)
    config = config_of("small", 12, dim=dim, heads=1)
    done = useful = 0
    for _ in range(50):
        shares = generator.random(EXAMPLES_PER_STEP)
        lengths = np.interp(shares, SHARES, QUANTILES).round().astype(int)
        tokens = int(lengths.sum())
        row = PackedRow.of(
            torch.zeros(tokens, dtype=torch.int64), lengths.tolist(), row_multiple(tokens)
        )
        groups = GroupedAttention(config, row).groups
        assert sum(len(group.examples) for group in groups) == len(row.seq_lens)
        squares = sum(len(group.examples) * group.width**2 for group in groups)
        done += 24 * dim**2 * sum(row.seq_lens) + 4 * dim * squares
        useful += 24 * dim**2 * tokens + 4 * dim * int((lengths**2).sum())
    assert 0 < 1 - useful / done <= 0.03


def check_a_compiled_trunk() -> None:
    """Run in a process of its own by the test below."""
    model = classifier_of(config_of("small", 8))
    compiled = copy.deepcopy(model)
    compile_trunk(compiled.pretrained_model)

    def compare(lengths: list[int], multiple: int) -> None:
        row = packed(random_examples(lengths), multiple)
        found, expected = compiled(row), model(row)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        if found.requires_grad:
            found, expected = gradients(compiled, found), gradients(model, expected)
            for name, gradient in expected.items():
                difference = float((found[name] - gradient).abs().max())
                assert difference <= 1e-5 * float(gradient.abs().max()), name

    first = [(MIXED, 1), ([30, 40], 16)]
    others = [([7, 100, 33], 1), ([64] * 6 + [5], 32), ([300, 12, 1, 90, 41], 16)]
    for lengths, multiple in first:
        compare(lengths, multiple)
    torch._dynamo.config.error_on_recompile = True
    for lengths, multiple in others:
        compare(lengths, multiple)
    for mode in (torch.inference_mode, torch.no_grad):
        torch._dynamo.config.error_on_recompile = False
        with mode():
            compare(*first[0])
            torch._dynamo.config.error_on_recompile = True
            for lengths, multiple in others:
                compare(lengths, multiple)
    compare([11, 12, 13, 14], 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_a_compiled_trunk_gives_the_same_and_does_not_compile_anew_as_lengths_vary(tmp_path):
    """In a process of its own: what is compiled, and how often, is state of the process."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_packed_rows as t; t.check_a_compiled_trunk()"],
        env={
            **os.environ,
            "PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here}",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]

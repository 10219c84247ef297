"""The network against the golden numbers, an independent reference, and its own promises."""

import functools
import json

import pytest
import reference
import torch
from converted import converted_state
from made_checkpoints import GOLDEN_SIZES, golden_case, golden_state, random_state
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from model import GPTBatched, GPTClassification, GPTFlexAttention
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.mixing import name_scalars

SIZES = {
    "small L6": dict(fmt="small", layers=6, heads=1, world_size=1),
    "small L8, heads of 64": dict(fmt="small", layers=8, heads=2, world_size=6),
    "small L12, wide": dict(fmt="small", layers=12, heads=2, dim=256, vocab=256),
    "small L14": dict(fmt="small", layers=14, heads=1, world_size=16, seed=11),
    "medium L12, heads of 64": dict(fmt="medium", layers=12, heads=2, seed=12),
    "medium L12, padded": dict(fmt="medium", layers=12, heads=1, pad_vocab=True),
    "medium L20": dict(fmt="medium", layers=20, heads=1, vocab=384, seed=13),
}
FORMS = ("batched", "flex")
DOC_LENGTHS = (20, 150, 130)


@pytest.fixture(autouse=True)
def flex_attention_without_dynamo(monkeypatch):
    """Eager FlexAttention traces every call of every layer anew, for half a second each."""
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@functools.cache
def stored_state(fmt, layers, heads, dim=128, vocab=300, seed=5, **others):
    return random_state(fmt, layers, heads, dim, vocab, seed, **others)


def config_of_state(fmt: str, state: dict[str, Tensor], heads: int, max_seq_len: int) -> GPTConfig:
    vocab_size, model_dim = state["embed.weight"].shape
    return GPTConfig.of_family(
        fmt,
        vocab_size=vocab_size,
        lm_head_rows=state["lm_head.weight" if fmt == "small" else "lm_head_w"].shape[0],
        num_layers=1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.")),
        num_heads=heads,
        model_dim=model_dim,
        max_seq_len=max_seq_len,
    )


def built(form: str, fmt: str, state: dict[str, Tensor], heads: int, max_seq_len: int = 1024):
    """The file's tensors in one of the two forms of the network."""
    config = config_of_state(fmt, state, heads, max_seq_len)
    flex = GPTFlexAttention.from_config(config)
    flex.load_state_dict(converted_state(fmt, state), strict=True)
    return flex if form == "flex" else GPTBatched.from_pretrained_gpt(flex)


def tiny_trunk(fmt: str = "small", max_seq_len: int = 64) -> GPTBatched:
    layers = 8 if fmt == "small" else 12
    return built("batched", fmt, stored_state(fmt, layers, heads=1), 1, max_seq_len)


def random_ids(*shape: int, vocab: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def documents(lengths: tuple[int, ...]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def assert_features_agree(actual: Tensor, expected: Tensor) -> None:
    difference = (actual.double() - expected.double()).abs()
    assert actual.shape == expected.shape
    assert difference.max() <= 1e-4
    assert difference.mean() <= 1e-5


@pytest.fixture(scope="module", params=GOLDEN_SIZES)
def golden(request):
    """The arrays of one golden case, and the same weights in both forms."""
    size, state = GOLDEN_SIZES[request.param], golden_state(request.param)
    arrays = {name: torch.from_numpy(a) for name, a in golden_case(request.param).items()}
    return arrays, {f: built(f, size["fmt"], state, size["heads"]) for f in FORMS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", ["features", "features_docs"])
@torch.no_grad()
def test_golden_features(golden, form, cut):
    arrays, models = golden
    docs = arrays["docs"] if cut == "features_docs" else None
    assert_features_agree(models[form].forward_features(arrays["ids"], docs), arrays[cut])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_golden_features_of_a_row_longer_than_the_windows(golden, form):
    arrays, models = golden
    windows = tuple(arrays["long_windows"].tolist())
    features = models[form].forward_features(arrays["long_ids"], windows=windows)
    assert_features_agree(features[arrays["long_at"]], arrays["features_long"])


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_golden_lm_loss(golden, form):
    arrays, models = golden
    loss = models[form].lm_loss(arrays["ids"], arrays["targets"])
    assert float(loss) == pytest.approx(float(arrays["lm_loss"]), abs=1e-5)


@pytest.mark.parametrize("name", GOLDEN_SIZES)
def test_the_reference_itself_is_golden(name):
    size, state = GOLDEN_SIZES[name], golden_state(name)
    arrays = {key: torch.from_numpy(a) for key, a in golden_case(name).items()}
    windows = tuple(arrays["long_windows"].tolist())
    fmt, heads = size["fmt"], size["heads"]
    plain = reference.features(fmt, state, heads, arrays["ids"])
    assert_features_agree(plain, arrays["features"])
    in_docs = reference.features(fmt, state, heads, arrays["ids"], arrays["docs"])
    assert_features_agree(in_docs, arrays["features_docs"])
    long = reference.features(fmt, state, heads, arrays["long_ids"], windows=windows)
    assert_features_agree(long[arrays["long_at"]], arrays["features_long"])
    loss = reference.lm_loss(fmt, state, plain, arrays["targets"].long())
    assert loss == pytest.approx(float(arrays["lm_loss"]), abs=1e-5)


@torch.no_grad()
def test_golden_small_through_the_scripts_own_constructor():
    arrays, state = golden_case("small"), golden_state("small")
    model = GPTFlexAttention(300, num_layers=12, num_heads=1, model_dim=128, max_seq_len=1024)
    model.load_state_dict(state, strict=True)
    features = model.forward_features(torch.from_numpy(arrays["ids"]))
    assert_features_agree(features, torch.from_numpy(arrays["features"]))
    assert state["scalars"].numel() == 64, "loading must not change the caller's dict"
    assert model.state_dict()["scalars"].numel() == 60


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_reference_parity_with_docs_and_windows(form, size):
    fmt, heads, state = size["fmt"], size["heads"], stored_state(**size)
    ids, docs = random_ids(sum(DOC_LENGTHS)), documents(DOC_LENGTHS)
    model = built(form, fmt, state, heads)
    for cut in (None, docs):
        expected = reference.features(fmt, state, heads, ids, cut, windows=(2, 1))
        assert_features_agree(model.forward_features(ids, cut, windows=(2, 1)), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_reference_parity_of_the_lm_loss(form, size):
    fmt, heads, state = size["fmt"], size["heads"], stored_state(**size)
    row = random_ids(65)
    expected = reference.lm_loss(
        fmt, state, reference.features(fmt, state, heads, row[:-1]), row[1:]
    )
    loss = built(form, fmt, state, heads).lm_loss(row[:-1], row[1:])
    assert float(loss) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "fmt, layers, windows, tokens", [("small", 6, (14, 7), 1024), ("medium", 12, (27, 13), 1792)]
)
@torch.no_grad()
def test_default_windows_are_those_of_the_end_of_pretraining(fmt, layers, windows, tokens):
    state, ids = stored_state(fmt, layers, heads=1), random_ids(tokens)
    features = built("batched", fmt, state, 1, max_seq_len=tokens).forward_features(ids)
    assert_features_agree(features, reference.features(fmt, state, 1, ids, windows=windows))
    unbound = reference.features(fmt, state, 1, ids)
    assert (features - unbound).abs().max() > 1e-2, "the case must be one where a window binds"


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_reference(form):
    state = {k: v.float() for k, v in stored_state("small", 8, heads=2, world_size=1).items()}
    model = built(form, "small", state, heads=2)
    ids, docs = random_ids(150), documents((50, 100))
    direction = torch.randn(150, 128, generator=torch.Generator().manual_seed(1))
    (model.forward_features(ids, docs, windows=(2, 1)) * direction).sum().backward()

    leaves = {name: tensor.double().requires_grad_() for name, tensor in state.items()}
    (reference.features("small", leaves, 2, ids, docs, (2, 1)) * direction).sum().backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    name_scalars(gradients, model.config)
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if name != "lm_head.weight":
            difference = (parameter.grad.double() - expected).norm()
            assert difference <= 1e-4 * expected.norm(), name


@pytest.mark.parametrize("fmt", ["small", "medium"])
@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_gets_a_gradient_from_the_lm_loss(form, fmt):
    model = built(form, fmt, stored_state(fmt, 12, heads=1), 1)
    row = random_ids(33)
    model.lm_loss(row[:-1], row[1:]).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("fmt", ["small", "medium"])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_nor_on_padding(fmt):
    trunk = tiny_trunk(fmt)
    lengths = (1, 17, 40, 33)
    rows = [random_ids(n, seed=n) for n in lengths]
    batch = random_ids(len(rows), max(lengths), seed=99)
    for ids, row in zip(batch, rows, strict=True):
        ids[: len(row)] = row
    features = trunk.forward_features(batch)
    for n, row, found in zip(lengths, rows, features, strict=True):
        torch.testing.assert_close(
            found[:n], trunk.forward_features(row[None])[0], atol=1e-4, rtol=0
        )


@torch.no_grad()
def test_windows_bind_in_a_batch_as_in_a_row():
    trunk, batch = tiny_trunk(max_seq_len=400), random_ids(2, 400)
    features = trunk.forward_features(batch, windows=(2, 1))
    alone = torch.stack([trunk.forward_features(row, windows=(2, 1)) for row in batch])
    torch.testing.assert_close(features, alone, atol=1e-4, rtol=0)
    assert (features - trunk.forward_features(batch)).abs().max() > 1e-2


@torch.no_grad()
def test_shapes_of_features_follow_the_shape_of_ids():
    trunk, ids = tiny_trunk(), random_ids(3, 20)
    assert trunk.forward_features(ids).shape == (3, 20, 128)
    one_row = trunk.forward_features(ids[:1])
    assert one_row.shape == (1, 20, 128)
    assert torch.equal(trunk.forward_features(ids[0]), one_row[0])
    assert torch.equal(trunk(ids), trunk.forward_features(ids))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fmt", ["small", "medium"])
@torch.no_grad()
def test_a_packed_row_equals_its_documents_alone(form, fmt):
    model = built(form, fmt, stored_state(fmt, 12, heads=1), 1)
    ids = random_ids(sum(DOC_LENGTHS))
    packed = model.forward_features(ids, documents(DOC_LENGTHS))
    alone = [model.forward_features(doc) for doc in ids.split(DOC_LENGTHS)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_as_users_call_it(monkeypatch):
    monkeypatch.setattr(flex_module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    state, ids, docs = stored_state("small", 6, heads=1), random_ids(30), documents((10, 20))
    features = built("flex", "small", state, 1).forward_features(ids, docs)
    assert_features_agree(features, reference.features("small", state, 1, ids, docs))


@torch.no_grad()
def test_documents_are_told_by_change_of_number_only():
    trunk, ids = tiny_trunk(), random_ids(30)
    docs = documents((10, 20))
    assert torch.equal(trunk.forward_features(ids, docs), trunk.forward_features(ids, 7 - 3 * docs))


@torch.no_grad()
def test_flex_forward_gives_logits_or_a_loss():
    model = built("flex", "small", stored_state("small", 6, heads=1), 1)
    row = random_ids(21)
    logits = model(row[:-1])
    assert logits.shape == (20, 384) and 0 < logits.min() and logits.max() < 30
    loss = torch.nn.functional.cross_entropy(logits, row[1:])
    assert float(model(row[:-1], row[1:])) == pytest.approx(float(loss), abs=1e-6)


@torch.no_grad()
def test_targets_of_minus_100_are_left_out_of_the_lm_loss():
    trunk, row = tiny_trunk(), random_ids(31)
    targets = row[1:].clone()
    targets[10:] = -100
    loss = trunk.lm_loss(row[:-1], targets)
    assert float(loss) == pytest.approx(float(trunk.lm_loss(row[:10], row[1:11])), abs=1e-5)


def test_the_lm_head_of_a_batched_trunk_is_neither_optimised_nor_saved():
    trunk = tiny_trunk()
    assert trunk.lm_head_weight is not None
    assert not [n for n, _ in trunk.named_parameters() if "lm_head" in n]
    assert not [n for n in trunk.state_dict() if "lm_head" in n]


def test_a_trunk_without_lm_head_loads_and_says_that_it_has_no_loss():
    trunk = tiny_trunk()
    headless = GPTBatched.from_state_dict(trunk.config, trunk.state_dict())
    row = random_ids(10)
    assert torch.equal(headless(row), trunk(row))
    with pytest.raises(ValueError, match="without a language-model head"):
        headless.lm_loss(row, row)


@pytest.mark.parametrize("name", ["embed.weight", "blocks.3.attn.qkv_w", "block_lambdas"])
def test_a_trunk_of_an_incomplete_state_is_refused(name):
    trunk = tiny_trunk()
    state = {k: v for k, v in trunk.state_dict().items() if k != name}
    with pytest.raises(RuntimeError, match=name):
        GPTBatched.from_state_dict(trunk.config, state)


def test_from_pretrained_gpt_is_a_trainable_copy():
    flex = built("flex", "small", stored_state("small", 6, heads=1), 1)
    before = flex.embed.weight.detach().clone()
    trunk = GPTBatched.from_pretrained_gpt(flex)
    assert all(p.requires_grad for p in trunk.parameters())
    with torch.no_grad():
        trunk.embed.weight.zero_()
    assert torch.equal(flex.embed.weight, before)


@pytest.mark.parametrize("world_size, padded", [(1, 40), (6, 42), (16, 48), (64, 64)])
def test_scalar_padding_is_dropped_on_load(world_size, padded):
    state = stored_state("small", 8, heads=1, world_size=world_size)
    assert state["scalars"].numel() == padded
    model = GPTFlexAttention(300, 8, 1, 128, 64)
    model.load_state_dict(state, strict=True)
    assert torch.equal(model.scalars, state["scalars"][:40])


def test_initial_scalars_are_those_of_the_scripts():
    expected = [1.0] * 6 + [1.0, 0.0] * 6 + [0.5, 0.5] * 6
    model = GPTFlexAttention(300, 6, 1, 128, 64)
    assert model.scalars.tolist() == expected == model.state_dict()["scalars"].tolist()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_longer_than_max_seq_len_is_refused(form):
    model = built(form, "small", stored_state("small", 6, heads=1), 1, max_seq_len=16)
    assert model.forward_features(random_ids(16)).shape == (16, 128)
    with pytest.raises(ValueError, match="17 tokens.*max_seq_len 16"):
        model.forward_features(random_ids(17))


@pytest.mark.parametrize("shape, docs", [((2, 8), 8), ((1, 8), 7), ((8,), 9)])
def test_docs_beside_anything_but_one_row_of_their_length_are_refused(shape, docs):
    with pytest.raises(ValueError, match="docs"):
        tiny_trunk().forward_features(random_ids(*shape), torch.zeros(docs, dtype=torch.long))


def test_flex_refuses_a_batch():
    model = built("flex", "small", stored_state("small", 6, heads=1), 1)
    with pytest.raises(ValueError, match="one packed row"):
        model.forward_features(random_ids(2, 8))


@pytest.mark.parametrize("fmt", ["small", "medium"])
def test_a_config_survives_json(fmt):
    config = tiny_trunk(fmt).config
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("change", [{"num_experts": 4}, {"num_heads": None}])
def test_a_config_with_unknown_or_missing_keys_is_refused(change):
    values = tiny_trunk().config.to_dict() | change
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=next(iter(change))):
        GPTConfig.from_dict(values)


@pytest.mark.parametrize(
    "fmt, layers, heads, match",
    [
        ("small", 7, 1, "even number"),
        ("medium", 5, 1, "at least 6"),
        ("medium", 12, 3, "3 heads do not cut"),
        ("medium", 12, 64, "64 heads do not cut"),
        ("medium", 12, 0, "0 heads do not cut"),
    ],
)
def test_sizes_that_no_script_could_have_trained_are_refused(fmt, layers, heads, match):
    with pytest.raises(ValueError, match=match):
        GPTConfig.of_family(
            fmt,
            vocab_size=300,
            num_layers=layers,
            num_heads=heads,
            model_dim=128,
            max_seq_len=64,
        )


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return GPTClassification(tiny_trunk(), num_classes=3)


@torch.no_grad()
def test_the_classifier_pools_the_last_real_token(classifier):
    batch, lengths = random_ids(3, 30), torch.tensor([30, 1, 12])
    logits = classifier(batch, lengths)
    for ids, n, found in zip(batch, lengths, logits, strict=True):
        last = classifier.pretrained_model.forward_features(ids[:n])[-1]
        expected = classifier.head.output(classifier.head.hidden(last).relu())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_classification_does_not_depend_on_padding_nor_on_the_batch(classifier):
    batch, lengths = random_ids(3, 30), torch.tensor([20, 1, 12])
    padding = torch.arange(30) >= lengths[:, None]
    logits = classifier(batch, lengths)
    for fill in (0, 255):
        refilled = classifier(batch.masked_fill(padding, fill), lengths)
        torch.testing.assert_close(refilled, logits, atol=1e-5, rtol=0)
    alone = torch.cat([classifier(batch[i : i + 1, :n], n[None]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(alone, logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_dropout_mask_acts_on_its_own_example(classifier):
    batch, lengths = random_ids(2, 10), torch.tensor([10, 6])
    mask = torch.ones(2, classifier.dropout_width)
    assert torch.equal(classifier(batch, lengths, mask), classifier(batch, lengths))
    mask[0] = 0
    masked = classifier(batch, lengths, mask)
    assert torch.equal(masked[0], classifier.head.output.bias)
    assert torch.equal(masked[1], classifier(batch, lengths)[1])


def test_the_classifier_trains_trunk_and_head(classifier):
    logits = classifier(random_ids(2, 10), torch.tensor([10, 6]))
    logits.square().sum().backward()
    without = [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("fmt", ["small", "medium"])
def test_bfloat16_autocast_is_close_and_leaves_parameters_in_float32(fmt):
    trunk, ids = tiny_trunk(fmt), random_ids(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        features = trunk.forward_features(ids)
        features.float().square().sum().backward()
    exact = trunk.forward_features(ids)
    cosine = torch.cosine_similarity(features.float(), exact, dim=-1)
    assert not torch.equal(features.float(), exact), "autocast must have been in force"
    assert cosine.min() > 0.99
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in trunk.parameters()} == {torch.float32}


@torch.no_grad()
def test_autocast_logits_of_the_classifier_are_float32(classifier):
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier(random_ids(1, 5), torch.tensor([5])).dtype == torch.float32

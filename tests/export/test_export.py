"""An exported folder in the real transformers library gives the numbers of this project."""

import ast
import dataclasses
import json
import stat
import sys
from pathlib import Path

import made_checkpoints
import pytest
import small_run
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from shell import ROOT
from small_run import LABELS
from tokenizers import Tokenizer, normalizers

import finetune_hindi_xnli as finetune
import predict_hindi_xnli as predict
from inference import XNLIClassifier
from predict_hindi_xnli import export_checkpoint
from xnli_gpt.checkpoints.fine_tuned import read_fine_tuned
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import encoding_of_saved, pair_encoding
from xnli_gpt.errors import DataError
from xnli_gpt.export import folder as folder_room
from xnli_gpt.export.card import model_card
from xnli_gpt.export.folder import pair_tokenizer
from xnli_gpt.export.network_files import ROOMS

pytestmark = pytest.mark.usefixtures("exported_code_apart")

FAMILIES = ("small", "medium")
PAIRS = [
    ("राम ने बाज़ार से 3 आम ख़रीदा", "राम के पास आम है"),
    ("सीता ने किताब पढ़ी और फूल देखे", "सीता को फूल पसंद है"),
    ("गीता ", "मोहन के पास कोई रोटी नहीं है"),
]
# Texts on which a careless tokenizer differs.
ODD_PAIRS = [
    ("आम " * 300, "राम के पास आम है"),
    ("\r\nराम ने आम ख़रीदा\n", "\n राम के पास आम है \n"),
    ("राम <|endoftext|> ने आम ख़रीदा", "<|endoftext|>"),
    ("एक\nदो", "  दो  "),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def fine_tuned(folder) -> dict[str, Path]:
    """A checkpoint of each family, trained for two steps, each with another template."""
    assets = small_run.make_assets(folder)
    state = made_checkpoints.random_state("medium", layers=12, heads=2, dim=128, vocab=300, seed=2)
    code = made_checkpoints.gpt_call(12, 2, 128)
    medium = made_checkpoints.save_checkpoint(folder / "state_step000200.pt", state, code=code)
    changes = {
        "small": ["--template", "documents"],
        "medium": ["--template", "group", "--pretrained_ckpt_path", medium],
    }
    for family, words in changes.items():
        argv = small_run.command(assets, folder / family, "--max_steps", 2, *words)
        assert finetune.main(argv) == 0
    return {family: folder / family / "pairs-ckpt.pt" for family in FAMILIES}


@pytest.fixture(scope="module")
def exported(folder, fine_tuned) -> dict[str, Path]:
    folders = {family: folder / f"exported-{family}" for family in FAMILIES}
    for family, to in folders.items():
        argv = ["--checkpoint", str(fine_tuned[family]), "--export", str(to)]
        assert predict.main(argv) == 0
    return folders


def load_model(folder: Path, **options: object) -> torch.nn.Module:
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    return model


def load_tokenizer(folder: Path) -> object:
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def our_logits(checkpoint: Path, pairs: list[tuple[str, str]]) -> torch.Tensor:
    predictions = XNLIClassifier.load(checkpoint, device="cpu").predict(pairs)
    return torch.tensor([prediction.logits for prediction in predictions])


def batch_of(tokenizer: object, pairs: list[tuple[str, str]], **options: object) -> dict:
    premises, hypotheses = map(list, zip(*pairs, strict=True))
    options = {"padding": True, "truncation": "only_first", "return_tensors": "pt"} | options
    return tokenizer(premises, hypotheses, **options)


def farthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(fine_tuned, exported, family):
    pairs = PAIRS + ODD_PAIRS
    model, tokenizer = load_model(exported[family]), load_tokenizer(exported[family])
    expected = our_logits(fine_tuned[family], pairs)
    with torch.no_grad():
        batch = batch_of(tokenizer, pairs)
        assert set(batch) == {"input_ids", "attention_mask"}
        assert batch["attention_mask"].min() == 0, "the batch must have padding"
        assert farthest(model(**batch).logits, expected) < 1e-5
        for pair, of_pair in zip(pairs, expected, strict=True):
            assert farthest(model(**batch_of(tokenizer, [pair])).logits[0], of_pair) < 1e-5
    assert expected.std(dim=0).min() > 1e-3, "else any pair would do"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pipeline_computes_the_same_logits(fine_tuned, exported, family):
    pipeline = transformers.pipeline(
        "text-classification", model=str(exported[family]), trust_remote_code=True, device="cpu"
    )
    asked = [{"text": premise, "text_pair": hypothesis} for premise, hypothesis in PAIRS]
    expected = our_logits(fine_tuned[family], PAIRS)
    for batch_size in (1, 3):
        answers = pipeline(asked, batch_size=batch_size, top_k=None, function_to_apply="none")
        scores = [{one["label"]: one["score"] for one in answer} for answer in answers]
        logits = torch.tensor([[of_pair[label] for label in LABELS] for of_pair in scores])
        assert farthest(logits, expected) < 1e-5
    best = pipeline(asked[0])
    assert best["label"] == LABELS[int(expected[0].argmax())]
    assert best["score"] == pytest.approx(float(expected[0].softmax(0).max()), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", PAIRS + ODD_PAIRS)
def test_the_tokenizer_builds_the_ids_of_training(fine_tuned, exported, family, pair):
    (row,) = XNLIClassifier.load(fine_tuned[family], device="cpu").encode([pair])
    tokenizer = load_tokenizer(exported[family])
    assert tokenizer(*pair, truncation="only_first")["input_ids"] == row.tolist()


def test_a_premise_may_be_cut_to_its_last_token(fine_tuned, exported):
    classifier = XNLIClassifier.load(fine_tuned["small"], device="cpu")
    tokenizer = load_tokenizer(exported["small"])
    for length in range(150, 157):
        pair = ("a" * 20, "b" * length)
        (row,) = classifier.encode([pair])
        assert len(row) == 160
        assert tokenizer(*pair, truncation="only_first")["input_ids"] == row.tolist()
    with pytest.raises(DataError, match="leaves no room"):
        classifier.encode([("a" * 20, "b" * 157)])
    with pytest.raises(Exception, match="[Tt]runcation error"):
        tokenizer("a" * 20, "b" * 157, truncation="only_first")


def test_a_normaliser_of_the_tokenizer_stays(folder, fine_tuned):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFKC()
    encoding = pair_encoding(tokenizer.to_str(), "documents", 64)
    pair = ("\n\N{LATIN SMALL LIGATURE FI}\n", "आम")
    (row,) = encode_pairs([pair], encoding)
    assert pair_tokenizer(encoding).encode(*pair).ids == row.tolist()
    (spelled,) = encode_pairs([("fi", "आम")], encoding)
    assert row.tolist() == spelled.tolist()


def test_padding_on_the_left_changes_nothing(fine_tuned, exported):
    model, tokenizer = load_model(exported["small"]), load_tokenizer(exported["small"])
    batch = batch_of(tokenizer, PAIRS, padding_side="left", padding="max_length")
    assert batch["input_ids"].shape == (3, 160) and batch["attention_mask"][:, 0].max() == 0
    with torch.no_grad():
        assert farthest(model(**batch).logits, our_logits(fine_tuned["small"], PAIRS)) < 1e-5


def test_without_a_mask_every_id_is_a_token(exported):
    """Padding is never told by an id: the pad token is the end of text, which ends every pair."""
    model, tokenizer = load_model(exported["small"]), load_tokenizer(exported["small"])
    batch = batch_of(tokenizer, PAIRS[:1])
    assert batch["input_ids"][0, -1] == tokenizer.pad_token_id
    with torch.no_grad():
        assert torch.equal(model(batch["input_ids"]).logits, model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_bind_as_in_training(fine_tuned, tmp_path, family):
    """Rows longer than what a layer sees: here a block or two instead of seven to 27."""
    saved = read_fine_tuned(fine_tuned[family])
    saved["config"] |= {"windows": (2, 1), "max_seq_len": 400}
    saved["block_size"] = 400
    checkpoint = tmp_path / "pairs-ckpt.pt"
    torch.save(saved, checkpoint)
    export_checkpoint(checkpoint, tmp_path / "exported")
    pairs = [("आम " * 300, "राम के पास आम है"), *PAIRS]
    model, tokenizer = load_model(tmp_path / "exported"), load_tokenizer(tmp_path / "exported")
    batch = batch_of(tokenizer, pairs)
    assert batch["input_ids"].shape[1] > 256
    expected = our_logits(checkpoint, pairs)
    with torch.no_grad():
        assert farthest(model(**batch).logits, expected) < 1e-5
        trunk = model.pretrained_model
        trunk.config = dataclasses.replace(trunk.config, windows=(14, 7))
        assert farthest(model(**batch).logits[0], expected[0]) > 1e-4, "the windows must bind"


def test_rows_that_the_model_does_not_take_are_refused(exported):
    model, tokenizer = load_model(exported["small"]), load_tokenizer(exported["small"])
    with pytest.raises(ValueError, match='takes 160: tokenise with truncation="only_first"'):
        model(**batch_of(tokenizer, ODD_PAIRS[:1], truncation=False))
    batch = batch_of(tokenizer, PAIRS)
    batch["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="a row without tokens"):
        model(**batch)


def test_labels_give_the_loss(exported):
    model, tokenizer = load_model(exported["small"]), load_tokenizer(exported["small"])
    labels = torch.tensor([2, 0, 1])
    output = model(**batch_of(tokenizer, PAIRS), labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    assert output.loss.item() == pytest.approx(expected.item())
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    loss, logits = model(**batch_of(tokenizer, PAIRS), labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)


def test_what_transformers_saves_it_loads_again(exported, tmp_path):
    model, tokenizer = load_model(exported["medium"]), load_tokenizer(exported["medium"])
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    batch = batch_of(load_tokenizer(tmp_path / "again"), PAIRS)
    with torch.no_grad():
        again = load_model(tmp_path / "again")(**batch).logits
        assert torch.equal(again, model(**batch_of(tokenizer, PAIRS)).logits)


def test_half_precision_stays_near(exported):
    batch = batch_of(load_tokenizer(exported["small"]), PAIRS)
    with torch.no_grad():
        exact = load_model(exported["small"])(**batch).logits
        half = load_model(exported["small"], dtype=torch.bfloat16)(**batch).logits
    assert half.dtype is torch.float32
    assert 0 < farthest(half, exact) < 0.1


def test_the_folder_holds_what_was_promised(fine_tuned, exported):
    folder, saved = exported["small"], read_fine_tuned(fine_tuned["small"])
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_xnli_gpt.py",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.py",
        *(f"{room}.py" for room in ROOMS),
    }
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == saved["model"].keys()
    assert all(torch.equal(weights[name], saved["model"][name]) for name in weights)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}
    assert config["label2id"] == {name: i for i, name in enumerate(LABELS)}
    for key in ("num_layers", "num_heads", "model_dim", "vocab_size", "max_seq_len"):
        assert config[key] == saved["config"][key]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1, "one file is readable to others and another is not"


def test_the_exported_code_needs_nothing_of_this_project(exported):
    modules = list(exported["small"].glob("*.py"))
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    imports = [node for node in nodes if isinstance(node, ast.Import)]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    imported = {alias.name.split(".")[0] for node in imports for alias in node.names}
    imported |= {node.module.split(".")[0] for node in froms if node.level == 0}
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}
    # What is relative is there.
    beside = {node.module for node in froms if node.level}
    assert beside and beside <= {path.stem for path in modules}


def test_the_exported_network_is_that_of_the_project(exported):
    """The same text but for where its imports look."""
    for name in ("model", *ROOMS):
        own = ROOT / ("model.py" if name == "model" else f"xnli_gpt/network/{name}.py")
        lines = own.read_text(encoding="utf-8").splitlines()
        copied = (exported["small"] / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(copied)
        for line, copy in zip(lines, copied, strict=True):
            assert line == copy or line.replace("from xnli_gpt.network.", "from .") == copy


def test_the_card_tells_the_facts_of_the_checkpoint(fine_tuned, exported):
    card = (exported["medium"] / "README.md").read_text(encoding="utf-8")
    saved = read_fine_tuned(fine_tuned["medium"])
    for fact in (
        "| fine-tuned on | pairs |",
        f"| checkpoint | pairs-ckpt.pt, step {saved['step']} |",
        "| pretrained checkpoint | state_step000200.pt |",
        "12 layers, 2 heads, width 128",
        "| template | group: premise [end of text] hypothesis |",
        "| classes | 0 entailment, 1 neutral, 2 contradiction |",
        f"| accuracy | {saved['metrics']['accuracy']:.4f} |",
        "| contradiction | ",
        'truncation="only_first"',
    ):
        assert fact in card, fact
    metadata = ModelCard(card).data
    assert metadata.library_name == "transformers" and metadata.license == "other"
    assert metadata.base_model == Path(saved["pretrained"]["file"]).stem


def test_the_card_has_test_metrics_only_of_this_model(fine_tuned, tmp_path):
    saved = read_fine_tuned(fine_tuned["small"])
    encoding = encoding_of_saved(saved, Path("x"))
    of_run = (fine_tuned["small"].parent / "results.json").read_text(encoding="utf-8")
    test = json.loads(of_run)["test"]
    row = f"| accuracy | {saved['metrics']['accuracy']:.4f} | {test['accuracy']:.4f} |"
    assert row in model_card(fine_tuned["small"], saved, encoding)
    others = [
        json.dumps(json.loads(of_run) | {"best_step": saved["step"] + 1}),
        json.dumps({"test": test}),
        "{",
    ]
    for text in others:
        (tmp_path / "results.json").write_text(text, encoding="utf-8")
        card = model_card(tmp_path / "pairs-ckpt.pt", saved, encoding)
        assert f"| accuracy | {saved['metrics']['accuracy']:.4f} |\n" in card


def test_the_card_calls_a_model_of_one_answer_that(fine_tuned, tmp_path):
    saved = read_fine_tuned(fine_tuned["small"])
    encoding = encoding_of_saved(saved, Path("x"))
    said = "**This model answers one class alone:** neutral to every pair of validation."
    for confusion, called in [([[0, 5, 0]] * 3, True), ([[0, 5, 0], [1, 4, 0], [0, 5, 0]], False)]:
        saved["metrics"]["confusion"] = confusion
        assert (said in model_card(tmp_path / "pairs-ckpt.pt", saved, encoding)) == called


def test_the_card_knows_the_languages_of_xnli_sets(fine_tuned):
    saved = read_fine_tuned(fine_tuned["small"])
    of_set = saved["metrics"]
    other = of_set | {"accuracy": 0.125, "intervals": {"accuracy": [0.1, 0.2]}}
    saved["metrics"] = of_set | {"sets": {"hindi_xnli": of_set, "xnli_ur": other}}
    saved["datasets"] = ["hindi_xnli", "xnli_ur"]
    encoding = encoding_of_saved(saved, Path("x"))
    card = model_card(Path("out/hindi_xnli+xnli_ur-ckpt.pt"), saved, encoding)
    assert "language:\n- hi\n- ur\n" in card
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert ModelCard(card).data.datasets == ["facebook/xnli"]
    assert "| xnli_ur | 0.1250 (0.1000 to 0.2000) |" in card
    assert "means over the sets" in card
    assert "CC BY-NC 4.0" in card
    saved["datasets"] = ["named|otherwise"]
    assert r"| fine-tuned on | named\|otherwise |" in model_card(Path("x-ckpt.pt"), saved, encoding)


def test_the_card_does_without_metrics(fine_tuned):
    saved = read_fine_tuned(fine_tuned["small"])
    for key in ("metrics", "pretrained", "step"):
        del saved[key]
    encoding = encoding_of_saved(saved, Path("x"))
    card = model_card(Path("x-ckpt.pt"), saved, encoding)
    assert "The checkpoint holds no metrics." in card
    assert "| pretrained checkpoint | unknown |" in card


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: (path.mkdir(), (path / "mine").write_text("x")), "holds files already"),
        (lambda path: path.write_text("x"), "is a file"),
    ],
)
def test_an_export_overwrites_nothing(fine_tuned, tmp_path, capsys, make, problem):
    target = tmp_path / "exported"
    make(target)
    argv = ["--checkpoint", str(fine_tuned["small"]), "--export", str(target)]
    assert predict.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --export {target}: ") and problem in line
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_an_empty_folder_will_do_and_a_failure_leaves_it_empty(fine_tuned, tmp_path, monkeypatch):
    target = tmp_path / "exported"
    target.mkdir()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(folder_room, "tokenizer_config", fail)
        with pytest.raises(OSError):
            export_checkpoint(fine_tuned["small"], target)
    assert list(tmp_path.iterdir()) == [target] and not list(target.iterdir())
    export_checkpoint(fine_tuned["small"], target)
    assert (target / "model.safetensors").exists()
    assert list(tmp_path.iterdir()) == [target]


def test_a_checkpoint_of_pretraining_is_not_exported(folder, fine_tuned, tmp_path, capsys):
    argv = ["--checkpoint", str(folder / "state_step000200.pt")]
    assert predict.main([*argv, "--export", str(tmp_path / "exported")]) == 2
    assert "not a fine-tuned checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def embeddings_of(model: torch.nn.Module, batch: dict) -> dict:
    ids = batch["input_ids"]
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    return {"inputs_embeds": model.get_input_embeddings()(ids), **rest}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings_in_place_of_ids(exported, family, side):
    model, tokenizer = load_model(exported[family]), load_tokenizer(exported[family])
    tokenizer.padding_side = side
    batch = batch_of(tokenizer, PAIRS)
    with torch.no_grad():
        assert farthest(model(**batch).logits, model(**embeddings_of(model, batch)).logits) < 1e-6
    for wrong in ({}, {**batch, **embeddings_of(model, batch)}):
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            model(**wrong)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_trunk_alone_gives_the_final_hidden_states(fine_tuned, exported, family, side):
    trunk, report = transformers.AutoModel.from_pretrained(
        exported[family], trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    tokenizer = load_tokenizer(exported[family])
    tokenizer.padding_side = side
    batch = batch_of(tokenizer, PAIRS)
    ours = XNLIClassifier.load(fine_tuned[family], device="cpu").model.pretrained_model
    with torch.no_grad():
        states = trunk(**batch).last_hidden_state
        for row, ids, mask in zip(states, batch["input_ids"], batch["attention_mask"], strict=True):
            alone = ours.forward_features(ids[mask == 1][None])[0]
            assert farthest(row[mask == 1], alone) < 1e-5
            assert not row[mask == 0].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_again_with_peft_and_gradient_checkpointing(exported, family, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokenizer = load_model(exported[family]), load_tokenizer(exported[family])
    batch, labels = batch_of(tokenizer, PAIRS), torch.tensor([0, 1, 2])
    options = dict(task_type="SEQ_CLS", target_modules=["c_fc", "c_proj"], modules_to_save=["head"])
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_dropout=0.0, **options))
    plain = tuned(**batch, labels=labels)
    plain.loss.backward()
    expected = {n: p.grad.clone() for n, p in tuned.named_parameters() if p.requires_grad}
    assert expected and any(grad.any() for n, grad in expected.items() if "lora_B" in n)
    tuned.zero_grad()
    tuned.gradient_checkpointing_enable()
    tuned.enable_input_require_grads()
    assert model.pretrained_model.gradient_checkpointing
    tuned.train()
    tuned(**batch, labels=labels).loss.backward()
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    tuned.eval()
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load_model(exported[family]), tmp_path / "adapter")
    with torch.no_grad():
        assert farthest(again.eval()(**batch).logits, tuned(**batch).logits) < 1e-6


def dynamic_shapes() -> dict:
    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", max=160)
    return {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_graph_takes_padded_batches_of_any_shape(exported, family):
    model, tokenizer = load_model(exported[family]).eval(), load_tokenizer(exported[family])
    program = torch.export.export(
        model, (), dict(batch_of(tokenizer, PAIRS)), dynamic_shapes=dynamic_shapes()
    ).module()
    for pairs in (PAIRS, ODD_PAIRS, PAIRS[:2], PAIRS * 3):
        batch = batch_of(tokenizer, pairs)
        with torch.no_grad():
            assert farthest(program(**batch).logits, model(**batch).logits) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_computes_the_same_logits(exported, family, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, tokenizer = load_model(exported[family]).eval(), load_tokenizer(exported[family])
    torch.onnx.export(
        model,
        (),
        kwargs=dict(batch_of(tokenizer, PAIRS)),
        dynamic_shapes=dynamic_shapes(),
        dynamo=True,
        output_names=["logits"],
    ).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for pairs in (PAIRS, ODD_PAIRS, PAIRS[:2]):
        batch = batch_of(tokenizer, pairs)
        (logits,) = session.run(None, {name: ids.numpy() for name, ids in batch.items()})
        with torch.no_grad():
            assert farthest(torch.from_numpy(logits), model(**batch).logits) < 1e-5

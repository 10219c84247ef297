"""Whole runs from checkpoints of other families with their own tokenizers: trained, resumed bit for
bit, evaluated, predicted and exported to the same logits."""

import json
import pickle
import shutil

import pytest
import small_run
import torch
import transformers
from tokenizers import Tokenizer
from zoo_files import FILES, write_entry

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
import predict_hindi_xnli as predict
from inference import XNLIClassifier
from xnli_gpt.data import tiktoken_files


def nanochat(folder):
    """A checkpoint beside its meta, and a pickled tiktoken as its tokenizer."""
    tiktoken = pytest.importorskip("tiktoken")
    trained = Tokenizer.from_file(str(small_run.train_tokenizer(folder / "bytes.json", 290)))
    vocabulary = json.loads(trained.to_str())["model"]["vocab"]
    letters = {letter: byte for byte, letter in tiktoken_files._LETTERS.items()}
    tokens = [token for token in sorted(vocabulary, key=vocabulary.get) if token[0] != "<"]
    ranks = {bytes(letters[c] for c in token): rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding(
        "own",
        pat_str=r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+",
        mergeable_ranks=ranks,
        special_tokens={"<|bos|>": len(ranks)},
    )
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return write_entry("nanochat-5", folder), folder / "tokenizer"


def gpt2(folder):
    """A folder of Hugging Face with vocab.json and merges.txt in it."""
    checkpoint = shutil.copytree(FILES["hf-gpt2"], folder / "gpt2")
    trained = Tokenizer.from_file(str(small_run.train_tokenizer(folder / "bytes.json", 300)))
    trained.model.save(str(checkpoint))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    return checkpoint, checkpoint


def llama(folder):
    checkpoint = shutil.copytree(FILES["hf-llama"], folder / "llama")
    return checkpoint, small_run.train_tokenizer(checkpoint / "tokenizer.json", 300)


def smearing(folder):
    """A record whose network mixes two embeddings, and smears at its end."""
    return write_entry("M6b", folder), small_run.train_tokenizer(folder / "bytes.json", 300)


MADE = {"nanochat": nanochat, "gpt2": gpt2, "llama": llama, "smearing": smearing}


@pytest.fixture(scope="module", params=MADE)
def run(request, tmp_path_factory):
    """A run of five steps, and the command that made it."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint, tokenizer = MADE[request.param](folder)
    dataset = small_run.write_dataset(folder / "pairs")

    def command(out_dir, *words):
        words = ["--dataset", dataset, "--pretrained_ckpt_path", checkpoint, *words]
        words += ["--tokenizer_name", tokenizer, "--cache_dir", folder / "cache", "--seed", 3]
        words += ["--out_dir", out_dir, "--device", "cpu", "--block_size", 160, "--batch_size", 6]
        words += ["--learning_rate", 1e-3, "--no-report", "--compile", "never"]
        words += ["--dtype", "float32", "--lr_schedule", "constant", "--eval_interval", 2]
        return [str(word) for word in words]

    assert finetune.main(command(folder / "whole", "--max_steps", 6)) == 0
    return folder, command


def weights_of(folder):
    saved = torch.load(folder / "pairs-last.pt", weights_only=True)
    return saved["model"]


def test_a_resumed_run_ends_where_one_from_the_start_does(run, capsys):
    folder, command = run
    assert finetune.main(command(folder / "parts", "--max_steps", 4)) == 0
    assert finetune.main(command(folder / "parts", "--max_steps", 6)) == 0
    whole, parts = weights_of(folder / "whole"), weights_of(folder / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_training_moves_every_weight_that_has_a_gradient(run):
    folder, _ = run
    losses = [json.loads(line)["loss"] for line in open(folder / "whole" / "steps.jsonl")]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_an_evaluation_and_a_prediction_are_those_of_the_run(run):
    folder, _ = run
    out = folder / "scores"
    words = ["--checkpoint", folder / "whole", "--out_dir", out, "--device", "cpu", "--no-report"]
    assert evaluate.main([str(word) for word in [*words, "--dtype", "float32"]]) == 0
    again = json.loads((out / "results.json").read_text())["datasets"]["pairs"]
    ours = json.loads((folder / "whole" / "results.json").read_text())["test"]
    assert again["accuracy"] == ours["accuracy"]
    assert again["loss"] == pytest.approx(ours["loss"], abs=1e-6)


def test_the_exported_folder_computes_the_same_logits(run, exported_code_apart, tmp_path):
    folder, _ = run
    exported = tmp_path / "exported"
    words = ["--checkpoint", str(folder / "whole"), "--export", str(exported)]
    assert predict.main(words) == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        exported, trust_remote_code=True
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    rows = small_run.rows_about(small_run.NAMES[:2])
    pairs = [(row["premise"], row["hypothesis"]) for row in rows]
    expected = XNLIClassifier.load(folder / "whole", device="cpu").predict(pairs)
    batch = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    ours = torch.tensor([prediction.logits for prediction in expected])
    torch.testing.assert_close(logits, ours, atol=1e-5, rtol=0)

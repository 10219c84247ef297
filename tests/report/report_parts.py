"""What the report's tests share: made-up results in Hindi and Urdu, and a reader of the page."""

import hashlib
import html.parser
from pathlib import Path

import numpy as np

from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.intervals import over_seeds
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.scores import macro_average, split_metrics
from xnli_gpt.report import ReportContent, write_report

CLASSES = ("entailment", "neutral", "contradiction")
PREMISES = {
    "xnli_hi": [
        "और उसने कहा, माँ, मैं घर आ गया हूँ, लेकिन दरवाज़े पर कोई नहीं था और बत्तियाँ बुझी हुई थीं।",
        "क्षत्रिय राजाओं के समय में यह क़िला व्यापार का सबसे बड़ा केंद्र हुआ करता था।",
        "मैं यह सोच भी नहीं रहा था, पर मैं इतना परेशान हो गया कि आख़िर में उससे फिर बात करने लगा।",
        "विद्यार्थियों ने प्रश्नपत्र मिलने के बाद एक घंटे तक चुपचाप लिखा।",
    ],
    "xnli_ur": [
        "اور اس نے کہا، امی، میں گھر آ گیا ہوں، لیکن دروازے پر کوئی نہیں تھا۔",
        "یہ قلعہ بادشاہوں کے زمانے میں تجارت کا سب سے بڑا مرکز ہوا کرتا تھا۔",
        "میں یہ سوچ بھی نہیں رہا تھا، مگر میں بہت پریشان ہو گیا۔",
        "طالب علموں نے پرچہ ملنے کے بعد ایک گھنٹے تک خاموشی سے لکھا۔",
    ],
}
HYPOTHESES = {
    "xnli_hi": ["उसने अपनी माँ से बात की।", "वह बहुत ख़ुश था।", "उसने किसी से कुछ नहीं कहा।"],
    "xnli_ur": ["اس نے اپنی ماں سے بات کی۔", "وہ بہت خوش تھا۔", "اس نے کسی سے کچھ نہیں کہا۔"],
}


def write(folder: Path, title: str = "x", **parts: object) -> Path:
    return write_report(folder, ReportContent(title, **parts))


def scored_split(dataset: str, skill: float, seed: int = 0, models: int = 1) -> ScoredSplit:
    """180 rows, three a premise, and models that know the answer the better the more `skill`."""
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(3), 60)
    premises = [f"{PREMISES[dataset][i // 3 % 4]} ({i // 3})" for i in range(180)]
    hypotheses = [HYPOTHESES[dataset][i % 3] for i in range(180)]
    logits = generator.normal(size=(models, 180, 3)) + skill * np.eye(3)[labels]
    return ScoredSplit(
        list(range(180)),
        premises,
        hypotheses,
        labels,
        logits.astype(np.float32),
        CLASSES,
        dataset[-2:],
    )


def prediction_lines(dataset: str, scored: ScoredSplit) -> list[dict]:
    return [
        {
            "dataset": dataset,
            "split": "test",
            "id": i,
            "premise": scored.premises[i],
            "hypothesis": scored.hypotheses[i],
            "label": CLASSES[scored.labels[i]],
            "prediction": CLASSES[probabilities.argmax()],
            "probabilities": dict(zip(CLASSES, probabilities.tolist(), strict=True)),
        }
        for i, probabilities in enumerate(scored.probabilities[0])
    ]


def history_lines(count: int = 12) -> list[dict]:
    return [
        {
            "step": 500 * i,
            "train_loss": 1.1 * 0.93**i if i else None,
            "validation": {
                "loss": 1.1 * 0.95**i + 0.01 * max(0, i - 8),
                "accuracy": 0.75 - 0.42 * 0.8**i - 0.004 * max(0, i - 8),
                "macro_f1": 0.745 - 0.42 * 0.8**i,
            },
        }
        for i in range(count)
    ]


def seeds_of(scored: dict[str, ScoredSplit]) -> dict:
    values = {
        name: [split_metrics(one.of_model(i), 50)["accuracy"] for i in range(2)]
        for name, one in scored.items()
    }
    return {"datasets": {name: {"accuracy": over_seeds(v)} for name, v in values.items()}}


def full_report() -> dict:
    """The arguments of a report with everything in it."""
    scored = {
        name: scored_split(name, skill=1.6, seed=i, models=2) for i, name in enumerate(PREMISES)
    }
    others = {name: scored_split(name, skill=1.2, seed=7 + i) for i, name in enumerate(PREMISES)}
    results = {name: split_metrics(one, 200) for name, one in scored.items()}
    results["xnli_hi"]["hypothesis_only"] = {"accuracy": 0.42, "macro_f1": 0.41}
    results["xnli_ur"]["hypothesis_only"] = {"accuracy": 0.40, "macro_f1": 0.39}
    lines = [line for name, one in scored.items() for line in prediction_lines(name, one)]
    return {
        "facts": {
            "command": "python evaluate_hindi_xnli.py --checkpoint out/seed0/xnli_hi-ckpt.pt "
            "--dataset xnli_hi xnli_ur --out_dir evaluation",
            "checkpoint": {
                "file": "out/seed0/xnli_hi-ckpt.pt",
                "sha256": hashlib.sha256(b"weights").hexdigest(),
                "format": "small",
                "step": 4000,
            },
            "data": {"xnli_hi": "facebook/xnli, hi", "xnli_ur": "facebook/xnli, ur"},
            "tokenizer": "bpe-hin-urd-owt-tokenizer.json, 50,000 tokens",
            "versions": {"torch": "2.13.0", "python": "3.11.7"},
            "machine": "NVIDIA H100, bfloat16",
            "date": "2026-11-23",
            "seeds": [0, 1],
            "slurm_job": None,
            "exit": 0,
        },
        "recipe": {"learning_rate": 1e-4, "num_epochs": 3.0, "max_steps": None, "report": True},
        "results": results,
        "macro_average": macro_average(results, scored, 200),
        "seeds": seeds_of(scored),
        "history": history_lines(),
        "best_step": 4000,
        "predictions": lines,
        "comparison": compare(scored, others, 200) | {"names": ["BPE", "Unigram"]},
    }


class Page(html.parser.HTMLParser):
    """A page as a reader takes it in: elements with their attributes, and the text of cells and
    of what stands in a direction of its own."""

    VOID = ("meta", "img", "br")
    CELLS = ("td", "th", "dt", "dd", "bdi")

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.cells: list[tuple[dict, str]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.classes: list[str | None] = []
        self.sentence = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
            self.classes.append(dict(attributes).get("class"))
        if tag in self.CELLS:
            self.cells.append((dict(attributes) | {"tag": tag}, ""))
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        if set(self.CELLS) & set(self.open):
            attributes, text = self.cells[-1]
            self.cells[-1] = (attributes, text + data)
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data
        if "sentence" in self.classes:
            self.sentence += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def table_texts(self) -> list[str]:
        return [text for attributes, text in self.cells if attributes["tag"] != "bdi"]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.cells]

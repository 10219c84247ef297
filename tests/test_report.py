"""The report: what it says, what it leaves out, that nothing from the data gets loose in it, and
that a real browser shows it well on a phone."""

import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

import report
from evaluation import ScoredSplit, compare, macro_average, over_seeds, split_metrics
from report import most_confident_mistakes, write_report

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


@pytest.fixture(scope="module")
def demo() -> dict:
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
        "results": results,
        "macro_average": macro_average(results, scored, 200),
        "seeds": seeds_of(scored),
        "history": history_lines(),
        "best_step": 4000,
        "predictions": lines,
        "comparison": compare(scored, others, 200) | {"names": ["BPE", "Unigram"]},
    }


@pytest.fixture(scope="module")
def folder(demo: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, "Hindi XNLI: small, BPE tokenizer", **demo)
    return folder


class Page(html.parser.HTMLParser):
    """A page as a reader takes it in: elements with their attributes, and the text of cells."""

    VOID = ("meta", "img", "br")

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.cells: list[tuple[dict, str]] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append((dict(attributes), ""))
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            attributes, text = self.cells[-1]
            self.cells[-1] = (attributes, text + data)
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.cells]


def test_page_has_every_part_and_needs_nothing_from_outside(folder):
    page = Page(folder / "report.html")
    assert page.headings == [
        *("What was run", "Results", "Seeds", "Comparison", "Training"),
        *("Dataset xnli_hi", "Dataset xnli_ur"),
    ]
    images = page.all("img")
    assert len(images) == 3 + 2 * 3
    assert all(len(image["alt"]) > 20 for image in images)
    drawing = base64.b64decode(images[0]["src"].removeprefix("data:image/svg+xml;base64,"))
    assert b"<svg" in drawing
    used = [a.get("src") or a["href"] for _, a in page.elements if "src" in a or "href" in a]
    assert all(address.startswith(("data:image/svg+xml;base64,", "#part-")) for address in used)
    anchors = {attributes["id"] for attributes in page.all("h2")}
    assert {a["href"].removeprefix("#") for a in page.all("a")} == anchors
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    assert "url(" not in (folder / "report.html").read_text(encoding="utf-8")


def test_facts_stand_in_their_order_and_unknown_ones_nowhere(folder, demo):
    texts = Page(folder / "report.html").texts
    places = [texts.index(name) for name, value in demo["facts"].items() if value is not None]
    assert places == sorted(places)
    assert texts[texts.index("command") + 1] == demo["facts"]["command"]
    assert demo["facts"]["checkpoint"]["sha256"] in texts[texts.index("checkpoint") + 1]
    assert "slurm_job" not in texts


def test_tables_of_both_files_say_the_same(folder):
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    words = [re.sub(r"\\(.)", r"\1", cell) for row in rows for cell in row]
    pasted = Counter(word for word in words if not re.fullmatch("---:?", word))
    shown = Counter(Page(folder / "report.html").texts)
    # In one line, and in several.
    differing = (shown - pasted) + (pasted - shown)
    assert all("checkpoint.pt" in text or ": " in text for text in differing)
    assert len(differing) < 10


def test_markdown_names_figures_that_are_there(folder):
    names = re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert len(names) == 9
    for name in names:
        with Image.open(folder / name) as image:
            assert image.width > 800
        drawing = (folder / name).with_suffix(".pdf").read_bytes()
        assert drawing.startswith(b"%PDF") and b"/Type3" not in drawing


def one_row(metrics: dict, tmp_path: Path) -> list[str]:
    write_report(tmp_path, "x", facts={}, results={"demo": metrics})
    texts = Page(tmp_path / "report.html").texts
    return texts[texts.index("demo") + 1 :]


@pytest.mark.parametrize(
    "metrics, said",
    [
        ({"accuracy": 0.7312, "intervals": {"accuracy": [0.7181, 0.7443]}}, "0.731 [0.718, 0.744]"),
        ({"accuracy": 0.7312, "intervals": {"accuracy": [0.60, 0.86]}}, "0.73 [0.60, 0.86]"),
        (
            {"accuracy": 0.7312, "intervals": {"accuracy": [0.73, 0.7324]}},
            "0.7312 [0.7300, 0.7324]",
        ),
        ({"accuracy": 1.0, "intervals": {"accuracy": [1.0, 1.0]}}, "1.000 [1.000, 1.000]"),
        ({"accuracy": 0.7312, "intervals": {"accuracy": None}, "examples": 5010}, "0.731"),
        ({"accuracy": 0.7312, "examples": 30}, "0.73"),
        ({"accuracy": 0.7312}, "0.731"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_allows(metrics, said, tmp_path):
    assert one_row(metrics, tmp_path)[-1] == said


def test_what_is_missing_leaves_no_trace(tmp_path):
    write_report(tmp_path, "x", facts={"seed": 1}, results={"demo": {"accuracy": 0.5}})
    page = Page(tmp_path / "report.html")
    assert page.headings == ["What was run", "Results"]
    assert page.texts == ["fact", "value", "seed", "1", "dataset", "accuracy", "demo", "0.500"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_nothing_known_is_a_report_too(tmp_path):
    write_report(tmp_path, "x", facts={}, results={})
    assert Page(tmp_path / "report.html").headings == []


def test_one_evaluation_makes_no_curve(tmp_path):
    write_report(tmp_path, "x", facts={}, results={}, history=history_lines(1), best_step=0)
    assert not (tmp_path / "figures").exists()


def test_several_validation_sets_get_curves_of_their_own(tmp_path):
    history = history_lines(3)
    for line in history:
        line["validation"]["sets"] = {f"xnli_{i}": {"accuracy": 0.5} for i in range(15)}
    write_report(tmp_path, "x", facts={}, results={}, history=history)
    alts = [image["alt"] for image in Page(tmp_path / "report.html").all("img")]
    assert "best" not in alts[0].lower()
    assert "xnli_14 0.500" in alts[1]


HOSTILE = "<script>alert(1)</script> | *x* `y` [z](http://a.b) <!-- &amp; $x$ \\ \u202e"


def test_nothing_from_the_data_gets_loose(tmp_path):
    metrics = split_metrics(scored_split("xnli_hi", 1), 20)
    figures = metrics["per_class"].values()
    metrics["per_class"] = {f"{HOSTILE}{i}": figure for i, figure in enumerate(figures)}
    metrics["slices"]["negation"][0]["slice"] = HOSTILE
    line = prediction_lines("xnli_hi", scored_split("xnli_hi", 1))[0]
    line |= {"dataset": HOSTILE, "premise": HOSTILE + "\ud800", "hypothesis": "a\n|\x00b"}
    line |= {"label": HOSTILE, "prediction": "neutral"}
    comparison = compare(
        {HOSTILE: scored_split("xnli_hi", 1)}, {HOSTILE: scored_split("xnli_hi", 2)}, 20
    )
    write_report(
        tmp_path,
        HOSTILE,
        facts={HOSTILE: {HOSTILE: [HOSTILE]}, "command": ["run", HOSTILE]},
        results={HOSTILE: metrics},
        predictions=[line],
        comparison=comparison | {"names": [HOSTILE, '"><b>']},
    )
    page = Page(tmp_path / "report.html")
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    assert HOSTILE + "?" in page.texts
    assert "a |\ufffdb" in page.texts
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<|(?<!\\)\*x|(?<!\\)`|\u202e", text.replace("**", ""))
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| row")}
    rows = [line for line in text.splitlines() if line.startswith("| 0 |")]
    assert rows and {re.sub(r"\\\|", "", row).count(" | ") for row in rows} == columns
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html", "report.md"]


def test_texts_of_the_data_say_their_language_and_direction(folder):
    cells = {text: attributes for attributes, text in Page(folder / "report.html").cells}
    hindi = cells[HYPOTHESES["xnli_hi"][0]]
    urdu = cells[HYPOTHESES["xnli_ur"][0]]
    assert (hindi["lang"], hindi["dir"]) == ("hi", "ltr")
    assert (urdu["lang"], urdu["dir"]) == ("ur", "rtl")


@pytest.mark.parametrize(
    "dataset, premise, language",
    [
        ("hindi_xnli", "x", "hi"),
        ("xnli_ar", "x", "ar"),
        ("demo", "राम घर गया", "hi"),
        ("pairs", "Ram went home", None),
    ],
)
def test_language_by_name_or_else_by_letters(dataset, premise, language, tmp_path):
    line = {"dataset": dataset, "premise": premise, "hypothesis": "y", "label": "a"}
    line |= {"prediction": "b", "probabilities": {"a": 0.1, "b": 0.9}}
    write_report(tmp_path, "x", facts={}, results={}, predictions=[line])
    cells = {text: attributes for attributes, text in Page(tmp_path / "report.html").cells}
    assert cells[premise].get("lang") == language
    assert cells[premise]["dir"] == {"ar": "rtl", "hi": "ltr", None: "auto"}[language]


def mistake(number: int, probability: float, dataset: str = "demo", **more: object) -> dict:
    probabilities = {"a": 1 - probability, "b": probability}
    line = {"dataset": dataset, "id": number, "label": "a", "prediction": "b"}
    return line | {"probabilities": probabilities} | more


def test_most_confident_mistakes_come_first_and_right_answers_never():
    lines = [mistake(0, 0.6), mistake(1, 0.9), mistake(2, 0.99, label="b"), mistake(3, 0.8)]
    lines += [mistake(4, 0.9), mistake(5, 0.99, label=None), mistake(6, 0.7, dataset="other")]
    lines += [mistake(7, 0.95, run=2)]
    found = most_confident_mistakes(iter(lines), 3)
    assert {name: [line["id"] for line in lines] for name, lines in found.items()} == {
        "demo": [1, 4, 3],
        "other": [6],
    }


def test_a_rounded_probability_is_never_certain(tmp_path):
    line = mistake(0, 0.9999, premise="x", hypothesis="y")
    write_report(tmp_path, "x", facts={}, results={}, predictions=[line])
    assert Page(tmp_path / "report.html").texts[-1] == "> 0.999"


def test_same_numbers_give_the_same_bytes(demo, tmp_path):
    metrics = {key: demo["results"]["xnli_hi"][key] for key in ("per_class", "confusion")}
    for folder in ("first", "second"):
        arguments = {"results": {"xnli_hi": metrics}, "history": demo["history"]}
        write_report(tmp_path / folder, "x", facts=demo["facts"], **arguments)
    first, second = tmp_path / "first", tmp_path / "second"
    names = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(names) == 2 + 2 * 2
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_disk_that_fails_leaves_the_earlier_report(tmp_path, monkeypatch):
    write_report(tmp_path, "first", facts={}, results={})

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, "second", facts={}, results={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert "first" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_datasets_never_share_a_figure():
    names = list(report._file_names(["a/b", "a b", "हिन्दी", "/", "../..", "x" * 300]).values())
    assert len({*names}) == 6
    assert all(re.fullmatch(r"[\w.-]+", name) and len(name.encode()) < 200 for name in names)
    assert not {".", ".."} & {*names}


def test_devanagari_is_drawn_and_shaped():
    assert report._drawable(["निष्कर्ष", "विरोधाभास"], "class", 16) == (["निष्कर्ष", "विरोधाभास"], "")

    def width(text: str) -> float:
        return figure.text(0, 0, text).get_window_extent().width

    with matplotlib.rc_context(report._style()):
        figure = Figure()
        # The two letters of a conjunct melt into one narrower sign only where they are shaped.
        assert width("क्ष") < 0.8 * width("कष")


def test_without_a_font_numbers_stand_for_names(monkeypatch, recwarn):
    monkeypatch.setattr(report, "_font_families", lambda: ("DejaVu Sans",))
    report._drawable_characters.cache_clear()
    try:
        with matplotlib.rc_context(report._style()):
            figure = report._draw_confusion(np.eye(2, dtype=int), ["हाँ", "नहीं"])
            figure.savefig(os.devnull, format="png")
    finally:
        report._drawable_characters.cache_clear()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 2"]
    assert "no font" in axes.get_title()
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


def test_counts_and_row_percentages_stand_in_the_matrix():
    figure = report._draw_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"])
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["3\n75 %", "1\n25 %", "0", "0"]


def luminance(color: str) -> float:
    return np.dot(
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)],
        [0.2126, 0.7152, 0.0722],
    )


def contrast(first: str, second: str) -> float:
    """WCAG 2.2: 4.5 for text, 3 for lines."""
    darker, lighter = sorted([luminance(first), luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_the_page(scheme):
    colors = [
        {
            name: "#" + "".join(2 * c for c in value) if len(value) == 3 else f"#{value}"
            for name, value in re.findall(r"--(\w+): #(\w+)", block)
        }
        for block in re.findall(r":root {(.*?)}", report.CSS, re.DOTALL)
    ][scheme]
    for name in ("ink", "soft", "link"):
        assert contrast(colors[name], colors["paper"]) >= 4.5
        assert contrast(colors[name], colors["shade"]) >= 4.5


def test_lines_and_shaded_numbers_stand_out():
    assert all(contrast(line["color"], "white") >= 3 for line in report.LINES)
    shades = [report.SHARES(share) for share in np.linspace(0, 1, 101)]
    assert min(contrast(report._readable_on(shade), to_hex(shade)) for shade in shades) >= 4.5


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars --allow-file-access-from-files"
).split()
# The report allows itself no script, so another page measures it.
MEASURING_PAGE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe src="report.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>
<script>onload = () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const root = page.documentElement, images = [...page.images];
  document.body.textContent = JSON.stringify({
    width: root.clientWidth,
    neededWidth: root.scrollWidth,
    outside: [...page.querySelectorAll("h1, h2, p, nav li, figure, img, .scroll")]
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).length,
    scrolling: [...page.querySelectorAll(".scroll")]
      .filter(e => e.scrollWidth > e.clientWidth).length,
    images: images.length,
    drawn: images.filter(image => image.naturalWidth > 100).length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  });
}</script>"""


def measured(folder: Path, width: int, profile: Path, *flags: str) -> dict:
    """What a browser window of `width` pixels makes of folder/report.html."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    page = folder / "measuring.html"
    page.write_text(MEASURING_PAGE.replace("WIDTH", str(width)), encoding="utf-8")
    words = [browser, *BROWSER_FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom"]
    done = subprocess.run(
        [*words, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(re.search("{.*}", done.stdout)[0])


@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1280])
def test_browser_shows_it_within_the_window(width, folder, tmp_path):
    seen = measured(folder, width, tmp_path)
    assert seen["width"] == seen["neededWidth"] == width
    assert seen["outside"] == 0
    assert seen["images"] == seen["drawn"] == 9
    # Wide tables scroll by themselves.
    assert seen["scrolling"] > 0 or width > 390
    assert seen["background"] == "rgb(255, 255, 255)"


@pytest.mark.long
def test_browser_in_dark_mode_shows_it_dark(folder, tmp_path):
    seen = measured(folder, 390, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert seen["background"] == "rgb(23, 24, 26)"

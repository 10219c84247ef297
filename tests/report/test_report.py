"""The report's files: what they say, what they leave out, and that nothing from the data gets
loose in them."""

import base64
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from report_parts import (
    HYPOTHESES,
    Page,
    full_report,
    history_lines,
    prediction_lines,
    scored_split,
    write,
)

from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.scores import split_metrics
from xnli_gpt.report.dataset_sections import most_confident_mistakes
from xnli_gpt.report.sections import file_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def demo() -> dict:
    return full_report()


@pytest.fixture(scope="module")
def folder(demo: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder, "Hindi XNLI: small, BPE tokenizer", **demo)
    return folder


def test_page_has_every_part_and_needs_nothing_from_outside(folder):
    page = Page(folder / "report.html")
    assert page.headings == [
        *("Result", "Seeds", "Comparison", "Learning curves"),
        *("Dataset xnli_hi", "Dataset xnli_ur", "What was run"),
    ]
    images = page.all("img")
    assert len(images) == 4 + 2 * 3
    assert all(len(image["alt"]) > 20 for image in images)
    drawing = base64.b64decode(images[0]["src"].removeprefix("data:image/svg+xml;base64,"))
    assert b"<svg" in drawing
    used = [a.get("src") or a["href"] for _, a in page.elements if "src" in a or "href" in a]
    assert all(address.startswith(("data:image/svg+xml;base64,", "#part-")) for address in used)
    anchors = {attributes["id"] for attributes in page.all("h2")}
    assert {a["href"].removeprefix("#") for a in page.all("a")} == anchors
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    addresses = re.findall(r"url\((.{16})", (folder / "report.html").read_text(encoding="utf-8"))
    assert addresses == ['"data:font/woff2' if find_spec("brotli") else '"data:font/woff;']


def test_what_was_run_is_last_and_folded(folder, demo):
    page = Page(folder / "report.html")
    assert len(page.all("details")) == 1
    assert "open" not in page.all("details")[0]
    texts = page.texts
    last_number = max(i for i, text in enumerate(texts) if text in HYPOTHESES["xnli_ur"])
    assert last_number < texts.index("command") < texts.index("learning_rate")
    for name, shown in (("learning_rate", "0.0001"), ("max_steps", "–"), ("report", "yes")):
        assert texts[texts.index(name) + 1] == shown


def test_facts_stand_in_their_order_and_unknown_ones_nowhere(folder, demo):
    texts = Page(folder / "report.html").texts
    places = [texts.index(name) for name, value in demo["facts"].items() if value is not None]
    assert places == sorted(places)
    assert texts[texts.index("command") + 1] == demo["facts"]["command"]
    assert demo["facts"]["checkpoint"]["sha256"] in texts[texts.index("checkpoint") + 1]
    assert "slurm_job" not in texts


def test_tables_of_both_files_say_the_same(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    # A list on the page.
    text = re.sub(r"\*\*The most confident mistakes.*?\n\n.*?\n\n", "", text, flags=re.DOTALL)
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    words = [re.sub(r"\\(.)", r"\1", cell) for row in rows for cell in row]
    pasted = Counter(word for word in words if not re.fullmatch("---:?", word))
    shown = Counter(Page(folder / "report.html").table_texts)
    # In one line, and in several; the recipe is a list on the page.
    differing = (shown - pasted) + (pasted - shown)
    assert all("checkpoint.pt" in t or ": " in t or t in ("flag", "value") for t in differing)
    assert len(differing) < 10


def test_mistakes_of_both_files_are_the_same(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"\*\*The most confident mistakes\*\*\n\n(.*?)\n\n", text, re.DOTALL)
    rows = [line[2:-2].split(" | ") for table in tables for line in table.splitlines()[2:]]
    assert len(rows) == 2 * 20
    texts = [
        text for attributes, text in Page(folder / "report.html").cells if "lang" in attributes
    ]
    assert texts == [re.sub(r"\\(.)", r"\1", cell) for row in rows for cell in row[1:3]]


def test_markdown_names_figures_that_are_there(folder):
    names = re.findall(r"\]\((.*?)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert len(names) == 10
    for name in names:
        with Image.open(folder / name) as image:
            assert image.width > 800
        drawing = (folder / name).with_suffix(".pdf").read_bytes()
        assert drawing.startswith(b"%PDF") and b"/Type3" not in drawing


def one_row(metrics: dict, tmp_path: Path) -> list[str]:
    write(tmp_path, results={"demo": metrics})
    texts = Page(tmp_path / "report.html").texts
    return texts[texts.index("accuracy") + 1 :]


@pytest.mark.parametrize(
    "metrics, said",
    [
        ({"accuracy": 0.7312, "intervals": {"accuracy": [0.7181, 0.7443]}}, "0.731 [0.718, 0.744]"),
        ({"accuracy": 0.7312, "intervals": {"accuracy": [0.60, 0.86]}}, "0.73 [0.60, 0.86]"),
        (
            {"accuracy": 0.7312, "intervals": {"accuracy": [0.73, 0.7324]}},
            "0.7312 [0.7300, 0.7324]",
        ),
        ({"accuracy": 1.0, "intervals": {"accuracy": [1.0, 1.0]}}, "1.000"),
        ({"accuracy": 0.5, "intervals": {"accuracy": [0.5, 0.5]}}, "0.500"),
        ({"accuracy": 0.7312, "intervals": {"accuracy": None}, "examples": 5010}, "0.731"),
        ({"accuracy": 0.7312, "examples": 30}, "0.73"),
        ({"accuracy": 0.7312}, "0.731"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_allows(metrics, said, tmp_path):
    assert one_row(metrics, tmp_path)[0] == said


def test_what_is_missing_leaves_no_trace(tmp_path):
    write(tmp_path, facts={"seed": 1}, results={"demo": {"accuracy": 0.5}})
    page = Page(tmp_path / "report.html")
    assert page.headings == ["Result", "What was run"]
    assert page.texts == ["metric", "demo", "accuracy", "0.500", "fact", "value", "seed", "1"]
    assert page.sentence == "Accuracy 0.500 on the test examples of demo."
    assert "@font-face" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == ["result"] * 2


def test_commands_begin_without_what_only_the_report_needs():
    """matplotlib alone takes seconds to import on a slow disk."""
    told = "import sys, finetune_hindi_xnli, evaluate_hindi_xnli; print(*sys.modules)"
    words = [sys.executable, "-c", told]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"matplotlib", "jinja2", "fontTools"} & set(done.stdout.split())


def test_nothing_known_is_a_report_too(tmp_path):
    write(tmp_path)
    assert Page(tmp_path / "report.html").headings == []


def test_one_evaluation_makes_no_curve(tmp_path):
    write(tmp_path, history=history_lines(1), best_step=0)
    assert not (tmp_path / "figures").exists()


def test_several_validation_sets_get_curves_of_their_own(tmp_path):
    history = history_lines(3)
    for line in history:
        line["validation"]["sets"] = {f"xnli_{i}": {"accuracy": 0.5} for i in range(15)}
    write(tmp_path, history=history)
    alts = [image["alt"] for image in Page(tmp_path / "report.html").all("img")]
    assert "best" not in alts[0].lower()
    assert "xnli_14 0.500" in alts[2]


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
    write(
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
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| row ")}
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
    write(tmp_path, predictions=[line])
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
    write(tmp_path, predictions=[line])
    assert "(&gt; 0.999)" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_same_numbers_give_the_same_bytes(demo, tmp_path):
    metrics = {key: demo["results"]["xnli_hi"][key] for key in ("per_class", "confusion")}
    for folder in ("first", "second"):
        arguments = {"results": {"xnli_hi": metrics}, "history": demo["history"]}
        write(tmp_path / folder, facts=demo["facts"], **arguments)
    first, second = tmp_path / "first", tmp_path / "second"
    names = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert len(names) == 2 + 3 * 2
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_disk_that_fails_leaves_the_earlier_report(tmp_path, monkeypatch):
    write(tmp_path, "first")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    assert "first" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_datasets_never_share_a_figure():
    names = list(file_names(["a/b", "a b", "हिन्दी", "/", "../..", "x" * 300]).values())
    assert len({*names}) == 6
    assert all(re.fullmatch(r"[\w.-]+", name) and len(name.encode()) < 200 for name in names)
    assert not {".", ".."} & {*names}

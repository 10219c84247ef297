"""The report in a real browser: on a phone, a laptop and a large screen, in the dark, on paper."""

import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from limits import HANG_S
from report_parts import full_report, write

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
  page.querySelectorAll("details").forEach(each => each.open = true);
  document.body.textContent = JSON.stringify({
    width: root.clientWidth,
    neededWidth: root.scrollWidth,
    outside: [...page.querySelectorAll("h1, h2, h3, p, li, dl, figure, img, summary, .scroll")]
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).length,
    scrolling: [...page.querySelectorAll(".scroll")]
      .filter(e => e.scrollWidth > e.clientWidth).length,
    narrowest: Math.min(...images.filter(image => image.getBoundingClientRect().width)
      .map(image => image.getBoundingClientRect().width)),
    fonts: [...page.fonts].filter(font => font.status == "loaded").map(font => font.family
      .replaceAll('"', "")),
    images: images.length,
    drawn: images.filter(image => image.naturalWidth > 100).length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  });
}</script>"""


def browser_here() -> str:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no chromium here: bash scripts/test.sh --with-browser installs it")
    return browser


def measured(folder: Path, width: int, profile: Path, *flags: str) -> dict:
    """What a browser window of `width` pixels makes of folder/report.html, all of it opened."""
    page = folder / "measuring.html"
    page.write_text(MEASURING_PAGE.replace("WIDTH", str(width)), encoding="utf-8")
    words = [browser_here(), *BROWSER_FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom"]
    done = subprocess.run(
        [*words, page.as_uri()], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    return json.loads(re.search("{.*}", done.stdout)[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder, "Hindi XNLI: small, BPE tokenizer", **full_report())
    return folder


@pytest.fixture(scope="module")
def folder_of_fifteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen datasets with four-digit counts, two classes, and names too long for a line."""
    folder = tmp_path_factory.mktemp("fifteen")
    classes = ("entailment", "not_entailment_with_a_name_of_many_words")
    rates = {"precision": 0.7, "recall": 0.7, "f1": 0.7, "support": 2505}
    metrics = {
        "accuracy": 0.7312,
        "macro_f1": 0.7301,
        "macro_f2": 0.7301,
        "macro_recall": 0.7312,
        "loss": 0.6543,
        "ece": 0.0123,
        "examples": 5010,
        "intervals": {name: [0.7181, 0.7443] for name in ("accuracy", "macro_f1", "macro_f2")},
        "majority_accuracy": 0.5,
        "hypothesis_only": {"accuracy": 0.61},
        "per_class": dict.fromkeys(classes, rates),
        "confusion": [[1800, 705], [642, 1863]],
    }
    results = {f"xnli_of_language_{i:02}": metrics for i in range(15)}
    facts = {"command": ["python", "evaluate.py", *(f"--some_flag_{i}=value" for i in range(40))]}
    recipe = {f"flag_{i}": "/a/long/path/without/spaces/" * 6 for i in range(4)}
    write(folder, "Fifteen languages", results=results, facts=facts, recipe=recipe)
    return folder


def require_within(seen: dict, width: int, num_images: int) -> None:
    assert seen["width"] == seen["neededWidth"] == width
    assert seen["outside"] == 0
    assert seen["images"] == seen["drawn"] == num_images
    # Wide tables scroll by themselves, and on a phone alone.
    assert seen["scrolling"] == 0 or width == 390
    assert seen["background"] == "rgb(255, 255, 255)"


@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_browser_shows_it_within_the_window(width, folder, tmp_path):
    seen = measured(folder, width, tmp_path)
    require_within(seen, width, num_images=10)
    # Pictures fill their column: all of a phone's width, two beside each other on a wide page.
    assert seen["narrowest"] > (0.85 if width == 390 else 0.29) * width
    assert seen["fonts"] == ["Report Devanagari"]


@pytest.mark.long
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_browser_shows_fifteen_datasets_within_the_window(width, folder_of_fifteen, tmp_path):
    require_within(measured(folder_of_fifteen, width, tmp_path), width, num_images=1 + 15)


@pytest.mark.long
def test_browser_in_dark_mode_shows_it_dark(folder, tmp_path):
    seen = measured(folder, 390, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert seen["background"] == "rgb(23, 24, 26)"


def printed(page: Path, profile: Path) -> tuple[int, bytes]:
    """The number of pages that a browser in dark mode prints, and what is drawn on them."""
    path = profile.with_suffix(".pdf")
    flags = [f"--user-data-dir={profile}", "--blink-settings=preferredColorScheme=0"]
    words = [browser_here(), *BROWSER_FLAGS, *flags, f"--print-to-pdf={path}", page.as_uri()]
    subprocess.run(words, capture_output=True, timeout=HANG_S, check=True)
    content = path.read_bytes()
    pages = len(re.findall(rb"/Type /Page\b(?!s)", content))
    streams = re.findall(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)\r?\nendstream", content, re.S)
    return pages, b"".join(map(zlib.decompress, streams))


@pytest.mark.long
def test_browser_prints_it_light_and_opened(folder_of_fifteen, tmp_path):
    text = (folder_of_fifteen / "report.html").read_text(encoding="utf-8")
    pages, drawn = printed(folder_of_fifteen / "report.html", tmp_path / "as it is")
    opened, closed = tmp_path / "opened.html", tmp_path / "closed.html"
    opened.write_text(text.replace("<details>", "<details open>"), encoding="utf-8")
    closed.write_text(re.sub("details::details-content.*", "", text), encoding="utf-8")
    assert pages == printed(opened, tmp_path / "opened")[0]
    assert pages > printed(closed, tmp_path / "closed")[0]
    # The dark page's paper, #17181a.
    assert b".0901" not in drawn and b".0902" not in drawn

"""From the parts of a report to its files: report.html, report.md and figures/."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from xnli_gpt.files import save_bytes, save_text
from xnli_gpt.report.content import Picture, ReportContent, Section
from xnli_gpt.report.figures import drawn, in_style, saved
from xnli_gpt.report.fonts import embedded_font
from xnli_gpt.report.sections import sections_of

TEMPLATE_FOLDER = Path(__file__).resolve().parent
# HTML has no way to write control characters.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]<>|~&#$]|(?<!\w)_|_(?!\w))")
# A mark that turns the direction would turn the rest of the line, too.
NOT_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def write_report(folder: str | Path, content: ReportContent) -> Path:
    """Write report.html, report.md and figures/ into `folder`; return the path of report.html.

    An earlier report in `folder` is replaced, file by file; raises OSError where it can't be.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = sections_of(content)
    with in_style():
        drawings = {
            picture.name: _write_figure(picture, folder / "figures")
            for section in sections
            for picture in section.blocks
            if isinstance(picture, Picture)
        }
    save_text(folder / "report.md", as_markdown(content.title, sections))
    path = folder / "report.html"
    save_text(path, as_html(content.title, sections, drawings))
    return path


def _write_figure(picture: Picture, folder: Path) -> bytes:
    """Write the figure as PNG and PDF; return it as SVG."""
    folder.mkdir(exist_ok=True)
    figure = drawn(picture.draw)
    for kind in ("png", "pdf"):
        save_bytes(folder / f"{picture.name}.{kind}", saved(figure, kind))
    return saved(figure, "svg")


def as_html(title: str, sections: Sequence[Section], drawings: Mapping[str, bytes]) -> str:
    """Return the page, with the figures' SVG by their names, and the Devanagari that it shows."""
    pictures = {
        name: "data:image/svg+xml;base64," + base64.b64encode(drawing).decode()
        for name, drawing in drawings.items()
    }
    style = (TEMPLATE_FOLDER / "style.css").read_text(encoding="utf-8")
    template = _templates(escape=True).get_template("page.html.jinja")
    words = {"title": title, "sections": sections, "pictures": pictures, "style": Markup(style)}
    page = template.render(words, font="")
    font = embedded_font(set(page))
    return template.render(words, font=Markup(font)) if font else page


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same as text to paste, with links to the figures' files."""
    template = _templates(escape=False).get_template("report.md.jinja")
    return template.render(title=title, sections=sections)


def _templates(escape: bool) -> jinja2.Environment:
    """Return the templates; what they show is escaped as HTML, else as Markdown."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=escape,
        finalize=_without_control if escape else _in_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _without_control(value: object) -> object:
    return CONTROL.sub("\ufffd", value) if type(value) is str else value


def _in_markdown(value: object) -> object:
    """Return text that Markdown shows as it is, in a line."""
    if type(value) is not str:
        return value
    text = MARKDOWN_SIGNS.sub(r"\\\1", value.replace("\n", "; "))
    return NOT_IN_A_LINE.sub(" ", text)

"""What a report is made from, and the blocks that its pages are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportContent:
    """All that a report tells; what is not given is left out of it."""

    title: str
    # Metrics of every dataset, as scores.split_metrics makes them. What a dataset's metrics
    # lack (intervals, slices, calibration, hypothesis_only, ...) is left out.
    results: Mapping[str, Mapping] = field(default_factory=dict)
    split: str = "test"
    # Metrics over datasets with their intervals; by itself the plain mean.
    macro_average: Mapping | None = None
    # Accuracy by dataset of the same network fine-tuned from random weights.
    random_trunk: Mapping[str, float] = field(default_factory=dict)
    # {"datasets": {name: {metric: intervals.over_seeds(...)}}}, and "macro_average" beside it.
    seeds: Mapping | None = None
    # What comparison.compare gives; with "names", what its first and its second side are called.
    comparison: Mapping | None = None
    # Lines of metrics.jsonl and of steps.jsonl, and the step of the best model.
    history: Sequence[Mapping] = ()
    steps: Sequence[Mapping] = ()
    best_step: int | None = None
    # Lines of predictions.jsonl, read once and not kept: of every dataset the `num_mistakes` wrong
    # answers of the highest probability are shown.
    predictions: Iterable[Mapping] = ()
    num_mistakes: int = 20
    # What was run, in order: a value is a text, a number, a list or a mapping; None leaves it out.
    facts: Mapping[str, object] = field(default_factory=dict)
    # Every flag with its value.
    recipe: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A text in a table that is more than plain English."""

    words: str
    language: str | None = None
    is_foreign: bool = False  # from the data: may be in any language and direction
    is_code: bool = False

    @property
    def direction(self) -> str | None:
        """Return the attribute `dir` of the cell's element."""
        if not self.is_foreign:
            return None
        if self.language is None:
            return "auto"
        return "rtl" if self.language in ("ar", "ur") else "ltr"


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first `text_columns` hold words, the others numbers.

    `kind` is "numbers", "facts" (two columns of words) or "recipe" (names and values, side by side
    where there is room). One that `fits_column` stands beside another block on a wide page.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: int = 1
    note: str = ""
    kind: str = "numbers"
    fits_column: bool = True


@dataclass(frozen=True)
class Picture:
    """A figure: what it is called, what it shows in words, and how it is drawn."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    fits_column: bool = True
    kind: str = "picture"


@dataclass(frozen=True)
class Sentence:
    """Words in large type, of which the first stand out."""

    lead: str
    rest: str
    kind: str = "sentence"
    fits_column: bool = False


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: cells with the texts of the pair, its label and the answer."""

    row: str
    premise: Cell
    hypothesis: Cell
    label: Cell
    prediction: Cell
    probability: str


@dataclass(frozen=True)
class Mistakes:
    """The most confident mistakes, side by side where there is room."""

    caption: str
    entries: Sequence[Mistake]
    note: str
    kind: str = "mistakes"
    fits_column: bool = False


@dataclass(frozen=True)
class Stack:
    """Tables one below the other in a column."""

    tables: Sequence[Table]
    kind: str = "stack"
    fits_column: bool = True


Block = Sentence | Table | Picture | Mistakes | Stack


@dataclass(frozen=True)
class Section:
    """A part of the report; one that is `folded` shows its title and summary until it is opened."""

    title: str
    blocks: Sequence[Block]
    summary: str = ""
    folded: bool = False
    short_title: str = ""  # in the list of sections

    @property
    def placed(self) -> list[tuple[Block, bool]]:
        """Return the blocks, each with whether it takes the whole width of a wide page: so does one
        that would have nothing beside it."""
        placed: list[tuple[Block, bool]] = []
        is_right = False  # whether the next block would stand at the right of the one before
        for block in self.blocks:
            if not block.fits_column and is_right:
                placed[-1] = (placed[-1][0], True)
            placed.append((block, not block.fits_column))
            is_right = block.fits_column and not is_right
        if is_right:
            placed[-1] = (placed[-1][0], True)
        return placed

"""The parts of a report, in their order: what each of them says of which numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from xnli_gpt.report.comparison_section import comparison_section, seeds_section
from xnli_gpt.report.content import Block, Cell, Picture, ReportContent, Section, Table
from xnli_gpt.report.curve_figures import (
    curves_shown,
    draw_curves_by_dataset,
    draw_loss_curves,
    draw_metric_curves,
)
from xnli_gpt.report.curves import (
    StepCurve,
    accuracies_by_dataset,
    chance_of,
    training_curve,
)
from xnli_gpt.report.dataset_sections import dataset_section, most_confident_mistakes
from xnli_gpt.report.result_section import result_section
from xnli_gpt.report.wording import (
    METRIC_TITLES,
    MISSING,
    command,
    fact,
    listed,
)

# Of more datasets, each is folded under a line with its result.
MOST_UNFOLDED = 3
# What the line of the folded last part tells.
FACTS_IN_SUMMARY = ("duration", "best validation", "commit")


def sections_of(content: ReportContent) -> list[Section]:
    """Return the parts that have something to say."""
    mistakes = most_confident_mistakes(content.predictions, content.num_mistakes)
    names = file_names({**content.results, **mistakes})
    folded = len(names) > MOST_UNFOLDED
    sections = [
        result_section(content),
        seeds_section(content.seeds or {}),
        comparison_section(content.comparison or {}),
        _learning_section(content),
        *(
            dataset_section(
                name, content.results.get(name, {}), mistakes.get(name, []), file_name, folded
            )
            for name, file_name in names.items()
        ),
        _run_section(content.facts, content.recipe),
    ]
    return [section for section in sections if section.blocks]


def file_names(datasets: Iterable[str]) -> dict[str, str]:
    """Return a file name for every dataset; two that would share one are numbered."""
    names: dict[str, str] = {}
    for dataset in datasets:
        name = re.sub(r"[^\w.-]+", "-", dataset).strip("-.")[:60] or "dataset"
        taken = set(names.values())
        numbered = (f"{name}-{n}" for n in itertools.count(2))
        names[dataset] = next(n for n in itertools.chain([name], numbered) if n not in taken)
    return names


def _learning_section(content: ReportContent) -> Section:
    history, curve = content.history, training_curve(content.steps)
    evaluations = len({line["step"] for line in history})
    # One evaluation is no curve, and neither is one step.
    if evaluations < 2 and curve is None:
        return Section("Learning curves", [])
    blocks: list[Block] = [_loss_picture(content, curve)]
    if evaluations >= 2:
        blocks.append(_metrics_picture(content))
    by_dataset = accuracies_by_dataset(history)
    if by_dataset and evaluations >= 2:
        said = "; ".join(f"{name} {points[-1][1]:.3f}" for name, points in by_dataset.items())
        chance = chance_of(history, content.results)
        blocks.append(
            Picture(
                "learning-curves-by-dataset",
                "Validation accuracy by dataset; above, metrics are means over datasets.",
                f"Learning curves by dataset. Accuracy at the last evaluation: {said}.",
                partial(draw_curves_by_dataset, by_dataset, chance, _best(content)),
            )
        )
    return Section("Learning curves", blocks)


def _best(content: ReportContent) -> int | None:
    """Return the step of the best model, where an evaluation of it is known."""
    known = any(line["step"] == content.best_step for line in content.history)
    return content.best_step if known else None


def _loss_picture(content: ReportContent, curve: StepCurve | None) -> Picture:
    if curve is None:
        training = "in training (mean since the evaluation before)"
    elif curve.steps_per_point == 1:
        training = "of every step in training"
    else:
        training = (
            f"in training (means of {curve.steps_per_point} steps; shaded: the middle 80\u00a0% of "
            "them)"
        )
    validation = " and on validation" if content.history else ""
    chance = chance_of(content.history, content.results)
    of_chance = "; dotted: the loss of an even guess" if chance else ""
    return Picture(
        "loss-curves",
        f"Loss {training}{validation}{of_chance}.",
        f"Loss by optimizer step. {_curve_words(content, ('loss',), curve)}",
        partial(draw_loss_curves, content.history, curve, chance, _best(content)),
    )


def _metrics_picture(content: ReportContent) -> Picture:
    chance = chance_of(content.history, content.results)
    of_chance = f"; dotted: {chance.accuracy_title}" if chance else ""
    titles = listed([METRIC_TITLES[name] for name in curves_shown()])
    return Picture(
        "learning-curves",
        f"{titles[0].upper()}{titles[1:]} on validation{of_chance}.",
        f"Learning curves. {_curve_words(content, curves_shown())}",
        partial(draw_metric_curves, content.history, chance, _best(content)),
    )


def _curve_words(
    content: ReportContent, names: Sequence[str], curve: StepCurve | None = None
) -> str:
    """Say what curves show: where training ended, the best evaluation and the last."""
    said = []
    if curve is not None:
        first, last = curve.losses[[0, -1]]
        said.append(f"Training loss from {first:.3f} to {last:.3f}.")
    shown = {"the last": content.history[-1]} if content.history else {}
    best = next((line for line in content.history if line["step"] == _best(content)), None)
    if best is not None:
        shown = {"the best": best} | shown
    for which, line in shown.items():
        values = [
            f"{METRIC_TITLES[name]} {line['validation'][name]:.3f}"
            for name in names
            if line["validation"].get(name) is not None
        ]
        said.append(f"At step {line['step']:,}, {which}: validation {', '.join(values)}.")
    return " ".join(said)


def _run_section(facts: Mapping[str, object], recipe: Mapping[str, object]) -> Section:
    """Return what was run, which who reads the result looks up at the end, if at all."""
    known = {name: value for name, value in facts.items() if value is not None}
    rows = [
        [name, command(value) if name == "command" else Cell(fact(value))]
        for name, value in known.items()
    ]
    flags = [
        [name, Cell(MISSING if value is None else fact(value))] for name, value in recipe.items()
    ]
    blocks: list[Block] = []
    if rows:
        facts_table = ("Facts of the run", ["fact", "value"], rows)
        blocks.append(Table(*facts_table, text_columns=2, kind="facts", fits_column=False))
    if flags:
        recipe_table = ("The whole recipe", ["flag", "value"], flags)
        blocks.append(Table(*recipe_table, text_columns=2, kind="recipe", fits_column=False))
    said = [f"{name} {fact(known[name])}" for name in FACTS_IN_SUMMARY if name in known]
    return Section("What was run", blocks, "; ".join(said), folded=True)

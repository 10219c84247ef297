"""Which save a run goes on from, and that it is a save of the same run, or of a shorter one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from xnli_gpt.choices import AUTO
from xnli_gpt.devices import DTYPES, Precision
from xnli_gpt.errors import RunError
from xnli_gpt.flags import FOUND
from xnli_gpt.messages import shown
from xnli_gpt.training.distributed import Ranks
from xnli_gpt.training.options import RecipeOptions
from xnli_gpt.training.recipe import (
    eval_interval_of,
    learning_rate_factor,
    number_of_steps,
    steps_per_epoch,
    warmup_steps_of,
)
from xnli_gpt.training.run_folder import RunFolder
from xnli_gpt.training.saves import read_save

# By these a run in the same folder may be made longer, see `_why_not_longer`.
LENGTH_OPTIONS = ("max_steps", "num_epochs", "warmup_ratio")
# What decides a result and is no option.
FACTS = ("tokenizer", "data", "classes", "pretrained weights", "end-of-text token")


@dataclass(frozen=True)
class Identity:
    """What decides the result of a run, by the names that a difference is told by.

    `defaults` are of the options among them: a run of a version without an option had its default.
    `tokenizer_file` is the hash of the tokenizer's file, by which older runs named it.
    """

    decisive: Mapping[str, object]
    defaults: Mapping[str, object]
    tokenizer_file: str
    num_examples: int  # that are trained on

    def in_todays_terms(self, earlier: Mapping[str, object], tokenizer_file: str | None) -> dict:
        """Return what decided an earlier run as this version writes it down.

        The hash of the tokenizer's file also tells it where another version of the tokenizers
        library writes the same tokenizer in another way.
        """
        # The first versions wrote options as flags.
        earlier = {name.removeprefix("--"): value for name, value in earlier.items()}
        if earlier:
            earlier = {**self.defaults, **earlier}
        if self.tokenizer_file in (tokenizer_file, earlier.get("tokenizer")):
            return earlier | {"tokenizer": self.decisive["tokenizer"]}
        return earlier


@dataclass
class Resumption:
    """Finds the save that a run goes on from; `find` does the work.

    `resume` is auto, never, or the path of a save. With `keeps_precision` a run goes on in the
    precision that it has, on any machine: `precision` is then that of the save.
    """

    folder: RunFolder
    resume: str
    identity: Identity
    precision: Precision
    keeps_precision: bool
    ranks: Ranks
    save: dict | None = None
    is_longer: bool = False  # than the run that left the save

    @property
    def decisive(self) -> dict[str, object]:
        """Return what decides the result, with the precision that is computed in."""
        return {**self.identity.decisive, "dtype": self.precision.name}

    def find(self) -> None:
        """Set `save` to the content of the save, or None where the run starts anew.

        All ranks take the save of the main process. Raises RunError where the folder holds another
        run, or the save is of another command that is not the same but shorter.
        """
        own: list[dict] = []

        def choose() -> Path | None:
            found = self._newest_save()
            if found is None:
                self._require_same_as_earlier_files()
                return None
            path, content = found
            self._check(path, content)
            own.append(content)
            return path

        everyones = self.ranks.all_gather_object(self.decisive)
        _require_same(self.decisive, everyones[0], "the first rank")
        path = self.ranks.broadcast_object(choose)
        self.precision = self.ranks.all_gather_object(self.precision)[0]
        if path is None:
            return
        save = own[0] if own else self._read_as_of_today(path)
        # A file system may show different ranks different saves for a while.
        steps = self.ranks.all_gather_object(save["progress"]["step"])
        if len(set(steps)) > 1:
            raise RunError(f"{path}: the ranks see saves of different steps {steps}: start again")
        print(f"resuming {path} after step {save['progress']['step']}")
        self.save = save
        before, after = _numbers_of_steps(self.decisive, save, self.identity.num_examples)
        self.is_longer = after > before

    def _newest_save(self) -> tuple[Path, dict] | None:
        if self.resume == "never":
            self.folder.require_no_run()
            return None
        if self.resume == AUTO:
            found = self.folder.saves.newest()
            return None if found is None else (found[0], self._as_of_today(found[1]))
        path = Path(self.resume)
        if path.resolve().parent != self.folder.path.resolve():
            self.folder.require_no_run()
            self.folder.take_over(path)
        return path, self._read_as_of_today(path)

    def _read_as_of_today(self, path: Path) -> dict:
        return self._as_of_today(read_save(path))

    def _as_of_today(self, save: dict) -> dict:
        decisive = self.identity.in_todays_terms(save["decisive"], save.get("tokenizer_file"))
        return save | {"decisive": decisive}

    def _check(self, path: Path, save: dict) -> None:
        self._keep_precision(save["decisive"])
        why_not = _why_not_longer(self.decisive, save, self.identity.num_examples)
        if why_not is not None:
            _require_same(self.decisive, save["decisive"], str(path), why_not)

    def _require_same_as_earlier_files(self) -> None:
        """Raise RunError where the folder holds files, but no save, of another run."""
        if not self.folder.files():
            return
        earlier = self.identity.in_todays_terms(*_decisive_in(self.folder.config))
        self._keep_precision(earlier)
        _require_same(self.decisive, earlier, f"`out_dir` {self.folder.path}")

    def _keep_precision(self, earlier: Mapping[str, object]) -> None:
        name = earlier.get("dtype")
        if self.keeps_precision and name in DTYPES and name != self.precision.name:
            self.precision = Precision(DTYPES[name], "that of the run which goes on")


def _decisive_in(config: Path) -> tuple[dict, str | None]:
    """Return what decided the run of a config.yaml, and the hash of its tokenizer's file where it
    is kept by itself; nothing where the file does not tell."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        found = content.get(FOUND, content)
        return dict(found["decisive"]), found["tokenizer"].get("file_sha256")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return {}, None


def _numbers_of_steps(now: Mapping, save: Mapping, num_examples: int) -> list[int]:
    """Return the steps of the run that left a save, and of the run now."""
    epoch_steps = steps_per_epoch(num_examples, save["examples_per_step"])
    return [
        number_of_steps(decided["max_steps"], decided["num_epochs"], epoch_steps)
        for decided in (save["decisive"], now)
    ]


def _why_not_longer(now: Mapping, save: Mapping, num_examples: int) -> str | None:
    """Return why a run can't go on from a save of the same run with fewer steps; None where it
    can, and where nothing differs. Empty where something else differs than the number of steps.

    It can where every rate of the steps done is what the longer run would have had, so that it
    ends where one of as many steps from the start does.
    """
    earlier = save["decisive"]
    if now == earlier:
        return None
    names = (now.keys() | earlier.keys()) - set(LENGTH_OPTIONS)
    if any(now.get(name) != earlier.get(name) for name in names):
        return ""
    before, after = _numbers_of_steps(now, save, num_examples)
    if after < before:
        return f"a run can be made longer, but not shorter ({before} steps there, {after} now)"
    if after == before and now["warmup_ratio"] == earlier["warmup_ratio"]:
        return None
    schedule, updates = now["lr_schedule"], save["progress"]["updates"]
    if schedule != "constant":
        return (
            f"`lr_schedule` {schedule} gives every step a learning rate by the number of steps, so "
            "only a run with a constant schedule can be made longer"
        )
    lengths = ((before, earlier["warmup_ratio"]), (after, now["warmup_ratio"]))
    rates = [
        [learning_rate_factor(schedule, update, *length) for update in range(updates)]
        for length in lengths
    ]
    if rates[0] != rates[1]:
        return _why_rates_differ(lengths)
    return _why_not_taken_back(now, save, num_examples) if after > before else None


def _why_rates_differ(lengths: Sequence[tuple[int, float]]) -> str:
    """Say why the rates of a constant schedule differ, by the steps and warm-up ratios of the two
    runs."""
    (before, _), (after, _) = lengths
    was, would_be = (warmup_steps_of(*length) for length in lengths)
    # Half a step below, so that rounding up meets the number.
    ratio = float(f"{max(0.0, (was - 0.5) / after):.6g}")
    way_out = f"; `warmup_ratio` {ratio:g} keeps it" if was else ""
    return (
        f"the warm-up is a share of the steps, {was} of {before} there and {would_be} of {after} "
        f"now{way_out}"
    )


def _why_not_taken_back(now: Mapping, save: Mapping, num_examples: int) -> str | None:
    """Return why the evaluation at the end of the shorter run can't be taken back, or None.

    A longer run would not have had it, unless it is at the interval; saves of older versions do
    not tell what was before it.
    """
    progress = save["progress"]
    epoch_steps = steps_per_epoch(num_examples, save["examples_per_step"])
    interval = eval_interval_of(now["eval_interval"], epoch_steps)
    evaluated_off = progress["evaluated_step"] == progress["step"] and progress["step"] % interval
    if not evaluated_off or progress.get("before_last"):
        return None
    return (
        f"its evaluation at step {progress['step']} is not at the interval of {interval} steps, "
        "and this save of an older version does not tell what was before it"
    )


def _in_short(value: object) -> str:
    """Return an option's value or a hash, of which 20 characters tell it from another."""
    return shown(" ".join(map(str, value)) if isinstance(value, list) else str(value), 20)


def _named(name: str) -> str:
    """Return a name as messages have it: an option in backticks."""
    return name if name in FACTS else f"`{name}`"


def _require_same(now: Mapping, earlier: Mapping, where: str, why_not: str = "") -> None:
    """Raise RunError that names every difference; `why_not` says more of them."""
    if now == earlier:
        return
    differences = [
        f"{_named(name)} {_in_short(earlier[name])} there, {_in_short(value)} now"
        for name, value in now.items()
        if name in earlier and earlier[name] != value
    ]
    differences += [
        f"{_named(name)} {_in_short(value)} there, which is not known now"
        for name, value in earlier.items()
        if name not in now
    ]
    told = "; ".join(differences) or "it does not say which"
    because = f": {why_not}" if why_not else ""
    raise RunError(
        f"{where}: belongs to another run ({told}){because}; repeat its command, or use another "
        "`out_dir`"
    )


def examples_per_step(options: RecipeOptions, world_size: int, save: Mapping | None) -> int:
    """Return the examples of one optimizer step over all ranks; a resumed run keeps those of its
    save.

    Raises RunError where the options ask for another step, or the ranks can't share it evenly.
    """
    per_rank = examples_per_rank(options)
    if save is None:
        return per_rank * world_size
    kept = save["examples_per_step"]
    if per_rank != save["examples_per_rank"] and per_rank * world_size != kept:
        raise RunError(
            f"`batch_size` times `gradient_accumulation_steps`: {per_rank} on {world_size} ranks, "
            f"but the save's steps have {kept} examples ({save['examples_per_rank']} a rank): "
            "repeat its options"
        )
    if kept % world_size:
        raise RunError(
            f"a step of the save has {kept} examples, which {world_size} ranks can't share "
            "evenly: resume with a number of ranks that divides it"
        )
    if kept != per_rank * world_size:
        print(f"note: a step keeps the {kept} examples of the save, {kept // world_size} a rank")
    return kept


def examples_per_rank(options: RecipeOptions) -> int:
    """Return the examples of one optimizer step that the options ask for on every rank."""
    return options.batch_size * options.gradient_accumulation_steps

"""Loads the checkpoints of the pretraining scripts, and says what is in one.

A format is a table (`FORMATS` in `xnli_gpt/checkpoints/formats.py`): every tensor's name, its
shape, and the names it gets in `model.py`, where it may be split, or stacked with others. What the
file is, is read from all its keys, confirmed by its scalars, and compared with the script's source
that it carries; where they disagree there is an error and never a guess.

Nothing in a file is executed: its pickle is read by an unpickler that looks no name up
(`xnli_gpt/checkpoints/pickles.py`), and the weights are mapped from the file.

    python load_checkpoint_helper.py CKPT [--json] [--n_head N] [--lm_check TOKENS.bin]
    python load_checkpoint_helper.py CKPT --convert OUT.safetensors
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from xnli_gpt.checkpoints.options import PretrainedOptions
from xnli_gpt.commands import Command
from xnli_gpt.errors import CheckpointError, UsageError
from xnli_gpt.options import group, option
from xnli_gpt.processors import set_up_libraries


@dataclass(frozen=True)
class CheckpointOptions:
    """Which checkpoint is inspected."""

    checkpoint: tuple[str, ...] | None = option(
        None,
        "a path, or a quoted glob for the best of it",
        must_exist=True,
        positional=True,
        metavar="CKPT",
        is_path=True,
    )
    n_head: int | None = option(None, "heads, where the file does not tell", low=1)
    family: str | None = option(None, "the family, where nothing in the file tells")


@dataclass(frozen=True)
class LanguageModelOptions:
    """How its language model is checked."""

    lm_check: Path | None = option(
        None, "measure the loss on this shard", must_exist=True, metavar="TOKENS.bin"
    )
    lm_row_length: int = option(1024, "tokens a row", low=1)
    lm_rows: int = option(64, "rows at most", low=1)


@dataclass(frozen=True)
class InspectorOutputOptions:
    """How what was found is printed, and where the weights are written to."""

    json: bool = option(False, "print one JSON object")
    convert: Path | None = option(
        None, "write the weights alone", metavar="OUT.safetensors", is_path=True
    )


@dataclass(frozen=True)
class Inspection:
    """The configuration of the inspector."""

    checkpoint: CheckpointOptions = group(CheckpointOptions, "checkpoint")
    lm_check: LanguageModelOptions = group(LanguageModelOptions, "language-model check")
    output: InspectorOutputOptions = group(InspectorOutputOptions, "output")


def problems_of_names(config: Inspection) -> list[str]:
    """Return what is wrong with the number of checkpoints: of several, which a shell makes of a
    glob, none is taken."""
    paths = config.checkpoint.checkpoint
    if not paths:
        return ["CKPT is needed: the path of a pretrained checkpoint, or a glob"]
    if len(paths) == 1:
        return []
    first = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return [
        f"{len(paths)} checkpoints ({first}): name one, or put the glob into quotes "
        "('runs/*.pt'), and the best of them is taken"
    ]


COMMAND = Command(
    "Say what a pretrained checkpoint is.", Inspection, problems_of_names, recipes=False
)

if __name__ == "__main__":
    COMMAND.refuse_wrong_words()
    set_up_libraries()

import torch
from torch import Tensor

from model import GPTBatched
from xnli_gpt.checkpoints.families import RELATIVES, Clues, Family
from xnli_gpt.checkpoints.fingerprint import check_scalars
from xnli_gpt.checkpoints.formats import (
    FORMATS,
    OTHER_FAMILIES,
    check_tensors,
    matches,
)
from xnli_gpt.checkpoints.lm_check import lm_check, lm_verdict, read_token_shard
from xnli_gpt.checkpoints.paths import resolve_checkpoint_path
from xnli_gpt.checkpoints.reading import fine_tuned_error, read_checkpoint_file
from xnli_gpt.checkpoints.relatives import (
    find_relative,
    heads_or_refuse,
    lacks_names_alone,
    nearest_relative,
)
from xnli_gpt.checkpoints.rotary_buffers import check_rotary_buffers, without_rotary_buffers
from xnli_gpt.checkpoints.safetensors_files import write_safetensors
from xnli_gpt.checkpoints.source import head_count
from xnli_gpt.checkpoints.storages import check_finite, read_weights
from xnli_gpt.messages import listed, shown
from xnli_gpt.network.config import GPTConfig, next_multiple

DEFAULT_MAX_SEQ_LEN = 1024
BLOCK_NAME = re.compile(r"(?:^|\.)(?:blocks|h|layers)\.\d+\.")


@dataclass(frozen=True)
class Asked:
    """What a user says of a checkpoint, beside its path."""

    num_heads: int | None = None
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    family: str | None = None


def load_pretrained_checkpoint(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    num_heads: int | None = None,
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN,
    family: str | None = None,
) -> tuple[GPTBatched, dict, dict]:
    """Return the checkpoint as a trunk in float32 on `device`, with its `info` and its dict.

    The weights are read once: what `inspect_checkpoint` checks are the very bytes that the trunk
    is made of. Raises CheckpointError as `inspect_checkpoint` does.
    """
    asked = Asked(num_heads, max_seq_len, family)
    info, checkpoint, state = _read_checkpoint(Path(path), asked, device)
    return GPTBatched.from_state_dict(config_of(info), state), info, checkpoint


def inspect_checkpoint(
    path: str | Path,
    *,
    num_heads: int | None = None,
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN,
    family: str | None = None,
) -> tuple[dict, dict]:
    """Return what the file is, and its dict, whose tensors are mapped from the file and not in
    memory.

    Every storage of the weights is compared with the zip's CRC-32, every weight looked through
    for NaN, every key, shape and scalar with the format's table. `num_heads` is needed only for
    sizes whose head count neither the file nor `KNOWN_HEADS` tells, and checked where given;
    `family` chooses between families whose files nothing tells apart.
    Raises CheckpointError with what is wrong and what to do.
    """
    return _read_checkpoint(Path(path), Asked(num_heads, max_seq_len, family), None)[:2]


def _read_checkpoint(
    path: Path, asked: Asked, device: str | torch.device | None
) -> tuple[dict, dict, dict[str, Tensor]]:
    """Return what `inspect_checkpoint` does, and the weights as the network has them, or none
    where `device` is None."""
    file = read_checkpoint_file(path)
    checkpoint, (state, buffers) = file.content, without_rotary_buffers(file.weights)
    relative = find_relative(path, state, checkpoint, asked.family)
    if relative is not None:
        fmt, config, heads_from = _relative_config(path, relative, asked)
    else:
        fmt, config, heads_from = _own_config(path, state, checkpoint, asked)
    check_rotary_buffers(path, buffers, config)
    converted, weights_id = read_weights(file, fmt, device)
    file.check_unchanged()
    if relative is not None and converted:
        family, clues = relative
        family.finish(converted, clues)
        if config.learned_positions:
            converted["positions.weight"] = converted["positions.weight"][: config.max_seq_len]
    scalars = state.get("scalars")
    fingerprint = {"moved_scalars": 0, "verdict": "by its names"}
    if scalars is not None:
        fingerprint = check_scalars(path, fmt, config, scalars)
    num_scalars = 0 if scalars is None else scalars.numel()
    info = {
        "file": str(path),
        "checkpoint_format": fmt,
        "vocab_size": config.vocab_size,
        "lm_head_rows": config.lm_head_rows,
        "model_dim": config.model_dim,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "head_dim": config.head_dim,
        "head_count_from": heads_from,
        "max_seq_len": config.max_seq_len,
        "scalars_size": num_scalars,
        "scalars_padding": max(0, num_scalars - config.num_scalars),
        "attention_layers": list(config.attention_layers),
        "num_parameters": sum(t.numel() for t in state.values()),
        "num_block_parameters": sum(t.numel() for k, t in state.items() if BLOCK_NAME.search(k)),
        "dtypes": {str(d).removeprefix("torch."): n for d, n in _count_dtypes(state).items()},
        "key_prefix": file.prefix,
        "step": _plain_number(checkpoint.get("step", checkpoint.get("global_step"))),
        "val_loss": _plain_number(checkpoint.get("val_loss")),
        "has_code": isinstance(checkpoint.get("code"), str) and checkpoint["code"] != "",
        "file_bytes": sum(mapped.num_bytes for mapped in file.mapped),
        "model_bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "weights_id": weights_id,
        "fingerprint": fingerprint,
        "rotary_tables": rotary_tables(config),
    }
    return info | {"config": json.loads(json.dumps(config.to_dict()))}, checkpoint, converted


def rotary_tables(config: GPTConfig) -> str:
    """Return the precision of rotary tables, which is that of the script that trained them."""
    if config.rotary == "none":
        return "none"
    return "rounded to bfloat16" if config.rotary_is_rounded else "float32"


def _own_config(
    path: Path, state: Mapping[str, Tensor], checkpoint: Mapping, asked: Asked
) -> tuple[str, GPTConfig, str]:
    """Return the format, the network, and where the number of heads was found, of a file of small
    or medium."""
    fmt = _detect_format(path, state)
    sizes = check_tensors(path, fmt, state)
    code, own = checkpoint.get("code"), checkpoint.get("config")
    given = asked.num_heads
    if given is None and isinstance(own, Mapping) and isinstance(own.get("num_heads"), int):
        given = own["num_heads"]
    heads, heads_from = head_count(path, fmt, sizes, code, given)
    return fmt, _config(path, fmt, sizes, heads, asked.max_seq_len), heads_from


def _relative_config(
    path: Path, relative: tuple[Family, Clues], asked: Asked
) -> tuple[str, GPTConfig, str]:
    """Return the same of a file of another family."""
    family, clues = relative
    heads = heads_or_refuse(path, family, clues, asked.num_heads)
    of_user = "n_head" if asked.num_heads else "usual head size"
    heads_from = "its own" if "H" in clues.sizes else of_user
    clues = replace(clues, sizes={**clues.sizes, "H": heads})
    try:
        sizes, facts = clues.sizes, family.facts(clues)
    except ValueError as error:
        raise CheckpointError(f"{path}: of format {family.name}, but {error}") from error
    if sizes["D"] % heads and "head_dim" not in facts:
        raise CheckpointError(f"{path}: {heads} heads do not cut a width of {sizes['D']}")
    sized = {
        "vocab_size": sizes["V"],
        "lm_head_rows": sizes.get("R", sizes["V"]),
        "num_layers": sizes["L"],
        "num_heads": heads,
        "head_dim": sizes["D"] // heads,
        "model_dim": sizes["D"],
        "max_seq_len": min(asked.max_seq_len, sizes.get("P", asked.max_seq_len)),
    }
    return family.name, GPTConfig(family=family.name, **(sized | facts)), heads_from


def config_of(info: dict) -> GPTConfig:
    """Return the network that `info` (of `inspect_checkpoint`) describes."""
    return GPTConfig.from_dict(info["config"])


def check_flags_against_file(
    info: dict,
    *,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_embd: int | None = None,
    vocab_size: int | None = None,
) -> list[str]:
    """Compare what a user said of the network with the file; returns one message a contradiction.

    A vocabulary is right as the file's embedding rows, or as the number that pads to them.
    """
    found = {
        "--n_layer": (n_layer, info["num_layers"]),
        "--n_head": (n_head, info["num_heads"]),
        "--n_embd": (n_embd, info["model_dim"]),
    }
    problems = [
        f"{flag} {given}, but {info['file']} has {actual}: leave the flag out or correct it"
        for flag, (given, actual) in found.items()
        if given is not None and given != actual
    ]
    rows = info["vocab_size"]
    if vocab_size is not None and rows not in (vocab_size, next_multiple(vocab_size, 128)):
        problems.append(
            f"--vocab_size {vocab_size}, but {info['file']} has {rows} embedding rows: "
            "leave the flag out, it is no longer needed"
        )
    return problems


def read_pretrained(
    options: PretrainedOptions, block_size: int, needs_weights: bool = True
) -> tuple[dict, GPTBatched | None]:
    """Return `info` and the trunk of the checkpoint that options name, from one reading; the trunk
    is None where its weights are not needed.

    Raises CheckpointError for a file that can't be used, and UsageError for an option that
    contradicts it.
    """
    if options.pretrained_ckpt_path is None:
        raise UsageError(["--pretrained_ckpt_path is needed: a path or a glob of checkpoints"])
    path = resolve_checkpoint_path(options.pretrained_ckpt_path)
    others = {"max_seq_len": block_size, "family": options.family}

    def read(num_heads: int | None) -> tuple[dict, GPTBatched | None]:
        if not needs_weights:
            info, _ = inspect_checkpoint(path, num_heads=num_heads, **others)
            return info, None
        trunk, info, _ = load_pretrained_checkpoint(path, num_heads=num_heads, **others)
        return info, trunk

    try:
        info, trunk = read(options.n_head)
    except CheckpointError:
        if options.n_head is None:
            raise
        # A wrong number of heads must not hide the other options that contradict the file.
        with suppress(CheckpointError):
            _require_options_of_file(options, read(None)[0])
        raise
    _require_options_of_file(options, info)
    return info, trunk


def _require_options_of_file(options: PretrainedOptions, info: dict) -> None:
    problems = check_flags_against_file(
        info,
        n_layer=options.n_layer,
        n_head=options.n_head,
        n_embd=options.n_embd,
        vocab_size=options.vocab_size,
    )
    if problems:
        raise UsageError(problems)


def _detect_format(path: Path, state: Mapping[str, Tensor]) -> str:
    """Return the format of a file by all its keys, and where several formats know them all by
    facts.

    A file with keys that no format knows gets the nearest one, whose table then names them.
    """
    if any(name.startswith("pretrained_model.") for name in state):
        raise fine_tuned_error(path)
    known = {fmt: {name for _, name, _ in matches(fmt, state)} for fmt in FORMATS}
    covering = [fmt for fmt, names in known.items() if len(names) == len(state)]
    if not covering:
        return _nearest_format(path, state, known)
    return covering[0] if len(covering) == 1 else _format_by_facts(path, state, covering)


def _nearest_format(path: Path, state: Mapping[str, Tensor], known: Mapping[str, set[str]]) -> str:
    """Return the format that knows whatever any other knows of a file that has other keys as well.

    Raises CheckpointError where there is none, with the family that the other keys tell.
    """
    for pattern, family in () if lacks_names_alone(state) else OTHER_FAMILIES:
        hints = [name for name in state if re.search(pattern, name)]
        if hints:
            raise CheckpointError(
                f"{path}: has {shown(hints[0])}, as {family}: that family is not supported yet; "
                f"supported are {listed([*FORMATS, *RELATIVES])}"
            )
    least_unknown = len(state) - max(map(len, known.values()))
    if told := nearest_relative(state, least_unknown):
        raise CheckpointError(
            f"{path}: {told}; every key must be known and there: save the whole model of the "
            "pretraining script"
        )
    most = [
        fmt
        for fmt, names in known.items()
        if names and not any(names < others for others in known.values())
    ]
    if len(most) == 1:
        return most[0]
    if all(known[fmt] == known[most[0]] for fmt in most):
        unknown = [name for name in state if not most or name not in known[most[0]]]
        told = f"of none of {', '.join(FORMATS)}: {listed(unknown)}"
    else:
        told = f"of both {' and '.join(most)}: {listed(state)}"
    raise CheckpointError(
        f"{path}: its keys are {told}; give a checkpoint of the pretraining script"
    )


def _format_by_facts(path: Path, state: Mapping[str, Tensor], formats: Sequence[str]) -> str:
    """Return the only one of several formats, all of which know every key, that the file is also by
    what it lacks, its shapes and its scalars; where scalars speak against none, the only one they
    confirm. Raises CheckpointError where that leaves none or several."""
    verdicts, objections = {}, []
    for fmt in formats:
        try:
            verdicts[fmt] = _verdict_without_heads(path, state, fmt)
        except CheckpointError as error:
            objections.append(str(error).removeprefix(f"{path}: "))
    confirmed = [fmt for fmt, verdict in verdicts.items() if verdict == "confirmed"]
    for fitting in (list(verdicts), confirmed):
        if len(fitting) == 1:
            return fitting[0]
    if verdicts:
        raise CheckpointError(
            f"{path}: its keys, shapes and scalars are those of {' and '.join(verdicts)} alike: "
            "nothing in it tells which; give a checkpoint of later in the training"
        )
    raise CheckpointError(
        f"{path}: its keys are those of {' and '.join(formats)}, and it is none of them: "
        f"{'; '.join(objections)}"
    )


def _verdict_without_heads(path: Path, state: Mapping[str, Tensor], fmt: str) -> str:
    """Return what keys, shapes and scalars say of a format: `check_scalars`' verdict, or its
    error."""
    sizes = check_tensors(path, fmt, state)
    check_finite(path, {"scalars": state["scalars"]})
    # No scalar depends on the number of heads, which may not be known.
    config = _config(path, fmt, sizes, 1, DEFAULT_MAX_SEQ_LEN)
    return check_scalars(path, fmt, config, state["scalars"])["verdict"]


def _config(
    path: Path, fmt: str, sizes: Mapping[str, int], heads: int, max_seq_len: int
) -> GPTConfig:
    try:
        return GPTConfig.of_family(
            fmt,
            vocab_size=sizes["V"],
            lm_head_rows=sizes["R"],
            num_layers=sizes["L"],
            num_heads=heads,
            model_dim=sizes["D"],
            max_seq_len=max_seq_len,
            attention_layers=tuple(i for i in range(sizes["L"]) if i != sizes["no_attention"]),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: of format {fmt}, but {error}") from error


def _count_dtypes(state: Mapping[str, Tensor]) -> Counter:
    counts: Counter = Counter()
    for tensor in state.values():
        counts[tensor.dtype] += tensor.numel()
    return counts


def _plain_number(value: object) -> float | int | None:
    """Return a step or loss as the scripts store it: a number, or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def convert_checkpoint(path: str | Path, out: str | Path, *, num_heads: int | None = None) -> dict:
    """Write a checkpoint's weights, without wrappers in their names, as a file of safetensors that
    loads as the checkpoint itself; return its `info`.

    Raises CheckpointError for a file that can't be used, or an `out` that is there already.
    """
    path, out = Path(path), Path(out)
    if out.exists() or not out.resolve().parent.is_dir():
        what = "is there already" if out.exists() else f"no folder {out.parent}"
        raise CheckpointError(f"`convert` {out}: {what}; name a new file in a folder that is there")
    info, checkpoint = inspect_checkpoint(path, num_heads=num_heads)
    call = (
        f"GPT(num_layers={info['num_layers']}, num_heads={info['num_heads']}, "
        f"model_dim={info['model_dim']})"
    )
    code = checkpoint.get("code") if info["head_count_from"] == "code" else call
    beside = {"code": code, "step": info["step"], "val_loss": info["val_loss"]}
    write_safetensors(out, checkpoint["model"], beside)
    return info


def _report(config: Inspection) -> dict:
    path = resolve_checkpoint_path(config.checkpoint.checkpoint)
    if config.lm_check.lm_check is None:
        asked = config.checkpoint
        return inspect_checkpoint(path, num_heads=asked.n_head, family=asked.family)[0]
    tokens = read_token_shard(config.lm_check.lm_check)
    trunk, info, _ = load_pretrained_checkpoint(
        path,
        num_heads=config.checkpoint.n_head,
        max_seq_len=config.lm_check.lm_row_length,
        family=config.checkpoint.family,
    )
    check = lm_check(
        trunk, tokens, row_length=config.lm_check.lm_row_length, max_rows=config.lm_check.lm_rows
    )
    if info["val_loss"] is not None:
        check["recorded_loss"] = info["val_loss"]
        check["difference"] = check["lm_loss"] - info["val_loss"]
        check["verdict"] = lm_verdict(check["difference"])
    return info | {"lm_check": check}


def _printed(report: dict, indent: str = "") -> Iterator[str]:
    for key, value in report.items():
        if key == "config":  # for programs
            continue
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _printed(value, indent + "  ")
        else:
            fact = "not recorded" if value is None else value
            yield f"{indent}{key:<{24 - len(indent)}}{fact}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the inspector; return the exit code: 0, or 2 for a file that can't be used."""

    def work() -> None:
        config, problems = COMMAND.parse(argv)
        if problems:
            raise UsageError(problems)
        report = _report(config)
        if config.output.convert is not None:
            path, heads = Path(report["file"]), config.checkpoint.n_head
            convert_checkpoint(path, config.output.convert, num_heads=heads)
        if config.output.json:
            print(json.dumps(report, indent=2))
        else:
            print("\n".join([*_printed(report), _summary(report)]))

    return COMMAND.exit_code_of(work)


def _summary(report: Mapping[str, object]) -> str:
    """Return the last line: what was found of which file. Indented, as it is no field."""
    found = (
        f"  in short: {report['file']}: format {report['checkpoint_format']}, "
        f"{report['num_layers']} layers, "
        f"{report['num_heads']} heads, width {report['model_dim']}, all weights checked"
    )
    check = report.get("lm_check")
    if check is None:
        return found
    verdict = check.get("verdict", "no recorded loss to compare with")
    return f"{found}; language-model loss {check['lm_loss']:.4f}, {verdict}"


if __name__ == "__main__":
    sys.exit(main())

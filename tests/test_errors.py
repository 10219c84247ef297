"""One base of all errors that a command tells, and what it ends with."""

import importlib
import inspect
import pkgutil

import pytest
from shell import ROOT

import xnli_gpt
from load_checkpoint_helper import CheckpointError
from xnli_gpt.commands import Command
from xnli_gpt.errors import (
    DataError,
    EvaluationError,
    ExportError,
    PredictionsError,
    RunError,
    TrainingError,
    UsageError,
    XNLIError,
)
from xnli_gpt.fine_tuning.configuration import FineTuning

COMMAND = Command("", FineTuning)
# What each is besides, for those who catch that, and the exit code.
ERRORS = {
    CheckpointError: (ValueError, 2),
    DataError: (ValueError, 2),
    EvaluationError: (ValueError, 1),
    ExportError: (ValueError, 2),
    PredictionsError: (ValueError, 2),
    RunError: (ValueError, 2),
    TrainingError: (RuntimeError, 1),
    UsageError: (ValueError, 2),
}


def public_errors() -> set[type[Exception]]:
    """Those that the modules of the upper floor and of the package define."""
    names = [path.stem for path in ROOT.glob("*.py")]
    names += [found.name for found in pkgutil.walk_packages(xnli_gpt.__path__, "xnli_gpt.")]
    classes = [
        value
        for name in names
        for _, value in inspect.getmembers(importlib.import_module(name), inspect.isclass)
        if value.__module__ == name and not value.__name__.startswith("_")
    ]
    return {kind for kind in classes if issubclass(kind, Exception)}


def made(kind: type[Exception]) -> Exception:
    return kind(["what is wrong"] if kind is UsageError else "what is wrong")


def test_every_error_of_the_library_has_the_base():
    assert public_errors() == {XNLIError, *ERRORS}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_a_line_and_its_exit_code(kind, capsys):
    def fail() -> None:
        raise made(kind)

    second_base, code = ERRORS[kind]
    assert issubclass(kind, XNLIError) and issubclass(kind, second_base)
    assert COMMAND.exit_code_of(fail) == code
    assert capsys.readouterr().err == "error: what is wrong\n"


def test_an_error_that_nobody_foresaw_is_not_hidden():
    def fail() -> None:
        raise ValueError("a mistake in the code")

    with pytest.raises(ValueError, match="a mistake"):
        COMMAND.exit_code_of(fail)


def test_options_in_a_message_are_flags_on_a_command_line(capsys):
    def fail() -> None:
        raise DataError("`dataset` x: no `split`, lower `learning_rate`; `nothing` of `a`b`")

    assert COMMAND.exit_code_of(fail) == 2
    told = "--dataset x: no `split`, lower --learning_rate; `nothing` of `a`b`"
    assert capsys.readouterr().err == f"error: {told}\n"

"""Commands: their words read into a configuration, errors as lines on stderr, and exit codes.

All that is wrong with a command line is told at once, each problem in a line that begins with
"error:". Nothing here imports torch: an entry point calls `Command.refuse_wrong_words` before its
own heavy imports, so that help and what is wrong with the words come at once.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from xnli_gpt.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, XNLIError
from xnli_gpt.flags import flags_of, parse_flags
from xnli_gpt.messages import shown
from xnli_gpt.options import FlagGroups, configuration_of, flag_groups


@dataclass(frozen=True)
class Command:
    """A command: what --help says of it, its configuration, and whether there is a --config.

    `problems_of_names` looks at what other tables than the flags name.
    """

    description: str
    configuration: type
    problems_of_names: Callable[[object], list[str]] = lambda configuration: []
    recipes: bool = True

    @property
    def flags(self) -> FlagGroups:
        """Return its flags by the titles of their groups."""
        return flag_groups(self.configuration)

    def parse(self, argv: Sequence[str] | None = None) -> tuple[object, list[str]]:
        """Return the configuration that a command line and its recipe ask for, and all that is
        wrong with them; a wrong value's place is taken by the default."""
        arguments, problems = parse_flags(self.description, self.flags, argv, self.recipes)
        configuration = configuration_of(self.configuration, vars(arguments))
        return configuration, problems + self.problems_of_names(configuration)

    def exit_code_of(self, work: Callable[[], None]) -> int:
        """Do `work`; return 0, or print what went wrong and return the exit code of it."""
        code, problems = _outcome_of(work)
        self._print_errors(problems)
        return code

    def refuse_wrong_words(self) -> None:
        """Print the help and exit with 0, or say what is wrong with the command line's words and
        exit with 2; return where its words are right.

        With wrong words, files that are not there are said in the same go. Of several processes
        the first one speaks.
        """
        with printed_by_main_process():
            arguments, problems = parse_flags(self.description, self.flags, None, self.recipes)
        problems += self.problems_of_names(configuration_of(self.configuration, vars(arguments)))
        if not problems:
            return
        if _is_main_process() or _lacks_recipe(arguments):
            self._print_errors(problems + _missing_files(arguments, self.flags))
        sys.exit(EXIT_REFUSED)

    def _print_errors(self, problems: Iterable[str]) -> None:
        names = "|".join(flag.name for flag in flags_of(self.flags))
        for problem in problems:
            # Rooms call an option by its name, in backticks; a command line has flags.
            problem = re.sub(f"`({names})`", r"--\1", problem)
            printable = problem if problem.isprintable() else ascii(problem)[1:-1]
            print(f"error: {printable}", file=sys.stderr)


class Problems(list[str]):
    """What was found wrong so far, so that all of it is told at once."""

    def attempt(self, work: Callable[..., object], *arguments: object) -> object:
        """Return what `work` does; None where it is refused, with the reasons noted."""
        try:
            return work(*arguments)
        except XNLIError as error:
            self.extend(error.problems)
        except OSError as error:
            self.append(f"{error.filename}: {error.strerror}")
        return None


def _are_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _is_main_process() -> bool:
    return not _are_several() or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def printed_by_main_process() -> Iterator[None]:
    """Keep the other processes from printing to standard output."""
    if _is_main_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _lacks_recipe(arguments: argparse.Namespace) -> bool:
    """Return whether this is another node's first process, and the recipe may be missing on its
    node alone."""
    recipe = getattr(arguments, "config", None)
    first_of_node = os.environ.get("LOCAL_RANK") == "0"
    return first_of_node and recipe is not None and not os.access(recipe, os.R_OK)


def _missing_files(arguments: argparse.Namespace, groups: FlagGroups) -> list[str]:
    problems = []
    for flag in flags_of(groups):
        value = getattr(arguments, flag.name)
        if flag.must_exist and value is not None:
            for path in value if isinstance(value, list) else [value]:
                if not os.path.exists(path) and not glob.glob(path):
                    what = "matches no file" if glob.has_magic(path) else "no such file"
                    problems.append(f"{flag.option} {shown(path)}: {what}")
    return problems


def _outcome_of(work: Callable[[], None]) -> tuple[int, Sequence[str]]:
    """Do `work`; return the exit code, and what went wrong."""
    try:
        work()
        return 0, []
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, []
    except XNLIError as error:
        return error.exit_code, error.problems
    except OSError as error:
        return EXIT_REFUSED, [f"{error.filename or 'disk'}: {error.strerror or error}"]
    except _out_of_memory_errors() as error:
        reason = str(error).split(". ")[0]
        return EXIT_FAILED, [f"{reason}: use `max_tokens_per_batch` or a larger GPU"]


def _out_of_memory_errors() -> tuple[type[Exception], ...]:
    """Return what a library that the work has imported raises where memory does not suffice."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.OutOfMemoryError,)


def end_process(code: int) -> None:
    """End the process; of several ranks, without what C++ libraries do at their end: one whose
    peers have ended might wait for them for ever, and gloo's threads may abort a run that is done.
    """
    if not _are_several():
        sys.exit(code)
    if code == 0:
        # Loggers write what they still hold.
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Files that are read whole and written atomically, and folders that one process has to itself."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from xnli_gpt.errors import RunError
from xnli_gpt.messages import reason_of

# torch is imported where its files are read or written: what only writes texts starts at once.

# What the torch files of this project say that they are.
FINE_TUNED_KIND, SAVE_KIND = "hindi-xnli-classifier", "hindi-xnli-save"


def read_whole(path: Path, mapped: bool = False) -> object:
    """Return the content of a torch file whose every byte is as it was written.

    A torch file is a zip with a CRC-32 of every record, which `torch.load` does not look at.
    `mapped` leaves tensors in the file until they are used, which is much faster where few are,
    and for a process that ends soon: a file that changes meanwhile would change them. Raises
    RunError.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        reason = f"record {damaged} has another checksum than it was written with"
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "a folder, expected a file"
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError) as error:
        reason = reason_of(error)
    except (EOFError, ValueError, KeyError, NotImplementedError, OSError) as error:
        reason = reason_of(error)
    raise RunError(f"{path}: can't be loaded ({reason})")


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make `folder` where it is not there, and keep others from running in it meanwhile.

    Raises RunError where another process does. A folder in which nothing was left is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with open(lock, "a+", encoding="utf-8") as file:
        _lock(file, folder)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [lock.name]:
                    lock.unlink()
                    folder.rmdir()


def _lock(file: TextIO, folder: Path) -> None:
    """Lock a folder. The kernel gives the lock back when its process ends, however it ends; on a
    file system without locks a run goes on without."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise RunError(
            f"{folder}: {owner} is running here; wait for it, or use another `out_dir`"
        ) from None
    except OSError as error:
        print(f"note: {folder} can't be locked ({error.strerror}): don't start two runs in it")
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for half in folder.glob("*.partial"):
            half.unlink()


def save_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, sync and rename: a reader sees the old file or the whole new one."""
    partial = written_beside(path, write)
    with _removed_on_failure(partial):
        os.replace(partial, path)
    sync_folder(path.parent)


def written_beside(path: Path, write: Callable[[Path], None]) -> Path:
    """Lend the synced file that is to become `path`; nothing of it is left where that fails."""
    partial = path.with_name(f"{path.name}.partial")
    with _removed_on_failure(partial):
        write(partial)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    return partial


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Sync a folder: a rename survives a power cut once its folder is synced; not all file systems
    can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """Write a torch file that loads with `weights_only=True`."""
    save_atomically(path, torch_writer(content))


def torch_writer(content: Mapping[str, object]) -> Callable[[Path], None]:
    """Return what writes `content` as a torch file, for `save_atomically`."""
    import torch

    def write(path: Path) -> None:
        # Through Python's file, whose errors tell a full disk; torch's own words hide it.
        try:
            with open(path, "wb") as file:
                torch.save(dict(content), file)
        except RuntimeError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from None
            raise

    return write


def save_json(path: Path, content: object) -> None:
    """Write indented JSON, Devanagari left readable."""
    save_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_text(path: Path, text: str) -> None:
    """Write UTF-8; half of a surrogate pair, which JSON may hold and UTF-8 may not, becomes "?"."""
    save_bytes(path, text.encode("utf-8", "replace"))


def save_bytes(path: Path, content: bytes) -> None:
    """Write the content of a file."""
    save_atomically(path, lambda partial: partial.write_bytes(content))


def problem_of_folder(folder: Path, must_write: bool = True) -> str | None:
    """Return why a folder can't be made or written, or None; nothing is made."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        return f"can't be made, {nearest} is a file"
    if must_write and not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable"
    return None

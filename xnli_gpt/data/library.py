"""The `datasets` library, lent for reading: without its progress bars and without the network, and
with its errors told as ours."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from xnli_gpt.errors import DataError
from xnli_gpt.messages import reason_of

# The switches are the process's: one reader must not put back what another has set.
_LOCK = threading.RLock()


@contextmanager
def quiet_datasets(offline: bool = True) -> Iterator[ModuleType]:
    """Lend the library without progress bars and, where `offline`, without the network; put
    all back as it was.

    Even for a local csv or json file it reports the use of its reader to a server and waits for
    the answer, and without network it tries the Hub again and again. It and `huggingface_hub` ask
    the environment for HF_HUB_OFFLINE once, at their import, and these constants ever after: the
    environment can stay as the user has it.
    """
    import datasets
    from huggingface_hub import constants

    with _LOCK:
        had_bars = not datasets.are_progress_bars_disabled()
        places = (datasets.config, constants)
        before = [place.HF_HUB_OFFLINE for place in places]
        try:
            for place in places if offline else ():
                place.HF_HUB_OFFLINE = True
            datasets.disable_progress_bars()
            yield datasets
        finally:
            for place, switch in zip(places, before, strict=True):
                place.HF_HUB_OFFLINE = switch
            if had_bars:
                datasets.enable_progress_bars()


class said_as_data_error:
    """Turns what `datasets` raises for unreadable files into a DataError that names them."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # A damaged file makes it stumble over whatever it takes for granted.
        if isinstance(error, Exception):
            reason = reason_of(error.__cause__ or error)
            raise DataError(f"{self.name}: datasets can't read it ({reason})") from error

"""What reading a local dataset leaves behind in a process, and that it asks no server."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pytest
import small_run
from limits import HANG_S
from shell import ROOT

# Takes the datasets to read as arguments; every attempt to reach a host is refused and recorded.
PROGRAM = """
    import json, os, socket, sys

    attempts = []

    def refuse(*arguments, **_):
        attempts.append(str(arguments))
        raise OSError("no network here")

    socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = refuse
    from xnli_gpt.data.cache import load_texts
    from xnli_gpt.data.request import DataRequest
    from xnli_gpt.errors import DataError

    def read(dataset):
        try:
            texts, _ = load_texts(DataRequest(dataset), f"{dataset}-cache")
            return len(texts["train"].labels)
        except DataError as error:
            return str(error)

    found = {"rows": [read(dataset) for dataset in sys.argv[1:]], "attempts": list(attempts)}
    found["environment"] = {n: v for n, v in os.environ.items() if "HF_" in n or "OFFLINE" in n}

    import datasets, huggingface_hub
    from huggingface_hub.utils import get_session

    found["library"] = datasets.config.HF_HUB_OFFLINE
    found["hub"] = huggingface_hub.constants.HF_HUB_OFFLINE
    found["is_offline_mode"] = huggingface_hub.constants.is_offline_mode()
    found["bars"] = not datasets.are_progress_bars_disabled()
    try:
        get_session().head("https://huggingface.co/a")
    except Exception as error:
        found["error"] = type(error).__name__
    found["of_download"] = attempts[len(found["attempts"]):]
    print(json.dumps(found))
"""


def write_sources(folder: Path) -> dict[str, Path]:
    """One dataset of 36 training rows by what it is read with; `broken` can't be read."""
    small_run.write_dataset(folder / "jsonl")
    rows = small_run.rows_about(small_run.NAMES)
    table = datasets.Dataset.from_list(rows)
    splits = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), table))
    splits.save_to_disk(str(folder / "saved"))
    for split in splits:
        for kind in ("csv", "parquet", "repository", "broken"):
            (folder / kind).mkdir(exist_ok=True)
        table.to_csv(str(folder / f"csv/{split}.csv"))
        table.to_parquet(str(folder / f"parquet/{split}.parquet"))
        table.to_parquet(str(folder / f"repository/data_{split}-0.parquet"))
        (folder / f"broken/{split}.parquet").write_bytes(b"PAR1 and no more")
    data_files = [{"split": split, "path": f"data_{split}-*"} for split in splits]
    card = {"configs": [{"config_name": "default", "data_files": data_files}]}
    (folder / "repository/README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    kinds = ("jsonl", "csv", "parquet", "saved", "repository", "broken")
    return {kind: folder / kind for kind in kinds}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    return write_sources(tmp_path_factory.mktemp("sources"))


def read_in_a_process(folders: list[Path], home: Path, **environment: str) -> dict:
    kept = {n: v for n, v in os.environ.items() if "HF_" not in n and "OFFLINE" not in n}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=kept | {"HF_HOME": str(home)} | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_reading_local_data_reaches_for_no_host_and_leaves_the_process_online(sources, tmp_path):
    found = read_in_a_process(list(sources.values()), tmp_path)
    *rows, refusal = found["rows"]
    assert rows == [36] * 5 and "can't read it" in refusal
    assert found["attempts"] == [] and found["environment"] == {"HF_HOME": str(tmp_path)}
    assert (found["library"], found["hub"], found["is_offline_mode"]) == (False, False, False)
    assert found["bars"]
    # What the user downloads next is tried.
    assert found["of_download"]


def test_who_is_offline_stays_so(sources, tmp_path):
    wish = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    found = read_in_a_process([sources["jsonl"]], tmp_path, **wish)
    assert found["rows"] == [36] and found["attempts"] == []
    assert found["environment"] == wish | {"HF_HOME": str(tmp_path)}
    assert (found["library"], found["hub"], found["is_offline_mode"]) == (True, True, True)
    assert not found["bars"] and found["of_download"] == []
    assert found["error"] == "OfflineModeIsEnabled"

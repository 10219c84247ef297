"""What tests of shell scripts share: stand-ins for programs, and this interpreter as a venv."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stub(folder: Path, name: str, body: str) -> None:
    """A program `name` that does `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
    path.chmod(0o755)


def make_venv(venv: Path) -> Path:
    """A folder that scripts/venv.sh takes for a finished .venv: this interpreter's packages.

    Where HOLD_AT is set, its `python` runs a script as tests/held_run.py does.
    """
    wanted = subprocess.run(
        ["bash", "-c", "cat requirements*.txt requirements.txt | cksum"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    held = f'exec {sys.executable} {ROOT}/tests/held_run.py "$@"'
    stub(venv / "bin", "python", f'[[ -z ${{HOLD_AT:-}} ]] || {held}\nexec {sys.executable} "$@"')
    (venv / "installed-requirements.txt").write_text(wanted)
    path = f"{venv / 'bin'}:{Path(sys.executable).parent}:$PATH"
    (venv / "bin/activate").write_text(f'export PATH="{path}"\n')
    return venv


def copy_of_tree(folder: Path) -> Path:
    """The files of the repository as they are now, without what git ignores."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, told.split("\0")):
        # A file that is deleted but not yet committed is listed too.
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder

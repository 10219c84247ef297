"""Which code a result was made with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A folder on a sleeping network disk must not hold up a run.
SECONDS_TO_WAIT = 10


def code_commit(root: Path = ROOT) -> str | None:
    """Return the git commit of the code, with "-dirty" after it where tracked files differ.

    None where the code is no git checkout (an installed package, an unpacked archive), or git is
    missing or refuses to read it.
    """
    # Without .git here, git would take the commit of a folder above.
    if not (root / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS_TO_WAIT,
            # Hooks and some editors name another repository by GIT_DIR.
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

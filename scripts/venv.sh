# Sourced by demo.sh and test.sh: makes .venv with the given requirements, once for their content.
# PYTHON names another interpreter; VENV another folder.
PYTHON=${PYTHON:-}
if [[ -z $PYTHON ]]; then
  for candidate in python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
      PYTHON=$candidate
      break
    fi
  done
fi
if [[ -z $PYTHON ]]; then
  echo "error: needs Python 3.11 or 3.12; name one with PYTHON=/path/to/python" >&2
  exit 2
fi
VENV=${VENV:-.venv}
wanted=$(cat requirements*.txt "$1" | cksum)
if [[ "$(cat "$VENV/installed-$1" 2>/dev/null)" != "$wanted" ]]; then
  echo "installing $1 into $VENV, once (about a minute; torch is large)"
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
  echo "$wanted" > "$VENV/installed-$1"
fi
source "$VENV/bin/activate"

# Sourced by demo.sh, test.sh and prepare.sh: makes .venv with the given requirements, once for their
# content. PYTHON names another interpreter; VENV another folder.
PYTHON=${PYTHON:-}
if [[ -z $PYTHON ]]; then
  # First what a module, conda or pyenv has put in front.
  for candidate in python3 python3.12 python3.13 python3.11 python3.14; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
      2> /dev/null; then
      PYTHON=$candidate
      break
    fi
  done
fi
if [[ -z $PYTHON ]]; then
  echo "error: needs Python 3.11 or later with venv; name one with PYTHON=/path/to/python" >&2
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

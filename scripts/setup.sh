# The one set-up path of all scripts. Source it, call aha_setup, then use "$PYTHON":
#
#     source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
#     aha_setup
#
# An active environment (venv or conda) that has every package of pyproject.toml (with the extras train, web, serve and dev) is used as it
# is. Otherwise .venv/ is made beside the README and the pins of requirements.txt are installed into it (about 3 minutes, once). Nothing is
# installed anywhere else.
# AHA_PYTHON=/path/to/python chooses the interpreter.

AHA_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

aha_fail() {
    echo "error: $*" >&2
    exit 2
}

aha_python_ok() { # is $1 a Python of at least 3.11?
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

aha_find_python() {
    local candidate
    if [ -n "${AHA_PYTHON:-}" ]; then
        command -v "$AHA_PYTHON" >/dev/null || aha_fail "AHA_PYTHON=$AHA_PYTHON is no program; give the path of a Python 3.11 or 3.12."
        aha_python_ok "$AHA_PYTHON" || aha_fail "AHA_PYTHON=$AHA_PYTHON is $("$AHA_PYTHON" -V 2>&1), but Python 3.11 or 3.12 is needed; set AHA_PYTHON to one."
        echo "$AHA_PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null && aha_python_ok "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    aha_fail "Python 3.11 or 3.12 is needed, found $(python3 -V 2>&1 | head -n 1); install one, or set AHA_PYTHON=/path/to/python3.11."
}

aha_install() { # make or complete .venv with the interpreter $1
    local log="$AHA_ROOT/.venv.log"
    echo "setup: installing the pins of requirements.txt into .venv (about 3 minutes, once; log: .venv.log)" >&2
    if [ ! -x "$AHA_ROOT/.venv/bin/python" ]; then
        "$1" -m venv "$AHA_ROOT/.venv" >"$log" 2>&1 || aha_fail "$1 cannot make a virtual environment ($(tail -n 1 "$log")); install its venv module (python3-venv) or set AHA_PYTHON."
    fi
    if ! "$AHA_ROOT/.venv/bin/python" -m pip install --disable-pip-version-check -r "$AHA_ROOT/requirements.txt" >>"$log" 2>&1 ||
        ! "$AHA_ROOT/.venv/bin/python" -m pip install --disable-pip-version-check --no-deps -e "$AHA_ROOT" >>"$log" 2>&1; then
        grep -v '^WARNING' "$log" | tail -n 5 >&2
        aha_fail "installing requirements.txt failed (see above and .venv.log); check the network and the disk and run the command again, it continues."
    fi
    aha_complete "$AHA_ROOT/.venv/bin/python" >&2 || aha_fail "requirements.txt does not bring what pyproject.toml asks for (see above); add the pins."
    aha_pins >"$AHA_ROOT/.venv/aha-pins" # written last: an interrupted installation is continued
}

aha_pins() { # one line that changes when the pins do
    cksum <"$AHA_ROOT/requirements.txt"
}

aha_complete() { # does the environment of interpreter $1 have every package of pyproject.toml? Prints what is missing
    "$1" "$AHA_ROOT/scripts/check_environment.py"
}

aha_setup() {
    local base
    export PYTHONPATH="$AHA_ROOT:$AHA_ROOT/LLaVA_NeXT${PYTHONPATH:+:$PYTHONPATH}"
    base="$(aha_find_python)" || exit 2
    if aha_complete "$base" >/dev/null 2>&1; then
        PYTHON="$(command -v "$base")"
    else
        PYTHON="$AHA_ROOT/.venv/bin/python"
        if [ "$(cat "$AHA_ROOT/.venv/aha-pins" 2>/dev/null)" != "$(aha_pins)" ] || ! aha_complete "$PYTHON" >/dev/null 2>&1; then
            aha_install "$base"
        fi
    fi
    # programs of the environment (torchrun, ninja) come first on PATH
    PATH="$(dirname "$PYTHON"):$PATH"
    export PYTHON PATH
}

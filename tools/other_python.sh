#!/usr/bin/env bash
# Print the path of a Python that the project supports and .venv was not made with; nothing if there is none.
set -u
cd "$(dirname "$0")/.."
used=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.13 3.12 3.11; do
    [ "$version" != "$used" ] || continue
    for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        if found=$("$python" -c 'import ensurepip, sys, venv; print(sys.executable)' 2>/dev/null); then
            echo "$found"
            exit 0
        fi
    done
done

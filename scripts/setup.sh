#!/bin/sh
# Make .venv as uv.lock says: setup.sh PYTHON
set -eu

UV_VERSION=0.13.9

fail() {
    echo "labrack: $*" >&2
    exit 1
}

command -v "$1" >/dev/null ||
    fail "there is no $1. As root: apt-get install python3 python3-venv"
"$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$1" --version) is too old, Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.13"
"$1" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$1 has no venv. As root: apt-get install $("$1" -c 'import sys; print("python3.%d-venv" % sys.version_info[1])')"

# uv can't use the launchers of version managers, only the interpreter itself
python=$("$1" -c 'import sys; print(sys.executable)')
uv=.cache/uv-$UV_VERSION
if ! "$uv/bin/uv" --version >/dev/null 2>&1; then
    echo "Installing uv $UV_VERSION in $uv"
    "$python" -m venv --clear "$uv"
    "$uv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
fi

echo "Installing labrack and its tools in .venv"
unset VIRTUAL_ENV
UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never "$uv/bin/uv" sync --locked --python "$python"
# the editable installation has copies of what the wheel takes from elsewhere, and Python would find them first
rm -rf .venv/lib/python*/site-packages/ansible_collections/labrack .venv/lib/python*/site-packages/labrack

#!/usr/bin/env bash
# Sets up .venv and runs the tests; arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python -m pip install --quiet --disable-pip-version-check ruff mypy
ruff check .
ruff format --check .
mypy
python -m pytest "$@"

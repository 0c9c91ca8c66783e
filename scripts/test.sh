#!/usr/bin/env bash
# Sets up .venv and runs the tests; arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python -m pip install --quiet --disable-pip-version-check \
    ruff mypy sphinx myst-parser furo
ruff check .
ruff format --check .
mypy
sphinx-build -W -q docs build/docs
# Threads that wait for each other must not burn the cores that they wait for.
# Files side by side: most tests keep one core busy.
OMP_WAIT_POLICY=PASSIVE python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"

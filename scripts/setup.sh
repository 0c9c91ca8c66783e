# Sourced by demo.sh and test.sh: makes .venv if there is none, installs, activates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
. .venv/bin/activate
# The native module is built against the OpenMM that is installed here, so OpenMM comes first and
# the build is not isolated. torch 2.9 is a download of a few GB, the first time.
echo "installing (torch and OpenMM: a few minutes the first time)"
python -m pip install --quiet --disable-pip-version-check \
    "openmm>=8.5" "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja
python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
# Some of what it needs comes as source and brings its own tools to build, in isolation. Of twenty
# thousand modules a few hundred are ever imported: those are compiled when they are.
python -m pip install --quiet --disable-pip-version-check --no-compile "openmm-lsd[test]"

#!/usr/bin/env bash
# Builds an sdist, and a wheel from it, from a clean clone of the last commit; looks at what they hold; and tests the
# wheel in a fresh environment, from a folder without openmm_lsd/. Arguments go to pytest.
# All of it is in a temporary folder, which needs 13 GB, and is removed at the end.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/check_wheel.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
pip() { "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }

git clone --quiet "$root" clone
echo "building $(git -C clone log -1 --format='%h (%s)')"
"${PYTHON:-python3}" -m venv building
pip building "openmm>=8.5" "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja build
# The sdist from the clone, the wheel from the sdist.
building/bin/python -m build --no-isolation --outdir dist clone > build.log 2>&1 || {
    cat build.log
    exit 1
}
du -k dist/*

"${PYTHON:-python3}" clone/scripts/check_contents.py clone dist/*.tar.gz dist/*.whl

echo "installing the wheel with all that its tests need (a few minutes)"
"${PYTHON:-python3}" -m venv testing
pip testing "openmm-lsd[test] @ file://$(echo "$work"/dist/*.whl)"
mkdir outside
tar xzf dist/*.tar.gz --strip-components 1 -C outside
rm -r outside/openmm_lsd
cd outside
testing=$work/testing/bin
"$testing/python" -c "import openmm_lsd; print('testing', openmm_lsd.__file__)"
# The settings of scripts/test.sh; the command openmm-lsd is that of the wheel.
export OCL_ICD_VENDORS=/nonexistent OMP_WAIT_POLICY=PASSIVE PATH=$testing:$PATH
pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder "$@"

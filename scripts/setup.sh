# Sourced by demo.sh and test.sh: makes .venv if there is none, installs, activates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if [ ! -x .venv/bin/python ]; then
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
. .venv/bin/activate
# uv takes a minute where pip takes four; where it cannot reach the packages, pip is asked. Of
# twenty thousand modules a few hundred are ever imported: those are compiled when they are.
# What uv unpacks stays beside .venv's links to it: a home directory may have no room for 8 GB.
export UV_CACHE_DIR=${UV_CACHE_DIR:-$VIRTUAL_ENV/uv-cache}
uv_works=true
with_uv() {
    $uv_works && python -m uv pip install --quiet --system-certs "$@" && return
    uv_works=false # what cannot be reached is not waited for again
    return 1
}
with_pip() { python -m pip install --quiet --disable-pip-version-check --no-compile "$@"; }
install() { with_uv "$@" || with_pip "$@"; }
with_pip uv || true
# The native module is built against the OpenMM that is installed here, so OpenMM comes first and
# the build is not isolated. torch 2.9 is a download of a few GB, the first time.
echo "installing (torch and OpenMM: a few minutes the first time)"
install "openmm>=8.5" "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja
install --no-build-isolation --no-deps -e .
# Some of what it needs comes as source and brings its own tools to build, in isolation.
with_uv --no-build-isolation-package openmm-lsd -e ".[test]" || with_pip "openmm-lsd[test]"

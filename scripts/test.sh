#!/usr/bin/env bash
# Sets up .venv and runs the tests; arguments go to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
install ruff mypy sphinx myst-parser furo proselint
ruff check .
ruff format --check .
sphinx-build -W -q docs build/docs &
pages=$!
mypy
python scripts/check_prose.py
wait $pages
# OpenMM prefers OpenCL as soon as there is one; here it is hidden.
vendors=${OCL_ICD_VENDORS:-/etc/OpenCL/vendors}
export OCL_ICD_VENDORS=/nonexistent
# Threads that wait for each other must not burn the cores that they wait for.
export OMP_WAIT_POLICY=PASSIVE
# Files side by side: most tests keep one core busy. When a process dies, the run ends: pytest-xdist
# may wait forever for the one that takes its place.
python -m pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder "$@"
# The code of GPU platforms, on the CPU: Debian's pocl-opencl-icd.
if [ $# -eq 0 ] && [ -e "$vendors/pocl.icd" ]; then
    echo "the same on OpenMM's OpenCL platform"
    # Kernels of tiny systems take longer to optimise than to run.
    export POCL_EXTRA_BUILD_FLAGS=-cl-opt-disable
    OCL_ICD_VENDORS=$vendors OPENMM_LSD_TEST_PLATFORM=OpenCL \
        python -m pytest -n 2 --max-worker-restart 0 \
        tests/test_context_engine.py tests/test_transfers.py tests/test_changes.py \
        tests/test_device.py tests/test_everyday.py tests/test_integrator.py \
        tests/test_mixed_systems.py tests/test_reporters.py tests/test_rigid_molecules.py \
        tests/test_virtual_sites.py
fi

#!/usr/bin/env bash
# Sets up .venv and compares LSD with plain dynamics on alanine dipeptide, which takes 2 to 3 minutes.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
for timestep in 1 0.5; do
    openmm-lsd benchmark --system systems/alanine_dipeptide --timestep "$timestep" --seconds 20 \
        --also-auto "$@"
    echo
done

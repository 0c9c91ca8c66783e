#!/usr/bin/env bash
# Sets up .venv and compares LSD with plain dynamics on alanine dipeptide, about two minutes.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
python scripts/benchmark.py systems/alanine_dipeptide --timestep 1 0.5 --seconds 20 --windows 8 16 "$@"

// The computation of a PythonForce at positions of its own particles, as its kernels ask for it.

#pragma once

#include "../core/times.h"

#include <OpenMM.h>

#include <cstddef>
#include <map>
#include <string>

// Energies (B,) and forces (B, n, 3) at positions (B, n, 3), one after another. ``box``: 9 numbers,
// or null.
void evaluatePythonForce(const OpenMM::PythonForce& force, size_t batch, size_t particles,
                         const double* positions, const double* box,
                         const std::map<std::string, double>& parameters, const Times& times,
                         double* energies, double* forces);

// The two halves of a round: the rollout of a window and its commit. engine.NumpyEngine is the
// readable reference: there are the equations, shapes and rules.

#pragma once

#include "corrections.h"
#include "schemes.h"

#include <cstddef>
#include <functional>
#include <vector>

// What both are told: the scheme, N masses, where K steps start (N, 3), and whether each removes
// the motion of the centre of mass first (K,).
struct Round {
    const Scheme& scheme;
    size_t particles, length;
    const double *masses, *positions, *velocities;
    const bool* cmRemovals;
};

// Writes the draft's force at the site of step k, both (N, 3).
using DraftForce = std::function<void(size_t k, const double* site, double* force)>;

// The fields of window.Window, (K, N, 3) each.
struct Drafted {
    double *sites, *velocities, *forces, *corrections;
};

// The number of drafted steps: rows that are written.
size_t draftWindow(const Round& round, Corrections& corrections, const double* kicks,
                   const DraftForce& draftForce, const Drafted& to);

// What was drafted and verified: the first V steps of a window. ``noiseScale`` is (N,), ``noise``
// (K, N, 3), ``logUniforms`` (K,), and the others (V, N, 3).
struct Verified {
    size_t length;
    const double *draftVelocities, *targetForces, *draftForces;
    const double *noiseScale, *noise, *logUniforms;
};

// See window.Committed.
struct Committed {
    size_t length = 0;
    std::vector<double> shifts;
    bool accepted = true;
};

// As many rows of ``positions`` and ``velocities`` (V, N, 3) are written as steps are committed.
Committed commitWindow(const Round& round, const Verified& window, double* positions,
                       double* velocities);

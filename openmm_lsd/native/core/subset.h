// The rollout of a window where draft and target differ on a subset S of the particles only.
// subset.SubsetEngine is the readable reference.

#pragma once

#include "round.h"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

// Forces that draft and target share cannot be had where a window starts.
struct SharedForceError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// What all particles are told besides a Round of them: which are the subset, and their noise, K
// times (N, 3), with its scale (N,).
struct Subset {
    size_t size;
    const int32_t* indices;
    std::vector<const double*> noise;
    const double* noiseScale;
};

// The fields of window.Whole.
struct WholePath {
    double *positions, *velocities; // (K + 1, N, 3)
    double* centres;                // (K + 1, 2, 3)
    double* sharedForces;           // (K, |S| + 1, 3)
};

struct WholeDrafted {
    size_t steps;     // rows that are written
    bool endsInState; // whether the rest could be moved by the last of them, too
};

// ``corrections``, ``draftForce`` and ``to`` are of the subset, ``sharedForce`` is of all.
WholeDrafted draftWholeWindow(const Round& round, const Subset& subset, Corrections& corrections,
                              const DraftForce& sharedForce, const DraftForce& draftForce,
                              const Drafted& to, const WholePath& path);

// Forces of so many particles, by whatever computes them.

#pragma once

#include "times.h"

#include <cstddef>

class Forces {
public:
    virtual ~Forces() = default;

    virtual size_t numParticles() const = 0;

    // Forces (N, 3) at positions (N, 3), at a state's own time if times are given; raises if they
    // cannot be had.
    virtual void forcesAt(const double* positions, const Times& times, size_t row,
                          double* result) = 0;
};

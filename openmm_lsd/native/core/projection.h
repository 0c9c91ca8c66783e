// constraints.Projection, for the steps of a scheme.

#pragma once

#include <cstddef>
#include <stdexcept>

// Positions cannot be brought onto the constraints.
struct ConstraintError : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// On arrays (N, 3).
class Projection {
public:
    virtual ~Projection() = default;

    virtual size_t numParticles() const = 0;

    // Velocities become those that keep the constraints at positions x.
    virtual void projectVelocities(const double* x, double* v) = 0;

    // Positions x are moved onto the constraints along their gradients at ``reference``; raises
    // ConstraintError.
    virtual void projectPositions(const double* reference, double* x) = 0;
};

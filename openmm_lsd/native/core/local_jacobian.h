// A derivative of forces by positions, where those of an atom depend on few atoms;
// jacobian.LocalJacobian is the readable reference.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

class LocalJacobian {
public:
    // ``neighbours`` (N, M) must outlive this; ``blocks`` (N, M, 3, 3) need not.
    LocalJacobian(size_t particles, size_t most, const int32_t* neighbours, const double* blocks);

    // Of displacements, in each direction; as in jacobian.py.
    static constexpr double largestDisplacement = 0.01;

    size_t numParticles() const { return particles; }

    // To the forces (N, 3) is added what displacements (N, 4) make of them; of those of atom i only
    // what is left when ``shares[i]`` times ``secant`` (N, 4) is taken away, unless that is null.
    void addTo(double* forces, const double* displacements, const double* secant = nullptr,
               const double* shares = nullptr);

    // Sums (N,) over each atom and its neighbours of ``values`` (N,).
    void sumNear(const double* values, double* sums) const;

    // (N, 4) of x - y, both (N, 3).
    static void subtract(const double* x, const double* y, size_t particles, double* result);

private:
    size_t particles, most;
    const int32_t* neighbours;
    std::vector<double> columns; // of the blocks
    std::vector<double> near;    // scratch
};

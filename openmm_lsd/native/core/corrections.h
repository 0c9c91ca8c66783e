// What is added to the draft's force at each step of a window; corrections.Corrections is the
// readable reference.

#pragma once

#include "local_jacobian.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

// The arrays must outlive this.
class Corrections {
public:
    // ``forces`` (K, N, 3).
    Corrections(size_t particles, const double* forces) : particles(particles), forces(forces) {}

    // The forces are those at ``sites`` (K, N, 3), and change by a derivative.
    void setJacobian(const double* sitesOfForces, LocalJacobian derivative) {
        sites = sitesOfForces;
        jacobian = std::move(derivative);
        displacements.resize(4 * particles);
    }

    // Along ``moved`` (K, N, 3) the forces change by ``changed`` (K, N, 3), whatever the
    // derivative, which must be there, says; masses (N,).
    void setSecants(const double* displacementsOfSecants, const double* changesOfSecants,
                    const double* massesOfParticles) {
        moved = displacementsOfSecants;
        changed = changesOfSecants;
        masses = massesOfParticles;
        secant.resize(4 * particles);
        for (auto* each : {&shares, &products, &squares, &along, &square})
            each->resize(particles);
    }

    // Those of step k at a site, both (N, 3).
    void take(size_t k, const double* site, double* result) {
        const size_t components = 3 * particles;
        std::memcpy(result, forces + k * components, components * sizeof(double));
        if (!jacobian)
            return;
        LocalJacobian::subtract(site, sites + k * components, particles, displacements.data());
        if (moved == nullptr) {
            jacobian->addTo(result, displacements.data());
            return;
        }
        const double* change = changed + k * components;
        for (size_t i = 0; i < particles; i++)
            std::copy_n(moved + k * components + 3 * i, 3, secant.data() + 4 * i);
        findShares();
        for (size_t c = 0; c < components; c++)
            result[c] += shares[c / 3] * change[c];
        jacobian->addTo(result, displacements.data(), secant.data(), shares.data());
    }

private:
    // As in jacobian.py.
    static constexpr double ridge = 0.03, largestShare = 1.5;

    // See LocalJacobian.with_secant.
    void findShares() {
        for (size_t i = 0; i < particles; i++) {
            const double *s = secant.data() + 4 * i, *d = displacements.data() + 4 * i;
            products[i] = masses[i] * (s[0] * d[0] + s[1] * d[1] + s[2] * d[2]);
            squares[i] = masses[i] * (s[0] * s[0] + s[1] * s[1] + s[2] * s[2]);
        }
        jacobian->sumNear(products.data(), along.data());
        jacobian->sumNear(squares.data(), square.data());
        for (size_t i = 0; i < particles; i++) {
            square[i] *= 1.0 + ridge;
            const bool usable =
                square[i] > 0 && std::isfinite(square[i]) && std::isfinite(along[i]);
            shares[i] =
                usable ? std::clamp(along[i] / square[i], -largestShare, largestShare) : 0.0;
        }
    }

    size_t particles;
    const double* forces;
    const double *sites = nullptr, *moved = nullptr, *changed = nullptr, *masses = nullptr;
    std::optional<LocalJacobian> jacobian;
    std::vector<double> displacements, secant;                    // scratch, (N, 4)
    std::vector<double> shares, products, squares, along, square; // (N,)
};

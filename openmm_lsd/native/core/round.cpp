#include "round.h"

#include "checks.h"
#include "transport.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>

size_t draftWindow(const Round& round, Corrections& corrections, const double* kicks,
                   const DraftForce& draftForce, const Drafted& to) {
    const size_t components = 3 * round.particles, length = round.length;
    const Scheme& scheme = round.scheme;
    const double* masses = round.masses;
    std::vector<double> x(round.positions, round.positions + components);
    std::vector<double> v(round.velocities, round.velocities + components);
    std::vector<double> acceleration(components);
    for (size_t k = 0; k < length; k++) {
        if (round.cmRemovals[k])
            removeCmMotion(round.particles, v.data(), masses);
        double* site = to.sites + k * components;
        double* force = to.forces + k * components;
        scheme.findSite(components, x.data(), v.data(), site);
        if (k > 0 && !allFinite(site, components))
            return k;
        try {
            draftForce(k, site, force);
        } catch (const std::exception&) {
            if (k == 0)
                throw;
            return k;
        }
        if (!allFinite(force, components))
            std::fill(force, force + components, 0.0);
        std::memcpy(to.velocities + k * components, v.data(), components * sizeof(double));
        double* correction = to.corrections + k * components;
        corrections.take(k, site, correction);
        if (k + 1 == length)
            break;
        for (size_t i = 0; i < components; i++) {
            const double mass = masses[i / 3];
            acceleration[i] = mass > 0 ? (force[i] + correction[i]) / mass : 0.0;
        }
        try {
            scheme.step(components, x.data(), v.data(), acceleration.data(),
                        kicks + k * components);
        } catch (const ConstraintError&) { // a draft may lead anywhere
            return k + 1;
        }
    }
    return length;
}

Committed commitWindow(const Round& round, const Verified& window, double* positions,
                       double* velocities) {
    const size_t components = 3 * round.particles;
    const Scheme& scheme = round.scheme;
    const double *masses = round.masses, *noiseScale = window.noiseScale;
    std::vector<double> x(round.positions, round.positions + components);
    std::vector<double> v(round.velocities, round.velocities + components);
    std::vector<double> acceleration(components), drafted(components), shift(components),
        xi(components);
    Committed result;
    while (result.length < window.length && result.accepted) {
        const size_t k = result.length, row = k * components;
        if (round.cmRemovals[k])
            removeCmMotion(round.particles, v.data(), masses);
        for (size_t i = 0; i < components; i++) {
            const double mass = masses[i / 3];
            acceleration[i] = mass > 0 ? window.targetForces[row + i] / mass : 0.0;
            drafted[i] = mass > 0 ? window.draftForces[row + i] / mass : 0.0;
        }
        std::copy_n(window.noise + row, components, xi.begin());
        if (k + 1 < round.length) {
            scheme.findKickShift(components, x.data(), v.data(), window.draftVelocities + row,
                                 acceleration.data(), drafted.data(), shift.data());
            double squared = 0.0;
            for (size_t i = 0; i < components; i++) {
                const double scale = noiseScale[i / 3];
                shift[i] = scale > 0 ? shift[i] / scale : 0.0;
                squared += shift[i] * shift[i];
            }
            result.shifts.push_back(std::sqrt(squared));
            result.accepted =
                transport(xi.data(), shift.data(), window.logUniforms[k], components);
        }
        for (size_t i = 0; i < components; i++)
            xi[i] *= noiseScale[i / 3];
        try {
            scheme.step(components, x.data(), v.data(), acceleration.data(), xi.data());
        } catch (const ConstraintError&) {
            if (k == 0)
                throw;
            result.shifts.resize(k);
            result.accepted = true; // as all before it were
            break;
        }
        result.length++;
        std::copy(x.begin(), x.end(), positions + row);
        std::copy(v.begin(), v.end(), velocities + row);
    }
    return result;
}

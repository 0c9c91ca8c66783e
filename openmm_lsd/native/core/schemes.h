// schemes.py, on whole arrays of positions, velocities and so on.

#pragma once

#include "projection.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

// Arrays are of ``components`` numbers.
struct Scheme {
    bool aboba;
    double stepSize, decay;
    Projection* projection; // of 'middle', or null

    Scheme(const std::string& name, double stepSize, double decay, Projection* projection)
        : aboba(name == "aboba"), stepSize(stepSize), decay(decay), projection(projection) {
        if (!aboba && name != "middle")
            throw std::invalid_argument("no native scheme '" + name + "'");
        if (aboba && projection != nullptr)
            throw std::invalid_argument("'aboba' knows no constraints");
    }

    void findSite(size_t components, const double* x, const double* v, double* site) const {
        if (!aboba)
            std::copy_n(x, components, site);
        else
            for (size_t i = 0; i < components; i++)
                site[i] = x[i] + 0.5 * stepSize * v[i];
    }

    // Positions and velocities become those after the step. Raises ConstraintError.
    void step(size_t components, double* x, double* v, const double* acceleration,
              const double* kick) const {
        if (aboba)
            for (size_t i = 0; i < components; i++) {
                const double q = x[i] + 0.5 * stepSize * v[i];
                v[i] = decay * v[i] + 0.5 * (1.0 + decay) * stepSize * acceleration[i] + kick[i];
                x[i] = q + 0.5 * stepSize * v[i];
            }
        else if (projection != nullptr)
            stepConstrained(
                components / 3, x, v, [&](size_t, size_t c) { return acceleration[c]; },
                [&](size_t, size_t c) { return kick[c]; }, x, v);
        else
            for (size_t i = 0; i < components; i++) {
                const double half = v[i] + stepSize * acceleration[i];
                v[i] = decay * half + kick[i];
                x[i] += 0.5 * stepSize * (half + v[i]);
            }
    }

    // The same of N particles in one pass, by forces and noise (N, 3); to other arrays.
    void step(size_t particles, const double* x, const double* v, const double* force,
              const double* inverseMasses, const double* noise, const double* noiseScale,
              double* newX, double* newV) const {
        if (projection != nullptr) {
            stepConstrained(
                particles, x, v,
                [&](size_t i, size_t c) { return force[c] * inverseMasses[i]; },
                [&](size_t i, size_t c) { return noise[c] * noiseScale[i]; }, newX, newV);
            return;
        }
        const double impulse = aboba ? 0.5 * (1.0 + decay) * stepSize : stepSize;
        for (size_t i = 0; i < particles; i++) {
            const double push = impulse * inverseMasses[i], scale = noiseScale[i];
            for (size_t c = 3 * i; c < 3 * i + 3; c++) {
                const double before = v[c], pushed = push * force[c], kick = scale * noise[c];
                const double half = before + pushed;
                const double after = aboba ? decay * before + pushed + kick : decay * half + kick;
                newV[c] = after;
                newX[c] = x[c] + 0.5 * stepSize * ((aboba ? before : half) + after);
            }
        }
    }

    // Of two steps from positions x.
    void findKickShift(size_t components, const double* x, const double* vTarget,
                       const double* vDraft, const double* accelerationOfTarget,
                       const double* accelerationOfDraft, double* shift) const {
        for (size_t i = 0; i < components; i++) {
            const double difference = stepSize * (accelerationOfTarget[i] - accelerationOfDraft[i]);
            shift[i] = aboba ? 0.5 * (1.0 + decay) * difference
                             : (1.0 + decay) * (vTarget[i] - vDraft[i] + difference);
        }
        if (projection != nullptr)
            projection->projectVelocities(x, shift);
    }

private:
    // Acceleration and kick are functions of particle and component; old and new may be the same.
    template <class Acceleration, class Kick>
    void stepConstrained(size_t particles, const double* x, const double* v,
                         Acceleration acceleration, Kick kick, double* newX, double* newV) const {
        thread_local std::vector<double> half, free; // as large as a box
        half.resize(3 * particles);
        free.resize(3 * particles);
        for (size_t i = 0; i < particles; i++)
            for (size_t c = 3 * i; c < 3 * i + 3; c++)
                half[c] = v[c] + stepSize * acceleration(i, c);
        projection->projectVelocities(x, half.data());
        for (size_t i = 0; i < particles; i++)
            for (size_t c = 3 * i; c < 3 * i + 3; c++) {
                newV[c] = decay * half[c] + kick(i, c);
                free[c] = x[c] + 0.5 * stepSize * (half[c] + newV[c]);
            }
        std::vector<double>& constrained = half;
        std::copy(free.begin(), free.end(), constrained.begin());
        projection->projectPositions(x, constrained.data());
        for (size_t c = 0; c < 3 * particles; c++) {
            newV[c] += (constrained[c] - free[c]) / stepSize;
            newX[c] = constrained[c];
        }
    }
};

// Of velocities (N, 3).
inline void removeCmMotion(size_t particles, double* v, const double* masses) {
    double momentum[3] = {0.0, 0.0, 0.0}, total = 0.0;
    for (size_t i = 0; i < particles; i++) {
        total += masses[i];
        for (int j = 0; j < 3; j++)
            momentum[j] += masses[i] * v[3 * i + j];
    }
    double velocity[3];
    for (int j = 0; j < 3; j++)
        velocity[j] = momentum[j] / total;
    for (size_t i = 0; i < particles; i++)
        if (masses[i] > 0)
            for (int j = 0; j < 3; j++)
                v[3 * i + j] -= velocity[j];
}

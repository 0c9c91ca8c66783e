// Linear prediction of discrepancies; prediction.py is the readable reference.

#pragma once

#include "local_jacobian.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

// See prediction.changes_in_time: (B - 1, N, 3) from two arrays (B, N, 3).
inline void takeChangesInTime(size_t batch, const double* sites, const double* discrepancies,
                              LocalJacobian& jacobian, double* result) {
    const size_t particles = jacobian.numParticles(), components = 3 * particles;
    std::vector<double> displacements(4 * particles);
    for (size_t b = 0; b + 1 < batch; b++) {
        const double *x = sites + b * components, *d = discrepancies + b * components;
        double* change = result + b * components;
        // Back in time, since what J explains is taken away.
        LocalJacobian::subtract(x, x + components, particles, displacements.data());
        for (size_t c = 0; c < components; c++)
            change[c] = d[c + components] - d[c];
        jacobian.addTo(change, displacements.data());
    }
}

// See prediction.add_lagged: changes (B, N, 3), gram (N, L, L), moment (N, L).
inline void addLagged(size_t batch, size_t particles, size_t order, const double* changes,
                      double memory, double* gram, double* moment) {
    const size_t components = 3 * particles;
    const double fade = std::exp(-1.0 / memory);
    for (size_t b = order; b < batch; b++)
        for (size_t i = 0; i < particles; i++) {
            const double* now = changes + b * components + 3 * i;
            const auto product = [&](size_t p, size_t q) {
                const double *x = now - p * components, *y = now - q * components;
                return x[0] * y[0] + x[1] * y[1] + x[2] * y[2];
            };
            double* row = gram + i * order * order;
            for (size_t p = 1; p <= order; p++) {
                for (size_t q = 1; q <= order; q++, row++)
                    *row = fade * *row + product(p, q);
                double& sum = moment[i * order + p - 1];
                sum = fade * sum + product(p, 0);
            }
        }
}

// See prediction.predict_changes: of arrays (order + 1, N, 3), the sums (ahead, N, 3).
inline void predictChanges(size_t order, size_t ahead, const double* sites,
                           const double* discrepancies, LocalJacobian& jacobian,
                           const double* coefficients, const double* largest, double* result) {
    const size_t components = 3 * jacobian.numParticles();
    std::vector<double> changes((order + ahead) * components);
    takeChangesInTime(order + 1, sites, discrepancies, jacobian, changes.data());
    for (size_t n = 0; n < ahead; n++) {
        double* next = changes.data() + (order + n) * components;
        double* sum = result + n * components;
        for (size_t c = 0; c < components; c++) {
            const size_t i = c / 3;
            double change = 0.0;
            for (size_t lag = 1; lag <= order; lag++)
                change += coefficients[i * order + lag - 1] * *(next + c - lag * components);
            next[c] = std::clamp(change, -largest[i], largest[i]);
            sum[c] = next[c] + (n > 0 ? *(sum + c - components) : 0.0);
        }
    }
}

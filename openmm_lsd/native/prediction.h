// Linear prediction of discrepancies; prediction.py is the readable reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

// A derivative of forces by positions: neighbours (N, M) and blocks (N, M, 3, 3); see
// jacobian.LocalJacobian.
struct LocalJacobian {
    size_t particles, most;
    const int32_t* neighbours;
    const double* blocks;
    static constexpr double largestDisplacement = 0.01; // as in jacobian.py

    // From the changes (N, 3) of atom i is taken what a displacement (N, 3) makes of them.
    void subtract(const double* displacement, double* changes) const {
        const int32_t* neighbour = neighbours;
        const double* block = blocks;
        for (size_t i = 0; i < particles; i++)
            for (size_t n = 0; n < most; n++, neighbour++, block += 9)
                for (int b = 0; b < 3; b++) {
                    const double held = std::clamp(displacement[3 * *neighbour + b],
                                                   -largestDisplacement, largestDisplacement);
                    for (int a = 0; a < 3; a++)
                        changes[3 * i + a] -= block[3 * a + b] * held;
                }
    }
};

// See prediction.changes_in_time: (B - 1, N, 3) from two arrays (B, N, 3).
inline void takeChangesInTime(size_t batch, const double* sites, const double* discrepancies,
                              const LocalJacobian& jacobian, double* result) {
    const size_t components = 3 * jacobian.particles;
    std::vector<double> displacement(components);
    for (size_t b = 0; b + 1 < batch; b++) {
        const double *x = sites + b * components, *d = discrepancies + b * components;
        double* change = result + b * components;
        for (size_t c = 0; c < components; c++) {
            displacement[c] = x[c + components] - x[c];
            change[c] = d[c + components] - d[c];
        }
        jacobian.subtract(displacement.data(), change);
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
                           const double* discrepancies, const LocalJacobian& jacobian,
                           const double* coefficients, const double* largest, double* result) {
    const size_t components = 3 * jacobian.particles;
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

// Sums over differences of what makes the regression of an atom's changes on the displacements of
// its neighbours; jacobian.add_differences is the readable reference.

#pragma once

#include "clones.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kernels {

// To ``to`` (n, n) is added x x^T times ``weight``, to ``moment`` (n, 3) x y^T times it.
OPENMM_LSD_CLONES
static void addOuterProducts(size_t n, const double* x, const double* y, double weight, double* to,
                             double* moment, size_t stride) {
    for (size_t p = 0; p < n; p++) {
        const double scaled = weight * x[p];
        double* row = to + p * stride;
        for (size_t q = 0; q < n; q++)
            row[q] += scaled * x[q];
        for (int c = 0; c < 3; c++)
            moment[3 * p + c] += scaled * y[c];
    }
}

OPENMM_LSD_CLONES
static void scale(double* values, size_t count, double factor) {
    for (size_t i = 0; i < count; i++)
        values[i] *= factor;
}

// Solves A X = B for a symmetric positive definite A (n, n), the upper triangle of which counts and
// is destroyed, and B (n, 3), which becomes X: Cholesky's decomposition by rows.
OPENMM_LSD_CLONES
static void solveCholesky(size_t n, double* a, double* b) {
    for (size_t k = 0; k < n; k++) {
        double* row = a + k * n;
        const double inverse = 1.0 / std::sqrt(row[k]);
        for (size_t j = k; j < n; j++)
            row[j] *= inverse;
        for (int c = 0; c < 3; c++)
            b[3 * k + c] *= inverse;
        for (size_t i = k + 1; i < n; i++) {
            const double factor = row[i];
            double* below = a + i * n;
            for (size_t j = i; j < n; j++)
                below[j] -= factor * row[j];
            for (int c = 0; c < 3; c++)
                b[3 * i + c] -= factor * b[3 * k + c];
        }
    }
    for (size_t k = n; k-- > 0;) {
        const double* row = a + k * n;
        for (size_t j = k + 1; j < n; j++)
            for (int c = 0; c < 3; c++)
                b[3 * k + c] -= row[j] * b[3 * j + c];
        for (int c = 0; c < 3; c++)
            b[3 * k + c] /= row[k];
    }
}

} // namespace kernels

// X (N, 3 M, 3) of (gram + ridge) X = moment for each atom, for so many neighbours as it has; see
// jacobian.solve_ridge.
inline void solveRidge(size_t particles, size_t most, const int32_t* counts, const double* gram,
                       const double* moment, double ridge, double* result) {
    const size_t size = 3 * most;
    std::vector<double> scratch(size * size);
    std::copy_n(moment, particles * size * 3, result);
    for (size_t i = 0; i < particles; i++) {
        const size_t used = 3 * (size_t)counts[i];
        for (size_t p = 0; p < used; p++) {
            std::copy_n(gram + (i * size + p) * size, used, scratch.data() + p * used);
            scratch[p * used + p] += ridge;
        }
        kernels::solveCholesky(used, scratch.data(), result + i * size * 3);
        std::fill(result + (i * size + used) * 3, result + (i + 1) * size * 3, 0.0);
    }
}

// Arrays: differences and changes (batch, N, 3); neighbours (N, M), of which so many count; gram
// (N, 3 M, 3 M), moment and estimate (N, 3 M, 3), the latter null where there is none yet;
// agreement (2, N).
struct Differences {
    size_t batch, particles, most;
    const double *displacements, *changes;
    const int32_t *neighbours, *counts;

    void addTo(double* gram, double* moment, const double* estimate, double* agreement,
               double memory, double leastShare) const {
        const size_t size = 3 * most;
        const double fade = std::exp(-(double)batch / memory);
        kernels::scale(agreement, 2 * particles, fade);
        const std::vector<double> weights = weightsOf(memory, leastShare);
        std::vector<double> near(size);
        for (size_t i = 0; i < particles; i++) { // atoms outside: an atom's sums stay in the cache
            const size_t used = 3 * (size_t)counts[i];
            kernels::scale(gram + i * size * size, size * size, fade);
            kernels::scale(moment + i * size * 3, size * 3, fade);
            for (size_t b = 0; b < batch; b++) {
                const double weight = weights[b * particles + i];
                if (weight == 0.0)
                    continue;
                const double* d = displacements + 3 * particles * b;
                const double* change = changes + 3 * (particles * b + i);
                for (int n = 0; n < counts[i]; n++)
                    std::copy_n(d + 3 * neighbours[i * most + n], 3, near.data() + 3 * n);
                if (estimate != nullptr)
                    addAgreement(near.data(), used, estimate + i * size * 3, change, weight,
                                 agreement[i], agreement[particles + i]);
                kernels::addOuterProducts(used, near.data(), change, weight,
                                          gram + i * size * size, moment + i * size * 3, size);
            }
        }
    }

private:
    // (batch, N)
    std::vector<double> weightsOf(double memory, double leastShare) const {
        std::vector<double> own(particles), weights(batch * particles);
        for (size_t b = 0; b < batch; b++) {
            const double* d = displacements + 3 * particles * b;
            double* squares = weights.data() + b * particles;
            for (size_t i = 0; i < particles; i++)
                own[i] = d[3 * i] * d[3 * i] + d[3 * i + 1] * d[3 * i + 1] +
                         d[3 * i + 2] * d[3 * i + 2];
            double sum = 0.0;
            for (size_t i = 0; i < particles; i++) {
                for (int n = 0; n < counts[i]; n++)
                    squares[i] += own[neighbours[i * most + n]];
                sum += squares[i];
            }
            const double least = leastShare * sum / (double)particles;
            const double age = std::exp(-(double)(batch - 1 - b) / memory);
            for (size_t i = 0; i < particles; i++)
                squares[i] = squares[i] + least > 0.0 ? age / (squares[i] + least) : 0.0;
        }
        return weights;
    }

    static void addAgreement(const double* near, size_t used, const double* estimate,
                             const double* change, double weight, double& agreed,
                             double& expected) {
        double expectation[3] = {};
        for (size_t p = 0; p < used; p++)
            for (int c = 0; c < 3; c++)
                expectation[c] += near[p] * estimate[3 * p + c];
        for (int c = 0; c < 3; c++) {
            agreed += weight * expectation[c] * change[c];
            expected += weight * expectation[c] * expectation[c];
        }
    }
};

#include "local_jacobian.h"

#include "clones.h"

// x, y, z and one that does not count.
typedef double Quad
    __attribute__((vector_size(4 * sizeof(double)), aligned(sizeof(double)), may_alias));

// To the forces (N, 3) is added what the columns (N, 3 M, 4) of J make of displacements (N, 4),
// each component held between ``-largest`` and ``largest``; ``secant`` (N, 4) times the atom's own
// share is first taken from them, unless it is null. ``near`` has room for 3 M + 1 numbers.
OPENMM_LSD_CLONES
static void addChanges(size_t particles, size_t most, const int32_t* neighbours,
                       const double* columns, double largest, const double* displacements,
                       const double* secant, const double* shares, double* near, double* forces) {
    const Quad high = Quad{} + largest, low = -high;
    for (size_t i = 0; i < particles; i++, neighbours += most, columns += 12 * most) {
        for (size_t n = 0; n < most; n++) {
            const size_t place = 4 * (size_t)neighbours[n];
            Quad d = *(const Quad*)(displacements + place);
            if (secant != nullptr)
                d -= shares[i] * *(const Quad*)(secant + place);
            d = d > high ? high : d;
            d = d < low ? low : d;
            *(Quad*)(near + 3 * n) = d;
        }
        Quad x = {}, y = {}, z = {};
        for (size_t n = 0; n < most; n++) {
            const Quad* column = (const Quad*)columns + 3 * n;
            x += near[3 * n] * column[0];
            y += near[3 * n + 1] * column[1];
            z += near[3 * n + 2] * column[2];
        }
        x += y + z;
        for (int a = 0; a < 3; a++)
            forces[3 * i + a] += x[a];
    }
}

LocalJacobian::LocalJacobian(size_t particles, size_t most, const int32_t* neighbours,
                             const double* blocks)
    : particles(particles), most(most), neighbours(neighbours),
      columns(particles * most * 12, 0.0), near(3 * most + 1) {
    for (size_t n = 0; n < particles * most; n++)
        for (int a = 0; a < 3; a++)
            for (int b = 0; b < 3; b++)
                columns[12 * n + 4 * b + a] = blocks[9 * n + 3 * a + b];
}

void LocalJacobian::addTo(double* forces, const double* displacements, const double* secant,
                          const double* shares) {
    addChanges(particles, most, neighbours, columns.data(), largestDisplacement, displacements,
               secant, shares, near.data(), forces);
}

void LocalJacobian::sumNear(const double* values, double* sums) const {
    const int32_t* neighbour = neighbours;
    for (size_t i = 0; i < particles; i++) {
        sums[i] = 0.0;
        for (size_t n = 0; n < most; n++, neighbour++)
            if (n == 0 || (size_t)*neighbour != i) // where there are fewer, it is the atom
                sums[i] += values[*neighbour];
    }
}

void LocalJacobian::subtract(const double* x, const double* y, size_t particles,
                             double* result) {
    for (size_t i = 0; i < particles; i++)
        for (int a = 0; a < 3; a++)
            result[4 * i + a] = x[3 * i + a] - y[3 * i + a];
}

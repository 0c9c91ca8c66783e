// Molecules of three atoms at fixed distances, several side by side. Velocities are projected in
// closed form; positions by Newton's method on the three multipliers of SHAKE, whose equations
// SETTLE solves, too.

#pragma once

#include "clones.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

// Else half as slow again.
#define OPENMM_LSD_INLINE static inline __attribute__((always_inline))

namespace rigid_waters {

// Atoms i, j and k, inverse masses, and squared distances ij, ik, jk.
struct Water {
    int atoms[3];
    double inverseMasses[3], squares[3];
};

constexpr int lanes = 4;
constexpr int mostIterations = 12;
constexpr double converged = 1e-13; // of squared distances, relative

typedef double Lanes __attribute__((vector_size(lanes * sizeof(double))));
struct Group {
    const Water* waters;
    int count;
};
// Vectors ij, ik, jk.
struct Sides {
    Lanes ij[3], ik[3], jk[3];
};
struct Matrix { // symmetric or not
    Lanes rows[3][3];
};

// Of the atoms a, b, c of lanes; where there is no molecule, those of the first.
OPENMM_LSD_INLINE void load(const Group& group, const double* from, Lanes (&to)[3][3]) {
    for (int lane = 0; lane < lanes; lane++) {
        const Water& water = group.waters[lane < group.count ? lane : 0];
        for (int a = 0; a < 3; a++)
            for (int c = 0; c < 3; c++)
                to[a][c][lane] = from[3 * water.atoms[a] + c];
    }
}
OPENMM_LSD_INLINE void store(const Group& group, const Lanes (&from)[3][3], double* to) {
    for (int lane = 0; lane < group.count; lane++)
        for (int a = 0; a < 3; a++)
            for (int c = 0; c < 3; c++)
                to[3 * group.waters[lane].atoms[a] + c] = from[a][c][lane];
}
OPENMM_LSD_INLINE void loadConstants(const Group& group, Lanes (&inverseMasses)[3],
                                     Lanes (&squares)[3]) {
    for (int lane = 0; lane < lanes; lane++) {
        const Water& water = group.waters[lane < group.count ? lane : 0];
        for (int a = 0; a < 3; a++) {
            inverseMasses[a][lane] = water.inverseMasses[a];
            squares[a][lane] = water.squares[a];
        }
    }
}
OPENMM_LSD_INLINE Sides sidesOf(const Lanes (&x)[3][3]) {
    Sides sides;
    for (int c = 0; c < 3; c++) {
        sides.ij[c] = x[0][c] - x[1][c];
        sides.ik[c] = x[0][c] - x[2][c];
        sides.jk[c] = x[1][c] - x[2][c];
    }
    return sides;
}
OPENMM_LSD_INLINE Lanes dot(const Lanes (&a)[3], const Lanes (&b)[3]) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// What the rates of change of the sides ``of`` along themselves owe to multipliers along the
// sides ``along``.
OPENMM_LSD_INLINE Matrix coupling(const Sides& of, const Sides& along,
                                  const Lanes (&w)[3]) {
    return {{{(w[0] + w[1]) * dot(of.ij, along.ij), w[0] * dot(of.ij, along.ik),
              -w[1] * dot(of.ij, along.jk)},
             {w[0] * dot(of.ik, along.ij), (w[0] + w[2]) * dot(of.ik, along.ik),
              w[2] * dot(of.ik, along.jk)},
             {-w[1] * dot(of.jk, along.ij), w[2] * dot(of.jk, along.ik),
              (w[1] + w[2]) * dot(of.jk, along.jk)}}};
}

// By Cramer's rule.
OPENMM_LSD_INLINE void solve(const Matrix& matrix, Lanes (&b)[3]) {
    const auto& m = matrix.rows;
    const Lanes c00 = m[1][1] * m[2][2] - m[1][2] * m[2][1];
    const Lanes c01 = m[1][2] * m[2][0] - m[1][0] * m[2][2];
    const Lanes c02 = m[1][0] * m[2][1] - m[1][1] * m[2][0];
    const Lanes inverse = 1.0 / (m[0][0] * c00 + m[0][1] * c01 + m[0][2] * c02);
    const Lanes x = c00 * b[0] + (m[0][2] * m[2][1] - m[0][1] * m[2][2]) * b[1] +
                    (m[0][1] * m[1][2] - m[0][2] * m[1][1]) * b[2];
    const Lanes y = c01 * b[0] + (m[0][0] * m[2][2] - m[0][2] * m[2][0]) * b[1] +
                    (m[0][2] * m[1][0] - m[0][0] * m[1][2]) * b[2];
    const Lanes z = c02 * b[0] + (m[0][1] * m[2][0] - m[0][0] * m[2][1]) * b[1] +
                    (m[0][0] * m[1][1] - m[0][1] * m[1][0]) * b[2];
    b[0] = x * inverse;
    b[1] = y * inverse;
    b[2] = z * inverse;
}

// Takes from vectors of the atoms what multipliers along the sides give them.
OPENMM_LSD_INLINE void take(const Sides& sides, const Lanes (&multipliers)[3],
                            const Lanes (&w)[3], Lanes (&from)[3][3]) {
    for (int c = 0; c < 3; c++) {
        const Lanes ij = multipliers[0] * sides.ij[c], ik = multipliers[1] * sides.ik[c];
        const Lanes jk = multipliers[2] * sides.jk[c];
        from[0][c] -= w[0] * (ij + ik);
        from[1][c] += w[1] * (ij - jk);
        from[2][c] += w[2] * (ik + jk);
    }
}

OPENMM_LSD_CLONES
static void projectVelocities(Group group, const double* x, double* v) {
    Lanes positions[3][3], velocities[3][3], w[3], squares[3];
    load(group, x, positions);
    load(group, v, velocities);
    loadConstants(group, w, squares);
    const Sides sides = sidesOf(positions), approach = sidesOf(velocities);
    Lanes multipliers[3] = {dot(sides.ij, approach.ij), dot(sides.ik, approach.ik),
                            dot(sides.jk, approach.jk)};
    solve(coupling(sides, sides, w), multipliers);
    take(sides, multipliers, w, velocities);
    store(group, velocities, v);
}

OPENMM_LSD_CLONES
static bool projectPositions(Group group, const double* reference, double* x) {
    Lanes before[3][3], positions[3][3], w[3], squares[3];
    load(group, reference, before);
    load(group, x, positions);
    loadConstants(group, w, squares);
    const Sides gradients = sidesOf(before);
    for (int a = 0; a < 3; a++) // however far from the origin
        for (int c = 0; c < 3; c++)
            positions[a][c] -= before[0][c];
    bool areMet = false;
    for (int iteration = 0; iteration < mostIterations && !areMet; iteration++) {
        const Sides sides = sidesOf(positions);
        Lanes excess[3] = {dot(sides.ij, sides.ij) - squares[0],
                           dot(sides.ik, sides.ik) - squares[1],
                           dot(sides.jk, sides.jk) - squares[2]};
        areMet = true;
        for (int c = 0; c < 3; c++)
            for (int lane = 0; lane < lanes; lane++) {
                areMet = areMet && std::abs(excess[c][lane]) <= converged * squares[c][lane];
                excess[c][lane] *= 0.5;
            }
        if (areMet)
            break;
        solve(coupling(sides, gradients, w), excess);
        take(gradients, excess, w, positions);
    }
    for (int a = 0; a < 3; a++)
        for (int c = 0; c < 3; c++)
            positions[a][c] += before[0][c];
    store(group, positions, x);
    return areMet;
}

} // namespace rigid_waters

#undef OPENMM_LSD_INLINE

class RigidWaters {
public:
    using Water = rigid_waters::Water;

    void add(const Water& water) { waters.push_back(water); }

    // Arrays (N, 3). See Projection.
    void projectVelocities(const double* x, double* v) const {
        for (size_t first = 0; first < waters.size(); first += rigid_waters::lanes)
            rigid_waters::projectVelocities(group(first), x, v);
    }

    // Whether the constraints could be met; if not, the positions are of no use.
    bool projectPositions(const double* reference, double* x) const {
        bool areMet = true;
        for (size_t first = 0; first < waters.size(); first += rigid_waters::lanes)
            areMet = rigid_waters::projectPositions(group(first), reference, x) && areMet;
        return areMet;
    }

private:
    std::vector<Water> waters;

    rigid_waters::Group group(size_t first) const {
        const size_t rest = waters.size() - first;
        return {waters.data() + first, (int)std::min<size_t>(rest, rigid_waters::lanes)};
    }
};

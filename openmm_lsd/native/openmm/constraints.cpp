#include "constraints.h"

#include "vectors.h"

#include <algorithm>
#include <cmath>

using OpenMM::Vec3;

Constraints::Constraints(const OpenMM::System& system, double tolerance)
    : solvers(system), tolerance(tolerance), reference(system.getNumParticles()),
      projected(system.getNumParticles()) {
    for (int i = 0; i < system.getNumParticles(); i++) {
        const double mass = system.getParticleMass(i);
        inverseMasses.push_back(mass > 0 ? 1.0 / mass : 0.0);
    }
    for (int c = 0; c < system.getNumConstraints(); c++) {
        Pair pair;
        double length;
        system.getConstraintParameters(c, pair.first, pair.second, length);
        pair.squaredLength = length * length;
        pairs.push_back(pair);
    }
}

void Constraints::takeVectors(const double* at, const double* from) {
    copyIn(at, reference);
    copyIn(from, projected);
}

void Constraints::projectVelocities(const double* x, double* v) {
    takeVectors(x, v);
    solvers.applyToVelocities(reference, projected, inverseMasses, tolerance);
    copyOut(projected, v);
}

void Constraints::projectPositions(const double* at, double* x) {
    takeVectors(at, x);
    solvers.apply(reference, projected, inverseMasses, tolerance);
    if (!areMet())
        throw ConstraintError("the constraints cannot be met: positions are too far from them");
    copyOut(projected, x);
}

// The solvers do not say. Roughly: what is to be found is a solver that gave up.
bool Constraints::areMet() const {
    const double most = std::max(20.0 * tolerance, 1e-6);
    return std::all_of(pairs.begin(), pairs.end(), [&](const Pair& pair) {
        const Vec3 apart = projected[pair.first] - projected[pair.second];
        return std::abs(apart.dot(apart) - pair.squaredLength) <= most * pair.squaredLength;
    });
}

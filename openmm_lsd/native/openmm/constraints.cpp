#include "constraints.h"

#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

using OpenMM::Vec3;

Constraints::Constraints(const OpenMM::System& system, double tolerance) : tolerance(tolerance) {
    OpenMM::System rest; // without the waters
    for (int i = 0; i < system.getNumParticles(); i++) {
        const double mass = system.getParticleMass(i);
        inverseMasses.push_back(mass > 0 ? 1.0 / mass : 0.0);
        rest.addParticle(mass);
    }
    std::vector<Pair> pairs;
    for (int c = 0; c < system.getNumConstraints(); c++) {
        Pair pair;
        system.getConstraintParameters(c, pair.first, pair.second, pair.length);
        if (inverseMasses[pair.first] > 0 || inverseMasses[pair.second] > 0) // else nothing moves
            pairs.push_back(pair);
    }
    takeWaters(std::move(pairs));
    if (others.empty())
        return;
    for (const Pair& pair : others)
        rest.addConstraint(pair.first, pair.second, pair.length);
    for (int f = 0; f < system.getNumForces(); f++) // CCMA looks at them
        if (const auto* angles =
                dynamic_cast<const OpenMM::HarmonicAngleForce*>(&system.getForce(f)))
            rest.addForce(new OpenMM::HarmonicAngleForce(*angles));
    solver = std::make_unique<OpenMM::ReferenceConstraints>(rest);
    reference.resize(numParticles());
    projected.resize(numParticles());
}

// Three atoms with three constraints and no others.
void Constraints::takeWaters(std::vector<Pair> pairs) {
    std::map<std::pair<int, int>, double> lengths;
    std::map<int, std::set<int>> partners;
    for (const Pair& pair : pairs) {
        lengths[std::minmax(pair.first, pair.second)] = pair.length;
        partners[pair.first].insert(pair.second);
        partners[pair.second].insert(pair.first);
    }
    std::set<int> inWaters;
    for (const auto& [first, own] : partners) {
        if (own.size() != 2 || inWaters.count(first))
            continue;
        const int second = *own.begin(), third = *own.rbegin();
        if (partners[second] != std::set<int>{first, third} ||
            partners[third] != std::set<int>{first, second})
            continue;
        RigidWaters::Water water{{first, second, third}, {}, {}};
        const std::pair<int, int> sides[3] = {{first, second}, {first, third}, {second, third}};
        for (int a = 0; a < 3; a++) {
            const double length = lengths[std::minmax(sides[a].first, sides[a].second)];
            water.inverseMasses[a] = inverseMasses[water.atoms[a]];
            water.squares[a] = length * length;
        }
        waters.add(water);
        inWaters.insert(water.atoms, water.atoms + 3);
    }
    std::copy_if(pairs.begin(), pairs.end(), std::back_inserter(others),
                 [&](const Pair& pair) { return !inWaters.count(pair.first); });
}

void Constraints::takeVectors(const double* at, const double* from) {
    copyIn(at, reference);
    copyIn(from, projected);
}

void Constraints::projectVelocities(const double* x, double* v) {
    if (solver != nullptr) {
        takeVectors(x, v);
        solver->applyToVelocities(reference, projected, inverseMasses, tolerance);
        copyOut(projected, v);
    }
    waters.projectVelocities(x, v);
}

void Constraints::projectPositions(const double* at, double* x) {
    bool found = true;
    if (solver != nullptr) {
        takeVectors(at, x);
        solver->apply(reference, projected, inverseMasses, tolerance);
        found = areMet();
        copyOut(projected, x);
    }
    if (!waters.projectPositions(at, x) || !found)
        throw ConstraintError("the constraints cannot be met: positions are too far from them");
}

// The solver does not say. Roughly: what is to be found is a solver that gave up.
bool Constraints::areMet() const {
    const double most = std::max(20.0 * tolerance, 1e-6);
    return std::all_of(others.begin(), others.end(), [&](const Pair& pair) {
        const Vec3 apart = projected[pair.first] - projected[pair.second];
        const double square = pair.length * pair.length;
        return std::abs(apart.dot(apart) - square) <= most * square;
    });
}

// The constraints of a System, by OpenMM's solvers on the host: SETTLE for rigid water, CCMA for all
// others.

#pragma once

#include "../core/projection.h"

#include <OpenMM.h>
#include <openmm/reference/ReferenceConstraints.h>

#include <cstddef>
#include <vector>

class Constraints : public Projection {
public:
    Constraints(const OpenMM::System& system, double tolerance);

    size_t numParticles() const override { return inverseMasses.size(); }
    void projectVelocities(const double* x, double* v) override;
    void projectPositions(const double* reference, double* x) override;

private:
    struct Pair {
        int first, second;
        double squaredLength;
    };

    OpenMM::ReferenceConstraints solvers;
    double tolerance;
    std::vector<double> inverseMasses;
    std::vector<Pair> pairs;
    std::vector<OpenMM::Vec3> reference, projected; // scratch

    void takeVectors(const double* at, const double* from);
    bool areMet() const;
};

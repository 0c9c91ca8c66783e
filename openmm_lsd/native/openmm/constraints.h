// The constraints of a System: rigid water by rigid_waters.h, all others by OpenMM's solver on the
// host, CCMA.

#pragma once

#include "../core/projection.h"
#include "../core/rigid_waters.h"

#include <OpenMM.h>
#include <openmm/reference/ReferenceConstraints.h>

#include <cstddef>
#include <memory>
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
        double length;
    };

    double tolerance;
    std::vector<double> inverseMasses;
    RigidWaters waters;
    std::vector<Pair> others;
    std::unique_ptr<OpenMM::ReferenceConstraints> solver; // of the others, or null
    std::vector<OpenMM::Vec3> reference, projected;       // scratch

    void takeWaters(std::vector<Pair> pairs);
    void takeVectors(const double* at, const double* from);
    bool areMet() const;
};

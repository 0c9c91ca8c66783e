#include "python_force.h"

#include "vectors.h"

#include <vector>

void evaluatePythonForce(const OpenMM::PythonForce& force, size_t batch, size_t particles,
                         const double* positions, const double* box,
                         const std::map<std::string, double>& parameters, const Times& times,
                         double* energies, double* forces) {
    std::vector<OpenMM::Vec3> vectors(particles), boxVectors(3);
    if (box != nullptr)
        copyIn(box, boxVectors);
    for (size_t b = 0; b < batch; b++) {
        copyIn(positions + b * particles * 3, vectors);
        OpenMM::State::StateBuilder builder(times.time(b), times.stepCount(b));
        builder.setPositions(vectors);
        builder.setParameters(parameters);
        if (box != nullptr)
            builder.setPeriodicBoxVectors(boxVectors[0], boxVectors[1], boxVectors[2]);
        force.getComputation().compute(builder.getState(), energies[b],
                                       forces + b * particles * 3, true);
    }
}

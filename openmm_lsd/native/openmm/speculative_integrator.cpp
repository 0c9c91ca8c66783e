#include "speculative_integrator.h"

#include <openmm/internal/ContextImpl.h>
#include <openmm/kernels.h>

#include <iterator>
#include <sstream>
#include <utility>
#include <vector>

using MiddleKernel = OpenMM::IntegrateLangevinMiddleStepKernel;

void SpeculativeIntegrator::step(int steps) {
    movements++;
    if (middle == nullptr) {
        CustomIntegrator::step(steps);
        return;
    }
    middle->setTemperature(getGlobalVariableByName("lsd_temperature"));
    middle->setFriction(getGlobalVariableByName("lsd_friction"));
    middle->setStepSize(getStepSize());
    middle->setConstraintTolerance(getConstraintTolerance());
    for (int i = 0; i < steps; i++) {
        context->updateContextState();
        context->calcForcesAndEnergy(true, false, getIntegrationForceGroups());
        middleKernel.getAs<MiddleKernel>().execute(*context, *middle);
    }
}

void SpeculativeIntegrator::noteMovement() {
    touched = true;
    movements++;
}

void SpeculativeIntegrator::renewPlainNoise() {
    if (middle != nullptr)
        makeMiddleKernel(*context);
}

void SpeculativeIntegrator::makeMiddleKernel(OpenMM::ContextImpl& contextRef) {
    middle = std::make_unique<OpenMM::LangevinMiddleIntegrator>(300.0, 1.0, getStepSize());
    middle->setRandomNumberSeed(getRandomNumberSeed());
    middleKernel = contextRef.getPlatform().createKernel(MiddleKernel::Name(), contextRef);
    middleKernel.getAs<MiddleKernel>().initialize(contextRef.getSystem(), *middle);
}

void SpeculativeIntegrator::initialize(OpenMM::ContextImpl& contextRef) {
    if (&contextRef.getIntegrator() != this)
        throw OpenMM::OpenMMException("An LSDIntegrator cannot be part of a CompoundIntegrator");
    CustomIntegrator::initialize(contextRef);
    noteMovement();
    updates = 0;
    if (contextMade)
        contextMade(contextRef.getSystem(), contextRef.getPlatform().getName());
    if (isMiddle && contextRef.getPlatform().supportsKernels({MiddleKernel::Name()}))
        makeMiddleKernel(contextRef);
}

void SpeculativeIntegrator::cleanup() {
    middle.reset();
    middleKernel = OpenMM::Kernel();
    CustomIntegrator::cleanup();
}

void SpeculativeIntegrator::stateChanged(OpenMM::State::DataType changed) {
    CustomIntegrator::stateChanged(changed);
    noteMovement();
    if (refusesStates && (changed == OpenMM::State::Positions || changed == OpenMM::State::Velocities))
        throw OpenMM::OpenMMException("positions and velocities cannot be set in a round callback, "
                                      "while step() runs; set them between two calls of step()");
    // Parameters of a Force were updated; a checkpoint that was loaded says so, too.
    if (changed == OpenMM::State::Energy)
        updates += !std::exchange(isLoading, false);
}

double SpeculativeIntegrator::computeKineticEnergy() {
    const OpenMM::System& system = context->getSystem();
    std::vector<OpenMM::Vec3> velocities;
    context->getVelocities(velocities);
    double energy = 0.0;
    for (int i = 0; i < system.getNumParticles(); i++)
        energy += 0.5 * system.getParticleMass(i) * velocities[i].dot(velocities[i]);
    return energy;
}

void SpeculativeIntegrator::createCheckpoint(std::ostream& stream) const {
    if (!save)
        return;
    const auto* buffer = dynamic_cast<const std::stringbuf*>(stream.rdbuf());
    const std::string saved = save(buffer == nullptr ? "" : buffer->str());
    stream.write(saved.data(), saved.size());
}

void SpeculativeIntegrator::loadCheckpoint(std::istream& stream) {
    const std::string rest(std::istreambuf_iterator<char>(stream), {});
    isLoading = true;
    if (load)
        load(rest);
}

// The integrator in C++: a CustomIntegrator (plain dynamics of the target) that passes on what
// OpenMM tells its integrators: when a Context is made, when something has changed, and when a
// checkpoint is written or loaded. Plain steps of the Middle scheme are done by OpenMM's own kernel
// for it, which costs less than the expressions of a CustomIntegrator. Python does the rest.

#pragma once

#include <OpenMM.h>

#include <functional>
#include <istream>
#include <memory>
#include <ostream>
#include <string>

class SpeculativeIntegrator : public OpenMM::CustomIntegrator {
public:
    using OpenMM::CustomIntegrator::CustomIntegrator;

    // Name of the property of the integrator's XML.
    static constexpr const char* property = "openmm_lsd";

    // Whether the user may have changed the state, a parameter or a force; asking for energies does
    // not count, nor do changes of the periodic box, of which OpenMM tells nobody.
    bool touched = true;

    // How often parameters of a Force were updated in the Context, since it was made.
    int updates = 0;

    // How often positions or velocities may have been changed: told of it, or by own steps.
    long long movements = 0;

    // Whether positions and velocities are refused that somebody sets: a step is not over.
    bool refusesStates = false;

    // By how many steps velocities are behind the positions, as OpenMM understands its schemes:
    // those that setVelocitiesToTemperature() draws are shifted by so much.
    double velocityOffset = 0.0;

    // Whether plain steps are those of LangevinMiddleIntegrator.
    bool isMiddle = false;

    // To be called when a Context is made or reinitialised; for what a checkpoint is to hold after
    // the bytes before; with the bytes that one held; and for the property of the XML.
    std::function<void(const OpenMM::System&, const std::string& platform)> contextMade;
    std::function<std::string(const std::string& before)> save;
    std::function<void(const std::string& saved)> load;
    std::function<std::string()> settings;

    void step(int steps) override;

    // Positions or velocities may have changed; OpenMM does not tell of all that does so.
    void noteMovement();

    // From now on other random numbers for plain steps, unless a seed was given.
    void renewPlainNoise();

protected:
    void initialize(OpenMM::ContextImpl& contextRef) override;
    void cleanup() override;
    void stateChanged(OpenMM::State::DataType changed) override;

    // A CustomIntegrator evaluates an expression, and draws random numbers for it that the next
    // move of a barostat would miss.
    double computeKineticEnergy() override;
    bool kineticEnergyRequiresForce() const override { return false; }

    double getVelocityTimeOffset() const override { return velocityOffset * getStepSize(); }

    void createCheckpoint(std::ostream& stream) const override;
    void loadCheckpoint(std::istream& stream) override;

    // A State is a place to start from: no random numbers travel in it, nor settings, as with
    // OpenMM's own Langevin integrators.
    void serializeParameters(OpenMM::SerializationNode&) const override {}
    void deserializeParameters(const OpenMM::SerializationNode&) override {}

private:
    bool isLoading = false; // a checkpoint
    std::unique_ptr<OpenMM::LangevinMiddleIntegrator> middle; // what its kernel is told
    OpenMM::Kernel middleKernel;

    void makeMiddleKernel(OpenMM::ContextImpl& contextRef);
};

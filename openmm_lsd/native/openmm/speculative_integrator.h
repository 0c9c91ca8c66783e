// The integrator in C++: a CustomIntegrator (plain dynamics of the target) that passes on what OpenMM
// tells its integrators: when a Context is made, when something has changed, and when a checkpoint is
// written or loaded. Plain steps of the Middle scheme are done by OpenMM's own kernel for it, which costs less
// than the expressions of a CustomIntegrator. Python does the rest.

#pragma once

#include <OpenMM.h>
#include <openmm/internal/ContextImpl.h>
#include <openmm/kernels.h>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <istream>
#include <iterator>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

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

    // By how many steps velocities are behind the positions, as OpenMM understands its schemes: those
    // that setVelocitiesToTemperature() draws are shifted by so much.
    double velocityOffset = 0.0;

    // Whether plain steps are those of LangevinMiddleIntegrator.
    bool isMiddle = false;

    // What connect() in module.cpp says.
    nanobind::object save, load, contextMade, settings;

    ~SpeculativeIntegrator() override {
        nanobind::object* all[] = {&save, &load, &contextMade, &settings};
        if (!nanobind::is_alive()) {
            for (auto* each : all)
                each->release(); // the interpreter is gone
            return;
        }
        nanobind::gil_scoped_acquire acquire;
        for (auto* each : all)
            each->reset();
    }

    void step(int steps) override {
        if (middle == nullptr) {
            CustomIntegrator::step(steps);
            return;
        }
        middle->setTemperature(getGlobalVariableByName("lsd_temperature"));
        middle->setFriction(getGlobalVariableByName("lsd_friction"));
        middle->setStepSize(getStepSize());
        for (int i = 0; i < steps; i++) {
            context->updateContextState();
            context->calcForcesAndEnergy(true, false, getIntegrationForceGroups());
            middleKernel.getAs<OpenMM::IntegrateLangevinMiddleStepKernel>().execute(*context, *middle);
        }
    }

    // From now on other random numbers for plain steps, unless a seed was given.
    void renewPlainNoise() {
        if (middle != nullptr)
            makeMiddleKernel(*context);
    }

    std::string settingsText() const {
        nanobind::gil_scoped_acquire acquire;
        return settings.is_valid() ? toText(call(settings)) : "";
    }

protected:
    void initialize(OpenMM::ContextImpl& contextRef) override {
        if (&contextRef.getIntegrator() != this)
            throw OpenMM::OpenMMException(
                "An LSDIntegrator cannot be part of a CompoundIntegrator");
        CustomIntegrator::initialize(contextRef);
        touched = true;
        updates = 0;
        {
            nanobind::gil_scoped_acquire acquire;
            if (contextMade.is_valid())
                call(contextMade, reinterpret_cast<uintptr_t>(&contextRef.getSystem()),
                     contextRef.getPlatform().getName());
        }
        if (!isMiddle)
            return;
        using Kernel = OpenMM::IntegrateLangevinMiddleStepKernel;
        if (!contextRef.getPlatform().supportsKernels({Kernel::Name()}))
            return;
        makeMiddleKernel(contextRef);
    }

    void cleanup() override {
        middle.reset();
        middleKernel = OpenMM::Kernel();
        CustomIntegrator::cleanup();
    }

    void stateChanged(OpenMM::State::DataType changed) override {
        CustomIntegrator::stateChanged(changed);
        touched = true;
        // Parameters of a Force were updated; a checkpoint that was loaded says so, too.
        if (changed == OpenMM::State::Energy)
            updates += !std::exchange(isLoading, false);
    }

    // A CustomIntegrator evaluates an expression, and draws random numbers for it that the next move
    // of a barostat would miss.
    double computeKineticEnergy() override {
        const OpenMM::System& system = context->getSystem();
        std::vector<OpenMM::Vec3> velocities;
        context->getVelocities(velocities);
        double energy = 0.0;
        for (int i = 0; i < system.getNumParticles(); i++)
            energy += 0.5 * system.getParticleMass(i) * velocities[i].dot(velocities[i]);
        return energy;
    }

    bool kineticEnergyRequiresForce() const override { return false; }

    double getVelocityTimeOffset() const override { return velocityOffset * getStepSize(); }

    void createCheckpoint(std::ostream& stream) const override {
        nanobind::gil_scoped_acquire acquire;
        if (!save.is_valid())
            return;
        const auto* buffer = dynamic_cast<const std::stringbuf*>(stream.rdbuf());
        const std::string before = buffer == nullptr ? "" : buffer->str();
        const auto bytes =
            nanobind::cast<nanobind::bytes>(call(save, nanobind::bytes(before.data(), before.size())));
        stream.write(bytes.c_str(), bytes.size());
    }

    void loadCheckpoint(std::istream& stream) override {
        const std::string rest(std::istreambuf_iterator<char>(stream), {});
        isLoading = true;
        nanobind::gil_scoped_acquire acquire;
        if (load.is_valid())
            call(load, nanobind::bytes(rest.data(), rest.size()));
    }

    // A State is a place to start from: no random numbers travel in it, nor settings, as with OpenMM's
    // own Langevin integrators.
    void serializeParameters(OpenMM::SerializationNode&) const override {}

    void deserializeParameters(const OpenMM::SerializationNode&) override {}

private:
    bool isLoading = false; // a checkpoint
    std::unique_ptr<OpenMM::LangevinMiddleIntegrator> middle; // what its kernel is told
    OpenMM::Kernel middleKernel;

    void makeMiddleKernel(OpenMM::ContextImpl& contextRef) {
        using Kernel = OpenMM::IntegrateLangevinMiddleStepKernel;
        middle = std::make_unique<OpenMM::LangevinMiddleIntegrator>(300.0, 1.0, getStepSize());
        middle->setRandomNumberSeed(getRandomNumberSeed());
        middleKernel = contextRef.getPlatform().createKernel(Kernel::Name(), contextRef);
        middleKernel.getAs<Kernel>().initialize(contextRef.getSystem(), *middle);
    }

    template <class... Arguments>
    static nanobind::object call(const nanobind::object& function, Arguments&&... arguments) {
        std::string message;
        try {
            return function(std::forward<Arguments>(arguments)...);
        } catch (nanobind::python_error& error) {
            message = nanobind::str(error.value()).c_str(); // what() holds a traceback
        }
        throw OpenMM::OpenMMException(message);
    }
    static std::string toText(const nanobind::object& object) {
        return nanobind::cast<nanobind::str>(object).c_str();
    }
};

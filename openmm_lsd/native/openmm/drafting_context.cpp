#include "drafting_context.h"

#include "../core/checks.h"
#include "../core/subset.h"

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

// What the forces have in common; on a device they are asked by OpenMM's worker thread.
struct DraftingContext::Exchange {
    DraftForce standIn;
    size_t step = 0;
    bool wasAsked = false, isFinite = true;
    std::exception_ptr raised;
    std::vector<double> site, force;
    const double* vectors = nullptr; // the next
};

namespace {

void write(const double* values, size_t count, void* forces, bool areDouble) {
    if (areDouble)
        std::copy_n(values, count, static_cast<double*>(forces));
    else
        std::copy_n(values, count, static_cast<float*>(forces));
}

} // namespace

class DraftingContext::StandIn : public OpenMM::PythonForceComputation {
public:
    explicit StandIn(std::shared_ptr<Exchange> exchange) : shared(std::move(exchange)) {}

    void compute(const OpenMM::State& state, double& energy, void* forces,
                 bool areDouble) const override {
        Exchange& own = *shared;
        const auto& positions = state.getPositions();
        own.site.resize(3 * positions.size());
        own.force.assign(3 * positions.size(), 0.0);
        for (size_t i = 0; i < positions.size(); i++)
            for (size_t j = 0; j < 3; j++)
                own.site[3 * i + j] = positions[i][(int)j];
        energy = 0.0;
        own.wasAsked = true;
        own.isFinite = allFinite(own.site.data(), own.site.size());
        if (own.isFinite && own.standIn)
            try {
                own.standIn(own.step, own.site.data(), own.force.data());
            } catch (...) { // not through OpenMM's kernels
                own.raised = std::current_exception();
                std::fill(own.force.begin(), own.force.end(), 0.0);
            }
        write(own.force.data(), own.force.size(), forces, areDouble);
    }

private:
    std::shared_ptr<Exchange> shared;
};

class DraftingContext::Vectors : public OpenMM::PythonForceComputation {
public:
    Vectors(std::shared_ptr<Exchange> exchange, size_t particles)
        : shared(std::move(exchange)), components(3 * particles), zeros(components) {}

    void compute(const OpenMM::State&, double& energy, void* forces,
                 bool areDouble) const override {
        energy = 0.0;
        const double* from = shared->vectors;
        write(from == nullptr ? zeros.data() : from, components, forces, areDouble);
        if (from != nullptr)
            shared->vectors += components;
    }

private:
    std::shared_ptr<Exchange> shared;
    size_t components;
    std::vector<double> zeros;
};

DraftingContext::DraftingContext(OpenMM::System& system, const std::vector<int>& subset,
                                 int standInGroup, int vectorGroup)
    : particles(subset.size()), exchange(std::make_shared<Exchange>()) {
    auto* standIn = new OpenMM::PythonForce(new StandIn(exchange), {}, subset);
    standIn->setForceGroup(standInGroup);
    system.addForce(standIn);
    auto* vectors = new OpenMM::PythonForce(new Vectors(exchange, particles), {}, subset);
    vectors->setForceGroup(vectorGroup);
    system.addForce(vectors);
}

OpenMM::CustomIntegrator& DraftingContext::program() const {
    if (integrator == nullptr)
        throw std::logic_error("there is no Context to draft in");
    return *integrator;
}

DraftingContext::Reached DraftingContext::draft(size_t length, const bool* cmRemovals,
                                                const double* kicks, const DraftForce& standIn) {
    OpenMM::CustomIntegrator& steps = program();
    Exchange& own = *exchange;
    struct Guard {
        Exchange& own;
        ~Guard() { own.standIn = nullptr, own.vectors = nullptr; }
    } guard{own};
    own.standIn = standIn;
    steps.setGlobalVariableByName("mode", 0.0);
    Reached reached{0, 0, false};
    for (size_t k = 0; k < length; k++) {
        own.step = k;
        own.wasAsked = false;
        own.isFinite = true;
        own.raised = nullptr;
        own.vectors = kicks + 3 * particles * k;
        steps.setGlobalVariableByName("slot", (double)k);
        steps.setGlobalVariableByName("removal", cmRemovals[k] ? 1.0 : 0.0);
        std::string wrong;
        try {
            steps.step(1);
        } catch (const std::exception& error) { // OpenMM's own, where coordinates are not finite
            wrong = error.what();
        }
        if (own.raised && k == 0)
            std::rethrow_exception(own.raised);
        if (wrong.empty() && !own.wasAsked)
            throw std::logic_error("the drafting program has not asked for forces");
        if (!wrong.empty() || !own.isFinite) {
            if (k == 0)
                throw SharedForceError("the forces that it shares with the draft: " +
                                       (wrong.empty() ? "positions are not finite" : wrong));
            reached.isBroken = true;
            reached.state = own.wasAsked && own.isFinite ? k : k - 1;
            break;
        }
        reached.state = k + 1;
        if (own.raised)
            break;
        reached.sites = k + 1;
    }
    return reached;
}

void DraftingContext::run(const double* vectors) {
    exchange->vectors = vectors;
    program().step(1);
    exchange->vectors = nullptr;
}

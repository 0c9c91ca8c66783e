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

// Nothing is handed out after a call.
struct DraftingContext::Guard {
    Exchange& own;
    explicit Guard(Exchange& exchange) : own(exchange) {}
    ~Guard() { own.standIn = nullptr, own.vectors = nullptr; }
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

void DraftingContext::attach(OpenMM::Context& made, size_t longestWindow) {
    context = &made;
    integrator = dynamic_cast<OpenMM::CustomIntegrator*>(&made.getIntegrator());
    capacity = longestWindow;
    for (int i = 0; i < made.getSystem().getNumParticles(); i++)
        hasVirtualSites = hasVirtualSites || made.getSystem().isVirtualSite(i);
}

void DraftingContext::set(const std::string& name, double value) {
    if (integrator == nullptr)
        throw std::logic_error("there is no Context to draft in");
    integrator->setGlobalVariableByName(name, value);
}

void DraftingContext::forget() {
    present.windows++;
    present.drafted = present.state = present.begunFrom = 0;
    present.isBroken = false;
}

void DraftingContext::goTo(const Move& move) {
    if (move.state > present.drafted)
        throw std::logic_error("the window has no such state");
    const size_t from = present.isBroken ? 0 : present.state;
    set("mode", present.isBroken ? 2.0 : 1.0);
    for (size_t k = 0; k < capacity; k++) {
        const bool done = from <= k && k < move.state, undone = move.state <= k && k < from;
        set("along" + std::to_string(k), done ? 1.0 : undone ? -1.0 : 0.0);
    }
    for (size_t k = 0; k <= capacity; k++)
        set("pick" + std::to_string(k), k == move.state ? 1.0 : 0.0);
    for (int j = 0; j < 3; j++) {
        const std::string axis(1, "xyz"[j]);
        set("shift_" + axis, move.shift == nullptr ? 0.0 : move.shift[j]);
        set("drift_" + axis, move.drift == nullptr ? 0.0 : move.drift[j]);
    }
    const Guard guard(*exchange);
    exchange->vectors = move.vectors;
    present.isBroken = true; // until it is done
    integrator->step(1);
    if (hasVirtualSites) // a device leaves them where they were
        context->computeVirtualSites();
    present.state = move.state;
    present.isBroken = false;
}

size_t DraftingContext::draft(const Move* move, size_t length, const bool* cmRemovals,
                              const double* kicks, const DraftForce& standIn) {
    if (length > capacity)
        throw std::invalid_argument("the window is longer than there is room for");
    if (move != nullptr)
        goTo(*move);
    // From now on it is the first state of the next window, or of the same once more.
    const size_t begunFrom = present.state;
    if (move == nullptr || begunFrom > 0) {
        forget();
        present.begunFrom = begunFrom;
    }
    present.drafted = present.state = 0;
    Exchange& own = *exchange;
    const Guard guard(own);
    own.standIn = standIn;
    set("mode", 0.0);
    size_t sites = 0;
    for (size_t k = 0; k < length; k++) {
        own.step = k;
        own.wasAsked = false;
        own.isFinite = true;
        own.raised = nullptr;
        own.vectors = kicks + 3 * particles * k;
        set("slot", (double)k);
        set("removal", cmRemovals[k] ? 1.0 : 0.0);
        present.isBroken = true; // until the step is done
        std::string wrong;
        try {
            integrator->step(1);
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
            present.drafted = own.wasAsked && own.isFinite ? k : k - 1;
            break;
        }
        present.isBroken = false;
        present.drafted = present.state = k + 1;
        if (own.raised)
            break;
        sites = k + 1;
    }
    return sites;
}

#include "context_access.h"

#include "../core/checks.h"
#include "barostats.h"
#include "devices.h"
#include "force_classes.h"
#include "molecules.h"
#include "speculative_integrator.h"
#include "vectors.h"

#include <openmm/internal/ContextImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

using OpenMM::Vec3;

namespace {

// Protected members, reachable from a derived class.
struct IntegratorAccess : OpenMM::Integrator {
    static OpenMM::ContextImpl& implOf(OpenMM::Integrator& integrator) {
        return *(integrator.*(&IntegratorAccess::context));
    }
    static OpenMM::Context* contextOf(OpenMM::Integrator& integrator) {
        const bool bound = integrator.*(&IntegratorAccess::context) != nullptr;
        return bound ? integrator.*(&IntegratorAccess::owner) : nullptr;
    }
};

std::vector<Vec3> boxOf(const OpenMM::State& state) {
    std::vector<Vec3> result(3);
    state.getPeriodicBoxVectors(result[0], result[1], result[2]);
    return result;
}

} // namespace

ContextAccess::ContextAccess(uintptr_t integratorAddress)
    : integrator(reinterpret_cast<OpenMM::Integrator*>(integratorAddress)) {
    const OpenMM::System& system = context().getSystem();
    for (int i = 0; i < system.getNumParticles(); i++)
        hasVirtualSites = hasVirtualSites || system.isVirtualSite(i);
    onDevice = isOnDevice(context().getPlatform());
    precision = precisionOf(context());
    wraps = onDevice && !isInDoublePrecision(context()) && hasPeriodicCutoff(system);
}

OpenMM::Context& ContextAccess::context() const {
    OpenMM::Context* owner = IntegratorAccess::contextOf(*integrator);
    if (owner == nullptr)
        throw OpenMM::OpenMMException("This Integrator is not bound to a context!");
    return *owner;
}

OpenMM::ContextImpl& ContextAccess::implementation() const {
    context();
    return IntegratorAccess::implOf(*integrator);
}

SpeculativeIntegrator& ContextAccess::speculative() const {
    context();
    auto* result = dynamic_cast<SpeculativeIntegrator*>(integrator);
    if (result == nullptr)
        throw std::invalid_argument("only a SpeculativeIntegrator tells of changes");
    return *result;
}

OpenMM::State ContextAccess::getState() const {
    // No forces, no group: raises if the positions have never been set.
    implementation().calcForcesAndEnergy(false, false, 0);
    OpenMM::State state =
        context().getState(OpenMM::State::Positions | OpenMM::State::Velocities);
    remember(state.getPositions(), state.getVelocities());
    return state;
}

// As what the Context holds from now on.
void ContextAccess::remember(const std::vector<Vec3>& newPositions,
                             const std::vector<Vec3>& newVelocities) const {
    const auto* own = dynamic_cast<const SpeculativeIntegrator*>(integrator);
    if (own == nullptr)
        return;
    positions = newPositions;
    velocities = newVelocities;
    known = own->movements;
}

void ContextAccess::takeVectors(const double* from, size_t particles) {
    checkParticles(particles, numParticles());
    vectors.resize(particles);
    copyIn(from, vectors);
}

void ContextAccess::setVectorsAsPositions() {
    context().setPositions(vectors);
    if (hasVirtualSites)
        context().computeVirtualSites();
}

void ContextAccess::setState(const double* newPositions, const double* newVelocities,
                             size_t particles) {
    takeVectors(newPositions, particles);
    setVectorsAsPositions();
    std::vector<Vec3> asSet(particles);
    copyIn(newVelocities, asSet);
    context().setVelocities(asSet);
    if (!hasVirtualSites)
        remember(vectors, asSet);
}

std::vector<Vec3> ContextAccess::box() const { return boxOf(context().getState(0)); }

void ContextAccess::setBox(const double* boxVectors) {
    std::vector<Vec3> v(3);
    copyIn(boxVectors, v);
    context().setPeriodicBoxVectors(v[0], v[1], v[2]);
}

std::tuple<double, double, double, int, uint32_t, double> ContextAccess::getSettings() const {
    SpeculativeIntegrator& own = speculative();
    return {own.getGlobalVariableByName("lsd_temperature"),
            own.getGlobalVariableByName("lsd_friction"), own.getStepSize(),
            own.getRandomNumberSeed(), static_cast<uint32_t>(own.getIntegrationForceGroups()),
            own.getConstraintTolerance()};
}

int ContextAccess::updates() const { return speculative().updates; }

void ContextAccess::refuseStates(bool refuse) { speculative().refusesStates = refuse; }

void ContextAccess::renewPlainNoise() { speculative().renewPlainNoise(); }

bool ContextAccess::maybeDirty() const {
    if (!wasEverClean || speculative().touched || box() != cleanBox)
        return true;
    return !onDevice && context().getState(OpenMM::State::Positions).getPositions() !=
                            cleanPositions;
}

// What was set and what is read differ by the rounding of a device.
bool ContextAccess::isSame(const std::vector<Vec3>& before, const std::vector<Vec3>& now) const {
    if (!onDevice || precision == "double")
        return now == before;
    // In mixed precision a position is the sum of two numbers in single precision.
    constexpr double rounding = 1e-14;
    for (size_t i = 0; i < now.size(); i++)
        for (int j = 0; j < 3; j++) {
            const double was = before[i][j], is = now[i][j];
            if (precision == "single" ? (float)is != (float)was
                                      : !(std::abs(is - was) <= rounding * std::abs(was)))
                return false;
        }
    return true;
}

bool ContextAccess::stateChanged() const {
    if (!wasEverClean)
        return true;
    const OpenMM::State now =
        context().getState(OpenMM::State::Positions | OpenMM::State::Velocities);
    return !isSame(cleanPositions, now.getPositions()) ||
           !isSame(cleanVelocities, now.getVelocities()) || boxOf(now) != cleanBox;
}

std::vector<std::string> ContextAccess::changedParameters() const {
    std::vector<std::string> names;
    for (const auto& [name, value] : context().getParameters()) {
        const auto found = cleanParameters.find(name);
        if (found == cleanParameters.end() || found->second != value)
            names.push_back(name);
    }
    return names;
}

void ContextAccess::markParameters() { cleanParameters = context().getParameters(); }

void ContextAccess::markClean() {
    if (known != speculative().movements)
        getState();
    cleanPositions = positions;
    cleanVelocities = velocities;
    cleanBox = box();
    wasEverClean = true;
    speculative().touched = !changedParameters().empty();
}

std::map<std::string, std::string> ContextAccess::getProperties() const {
    std::map<std::string, std::string> properties;
    OpenMM::Platform& platform = context().getPlatform();
    for (const std::string& name : platform.getPropertyNames())
        properties[name] = platform.getPropertyValue(context(), name);
    return properties;
}

std::optional<long long> ContextAccess::stepsBeforeMove() const {
    const long long steps = barostats::stepsBeforeMove(implementation());
    return steps == barostats::never ? std::nullopt : std::optional(steps);
}

void ContextAccess::countSteps(int steps) { barostats::countSteps(implementation(), steps); }

void ContextAccess::beginStep() {
    speculative().movements++;
    barostats::beginStep(implementation());
}

std::vector<double> ContextAccess::barostatMemory() const {
    return barostats::readMemory(implementation());
}

void ContextAccess::setBarostatMemory(const double* values, size_t count) {
    barostats::writeMemory(implementation(), values, count);
}

void ContextAccess::placeVirtualSites(size_t batch, size_t particles, const double* positions,
                                      double* result) {
    for (size_t b = 0; b < batch; b++) {
        takeVectors(positions + b * particles * 3, particles);
        setVectorsAsPositions();
        copyOut(context().getState(OpenMM::State::Positions).getPositions(),
                result + b * particles * 3);
    }
}

void ContextAccess::evaluate(size_t batch, size_t particles, const double* positions, int groups,
                             const Times& times, double* energies, double* forces) {
    for (size_t b = 0; b < batch; b++) {
        setTime(times, b);
        double* force = forces + b * particles * 3;
        setSite(positions + b * particles * 3, particles);
        energies[b] = implementation().calcForcesAndEnergy(true, true, groups);
        copyForces(force);
        if (std::isnan(energies[b]) && allFinite(force, 3 * particles))
            std::fill(force, force + 3 * particles, std::numeric_limits<double>::quiet_NaN());
    }
}

void ContextAccess::forces(size_t batch, size_t particles, const double* positions, int groups,
                           const Times& times, double* result) {
    for (size_t b = 0; b < batch; b++) {
        setTime(times, b);
        setSite(positions + b * particles * 3, particles);
        implementation().calcForcesAndEnergy(true, false, groups);
        copyForces(result + b * particles * 3);
    }
}

void ContextAccess::forcesAt(const double* positions, const Times& times, size_t row,
                             double* result) {
    setTime(times, row);
    setSite(positions, numParticles());
    implementation().calcForcesAndEnergy(true, false, integrator->getIntegrationForceGroups());
    copyForces(result);
}

void ContextAccess::setTime(const Times& times, size_t row) {
    if (!times.areGiven())
        return;
    context().setTime(times.time(row));
    context().setStepCount(times.stepCount(row));
}

// Positions at which forces are asked for, which may be those of any image of the molecules.
void ContextAccess::setSite(const double* positions, size_t particles) {
    evaluated++;
    takeVectors(positions, particles);
    if (wraps)
        wrapMolecules();
    setVectorsAsPositions();
}

// By whole molecules, in double precision, as a device wraps them.
void ContextAccess::wrapMolecules() {
    Vec3 a, b, c;
    implementation().getPeriodicBoxVectors(a, b, c);
    if (molecules.empty())
        molecules = joinedMolecules(context().getSystem(), implementation().getMolecules());
    for (const auto& molecule : molecules) {
        Vec3 centre;
        for (int atom : molecule)
            centre += vectors[atom] / (double)molecule.size();
        Vec3 shift = c * std::floor(centre[2] / c[2]);
        shift += b * std::floor((centre - shift)[1] / b[1]);
        shift += a * std::floor((centre - shift)[0] / a[0]);
        for (int atom : molecule)
            vectors[atom] -= shift;
    }
}

// Those that were computed last.
void ContextAccess::copyForces(double* forces) {
    implementation().getForces(vectors);
    copyOut(vectors, forces);
    if (onDevice)
        markFailures(forces, 3 * vectors.size());
}

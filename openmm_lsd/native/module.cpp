// What must not pay Python's price: the state of a Context as arrays, forces of many positions in
// one call, and the draft rollout of a window. The readable reference of rollout and commit is engine.NumpyEngine.

#include "core/differences.h"
#include "core/local_jacobian.h"
#include "core/prediction.h"
#include "core/valence.h"
#include "openmm/barostats.h"
#include "openmm/serialization_proxies.h"
#include "openmm/speculative_integrator.h"

#include <OpenMM.h>
#include <openmm/internal/ContextImpl.h>
#include <openmm/reference/SimTKOpenMMUtilities.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cxxabi.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <typeinfo>
#include <vector>

namespace nb = nanobind;
using OpenMM::Vec3;

static_assert(sizeof(Vec3) == 3 * sizeof(double), "arrays of Vec3 are copied as arrays of double");

using Vectors = nb::ndarray<const double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using VectorBatch = nb::ndarray<const double, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Masses = nb::ndarray<const double, nb::shape<-1, 1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const bool, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using IntVector = nb::ndarray<const int32_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using IntFours = nb::ndarray<const int32_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;
using IntMatrix = nb::ndarray<const int32_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const double, nb::shape<-1, -1, 3, 3>, nb::c_contig, nb::device::cpu>;
using DoubleVector = nb::ndarray<const double, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using LongVector = nb::ndarray<const int64_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OwnMatrix = nb::ndarray<double, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OwnMatrices = nb::ndarray<double, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using Matrices = nb::ndarray<const double, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using OwnVector = nb::ndarray<double, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using NumpyArray = nb::ndarray<nb::numpy, double>;

namespace {

// The Context that owns an integrator: protected members, reachable from a derived class.
struct IntegratorAccess : OpenMM::Integrator {
    static OpenMM::ContextImpl& implOf(OpenMM::Integrator& integrator) {
        return *(integrator.*(&IntegratorAccess::context));
    }
    static OpenMM::Context* contextOf(OpenMM::Integrator& integrator) {
        const bool bound = integrator.*(&IntegratorAccess::context) != nullptr;
        return bound ? integrator.*(&IntegratorAccess::owner) : nullptr;
    }
};

// A NumPy array that owns new memory.
struct Buffer {
    std::vector<size_t> shape;
    std::unique_ptr<double[]> data;
    size_t size = 1;

    explicit Buffer(std::vector<size_t> shape_) : shape(std::move(shape_)) {
        for (size_t length : shape)
            size *= length;
        data.reset(new double[size]);
    }
    NumpyArray numpy() {
        double* pointer = data.release();
        nb::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<double*>(p); });
        return NumpyArray(pointer, shape.size(), shape.data(), owner);
    }
};

// Whether a platform computes elsewhere than on this processor, and in single precision unless told
// otherwise.
bool isOnDevice(const OpenMM::Platform& platform) {
    return platform.getName() != "Reference" && platform.getName() != "CPU";
}

bool isInDoublePrecision(const OpenMM::Context& context) {
    const OpenMM::Platform& platform = context.getPlatform();
    for (const std::string& name : platform.getPropertyNames())
        if (name == "Precision")
            return platform.getPropertyValue(context, name) == "double";
    return false;
}

std::string className(const OpenMM::Force& force) {
    char* name = abi::__cxa_demangle(typeid(force).name(), nullptr, nullptr, nullptr);
    const std::string result = name == nullptr ? typeid(force).name() : name;
    std::free(name);
    return result;
}

// Whether there are neighbour lists of a periodic box: then a device wraps molecules by itself.
bool hasPeriodicCutoff(const OpenMM::System& system) {
    for (int i = 0; i < system.getNumForces(); i++) {
        const std::string name = className(system.getForce(i));
        for (const char* kind : {"Nonbonded", "GayBerne", "AmoebaVdw", "AmoebaMultipole"})
            if (name.find(kind) != std::string::npos &&
                system.getForce(i).usesPeriodicBoundaryConditions())
                return true;
    }
    return false;
}

// On a device forces are sums of integers: one that is NaN, or too large, arrives as the last of them.
constexpr double lastOfFixedPoint = 2147483000.0; // kJ/mol/nm

void markFailures(double* forces, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (std::abs(forces[i]) >= lastOfFixedPoint)
            forces[i] = std::numeric_limits<double>::quiet_NaN();
}

void copyOut(const std::vector<Vec3>& from, double* to) {
    std::memcpy(to, from.data(), from.size() * sizeof(Vec3));
}

bool allFinite(const double* values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(values[i]))
            return false;
    return true;
}

// schemes.py, on whole arrays of positions, velocities and so on, each of ``components`` numbers.
struct Scheme {
    bool aboba;
    double stepSize, decay;

    Scheme(const std::string& name, double stepSize, double decay)
        : aboba(name == "aboba"), stepSize(stepSize), decay(decay) {
        if (!aboba && name != "middle")
            throw std::invalid_argument("no native scheme '" + name + "'");
    }

    void findSite(size_t components, const double* x, const double* v, double* site) const {
        if (!aboba)
            std::copy_n(x, components, site);
        else
            for (size_t i = 0; i < components; i++)
                site[i] = x[i] + 0.5 * stepSize * v[i];
    }

    // Positions and velocities become those after the step.
    void step(size_t components, double* x, double* v, const double* acceleration,
              const double* kick) const {
        if (aboba)
            for (size_t i = 0; i < components; i++) {
                const double q = x[i] + 0.5 * stepSize * v[i];
                v[i] = decay * v[i] + 0.5 * (1.0 + decay) * stepSize * acceleration[i] + kick[i];
                x[i] = q + 0.5 * stepSize * v[i];
            }
        else
            for (size_t i = 0; i < components; i++) {
                const double half = v[i] + stepSize * acceleration[i];
                v[i] = decay * half + kick[i];
                x[i] += 0.5 * stepSize * (half + v[i]);
            }
    }

    void findKickShift(size_t components, const double* vTarget, const double* vDraft,
                       const double* accelerationOfTarget, const double* accelerationOfDraft,
                       double* shift) const {
        for (size_t i = 0; i < components; i++) {
            const double difference = stepSize * (accelerationOfTarget[i] - accelerationOfDraft[i]);
            shift[i] = aboba ? 0.5 * (1.0 + decay) * difference
                             : (1.0 + decay) * (vTarget[i] - vDraft[i] + difference);
        }
    }
};

// transport.py, in place: noise becomes that of the target step. Whether it is accepted.
bool transport(double* noise, const double* shift, double logUniform, size_t components) {
    double overlap = 0.0, squared = 0.0, scale = 1.0;
    const auto project = [&] {
        overlap = squared = 0.0;
        for (size_t i = 0; i < components; i++) {
            overlap += noise[i] * (shift[i] / scale);
            squared += (shift[i] / scale) * (shift[i] / scale);
        }
    };
    project();
    if (logUniform <= overlap - 0.5 * squared) {
        for (size_t i = 0; i < components; i++)
            noise[i] -= shift[i];
        return true;
    }
    if (!std::isfinite(squared)) {
        scale = 0.0;
        for (size_t i = 0; i < components; i++)
            scale = std::max(scale, std::abs(shift[i]));
        project();
    }
    for (size_t i = 0; i < components; i++)
        noise[i] -= 2.0 * overlap / squared * (shift[i] / scale);
    return false;
}

void removeCmMotion(std::vector<double>& v, const double* masses) {
    double momentum[3] = {0.0, 0.0, 0.0}, total = 0.0;
    for (size_t i = 0; i < v.size() / 3; i++) {
        total += masses[i];
        for (int j = 0; j < 3; j++)
            momentum[j] += masses[i] * v[3 * i + j];
    }
    for (size_t i = 0; i < v.size() / 3; i++)
        if (masses[i] > 0)
            for (int j = 0; j < 3; j++)
                v[3 * i + j] -= momentum[j] / total;
}

void checkParticles(size_t given, size_t expected) {
    if (given != expected)
        throw std::invalid_argument("got arrays for " + std::to_string(given) +
                                    " particles; the System has " + std::to_string(expected));
}

// Time and step count of each state of a batch, or neither.
struct Times {
    std::optional<DoubleVector> times;
    std::optional<LongVector> stepCounts;

    Times(std::optional<DoubleVector> times, std::optional<LongVector> stepCounts, size_t batch)
        : times(times), stepCounts(stepCounts) {
        if (times.has_value() != stepCounts.has_value() ||
            (times && (times->shape(0) != batch || stepCounts->shape(0) != batch)))
            throw std::invalid_argument("times and step counts must be given for every state");
    }
    double time(size_t row) const { return times ? times->data()[row] : 0.0; }
    long long stepCount(size_t row) const { return stepCounts ? stepCounts->data()[row] : 0; }
};

void checkNeighbours(const IntMatrix& neighbours, size_t particles) {
    for (size_t i = 0; i < neighbours.size(); i++)
        if (neighbours.data()[i] < 0 || (size_t)neighbours.data()[i] >= particles)
            throw std::invalid_argument("a neighbour is an atom that is not there");
}

LocalJacobian jacobianOf(IntMatrix neighbours, Blocks blocks, size_t particles) {
    if (neighbours.shape(0) != particles || blocks.shape(0) != particles ||
        blocks.shape(1) != neighbours.shape(1))
        throw std::invalid_argument("the arrays of a derivative do not fit together");
    checkNeighbours(neighbours, particles);
    return {particles, neighbours.shape(1), neighbours.data(), blocks.data()};
}

// Of the draft's force at each step; see corrections.Corrections.
class Corrections {
public:
    Corrections(VectorBatch forces, std::optional<VectorBatch> sites,
                std::optional<IntMatrix> neighbours, std::optional<Blocks> blocks,
                std::optional<VectorBatch> moved, std::optional<VectorBatch> changed,
                Masses masses)
        : forces(forces), sites(sites), neighbours(neighbours), moved(moved), changed(changed),
          masses(masses) {
        if (sites.has_value() != neighbours.has_value() || sites.has_value() != blocks.has_value())
            throw std::invalid_argument("sites, neighbours and blocks must be given together");
        if (moved.has_value() != changed.has_value() || (moved.has_value() && !sites))
            throw std::invalid_argument("secants must be given with sites, both arrays of them");
        checkParticles(masses.shape(0), particles());
        for (const auto& each : {moved, changed})
            if (each && (each->shape(0) != length() || each->shape(1) != particles()))
                throw std::invalid_argument("the arrays of corrections do not fit together");
        if (!sites)
            return;
        if (sites->shape(0) != length() || sites->shape(1) != particles())
            throw std::invalid_argument("the arrays of corrections do not fit together");
        jacobian = jacobianOf(*neighbours, *blocks, particles());
        displacements.resize(4 * particles());
        secants.resize(4 * particles());
        for (auto* each : {&shares, &products, &squares, &along, &square})
            each->resize(particles());
    }

    size_t length() const { return forces.shape(0); }
    size_t particles() const { return forces.shape(1); }

    // Those of step k at a site, both (N, 3).
    void take(size_t k, const double* site, double* result) {
        const size_t components = 3 * particles();
        std::memcpy(result, forces.data() + k * components, components * sizeof(double));
        if (!jacobian)
            return;
        LocalJacobian::subtract(site, sites->data() + k * components, particles(),
                                displacements.data());
        if (!moved) {
            jacobian->addTo(result, displacements.data());
            return;
        }
        const double* secant = moved->data() + k * components;
        const double* change = changed->data() + k * components;
        for (size_t i = 0; i < particles(); i++)
            std::copy_n(secant + 3 * i, 3, secants.data() + 4 * i);
        findShares();
        for (size_t c = 0; c < components; c++)
            result[c] += shares[c / 3] * change[c];
        jacobian->addTo(result, displacements.data(), secants.data(), shares.data());
    }

private:
    // As in jacobian.py.
    static constexpr double ridge = 0.03, largestShare = 1.5;

    // See LocalJacobian.with_secant.
    void findShares() {
        for (size_t i = 0; i < particles(); i++) {
            const double *s = secants.data() + 4 * i, *d = displacements.data() + 4 * i;
            products[i] = masses.data()[i] * (s[0] * d[0] + s[1] * d[1] + s[2] * d[2]);
            squares[i] = masses.data()[i] * (s[0] * s[0] + s[1] * s[1] + s[2] * s[2]);
        }
        jacobian->sumNear(products.data(), along.data());
        jacobian->sumNear(squares.data(), square.data());
        for (size_t i = 0; i < particles(); i++) {
            square[i] *= 1.0 + ridge;
            const bool usable =
                square[i] > 0 && std::isfinite(square[i]) && std::isfinite(along[i]);
            shares[i] =
                usable ? std::clamp(along[i] / square[i], -largestShare, largestShare) : 0.0;
        }
    }

    VectorBatch forces;
    std::optional<VectorBatch> sites;
    std::optional<IntMatrix> neighbours; // of ``jacobian``
    std::optional<VectorBatch> moved, changed;
    Masses masses;
    std::optional<LocalJacobian> jacobian;
    std::vector<double> displacements, secants;                   // scratch, (N, 4)
    std::vector<double> shares, products, squares, along, square; // (N,)
};

using RolloutResult = std::tuple<size_t, NumpyArray, NumpyArray, NumpyArray, NumpyArray>;

// See engine.py for the equations, shapes and rules; returns the number of drafted steps, too.
// forcesAt(k, site, force) writes the draft force at the site of step k, both (N, 3).
template <class Forces>
RolloutResult draftWindow(const Scheme& scheme, Masses masses, Vectors startPositions,
                          Vectors startVelocities, Corrections corrections, VectorBatch kicks,
                          Flags cmRemovals, Forces&& forcesAt) {
    const size_t length = corrections.length(), particles = masses.shape(0);
    const size_t components = 3 * particles;
    for (size_t given : {startPositions.shape(0), startVelocities.shape(0),
                         corrections.particles(), kicks.shape(1)})
        checkParticles(given, particles);
    if (kicks.shape(0) != length || cmRemovals.shape(0) != length)
        throw std::invalid_argument("corrections, kicks and removals differ in length");

    Buffer sites({length, particles, 3}), velocities(sites.shape), forces(sites.shape),
        added(sites.shape);
    size_t drafted = length;
    {
        nb::gil_scoped_release release;
        std::vector<double> x(startPositions.data(), startPositions.data() + components);
        std::vector<double> v(startVelocities.data(), startVelocities.data() + components);
        std::vector<double> acceleration(components);
        for (size_t k = 0; k < length; k++) {
            if (cmRemovals.data()[k])
                removeCmMotion(v, masses.data());
            double* site = sites.data.get() + k * components;
            double* force = forces.data.get() + k * components;
            scheme.findSite(components, x.data(), v.data(), site);
            if (k > 0 && !allFinite(site, components)) {
                drafted = k;
                break;
            }
            try {
                forcesAt(k, site, force);
            } catch (const std::exception&) {
                if (k == 0)
                    throw;
                drafted = k;
                break;
            }
            if (!allFinite(force, components))
                std::fill(force, force + components, 0.0);
            std::memcpy(velocities.data.get() + k * components, v.data(),
                        components * sizeof(double));
            double* correction = added.data.get() + k * components;
            corrections.take(k, site, correction);
            if (k + 1 == length)
                break;
            for (size_t i = 0; i < components; i++) {
                const double mass = masses.data()[i / 3];
                acceleration[i] = mass > 0 ? (force[i] + correction[i]) / mass : 0.0;
            }
            scheme.step(components, x.data(), v.data(), acceleration.data(),
                        kicks.data() + k * components);
        }
    }
    return {drafted, sites.numpy(), velocities.numpy(), forces.numpy(), added.numpy()};
}

using CommitResult = std::tuple<NumpyArray, NumpyArray, std::vector<double>, bool>;

// See engine.py for the equations, shapes and rules.
CommitResult commitWindow(const Scheme& scheme, Masses masses, Masses noiseScale,
                          Vectors startPositions, Vectors startVelocities,
                          VectorBatch draftVelocities, VectorBatch targetForces,
                          VectorBatch draftForces, VectorBatch noise, DoubleVector logUniforms,
                          Flags cmRemovals) {
    const size_t length = noise.shape(0), verified = targetForces.shape(0);
    const size_t particles = masses.shape(0), components = 3 * particles;
    for (size_t given : {noiseScale.shape(0), startPositions.shape(0), startVelocities.shape(0),
                         draftVelocities.shape(1), targetForces.shape(1), draftForces.shape(1),
                         noise.shape(1)})
        checkParticles(given, particles);
    if (logUniforms.shape(0) != length || cmRemovals.shape(0) != length || verified < 1 ||
        verified > length || draftVelocities.shape(0) < verified ||
        draftForces.shape(0) != verified)
        throw std::invalid_argument("the arrays of a window differ in length");

    Buffer positions({verified, particles, 3}), velocities(positions.shape);
    std::vector<double> shifts;
    bool accepted = true;
    size_t committed = 0;
    {
        nb::gil_scoped_release release;
        std::vector<double> x(startPositions.data(), startPositions.data() + components);
        std::vector<double> v(startVelocities.data(), startVelocities.data() + components);
        std::vector<double> acceleration(components), drafted(components), shift(components),
            xi(components);
        while (committed < verified && accepted) {
            const size_t k = committed++, row = k * components;
            if (cmRemovals.data()[k])
                removeCmMotion(v, masses.data());
            for (size_t i = 0; i < components; i++) {
                const double mass = masses.data()[i / 3];
                acceleration[i] = mass > 0 ? targetForces.data()[row + i] / mass : 0.0;
                drafted[i] = mass > 0 ? draftForces.data()[row + i] / mass : 0.0;
            }
            std::copy_n(noise.data() + row, components, xi.begin());
            if (k + 1 < length) {
                scheme.findKickShift(components, v.data(), draftVelocities.data() + row,
                                     acceleration.data(), drafted.data(), shift.data());
                double squared = 0.0;
                for (size_t i = 0; i < components; i++) {
                    const double scale = noiseScale.data()[i / 3];
                    shift[i] = scale > 0 ? shift[i] / scale : 0.0;
                    squared += shift[i] * shift[i];
                }
                shifts.push_back(std::sqrt(squared));
                accepted = transport(xi.data(), shift.data(), logUniforms.data()[k], components);
            }
            for (size_t i = 0; i < components; i++)
                xi[i] *= noiseScale.data()[i / 3];
            scheme.step(components, x.data(), v.data(), acceleration.data(), xi.data());
            std::copy(x.begin(), x.end(), positions.data.get() + row);
            std::copy(v.begin(), v.end(), velocities.data.get() + row);
        }
    }
    positions.shape[0] = velocities.shape[0] = committed;
    return {positions.numpy(), velocities.numpy(), shifts, accepted};
}

class ContextAccess {
public:
    explicit ContextAccess(uintptr_t integratorAddress)
        : integrator(reinterpret_cast<OpenMM::Integrator*>(integratorAddress)) {
        const OpenMM::System& system = context().getSystem();
        for (int i = 0; i < system.getNumParticles(); i++)
            hasVirtualSites = hasVirtualSites || system.isVirtualSite(i);
        onDevice = isOnDevice(context().getPlatform());
        wraps = onDevice && !isInDoublePrecision(context()) && hasPeriodicCutoff(system);
    }

    // Looked up at every use: the Context may have been deleted.
    OpenMM::Context& context() const {
        OpenMM::Context* owner = IntegratorAccess::contextOf(*integrator);
        if (owner == nullptr)
            throw OpenMM::OpenMMException("This Integrator is not bound to a context!");
        return *owner;
    }

    size_t numParticles() const { return context().getSystem().getNumParticles(); }

    std::tuple<NumpyArray, NumpyArray, double, long long> getState() const {
        context();
        // No forces, no group: raises if the positions have never been set.
        IntegratorAccess::implOf(*integrator).calcForcesAndEnergy(false, false, 0);
        OpenMM::State state =
            context().getState(OpenMM::State::Positions | OpenMM::State::Velocities);
        Buffer positions({numParticles(), 3}), velocities({numParticles(), 3});
        copyOut(state.getPositions(), positions.data.get());
        copyOut(state.getVelocities(), velocities.data.get());
        return {positions.numpy(), velocities.numpy(), state.getTime(), state.getStepCount()};
    }

    void setState(Vectors positions, Vectors velocities, double time, long long stepCount) {
        setPositions(positions.data(), positions.shape(0));
        checkParticles(velocities.shape(0), numParticles());
        copyIn(velocities.data());
        context().setVelocities(vectors);
        context().setTime(time);
        context().setStepCount(stepCount);
    }

    // Of a CustomIntegrator with these global variables.
    std::tuple<double, double, double, int, uint32_t> getSettings() const {
        SpeculativeIntegrator& own = speculative();
        return {own.getGlobalVariableByName("lsd_temperature"), own.getGlobalVariableByName("lsd_friction"),
                own.getStepSize(), own.getRandomNumberSeed(),
                static_cast<uint32_t>(own.getIntegrationForceGroups())};
    }

    int updates() const { return speculative().updates; }
    void renewPlainNoise() { speculative().renewPlainNoise(); }

    std::tuple<double, long long> getTime() const {
        return {context().getTime(), context().getStepCount()};
    }

    // Whether the Context may have been changed since acknowledge(). Not all that moves atoms tells the
    // integrator: OpenMM's minimiser does not where it runs on a device.
    bool touched() const {
        return !everAcknowledged || speculative().touched || box() != boxOf(acknowledged) || moved();
    }

    // Whether positions, velocities or box have changed since acknowledge().
    bool stateChanged() const {
        if (!everAcknowledged)
            return true;
        const OpenMM::State now = context().getState(watched);
        return now.getPositions() != acknowledged.getPositions() ||
               now.getVelocities() != acknowledged.getVelocities() ||
               boxOf(now) != boxOf(acknowledged);
    }

    // Names of the parameters that have changed since acknowledge().
    std::vector<std::string> changedParameters() const {
        std::vector<std::string> names;
        for (const auto& [name, value] : context().getParameters()) {
            const auto& before = acknowledged.getParameters();
            const auto found = before.find(name);
            if (found == before.end() || found->second != value)
                names.push_back(name);
        }
        return names;
    }

    void acknowledge() {
        acknowledged = context().getState(watched);
        everAcknowledged = true;
        speculative().touched = false;
    }

    NumpyArray getBox() const {
        Buffer result({3, 3});
        copyOut(box(), result.data.get());
        return result.numpy();
    }

    void setBox(Vectors boxVectors) {
        if (boxVectors.shape(0) != 3)
            throw std::invalid_argument("the periodic box must have shape (3, 3)");
        Vec3 v[3];
        std::memcpy(v, boxVectors.data(), sizeof v);
        context().setPeriodicBoxVectors(v[0], v[1], v[2]);
    }

    std::map<std::string, double> getParameters() const { return context().getParameters(); }
    void setParameter(const std::string& name, double value) { context().setParameter(name, value); }

    bool isOnItsDevice() const { return onDevice; }
    std::string getPlatform() const { return context().getPlatform().getName(); }
    std::map<std::string, std::string> getProperties() const {
        std::map<std::string, std::string> properties;
        OpenMM::Platform& platform = context().getPlatform();
        for (const std::string& name : platform.getPropertyNames())
            properties[name] = platform.getPropertyValue(context(), name);
        return properties;
    }

    // Positions (B, N, 3) with the virtual sites where their parents put them.
    NumpyArray withVirtualSites(VectorBatch positions) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        Buffer result({batch, particles, 3});
        for (size_t b = 0; b < batch; b++) {
            setPositions(positions.data() + b * particles * 3, particles);
            copyOut(context().getState(OpenMM::State::Positions).getPositions(),
                    result.data.get() + b * particles * 3);
        }
        return result.numpy();
    }

    std::optional<long long> stepsBeforeMove() const {
        context();
        const long long steps = barostats::stepsBeforeMove(IntegratorAccess::implOf(*integrator));
        return steps == barostats::never ? std::nullopt : std::optional(steps);
    }
    void countSteps(int steps) {
        context();
        barostats::countSteps(IntegratorAccess::implOf(*integrator), steps);
    }
    void beginStep() {
        context();
        nb::gil_scoped_release release;
        barostats::beginStep(IntegratorAccess::implOf(*integrator));
    }
    NumpyArray barostatMemory() const {
        context();
        const auto values = barostats::remembered(IntegratorAccess::implOf(*integrator));
        Buffer result({values.size()});
        std::copy(values.begin(), values.end(), result.data.get());
        return result.numpy();
    }
    void setBarostatMemory(DoubleVector values) {
        context();
        barostats::remember(IntegratorAccess::implOf(*integrator), values.data(), values.shape(0));
    }

    std::tuple<NumpyArray, NumpyArray> evaluate(VectorBatch positions, int groups,
                                                std::optional<DoubleVector> times,
                                                std::optional<LongVector> stepCounts) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        const Times when(times, stepCounts, batch);
        Buffer energies({batch}), forces({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++) {
                setTime(when, b);
                double* force = forces.data.get() + b * particles * 3;
                setSite(positions.data() + b * particles * 3, particles);
                OpenMM::State state = context().getState(
                    OpenMM::State::Energy | OpenMM::State::Forces, false, groups);
                energies.data[b] = state.getPotentialEnergy();
                copyForces(state, force);
                if (std::isnan(energies.data[b]) && allFinite(force, 3 * particles))
                    std::fill(force, force + 3 * particles,
                              std::numeric_limits<double>::quiet_NaN());
            }
        }
        return {energies.numpy(), forces.numpy()};
    }

    NumpyArray forces(VectorBatch positions, int groups, std::optional<DoubleVector> times,
                      std::optional<LongVector> stepCounts) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        const Times when(times, stepCounts, batch);
        Buffer result({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++) {
                setTime(when, b);
                setSite(positions.data() + b * particles * 3, particles);
                copyForces(context().getState(OpenMM::State::Forces, false, groups),
                           result.data.get() + b * particles * 3);
            }
        }
        return result.numpy();
    }

    RolloutResult rollout(const Scheme& scheme, Masses masses, Vectors positions, Vectors velocities,
                          VectorBatch corrections, std::optional<VectorBatch> sites,
                          std::optional<IntMatrix> neighbours, std::optional<Blocks> blocks,
                          std::optional<VectorBatch> moved, std::optional<VectorBatch> changed,
                          VectorBatch kicks, Flags cmRemovals,
                          std::optional<DoubleVector> times, std::optional<LongVector> stepCounts) {
        checkParticles(masses.shape(0), numParticles());
        const Times when(times, stepCounts, corrections.shape(0));
        return draftWindow(scheme, masses, positions, velocities,
                           Corrections(corrections, sites, neighbours, blocks, moved, changed, masses),
                           kicks, cmRemovals,
                           [&](size_t k, const double* site, double* force) {
                               setTime(when, k);
                               forcesAt(site, force);
                           });
    }

    void setTime(const Times& when, size_t row) {
        if (!when.times)
            return;
        context().setTime(when.time(row));
        context().setStepCount(when.stepCount(row));
    }

    void forcesAt(const double* positions, double* forces) {
        setSite(positions, numParticles());
        copyForces(context().getState(OpenMM::State::Forces), forces);
    }

private:
    OpenMM::Integrator* integrator;
    std::vector<Vec3> vectors; // scratch
    OpenMM::State acknowledged;
    bool everAcknowledged = false;
    bool hasVirtualSites = false;
    bool onDevice = false; // see isOnDevice
    bool wraps = false;    // molecules at sites, for the sake of single precision
    static constexpr int watched =
        OpenMM::State::Positions | OpenMM::State::Velocities | OpenMM::State::Parameters;

    // Whether atoms are elsewhere than at acknowledge(). A device may wrap molecules at any time,
    // which changes positions by their rounding to single precision.
    bool moved() const {
        const OpenMM::State now = context().getState(OpenMM::State::Positions);
        const std::vector<Vec3>& before = acknowledged.getPositions();
        const std::vector<Vec3>& after = now.getPositions();
        if (after == before)
            return false;
        if (!isOnDevice(context().getPlatform()))
            return true;
        constexpr double rounding = 4 * std::numeric_limits<float>::epsilon();
        for (size_t i = 0; i < after.size(); i++)
            for (int j = 0; j < 3; j++) {
                const double scale = std::max(1.0, std::abs(before[i][j]));
                if (!(std::abs(after[i][j] - before[i][j]) <= rounding * scale))
                    return true;
            }
        return false;
    }

    static std::vector<Vec3> boxOf(const OpenMM::State& state) {
        std::vector<Vec3> result(3);
        state.getPeriodicBoxVectors(result[0], result[1], result[2]);
        return result;
    }
    std::vector<Vec3> box() const { return boxOf(context().getState(0)); }

    SpeculativeIntegrator& speculative() const {
        context();
        auto* result = dynamic_cast<SpeculativeIntegrator*>(integrator);
        if (result == nullptr)
            throw std::invalid_argument("only a SpeculativeIntegrator tells of changes");
        return *result;
    }

    void copyIn(const double* from) {
        vectors.resize(numParticles());
        std::memcpy(vectors.data(), from, vectors.size() * sizeof(Vec3));
    }

    void copyForces(const OpenMM::State& state, double* forces) const {
        copyOut(state.getForces(), forces);
        if (onDevice)
            markFailures(forces, 3 * state.getForces().size());
    }

    // Positions at which forces are asked for, which may be those of any image of the molecules.
    void setSite(const double* from, size_t particles) {
        setPositions(from, particles, wraps);
    }

    // By whole molecules, in double precision, as a device wraps them.
    void wrapMolecules() {
        Vec3 a, b, c;
        IntegratorAccess::implOf(*integrator).getPeriodicBoxVectors(a, b, c);
        for (const auto& molecule : IntegratorAccess::implOf(*integrator).getMolecules()) {
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

    void setPositions(const double* from, size_t particles, bool wrapped = false) {
        checkParticles(particles, numParticles());
        copyIn(from);
        if (wrapped)
            wrapMolecules();
        context().setPositions(vectors);
        if (hasVirtualSites)
            context().computeVirtualSites();
    }
};

// A valence force field, by itself or on top of the forces of a Context.
class Valence {
public:
    Valence(int particles, IntVector kinds, IntFours atoms, DoubleVector references,
            DoubleVector limits, IntFours factors, IntVector classes) {
        const size_t coordinates = kinds.shape(0), count = classes.shape(0);
        if (atoms.shape(0) != coordinates || references.shape(0) != coordinates ||
            limits.shape(0) != coordinates || factors.shape(0) != count)
            throw std::invalid_argument("the arrays of a valence force field differ in length");
        terms.particles = particles;
        for (size_t q = 0; q < coordinates; q++) {
            if (kinds.data()[q] < 0 || kinds.data()[q] >= ValenceTerms::numberOfKinds)
                throw std::invalid_argument("a coordinate is of a kind that is not there");
            ValenceTerms::Coordinate c{static_cast<ValenceTerms::Kind>(kinds.data()[q]),
                                       {},
                                       references.data()[q],
                                       limits.data()[q],
                                       {},
                                       {}};
            for (int a = 0; a < 4; a++) {
                c.atoms[a] = atoms.data()[4 * q + a];
                if (a < ValenceTerms::atomsOfKind[c.kind] &&
                    (c.atoms[a] < 0 || c.atoms[a] >= particles))
                    throw std::invalid_argument("a coordinate has an atom that is not there");
            }
            terms.addCoordinate(c);
        }
        for (size_t m = 0; m < count; m++) {
            ValenceTerms::Term term{{}, 0, classes.data()[m]};
            for (int f = 0; f < ValenceTerms::mostFactors; f++) {
                const int q = factors.data()[4 * m + f];
                if (q >= (int)coordinates)
                    throw std::invalid_argument("a term has a coordinate that is not there");
                if (q >= 0)
                    term.factors[term.count++] = q;
            }
            if (term.parameter < 0)
                throw std::invalid_argument("a term has a negative class");
            terms.addTerm(term);
        }
        terms.setParameters(std::vector<double>(terms.parameters).data());
    }

    void setParameters(DoubleVector values) {
        if ((int)values.shape(0) != terms.parameters)
            throw std::invalid_argument("there are " + std::to_string(terms.parameters) +
                                        " parameters, not " + std::to_string(values.shape(0)));
        terms.setParameters(values.data());
    }

    void setBox(std::optional<Vectors> vectors) {
        if (vectors && vectors->shape(0) != 3)
            throw std::invalid_argument("the periodic box must have shape (3, 3)");
        box.clear();
        if (vectors)
            box.assign(vectors->data(), vectors->data() + 9);
    }

    NumpyArray forces(VectorBatch positions, ContextAccess* base, std::optional<DoubleVector> times,
                      std::optional<LongVector> stepCounts) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        checkParticles(particles, terms.particles);
        const Times when(times, stepCounts, batch);
        Buffer result({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++)
                forcesAt(positions.data() + b * particles * 3, result.data.get() + b * particles * 3,
                         base, when, b);
        }
        return result.numpy();
    }

    void addNormalEquations(VectorBatch positions, std::optional<VectorBatch> before,
                            Matrix residuals, DoubleVector weights, DoubleVector offset,
                            DoubleVector scales, OwnMatrix gram, OwnVector moment) {
        const size_t batch = positions.shape(0), parameters = terms.parameters;
        const size_t components = 3 * positions.shape(1);
        checkParticles(positions.shape(1), terms.particles);
        if ((before && (before->shape(0) != batch || before->shape(1) != positions.shape(1))) ||
            residuals.shape(0) != batch || residuals.shape(1) != components ||
            weights.shape(0) != components || offset.shape(0) != parameters ||
            scales.shape(0) != batch || gram.shape(0) != parameters ||
            gram.shape(1) != parameters || moment.shape(0) != parameters)
            throw std::invalid_argument("the arrays of normal equations do not fit together");
        nb::gil_scoped_release release;
        terms.addNormalEquations(batch, positions.data(), before ? before->data() : nullptr,
                                 boxOrNull(), residuals.data(), weights.data(), offset.data(),
                                 scales.data(), gram.data(), moment.data());
    }

    RolloutResult rollout(const Scheme& scheme, Masses masses, Vectors positions, Vectors velocities,
                          VectorBatch corrections, std::optional<VectorBatch> sites,
                          std::optional<IntMatrix> neighbours, std::optional<Blocks> blocks,
                          std::optional<VectorBatch> moved, std::optional<VectorBatch> changed,
                          VectorBatch kicks, Flags cmRemovals,
                          ContextAccess* base, std::optional<DoubleVector> times,
                          std::optional<LongVector> stepCounts) {
        checkParticles(masses.shape(0), terms.particles);
        const Times when(times, stepCounts, corrections.shape(0));
        return draftWindow(scheme, masses, positions, velocities,
                           Corrections(corrections, sites, neighbours, blocks, moved, changed, masses),
                           kicks, cmRemovals,
                           [&](size_t k, const double* site, double* force) {
                               forcesAt(site, force, base, when, k);
                           });
    }

private:
    ValenceTerms terms;
    std::vector<double> box;

    const double* boxOrNull() const { return box.empty() ? nullptr : box.data(); }

    void forcesAt(const double* positions, double* forces, ContextAccess* base, const Times& when,
                  size_t row) {
        if (base != nullptr) {
            base->setTime(when, row);
            base->forcesAt(positions, forces);
        } else
            std::fill(forces, forces + 3 * terms.particles, 0.0);
        terms.addForces(positions, boxOrNull(), forces);
    }
};

void checkCounts(IntVector counts, size_t most) {
    for (size_t i = 0; i < counts.shape(0); i++)
        if (counts.data()[i] < 0 || (size_t)counts.data()[i] > most)
            throw std::invalid_argument("an atom has more neighbours than there is room for");
}

// See jacobian.add_differences.
void addDifferences(VectorBatch displacements, VectorBatch changes, IntMatrix neighbours,
                    IntVector counts, OwnMatrices gram, OwnMatrices moment,
                    std::optional<Matrices> estimate, OwnMatrix agreement, double memory,
                    double leastShare) {
    const size_t batch = displacements.shape(0), particles = displacements.shape(1);
    const size_t most = neighbours.shape(1), size = 3 * most;
    const auto fits = [&](const auto& array, size_t columns) {
        return array.shape(0) == particles && array.shape(1) == size && array.shape(2) == columns;
    };
    if (changes.shape(0) != batch || changes.shape(1) != particles ||
        neighbours.shape(0) != particles || counts.shape(0) != particles || !fits(gram, size) ||
        !fits(moment, 3) || (estimate && !fits(*estimate, 3)) || agreement.shape(0) != 2 ||
        agreement.shape(1) != particles)
        throw std::invalid_argument("the arrays of differences do not fit together");
    checkCounts(counts, most);
    checkNeighbours(neighbours, particles);
    nb::gil_scoped_release release;
    const Differences differences{batch,
                                  particles,
                                  most,
                                  displacements.data(),
                                  changes.data(),
                                  neighbours.data(),
                                  counts.data()};
    differences.addTo(gram.data(), moment.data(), estimate ? estimate->data() : nullptr,
                      agreement.data(), memory, leastShare);
}

// See prediction.changes_in_time.
NumpyArray changesInTime(VectorBatch sites, VectorBatch discrepancies, IntMatrix neighbours,
                         Blocks blocks) {
    const size_t batch = sites.shape(0), particles = sites.shape(1);
    if (batch < 1 || discrepancies.shape(0) != batch || discrepancies.shape(1) != particles)
        throw std::invalid_argument("sites and discrepancies do not fit together");
    LocalJacobian jacobian = jacobianOf(neighbours, blocks, particles);
    Buffer result({batch - 1, particles, 3});
    {
        nb::gil_scoped_release release;
        takeChangesInTime(batch, sites.data(), discrepancies.data(), jacobian, result.data.get());
    }
    return result.numpy();
}

// See prediction.add_lagged.
void addLaggedChanges(VectorBatch changes, OwnMatrices gram, OwnMatrix moment, double memory) {
    const size_t particles = changes.shape(1), order = moment.shape(1);
    if (gram.shape(0) != particles || gram.shape(1) != order || gram.shape(2) != order ||
        moment.shape(0) != particles)
        throw std::invalid_argument("the arrays of the autoregressions do not fit together");
    nb::gil_scoped_release release;
    addLagged(changes.shape(0), particles, order, changes.data(), memory, gram.data(),
              moment.data());
}

// See prediction.predict_changes.
NumpyArray predictNextChanges(VectorBatch sites, VectorBatch discrepancies, IntMatrix neighbours,
                              Blocks blocks, Matrix coefficients, Masses largest, size_t ahead) {
    const size_t particles = sites.shape(1), order = coefficients.shape(1);
    if (sites.shape(0) != order + 1 || discrepancies.shape(0) != order + 1 ||
        discrepancies.shape(1) != particles || coefficients.shape(0) != particles ||
        largest.shape(0) != particles)
        throw std::invalid_argument("the arrays of a prediction do not fit together");
    LocalJacobian jacobian = jacobianOf(neighbours, blocks, particles);
    Buffer result({ahead, particles, 3});
    {
        nb::gil_scoped_release release;
        predictChanges(order, ahead, sites.data(), discrepancies.data(), jacobian,
                       coefficients.data(), largest.data(), result.data.get());
    }
    return result.numpy();
}

// See jacobian.solve_ridge.
NumpyArray solveRidgeOfAtoms(Matrices gram, Matrices moment, IntVector counts, double ridge) {
    const size_t particles = gram.shape(0), size = gram.shape(1);
    if (gram.shape(2) != size || size % 3 != 0 || moment.shape(0) != particles ||
        moment.shape(1) != size || moment.shape(2) != 3 || counts.shape(0) != particles)
        throw std::invalid_argument("the arrays of the regressions do not fit together");
    checkCounts(counts, size / 3);
    Buffer result({particles, size, 3});
    {
        nb::gil_scoped_release release;
        solveRidge(particles, size / 3, counts.data(), gram.data(), moment.data(), ridge,
                   result.data.get());
    }
    return result.numpy();
}

template <class Site>
bool copySite(const OpenMM::VirtualSite& site, OpenMM::System& to, int particle) {
    const auto* original = dynamic_cast<const Site*>(&site);
    if (original != nullptr)
        to.setVirtualSite(particle, new Site(*original));
    return original != nullptr;
}

void copyVirtualSites(uintptr_t fromAddress, uintptr_t toAddress) {
    using namespace OpenMM;
    const auto& from = *reinterpret_cast<const System*>(fromAddress);
    auto& to = *reinterpret_cast<System*>(toAddress);
    for (int i = 0; i < from.getNumParticles(); i++) {
        if (!from.isVirtualSite(i))
            continue;
        const VirtualSite& site = from.getVirtualSite(i);
        if (!copySite<TwoParticleAverageSite>(site, to, i) &&
            !copySite<ThreeParticleAverageSite>(site, to, i) &&
            !copySite<OutOfPlaneSite>(site, to, i) &&
            !copySite<LocalCoordinatesSite>(site, to, i) && !copySite<SymmetrySite>(site, to, i))
            throw OpenMMException("particle " + std::to_string(i) +
                                  " is a virtual site of a kind that openmm_lsd does not know");
    }
}

// Whether a PythonForce is the Force, or in it. Python's layer does not say what an ATMForce holds.
bool callsPython(const OpenMM::Force& force) {
    if (dynamic_cast<const OpenMM::PythonForce*>(&force) != nullptr)
        return true;
    if (const auto* variables = dynamic_cast<const OpenMM::CustomCVForce*>(&force))
        for (int i = 0; i < variables->getNumCollectiveVariables(); i++)
            if (callsPython(variables->getCollectiveVariable(i)))
                return true;
    if (const auto* alchemical = dynamic_cast<const OpenMM::ATMForce*>(&force))
        for (int i = 0; i < alchemical->getNumForces(); i++)
            if (callsPython(alchemical->getForce(i)))
                return true;
    return false;
}

// The computation of a PythonForce at positions of its own particles, as its kernels ask for it.
std::tuple<NumpyArray, NumpyArray> evaluatePythonForce(uintptr_t address, VectorBatch positions,
                                                       std::optional<Vectors> box,
                                                       const std::map<std::string, double>& parameters,
                                                       std::optional<DoubleVector> times,
                                                       std::optional<LongVector> stepCounts) {
    const auto& force = *reinterpret_cast<OpenMM::PythonForce*>(address);
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    const Times when(times, stepCounts, batch);
    Buffer energies({batch}), forces({batch, particles, 3});
    std::vector<Vec3> vectors(particles);
    for (size_t b = 0; b < batch; b++) {
        std::memcpy(vectors.data(), positions.data() + b * particles * 3, particles * sizeof(Vec3));
        OpenMM::State::StateBuilder builder(when.time(b), when.stepCount(b));
        builder.setPositions(vectors);
        builder.setParameters(parameters);
        if (box) {
            Vec3 v[3];
            if (box->shape(0) != 3)
                throw std::invalid_argument("the periodic box must have shape (3, 3)");
            std::memcpy(v, box->data(), sizeof v);
            builder.setPeriodicBoxVectors(v[0], v[1], v[2]);
        }
        force.getComputation().compute(builder.getState(), energies.data[b],
                                       forces.data.get() + b * particles * 3, true);
    }
    return {energies.numpy(), forces.numpy()};
}

// A batch's temporary arrays are too large for the heap as glibc comes, and fresh pages cost as much
// as computing with them.
bool keepFreedMemory() {
#ifdef __GLIBC__
    for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
                             "MALLOC_MMAP_MAX_"})
        if (std::getenv(name) != nullptr)
            return false;
    const char* tunables = std::getenv("GLIBC_TUNABLES");
    if (tunables != nullptr && std::strstr(tunables, "glibc.malloc.") != nullptr)
        return false;
    constexpr int mebibyte = 1 << 20;
    // The first is the largest value that is allowed.
    return mallopt(M_MMAP_THRESHOLD, 32 * mebibyte) == 1 &&
           mallopt(M_TRIM_THRESHOLD, 256 * mebibyte) == 1;
#else
    return false;
#endif
}

} // namespace

NB_MODULE(_native, m) {
    // After an exception in a PythonForce OpenMM keeps its traceback, and with it objects of ours, to
    // the end of the process; nanobind would call that a fault of this module.
    nb::set_leak_warnings(false);
    m.attr("openmm_version") = OPENMM_VERSION;
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const OpenMM::OpenMMException& exception) {
            nb::object type = nb::module_::import_("openmm").attr("OpenMMException");
            PyErr_SetString(type.ptr(), exception.what());
        }
    });
    registerProxies();
    m.attr("speculative_integrator") = SpeculativeIntegratorProxy::name;
    m.attr("largest_device_force") = lastOfFixedPoint;
    m.attr("existing_system") = ExistingSystemProxy::name;
    m.def(
        "connect",
        [](uintptr_t address, const std::string& scheme, double velocityOffset, nb::object save, nb::object load,
           nb::object contextMade, nb::object settings) {
            auto* integrator = dynamic_cast<SpeculativeIntegrator*>(
                reinterpret_cast<OpenMM::Integrator*>(address));
            if (integrator == nullptr)
                throw std::invalid_argument("there is no SpeculativeIntegrator at this address");
            integrator->isMiddle = scheme == "middle";
            integrator->velocityOffset = velocityOffset;
            integrator->save = save;
            integrator->load = load;
            integrator->contextMade = contextMade;
            integrator->settings = settings;
        },
        nb::arg("address"), nb::arg("scheme"), nb::arg("velocity_offset"), nb::arg("save"), nb::arg("load"),
        nb::arg("context_made"), nb::arg("settings"),
        "Tell the SpeculativeIntegrator at an address its scheme, by how many steps velocities are "
        "behind positions, and what to call: save(bytes before) -> bytes and "
        "load(bytes) for checkpoints, context_made(address of the System, name of the Platform) when a "
        "Context is made or reinitialised, settings() -> str for the XML of the integrator.");
    nb::class_<Scheme>(m, "Scheme", "A scheme of schemes.py, by its name.")
        .def(nb::init<std::string, double, double>(), nb::arg("name"), nb::arg("step_size"),
             nb::arg("decay"));
    nb::class_<ContextAccess>(m, "ContextAccess",
                              "The Context that owns the integrator at an address, "
                              "int(integrator.this). Units nm, ps, kJ/mol.")
        .def(nb::init<uintptr_t>())
        .def_prop_ro("num_particles", &ContextAccess::numParticles)
        .def("get_state", &ContextAccess::getState,
             "Positions (N, 3), velocities (N, 3), time, step count; an error if the positions were "
             "never set.")
        .def("set_state", &ContextAccess::setState, nb::arg("positions"), nb::arg("velocities"),
             nb::arg("time"), nb::arg("step_count"))
        .def("get_time", &ContextAccess::getTime, "Time and step count.")
        .def("get_settings", &ContextAccess::getSettings,
             "Temperature, friction, step size, seed, force groups (bits) of the integrator.")
        .def_prop_ro("touched", &ContextAccess::touched,
                     "Whether the Context may have been changed since acknowledge().")
        .def_prop_ro("updates", &ContextAccess::updates,
                     "How often parameters of a Force were updated in the Context, since it was made.")
        .def_prop_ro("state_changed", &ContextAccess::stateChanged,
                     "Whether positions, velocities or box of the Context have changed since "
                     "acknowledge().")
        .def_prop_ro("changed_parameters", &ContextAccess::changedParameters,
                     "Names of the Context's parameters that have changed since acknowledge().")
        .def("acknowledge", &ContextAccess::acknowledge)
        .def("renew_plain_noise", &ContextAccess::renewPlainNoise,
             "From now on other random numbers for plain steps, unless a seed was given.")
        .def("get_box", &ContextAccess::getBox, "Periodic box vectors (3, 3).")
        .def("set_box", &ContextAccess::setBox, nb::arg("box"))
        .def("get_parameters", &ContextAccess::getParameters)
        .def("set_parameter", &ContextAccess::setParameter, nb::arg("name"), nb::arg("value"))
        .def("get_platform", &ContextAccess::getPlatform)
        .def_prop_ro("on_device", &ContextAccess::isOnItsDevice,
                     "Whether the platform is another than Reference and CPU.")
        .def("get_properties", &ContextAccess::getProperties)
        .def("with_virtual_sites", &ContextAccess::withVirtualSites, nb::arg("positions"),
             "Positions (B, N, 3) with the virtual sites where their parents put them; the Context "
             "is left at the last.")
        .def("steps_before_move", &ContextAccess::stepsBeforeMove,
             "Steps that can be done before one that starts with a barostat's move; None if there "
             "is no barostat.")
        .def("count_steps", &ContextAccess::countSteps, nb::arg("steps"),
             "Tell the barostats of steps that were begun without a move.")
        .def("begin_step", &ContextAccess::beginStep,
             "Let the barostats begin a step, with a move if one is due.")
        .def("get_barostat_memory", &ContextAccess::barostatMemory,
             "What the barostats remember and OpenMM's checkpoints leave out.")
        .def("set_barostat_memory", &ContextAccess::setBarostatMemory, nb::arg("values"))
        .def("evaluate", &ContextAccess::evaluate, nb::arg("positions"), nb::arg("groups"),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Energies (B,) and forces (B, N, 3) at positions (B, N, 3), one after another, each at "
             "its own time and step count if these are given; the Context is left at the last.")
        .def("forces", &ContextAccess::forces, nb::arg("positions"), nb::arg("groups"),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Forces (B, N, 3) at positions (B, N, 3), one after another; the Context is left at "
             "the last.")
        .def("rollout", &ContextAccess::rollout, nb::arg("scheme"), nb::arg("masses"), nb::arg("positions"), nb::arg("velocities"),
             nb::arg("corrections"), nb::arg("sites").none(), nb::arg("neighbours").none(),
             nb::arg("blocks").none(), nb::arg("moved").none(), nb::arg("changed").none(),
             nb::arg("kicks"), nb::arg("cm_removals"),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Number of drafted steps, and the arrays of a window.Window.");
    nb::class_<Valence>(m, "Valence",
                        "A valence force field linear in its parameters (valence.py), by itself or, "
                        "with ``base``, on top of the forces of a Context. Parameters start as zero.")
        .def(nb::init<int, IntVector, IntFours, DoubleVector, DoubleVector, IntFours, IntVector>(),
             nb::arg("particles"), nb::arg("kinds"), nb::arg("atoms"), nb::arg("references"),
             nb::arg("limits"), nb::arg("factors"), nb::arg("classes"))
        .def("set_parameters", &Valence::setParameters, nb::arg("parameters"))
        .def("set_box", &Valence::setBox, nb::arg("box").none())
        .def("forces", &Valence::forces, nb::arg("positions"), nb::arg("base").none(),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Forces (B, N, 3) at positions (B, N, 3).")
        .def("add_normal_equations", &Valence::addNormalEquations, nb::arg("positions"),
             nb::arg("before").none(), nb::arg("residuals"), nb::arg("weights"), nb::arg("offset"),
             nb::arg("scales"), nb::arg("gram"), nb::arg("moment"),
             "As learning.add_normal_equations with the features at positions (B, N, 3) and at those "
             "before, or None.")
        .def("rollout", &Valence::rollout, nb::arg("scheme"), nb::arg("masses"), nb::arg("positions"), nb::arg("velocities"),
             nb::arg("corrections"), nb::arg("sites").none(), nb::arg("neighbours").none(),
             nb::arg("blocks").none(), nb::arg("moved").none(), nb::arg("changed").none(),
             nb::arg("kicks"), nb::arg("cm_removals"),
             nb::arg("base").none(), nb::arg("times") = nb::none(),
             nb::arg("step_counts") = nb::none(),
             "Number of drafted steps, and the arrays of a window.Window.");
    m.def("add_differences", &addDifferences, nb::arg("displacements"), nb::arg("changes"),
          nb::arg("neighbours"), nb::arg("counts"), nb::arg("gram"), nb::arg("moment"),
          nb::arg("estimate").none(), nb::arg("agreement"), nb::arg("memory"),
          nb::arg("least_share"), "jacobian.add_differences in native code.");
    m.def("solve_ridge", &solveRidgeOfAtoms, nb::arg("gram"), nb::arg("moment"), nb::arg("counts"),
          nb::arg("ridge"), "jacobian.solve_ridge in native code.");
    m.def("changes_in_time", &changesInTime, nb::arg("sites"), nb::arg("discrepancies"),
          nb::arg("neighbours"), nb::arg("blocks"), "prediction.changes_in_time in native code.");
    m.def("add_lagged", &addLaggedChanges, nb::arg("changes"), nb::arg("gram"), nb::arg("moment"),
          nb::arg("memory"), "prediction.add_lagged in native code.");
    m.def("predict_changes", &predictNextChanges, nb::arg("sites"), nb::arg("discrepancies"),
          nb::arg("neighbours"), nb::arg("blocks"), nb::arg("coefficients"), nb::arg("largest"),
          nb::arg("ahead"), "prediction.predict_changes in native code.");
    m.def("draw_random_number", &OpenMM::SimTKOpenMMUtilities::getUniformlyDistributedRandomNumber,
          "The next number of OpenMM's generator, whose state checkpoints contain once it is used.");
    m.def("copy_virtual_sites", &copyVirtualSites, nb::arg("from_address"), nb::arg("to_address"),
          "Make virtual sites of the same particles of another System, given by int(system.this).");
    m.def(
        "calls_python",
        [](uintptr_t address) {
            return callsPython(*reinterpret_cast<const OpenMM::Force*>(address));
        },
        nb::arg("address"),
        "Whether the Force at an address, int(force.this), is a PythonForce or holds one.");
    m.def("class_of_force",
          [](uintptr_t address) {
              const auto& force = *reinterpret_cast<const OpenMM::Force*>(address);
              return className(force);
          },
          nb::arg("address"), "Name of the C++ class of a Force, given by int(force.this).");
    m.def("commit", &commitWindow, nb::arg("scheme"), nb::arg("masses"), nb::arg("noise_scale"),
          nb::arg("positions"), nb::arg("velocities"), nb::arg("draft_velocities"),
          nb::arg("target_forces"), nb::arg("draft_forces"), nb::arg("noise"),
          nb::arg("log_uniforms"), nb::arg("cm_removals"), "The fields of window.Committed.");
    m.def("keep_freed_memory", &keepFreedMemory,
          "From now on keep up to 256 MiB of freed memory per thread for the next batch, instead of "
          "giving it back; only with glibc, and unless the user has tuned its malloc by the "
          "environment. Whether that was done.");
    m.def("evaluate_python_force", &evaluatePythonForce, nb::arg("address"), nb::arg("positions"),
          nb::arg("box").none(), nb::arg("parameters"), nb::arg("times") = nb::none(),
          nb::arg("step_counts") = nb::none(),
          "Energies (B,) and forces (B, n, 3) of the PythonForce at an address, int(force.this), at "
          "positions (B, n, 3) of the particles it acts on, one after another; times (B,) and step "
          "counts (B,) are zero by default.");
}

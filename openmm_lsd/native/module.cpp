// What must not pay Python's price: the state of a Context as arrays, forces of many positions in
// one call, and the draft rollout of a window. The readable reference of the rollout is rollout.py.

#include <OpenMM.h>
#include <openmm/internal/ContextImpl.h>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace nb = nanobind;
using OpenMM::Vec3;

static_assert(sizeof(Vec3) == 3 * sizeof(double), "arrays of Vec3 are copied as arrays of double");

using Vectors = nb::ndarray<const double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using VectorBatch = nb::ndarray<const double, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Masses = nb::ndarray<const double, nb::shape<-1, 1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const bool, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
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

// CustomIntegrator::forcesAreValid is cleared by whatever may change the forces or the state, the
// periodic box excepted: setPositions, setVelocities, setParameter, updateParametersInContext,
// loadCheckpoint, reinitialize; also by a query of the energy. It serves here as that
// notification. An explicit instantiation may name a private member.
bool& forcesAreValid(OpenMM::CustomIntegrator& integrator);
template <auto Member>
struct ForcesAreValid {
    friend bool& forcesAreValid(OpenMM::CustomIntegrator& integrator) { return integrator.*Member; }
};
template struct ForcesAreValid<&OpenMM::CustomIntegrator::forcesAreValid>;

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

void copyOut(const std::vector<Vec3>& from, double* to) {
    std::memcpy(to, from.data(), from.size() * sizeof(Vec3));
}

bool allFinite(const double* values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(values[i]))
            return false;
    return true;
}

struct Scheme {
    bool aboba;
    double stepSize, decay;

    Scheme(const std::string& name, double stepSize, double decay)
        : aboba(name == "aboba"), stepSize(stepSize), decay(decay) {
        if (!aboba && name != "middle")
            throw std::invalid_argument("no native scheme '" + name + "'");
    }
    double site(double x, double v) const { return aboba ? x + 0.5 * stepSize * v : x; }
    void step(double& x, double& v, double acceleration, double kick) const {
        if (aboba) {
            const double q = x + 0.5 * stepSize * v;
            v = decay * v + 0.5 * (1.0 + decay) * stepSize * acceleration + kick;
            x = q + 0.5 * stepSize * v;
        } else {
            const double half = v + stepSize * acceleration;
            v = decay * half + kick;
            x += 0.5 * stepSize * (half + v);
        }
    }
};

class ContextAccess {
public:
    explicit ContextAccess(uintptr_t integratorAddress)
        : integrator(reinterpret_cast<OpenMM::Integrator*>(integratorAddress)) {
        context();
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
        checkParticles(velocities.shape(0));
        copyIn(velocities.data());
        context().setVelocities(vectors);
        context().setTime(time);
        context().setStepCount(stepCount);
    }

    std::tuple<double, long long> getTime() const {
        return {context().getTime(), context().getStepCount()};
    }

    // Whether the Context may have been changed since acknowledge(); queries of its energy count too.
    bool touched() const {
        return !everAcknowledged || !forcesAreValid(custom()) || box() != boxOf(acknowledged);
    }

    // Whether positions, velocities, parameters or box have changed since acknowledge().
    bool changed() const {
        if (!everAcknowledged)
            return true;
        if (!touched())
            return false;
        const OpenMM::State now = context().getState(watched);
        return now.getPositions() != acknowledged.getPositions() ||
               now.getVelocities() != acknowledged.getVelocities() ||
               now.getParameters() != acknowledged.getParameters() ||
               boxOf(now) != boxOf(acknowledged);
    }

    void acknowledge() {
        acknowledged = context().getState(watched);
        everAcknowledged = true;
        forcesAreValid(custom()) = true;
    }

    NumpyArray getMasses() const {
        const OpenMM::System& system = context().getSystem();
        Buffer masses({numParticles()});
        for (size_t i = 0; i < masses.size; i++)
            masses.data[i] = system.getParticleMass(i);
        return masses.numpy();
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

    std::string getPlatform() const { return context().getPlatform().getName(); }
    std::map<std::string, std::string> getProperties() const {
        std::map<std::string, std::string> properties;
        OpenMM::Platform& platform = context().getPlatform();
        for (const std::string& name : platform.getPropertyNames())
            properties[name] = platform.getPropertyValue(context(), name);
        return properties;
    }

    uintptr_t getSystemAddress() const {
        return reinterpret_cast<uintptr_t>(&context().getSystem());
    }

    std::tuple<NumpyArray, NumpyArray> evaluate(VectorBatch positions, int groups) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        Buffer energies({batch}), forces({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++) {
                setPositions(positions.data() + b * particles * 3, particles);
                OpenMM::State state = context().getState(
                    OpenMM::State::Energy | OpenMM::State::Forces, false, groups);
                energies.data[b] = state.getPotentialEnergy();
                copyOut(state.getForces(), forces.data.get() + b * particles * 3);
            }
        }
        return {energies.numpy(), forces.numpy()};
    }

    NumpyArray forces(VectorBatch positions, int groups) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        Buffer result({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++) {
                setPositions(positions.data() + b * particles * 3, particles);
                OpenMM::State state = context().getState(OpenMM::State::Forces, false, groups);
                copyOut(state.getForces(), result.data.get() + b * particles * 3);
            }
        }
        return result.numpy();
    }

    // See rollout.py for the equations, shapes and rules; returns the number of drafted steps, too.
    std::tuple<size_t, NumpyArray, NumpyArray, NumpyArray>
    rollout(const std::string& schemeName, double stepSize, double decay, Masses masses,
            Vectors startPositions, Vectors startVelocities, VectorBatch corrections,
            VectorBatch kicks, Flags cmRemovals) {
        const Scheme scheme(schemeName, stepSize, decay);
        const size_t length = corrections.shape(0), particles = masses.shape(0);
        const size_t components = 3 * particles;
        checkParticles(particles);
        checkParticles(startPositions.shape(0));
        checkParticles(startVelocities.shape(0));
        checkParticles(corrections.shape(1));
        checkParticles(kicks.shape(1));
        if (kicks.shape(0) != length || cmRemovals.shape(0) != length)
            throw std::invalid_argument("corrections, kicks and removals differ in length");

        Buffer sites({length, particles, 3}), velocities(sites.shape), forces(sites.shape);
        size_t drafted = length;
        {
            nb::gil_scoped_release release;
            std::vector<double> x(startPositions.data(), startPositions.data() + components);
            std::vector<double> v(startVelocities.data(), startVelocities.data() + components);
            for (size_t k = 0; k < length; k++) {
                if (cmRemovals.data()[k])
                    removeCmMotion(v, masses.data());
                double* site = sites.data.get() + k * components;
                double* force = forces.data.get() + k * components;
                for (size_t i = 0; i < components; i++)
                    site[i] = scheme.site(x[i], v[i]);
                if (k > 0 && !allFinite(site, components)) {
                    drafted = k;
                    break;
                }
                try {
                    setPositions(site, particles);
                    copyOut(context().getState(OpenMM::State::Forces).getForces(), force);
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
                if (k + 1 == length)
                    break;
                const double* correction = corrections.data() + k * components;
                const double* kick = kicks.data() + k * components;
                for (size_t i = 0; i < components; i++) {
                    const double mass = masses.data()[i / 3];
                    const double acceleration = mass > 0 ? (force[i] + correction[i]) / mass : 0.0;
                    scheme.step(x[i], v[i], acceleration, kick[i]);
                }
            }
        }
        return {drafted, sites.numpy(), velocities.numpy(), forces.numpy()};
    }

private:
    OpenMM::Integrator* integrator;
    std::vector<Vec3> vectors; // scratch
    OpenMM::State acknowledged;
    bool everAcknowledged = false;
    static constexpr int watched =
        OpenMM::State::Positions | OpenMM::State::Velocities | OpenMM::State::Parameters;

    static std::vector<Vec3> boxOf(const OpenMM::State& state) {
        std::vector<Vec3> result(3);
        state.getPeriodicBoxVectors(result[0], result[1], result[2]);
        return result;
    }
    std::vector<Vec3> box() const { return boxOf(context().getState(0)); }

    OpenMM::CustomIntegrator& custom() const {
        context();
        auto* result = dynamic_cast<OpenMM::CustomIntegrator*>(integrator);
        if (result == nullptr)
            throw std::invalid_argument("only a CustomIntegrator tells of changes");
        return *result;
    }

    void checkParticles(size_t particles) const {
        if (particles != numParticles())
            throw std::invalid_argument("got arrays for " + std::to_string(particles) +
                                        " particles; the System has " +
                                        std::to_string(numParticles()));
    }

    void copyIn(const double* from) {
        vectors.resize(numParticles());
        std::memcpy(vectors.data(), from, vectors.size() * sizeof(Vec3));
    }

    void setPositions(const double* from, size_t particles) {
        checkParticles(particles);
        copyIn(from);
        context().setPositions(vectors);
    }

    static void removeCmMotion(std::vector<double>& v, const double* masses) {
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
};

// The computation of a PythonForce at positions of its own particles, as its kernels ask for it.
std::tuple<NumpyArray, NumpyArray> evaluatePythonForce(uintptr_t address, VectorBatch positions,
                                                       std::optional<Vectors> box,
                                                       const std::map<std::string, double>& parameters) {
    const auto& force = *reinterpret_cast<OpenMM::PythonForce*>(address);
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    Buffer energies({batch}), forces({batch, particles, 3});
    std::vector<Vec3> vectors(particles);
    for (size_t b = 0; b < batch; b++) {
        std::memcpy(vectors.data(), positions.data() + b * particles * 3, particles * sizeof(Vec3));
        OpenMM::State::StateBuilder builder(0.0, 0);
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
        .def_prop_ro("touched", &ContextAccess::touched,
                     "Whether the Context may have been changed since acknowledge(); asking it for "
                     "an energy counts, too.")
        .def_prop_ro("changed", &ContextAccess::changed,
                     "Whether positions, velocities, parameters or box of the Context have changed "
                     "since acknowledge().")
        .def("acknowledge", &ContextAccess::acknowledge)
        .def("get_masses", &ContextAccess::getMasses, "Masses (N,) in amu.")
        .def("get_box", &ContextAccess::getBox, "Periodic box vectors (3, 3).")
        .def("set_box", &ContextAccess::setBox, nb::arg("box"))
        .def("get_parameters", &ContextAccess::getParameters)
        .def("set_parameter", &ContextAccess::setParameter, nb::arg("name"), nb::arg("value"))
        .def("get_platform", &ContextAccess::getPlatform)
        .def("get_properties", &ContextAccess::getProperties)
        .def("get_system_address", &ContextAccess::getSystemAddress,
             "Equals int(system.this) of the System that the Context was made from.")
        .def("evaluate", &ContextAccess::evaluate, nb::arg("positions"), nb::arg("groups"),
             "Energies (B,) and forces (B, N, 3) at positions (B, N, 3), one after another; the "
             "Context is left at the last.")
        .def("forces", &ContextAccess::forces, nb::arg("positions"), nb::arg("groups"),
             "Forces (B, N, 3) at positions (B, N, 3), one after another; the Context is left at "
             "the last.")
        .def("rollout", &ContextAccess::rollout, nb::arg("scheme"), nb::arg("step_size"),
             nb::arg("decay"), nb::arg("masses"), nb::arg("positions"), nb::arg("velocities"),
             nb::arg("corrections"), nb::arg("kicks"), nb::arg("cm_removals"),
             "Drafted steps, sites, velocities and draft forces, as rollout.rollout.");
    m.def("evaluate_python_force", &evaluatePythonForce, nb::arg("address"), nb::arg("positions"),
          nb::arg("box").none(), nb::arg("parameters"),
          "Energies (B,) and forces (B, n, 3) of the PythonForce at an address, int(force.this), at "
          "positions (B, n, 3) of the particles it acts on, one after another.");
}

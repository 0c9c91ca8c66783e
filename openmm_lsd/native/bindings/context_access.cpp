#include "../openmm/context_access.h"

#include "../core/checks.h"
#include "../openmm/vectors.h"
#include "arrays.h"
#include "bindings.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

namespace {

std::tuple<NumpyArray, NumpyArray, double, long long> getState(const ContextAccess& access) {
    const OpenMM::State state = access.getState();
    Buffer positions({access.numParticles(), 3}), velocities(positions.shape);
    copyOut(state.getPositions(), positions.data.get());
    copyOut(state.getVelocities(), velocities.data.get());
    return {positions.numpy(), velocities.numpy(), state.getTime(), state.getStepCount()};
}

void setState(ContextAccess& access, Vectors positions, Vectors velocities, double time,
              long long stepCount) {
    if (velocities.shape(0) != positions.shape(0))
        throw std::invalid_argument("there must be as many velocities as positions");
    access.setState(positions.data(), velocities.data(), positions.shape(0));
    access.context().setTime(time);
    access.context().setStepCount(stepCount);
}

std::tuple<double, long long> getTime(const ContextAccess& access) {
    return {access.context().getTime(), access.context().getStepCount()};
}

NumpyArray getBox(const ContextAccess& access) {
    Buffer result({3, 3});
    copyOut(access.box(), result.data.get());
    return result.numpy();
}

void setBox(ContextAccess& access, Vectors box) {
    if (box.shape(0) != 3)
        throw std::invalid_argument("the periodic box must have shape (3, 3)");
    access.setBox(box.data());
}

std::map<std::string, double> getParameters(const ContextAccess& access) {
    return access.context().getParameters();
}

void setParameter(ContextAccess& access, const std::string& name, double value) {
    access.context().setParameter(name, value);
}

std::string getPlatform(const ContextAccess& access) {
    return access.context().getPlatform().getName();
}

NumpyArray withVirtualSites(ContextAccess& access, VectorBatch positions) {
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    Buffer result({batch, particles, 3});
    access.placeVirtualSites(batch, particles, positions.data(), result.data.get());
    return result.numpy();
}

void beginStep(ContextAccess& access) {
    nb::gil_scoped_release release;
    access.beginStep();
}

NumpyArray getBarostatMemory(const ContextAccess& access) {
    const auto values = access.barostatMemory();
    Buffer result({values.size()});
    std::copy(values.begin(), values.end(), result.data.get());
    return result.numpy();
}

void setBarostatMemory(ContextAccess& access, DoubleVector values) {
    access.setBarostatMemory(values.data(), values.shape(0));
}

std::tuple<NumpyArray, NumpyArray> evaluate(ContextAccess& access, VectorBatch positions,
                                            int groups, std::optional<DoubleVector> times,
                                            std::optional<LongVector> stepCounts) {
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    const Times when = timesOf(times, stepCounts, batch);
    Buffer energies({batch}), forces({batch, particles, 3});
    {
        nb::gil_scoped_release release;
        access.evaluate(batch, particles, positions.data(), groups, when, energies.data.get(),
                        forces.data.get());
    }
    return {energies.numpy(), forces.numpy()};
}

NumpyArray forces(ContextAccess& access, VectorBatch positions, int groups,
                  std::optional<DoubleVector> times, std::optional<LongVector> stepCounts) {
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    const Times when = timesOf(times, stepCounts, batch);
    Buffer result({batch, particles, 3});
    {
        nb::gil_scoped_release release;
        access.forces(batch, particles, positions.data(), groups, when, result.data.get());
    }
    return result.numpy();
}

} // namespace

void bindContextAccess(nb::module_& m) {
    nb::class_<ContextAccess, Forces>(m, "ContextAccess",
                                      "The Context that owns the integrator at an address, "
                                      "int(integrator.this). Units nm, ps, kJ/mol.")
        .def(nb::init<uintptr_t>())
        .def("get_state", &getState,
             "Positions (N, 3), velocities (N, 3), time, step count; an error if the positions were "
             "never set.")
        .def("set_state", &setState, nb::arg("positions"), nb::arg("velocities"), nb::arg("time"),
             nb::arg("step_count"))
        .def("get_time", &getTime, "Time and step count.")
        .def("get_settings", &ContextAccess::getSettings,
             "Temperature, friction, step size, seed, force groups (bits), constraint tolerance of the "
             "integrator.")
        .def_prop_ro("evaluations", &ContextAccess::evaluations,
                     "How many states forces or energies were computed at by this object.")
        .def_prop_ro("maybe_dirty", &ContextAccess::maybeDirty,
                     "Whether the Context may have been changed since mark_clean().")
        .def_prop_ro("updates", &ContextAccess::updates,
                     "How often parameters of a Force were updated in the Context, since it was "
                     "made.")
        .def_prop_ro("state_changed", &ContextAccess::stateChanged,
                     "Whether positions, velocities or box of the Context have changed since "
                     "mark_clean().")
        .def_prop_ro("changed_parameters", &ContextAccess::changedParameters,
                     "Names of the Context's parameters that have changed since mark_parameters().")
        .def("mark_parameters", &ContextAccess::markParameters,
             "The present parameters are those that forces have been computed with.")
        .def("mark_clean", &ContextAccess::markClean)
        .def("refuse_states", &ContextAccess::refuseStates, nb::arg("refuse"),
             "Whether setting positions or velocities is an error from now on.")
        .def("renew_plain_noise", &ContextAccess::renewPlainNoise,
             "From now on other random numbers for plain steps, unless a seed was given.")
        .def("get_box", &getBox, "Periodic box vectors (3, 3).")
        .def("set_box", &setBox, nb::arg("box"))
        .def("get_parameters", &getParameters)
        .def("set_parameter", &setParameter, nb::arg("name"), nb::arg("value"))
        .def("get_platform", &getPlatform)
        .def_prop_ro("on_device", &ContextAccess::isOnItsDevice,
                     "Whether the platform is another than Reference and CPU.")
        .def("get_properties", &ContextAccess::getProperties)
        .def("with_virtual_sites", &withVirtualSites, nb::arg("positions"),
             "Positions (B, N, 3) with the virtual sites where their parents put them; the Context "
             "is left at the last.")
        .def("steps_before_move", &ContextAccess::stepsBeforeMove,
             "Steps that can be done before one that starts with a barostat's move; None if there "
             "is no barostat.")
        .def("count_steps", &ContextAccess::countSteps, nb::arg("steps"),
             "Tell the barostats of steps that were begun without a move.")
        .def("begin_step", &beginStep, "Let the barostats begin a step, with a move if one is due.")
        .def("get_barostat_memory", &getBarostatMemory,
             "What the barostats remember and OpenMM's checkpoints leave out.")
        .def("set_barostat_memory", &setBarostatMemory, nb::arg("values"))
        .def("evaluate", &evaluate, nb::arg("positions"), nb::arg("groups"),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Energies (B,) and forces (B, N, 3) at positions (B, N, 3), one after another, each at "
             "its own time and step count if these are given; the Context is left at the last.")
        .def("forces", &forces, nb::arg("positions"), nb::arg("groups"),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Forces (B, N, 3) at positions (B, N, 3), one after another; the Context is left at "
             "the last.");
}

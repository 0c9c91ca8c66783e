// Of OpenMM what its Python layer does not offer.

#include "../openmm/devices.h"
#include "../openmm/force_classes.h"
#include "../openmm/python_force.h"
#include "../openmm/virtual_sites.h"
#include "arrays.h"
#include "bindings.h"

#include <openmm/reference/SimTKOpenMMUtilities.h>

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

namespace {

// What Python's int(object.this) points at.
template <class Object>
Object& objectAt(uintptr_t address) {
    return *reinterpret_cast<Object*>(address);
}

std::tuple<NumpyArray, NumpyArray> evaluate(uintptr_t address, VectorBatch positions,
                                            std::optional<Vectors> box,
                                            const std::map<std::string, double>& parameters,
                                            std::optional<DoubleVector> times,
                                            std::optional<LongVector> stepCounts) {
    const size_t batch = positions.shape(0), particles = positions.shape(1);
    const Times when = timesOf(times, stepCounts, batch);
    if (box && box->shape(0) != 3)
        throw std::invalid_argument("the periodic box must have shape (3, 3)");
    Buffer energies({batch}), forces({batch, particles, 3});
    evaluatePythonForce(objectAt<OpenMM::PythonForce>(address), batch, particles, positions.data(),
                        box ? box->data() : nullptr, parameters, when, energies.data.get(),
                        forces.data.get());
    return {energies.numpy(), forces.numpy()};
}

} // namespace

void bindOpenMM(nb::module_& m) {
    m.attr("largest_device_force") = lastOfFixedPoint;
    m.def("draw_random_number", &OpenMM::SimTKOpenMMUtilities::getUniformlyDistributedRandomNumber,
          "The next number of OpenMM's generator, whose state checkpoints contain once it is used.");
    m.def(
        "copy_virtual_sites",
        [](uintptr_t from, uintptr_t to) {
            copyVirtualSites(objectAt<const OpenMM::System>(from), objectAt<OpenMM::System>(to));
        },
        nb::arg("from_address"), nb::arg("to_address"),
        "Make virtual sites of the same particles of another System, given by int(system.this).");
    m.def(
        "calls_python",
        [](uintptr_t address) { return callsPython(objectAt<const OpenMM::Force>(address)); },
        nb::arg("address"),
        "Whether the Force at an address, int(force.this), is a PythonForce or holds one.");
    m.def(
        "class_of_force",
        [](uintptr_t address) { return className(objectAt<const OpenMM::Force>(address)); },
        nb::arg("address"), "Name of the C++ class of a Force, given by int(force.this).");
    m.def("evaluate_python_force", &evaluate, nb::arg("address"), nb::arg("positions"),
          nb::arg("box").none(), nb::arg("parameters"), nb::arg("times") = nb::none(),
          nb::arg("step_counts") = nb::none(),
          "Energies (B,) and forces (B, n, 3) of the PythonForce at an address, int(force.this), at "
          "positions (B, n, 3) of the particles it acts on, one after another; times (B,) and step "
          "counts (B,) are zero by default.");
}

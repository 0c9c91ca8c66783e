#include "../openmm/drafting_context.h"

#include "arrays.h"
#include "bindings.h"

#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace {

void run(DraftingContext& context, VectorBatch vectors) {
    if (vectors.shape(1) != context.numParticles())
        throw std::invalid_argument("the vectors are not those of the subset");
    nb::gil_scoped_release release;
    context.run(vectors.data());
}

} // namespace

void bindDrafting(nb::module_& m) {
    nb::class_<DraftingContext>(
        m, "DraftingContext",
        "A Context in which windows are drafted. The System at an address, int(system.this), gets "
        "two forces on the particles of the subset; then the Context is made, with a "
        "CustomIntegrator as of draftingprogram.py.")
        .def(
            "__init__",
            [](DraftingContext* to, uintptr_t system, const std::vector<int>& particles,
               int standInGroup, int vectorGroup) {
                new (to) DraftingContext(*reinterpret_cast<OpenMM::System*>(system), particles,
                                         standInGroup, vectorGroup);
            },
            nb::arg("system_address"), nb::arg("particles"), nb::arg("stand_in_group"),
            nb::arg("vector_group"))
        .def(
            "attach",
            [](DraftingContext& context, uintptr_t integrator) {
                context.attach(*dynamic_cast<OpenMM::CustomIntegrator*>(
                    reinterpret_cast<OpenMM::Integrator*>(integrator)));
            },
            nb::arg("integrator_address"))
        .def("run", &run, nb::arg("vectors"),
             "One step of the program in the mode that it is in, which takes vectors (B, n, 3).");
}

#include "../openmm/constraints.h"

#include "../core/checks.h"
#include "arrays.h"
#include "bindings.h"

#include <cstdint>
#include <cstring>

namespace {

using Project = void (Projection::*)(const double* at, double* projected);

template <Project project>
NumpyArray projectBatch(Constraints& constraints, VectorBatch at, VectorBatch given) {
    const size_t batch = given.shape(0), particles = given.shape(1), row = 3 * particles;
    checkParticles(particles, constraints.numParticles());
    if (at.shape(0) != batch || at.shape(1) != particles)
        throw std::invalid_argument("the two arrays differ in shape");
    Buffer result({batch, particles, 3});
    double* to = result.data.get();
    {
        nb::gil_scoped_release release;
        std::memcpy(to, given.data(), result.size * sizeof(double));
        for (size_t b = 0; b < batch; b++)
            (constraints.*project)(at.data() + b * row, to + b * row);
    }
    return result.numpy();
}

} // namespace

void bindConstraints(nb::module_& m) {
    nb::class_<Constraints>(
        m, "Constraints",
        "Those of a System, at an address; arrays (B, N, 3). Not to be used by two threads at "
        "once.")
        .def(
            "__init__",
            [](Constraints* to, uintptr_t address, double tolerance) {
                new (to) Constraints(*reinterpret_cast<const OpenMM::System*>(address), tolerance);
            },
            nb::arg("address"), nb::arg("tolerance"))
        .def("velocities", &projectBatch<&Projection::projectVelocities>, nb::arg("positions"),
             nb::arg("velocities"))
        .def("positions", &projectBatch<&Projection::projectPositions>, nb::arg("reference"),
             nb::arg("positions"));
}

#include "../core/forces.h"

#include "../core/checks.h"
#include "bindings.h"
#include "round.h"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

namespace {

// What is no error (Ctrl-C, an exit) ends more than a window: nobody catches it on the way.
struct Interruption {
    std::shared_ptr<nb::python_error> error;
};

// Those that a Python function gives.
class PythonForces : public Forces {
public:
    PythonForces(size_t particles, nb::callable function)
        : particles(particles), function(std::move(function)) {}

    size_t numParticles() const override { return particles; }

    void forcesAt(const double* positions, const Times& times, size_t row,
                  double* result) override {
        nb::gil_scoped_acquire acquire;
        Buffer site({particles, 3});
        std::copy_n(positions, 3 * particles, site.data.get());
        try {
            const nb::object given =
                function(site.numpy(), row, times.time(row), times.stepCount(row));
            const Vectors forces = nb::cast<Vectors>(given);
            checkParticles(forces.shape(0), particles);
            std::copy_n(forces.data(), 3 * particles, result);
        } catch (nb::python_error& error) {
            if (error.matches(PyExc_Exception))
                throw;
            throw Interruption{std::make_shared<nb::python_error>(std::move(error))};
        }
    }

private:
    size_t particles;
    nb::callable function;
};

DraftForce beginRollout(Forces& forces, size_t particles, size_t length,
                        std::optional<DoubleVector> times, std::optional<LongVector> stepCounts) {
    checkParticles(particles, forces.numParticles());
    const Times when = timesOf(times, stepCounts, length);
    return [&forces, when](size_t k, const double* site, double* force) {
        forces.forcesAt(site, when, k, force);
    };
}

} // namespace

void bindForces(nb::module_& m) {
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const Interruption& interruption) {
            interruption.error->restore();
        }
    });
    nb::class_<Forces> type(m, "Forces", "Forces of so many particles, by whatever computes them.");
    type.def_prop_ro("num_particles", &Forces::numParticles);
    defineRollout(type, &beginRollout, nb::arg("times") = nb::none(),
                  nb::arg("step_counts") = nb::none());
    nb::class_<PythonForces, Forces>(
        m, "PythonForces",
        "By a function of positions (N, 3) in nm, the number of the step in its window, time in ps "
        "and step count, that returns forces (N, 3) in kJ/mol/nm.")
        .def(nb::init<size_t, nb::callable>(), nb::arg("particles"), nb::arg("function"));
}

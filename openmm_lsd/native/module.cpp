// What must not pay Python's price: the state of a Context as arrays, forces of many positions in
// one call, the two halves of a round, and the sums that estimates are made of. In ``core`` is what
// knows neither OpenMM nor Python, in ``openmm`` what does not know Python, in ``bindings`` the
// rest.

#include "bindings/bindings.h"
#include "core/keep_freed_memory.h"
#include "core/projection.h"
#include "core/subset.h"

#include <OpenMM.h>

#include <exception>

namespace nb = nanobind;

NB_MODULE(_native, m) {
    // After an exception in a PythonForce OpenMM keeps its traceback, and with it objects of ours,
    // to the end of the process; nanobind would call that a fault of this module.
    nb::set_leak_warnings(false);
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        const auto set = [](const char* module, const char* name, const std::exception& exception) {
            PyErr_SetString(nb::module_::import_(module).attr(name).ptr(), exception.what());
        };
        try {
            std::rethrow_exception(pointer);
        } catch (const OpenMM::OpenMMException& exception) {
            set("openmm", "OpenMMException", exception);
        } catch (const ConstraintError& exception) {
            set("openmm_lsd.core.constraints", "ConstraintError", exception);
        } catch (const SharedForceError& exception) {
            set("openmm_lsd.core.errors", "SharedForceError", exception);
        }
    });
    m.attr("openmm_version") = OPENMM_VERSION;
    m.def("keep_freed_memory", &keepFreedMemory,
          "From now on keep up to 256 MiB of freed memory per thread for the next batch, instead of "
          "giving it back; only with glibc, and unless the user has tuned its malloc by the "
          "environment. Whether that was done.");
    bindIntegrator(m);
    bindConstraints(m);
    bindRound(m);
    bindDrafting(m);
    bindForces(m);
    bindContextAccess(m);
    bindValence(m);
    bindEstimates(m);
    bindOpenMM(m);
}

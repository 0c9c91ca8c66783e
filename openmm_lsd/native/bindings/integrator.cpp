#include "../openmm/serialization_proxies.h"
#include "../openmm/speculative_integrator.h"
#include "bindings.h"

#include <nanobind/stl/string.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace nb = nanobind;

namespace {

// A Python function that OpenMM may call and drop from any thread, the latter even when the
// interpreter is gone.
class PythonFunction {
public:
    explicit PythonFunction(nb::object function)
        : function(new nb::object(std::move(function)), &drop) {}

    // To be called with the GIL. OpenMM's Python layer passes on only exceptions of OpenMM's.
    template <class... Arguments>
    nb::object operator()(Arguments&&... arguments) const {
        std::string message;
        try {
            return (*function)(std::forward<Arguments>(arguments)...);
        } catch (nb::python_error& error) {
            message = nb::str(error.value()).c_str(); // what() holds a traceback
        }
        throw OpenMM::OpenMMException(message);
    }

private:
    std::shared_ptr<nb::object> function;

    static void drop(nb::object* function) {
        if (!nb::is_alive()) {
            function->release();
            delete function;
            return;
        }
        nb::gil_scoped_acquire acquire;
        delete function;
    }
};

void connect(uintptr_t address, const std::string& scheme, double velocityOffset, nb::object save,
             nb::object load, nb::object contextMade, nb::object settings) {
    auto* integrator =
        dynamic_cast<SpeculativeIntegrator*>(reinterpret_cast<OpenMM::Integrator*>(address));
    if (integrator == nullptr)
        throw std::invalid_argument("there is no SpeculativeIntegrator at this address");
    integrator->isMiddle = scheme == "middle";
    integrator->velocityOffset = velocityOffset;
    integrator->contextMade = [call = PythonFunction(contextMade)](const OpenMM::System& system,
                                                                   const std::string& platform) {
        nb::gil_scoped_acquire acquire;
        call(reinterpret_cast<uintptr_t>(&system), platform);
    };
    integrator->save = [call = PythonFunction(save)](const std::string& before) {
        nb::gil_scoped_acquire acquire;
        const auto saved = nb::cast<nb::bytes>(call(nb::bytes(before.data(), before.size())));
        return std::string(saved.c_str(), saved.size());
    };
    integrator->load = [call = PythonFunction(load)](const std::string& saved) {
        nb::gil_scoped_acquire acquire;
        call(nb::bytes(saved.data(), saved.size()));
    };
    integrator->settings = [call = PythonFunction(settings)] {
        nb::gil_scoped_acquire acquire;
        return std::string(nb::cast<nb::str>(call()).c_str());
    };
}

void noteMovement(uintptr_t address) {
    auto* integrator =
        dynamic_cast<SpeculativeIntegrator*>(reinterpret_cast<OpenMM::Integrator*>(address));
    if (integrator != nullptr)
        integrator->noteMovement();
}

} // namespace

void bindIntegrator(nb::module_& m) {
    registerProxies();
    m.attr("speculative_integrator") = SpeculativeIntegratorProxy::name;
    m.attr("existing_system") = ExistingSystemProxy::name;
    m.def("connect", &connect, nb::arg("address"), nb::arg("scheme"), nb::arg("velocity_offset"),
          nb::arg("save"), nb::arg("load"), nb::arg("context_made"), nb::arg("settings"),
          "Tell the SpeculativeIntegrator at an address its scheme, by how many steps velocities are "
          "behind positions, and what to call: save(bytes before) -> bytes and "
          "load(bytes) for checkpoints, context_made(address of the System, name of the Platform) "
          "when a Context is made or reinitialised, settings() -> str for the XML of the "
          "integrator.");
    m.def("note_movement", &noteMovement, nb::arg("address"),
          "Tell the integrator at an address, if it is a SpeculativeIntegrator, that positions or "
          "velocities of its Context may have changed.");
}

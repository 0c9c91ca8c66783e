#include "../openmm/serialization_proxies.h"
#include "../openmm/speculative_integrator.h"
#include "bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

void bindIntegrator(nb::module_& m) {
    registerProxies();
    m.attr("speculative_integrator") = SpeculativeIntegratorProxy::name;
    m.attr("existing_system") = ExistingSystemProxy::name;
    m.def(
        "connect",
        [](uintptr_t address, const std::string& scheme, double velocityOffset, nb::object save,
           nb::object load, nb::object contextMade, nb::object settings) {
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
        nb::arg("address"), nb::arg("scheme"), nb::arg("velocity_offset"), nb::arg("save"),
        nb::arg("load"), nb::arg("context_made"), nb::arg("settings"),
        "Tell the SpeculativeIntegrator at an address its scheme, by how many steps velocities are "
        "behind positions, and what to call: save(bytes before) -> bytes and "
        "load(bytes) for checkpoints, context_made(address of the System, name of the Platform) when a "
        "Context is made or reinitialised, settings() -> str for the XML of the integrator.");
}

#include "bindings.h"
#include "round.h"

#include <nanobind/stl/vector.h>

#include <cstdint>
#include <tuple>
#include <vector>

namespace {

void goTo(DraftingContext& context, const MoveArguments& arguments) {
    const DraftingContext::Move move = moveOf(arguments, context.numParticles());
    nb::gil_scoped_release release;
    context.goTo(move);
}

using RecordTuple = std::tuple<long long, size_t, size_t, size_t, bool>;

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
            [](DraftingContext& context, uintptr_t made, size_t longestWindow) {
                context.attach(*reinterpret_cast<OpenMM::Context*>(made), longestWindow);
            },
            nb::arg("context_address"), nb::arg("longest_window"))
        .def_prop_ro(
            "record",
            [](const DraftingContext& context) -> RecordTuple {
                const auto& now = context.record();
                return {now.windows, now.drafted, now.state, now.begunFrom, now.isBroken};
            },
            "How many windows have been begun; of the last: its last state, the one that the Context "
            "is in, of which state of the window before it was made; whether positions are not "
            "finite.")
        .def("set_record",
             [](DraftingContext& context, const RecordTuple& record) {
                 const auto& [windows, drafted, state, begunFrom, isBroken] = record;
                 context.setRecord({windows, drafted, state, begunFrom, isBroken});
             })
        .def("forget", &DraftingContext::forget,
             "The state in the Context is about to be set: there is no window any more.")
        .def("go_to", &goTo, nb::arg("move"),
             "To a state of the last window, by the number of steps done; added to it are vectors "
             "(3,) for all positions and velocities, and (2, n, 3) for those of the subset.");
}

// Rollouts, of whatever drafts, as methods that take and return NumPy arrays.

#pragma once

#include "../core/forces.h"
#include "../core/round.h"
#include "../openmm/drafting_context.h"
#include "arrays.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <optional>
#include <tuple>
#include <vector>

using RolloutResult = std::tuple<size_t, NumpyArray, NumpyArray, NumpyArray, NumpyArray>;
using WholeRolloutResult = std::tuple<size_t, NumpyArray, NumpyArray, NumpyArray, NumpyArray, bool,
                                      NumpyArray, NumpyArray, NumpyArray, NumpyArray>;

// The fields of corrections.Corrections.
struct CorrectionArguments {
    VectorBatch forces;
    std::optional<VectorBatch> sites;
    std::optional<IntMatrix> neighbours;
    std::optional<Blocks> blocks;
    std::optional<VectorBatch> moved, changed;
};

struct RolloutArguments {
    const Scheme& scheme;
    Masses masses;
    Vectors positions, velocities;
    CorrectionArguments corrections;
    VectorBatch kicks;
    Flags cmRemovals;
};

// Where draft and target differ on a subset: the masses, positions, velocities and noise are those
// of all particles, the corrections those of the subset.
struct WholeRolloutArguments {
    const Scheme& scheme;
    Masses masses, noiseScale;
    IntVector subset;
    Vectors positions, velocities;
    CorrectionArguments corrections;
    std::vector<Vectors> noise;
    Flags cmRemovals;
    Forces& shared;
    std::optional<DoubleVector> times;
    std::optional<LongVector> stepCounts;
};

// A state of the last window of a DraftingContext, and what is added to it.
using MoveArguments = std::tuple<size_t, DoubleVector, DoubleVector, VectorBatch>;

DraftingContext::Move moveOf(const MoveArguments& move, size_t particles);

// The same where all but the subset stays in a Context; masses are those of the subset. A step that
// moves a particle farther than ``farthest`` (nm) by these forces alone is drafted without them.
struct ContextRolloutArguments {
    DraftingContext& context;
    std::optional<MoveArguments> move;
    Masses masses;
    double stepSize, farthest;
    CorrectionArguments corrections;
    VectorBatch kicks;
    Flags cmRemovals;
};

// Number of sites that were reached, and arrays.
using ContextRolloutResult = std::tuple<size_t, NumpyArray, NumpyArray, NumpyArray>;

RolloutResult rollOut(const RolloutArguments& arguments, const DraftForce& draftForce);
WholeRolloutResult rollOutWhole(const WholeRolloutArguments& arguments,
                                const DraftForce& draftForce);
ContextRolloutResult rollOutInContext(const ContextRolloutArguments& arguments,
                                      const DraftForce& draftForce);

// Defines the methods, whose last arguments are those of ``begin`` and annotated last: it is told
// the numbers of particles and steps, raises if they do not fit, and returns what drafts.
template <class Owner, class... More, class... Annotations>
void defineRollout(nb::class_<Owner>& type,
                   DraftForce (*begin)(Owner& owner, size_t particles, size_t length, More...),
                   const Annotations&... annotations) {
    type.def(
        "rollout",
        [begin](Owner& owner, const Scheme& scheme, Masses masses, Vectors positions,
                Vectors velocities, VectorBatch corrections, std::optional<VectorBatch> sites,
                std::optional<IntMatrix> neighbours, std::optional<Blocks> blocks,
                std::optional<VectorBatch> moved, std::optional<VectorBatch> changed,
                VectorBatch kicks, Flags cmRemovals, More... more) {
            const DraftForce draftForce =
                begin(owner, masses.shape(0), corrections.shape(0), more...);
            return rollOut({scheme,
                            masses,
                            positions,
                            velocities,
                            {corrections, sites, neighbours, blocks, moved, changed},
                            kicks,
                            cmRemovals},
                           draftForce);
        },
        nb::arg("scheme"), nb::arg("masses"), nb::arg("positions"), nb::arg("velocities"),
        nb::arg("corrections"), nb::arg("sites").none(), nb::arg("neighbours").none(),
        nb::arg("blocks").none(), nb::arg("moved").none(), nb::arg("changed").none(),
        nb::arg("kicks"), nb::arg("cm_removals"), annotations...,
        "Number of drafted steps, and the arrays of a window.Window.");
    type.def(
        "rollout_whole",
        [begin](Owner& owner, const Scheme& scheme, Masses masses, Masses noiseScale,
                IntVector subset, Vectors positions, Vectors velocities,
                std::vector<Vectors> noise, Flags cmRemovals, Forces& shared, std::optional<DoubleVector> times,
                std::optional<LongVector> stepCounts, VectorBatch corrections,
                std::optional<VectorBatch> sites, std::optional<IntMatrix> neighbours,
                std::optional<Blocks> blocks, std::optional<VectorBatch> moved,
                std::optional<VectorBatch> changed, More... more) {
            const DraftForce draftForce =
                begin(owner, subset.shape(0), corrections.shape(0), more...);
            return rollOutWhole({scheme,
                                 masses,
                                 noiseScale,
                                 subset,
                                 positions,
                                 velocities,
                                 {corrections, sites, neighbours, blocks, moved, changed},
                                 noise,
                                 cmRemovals,
                                 shared,
                                 times,
                                 stepCounts},
                                draftForce);
        },
        nb::arg("scheme"), nb::arg("masses"), nb::arg("noise_scale"), nb::arg("subset"),
        nb::arg("positions"), nb::arg("velocities"), nb::arg("noise"), nb::arg("cm_removals"),
        nb::arg("shared"), nb::arg("times").none(), nb::arg("step_counts").none(),
        nb::arg("corrections"), nb::arg("sites").none(), nb::arg("neighbours").none(),
        nb::arg("blocks").none(), nb::arg("moved").none(), nb::arg("changed").none(),
        annotations...,
        "Number of drafted steps; the first four arrays of a window.Window; whether the rest could "
        "be moved by the last step; and the arrays of a window.Whole.");
    type.def(
        "rollout_in_context",
        [begin](Owner& owner, DraftingContext& context, std::optional<MoveArguments> move,
                Masses masses, double stepSize,
                double farthest, VectorBatch kicks, Flags cmRemovals, VectorBatch corrections,
                std::optional<VectorBatch> sites, std::optional<IntMatrix> neighbours,
                std::optional<Blocks> blocks, std::optional<VectorBatch> moved,
                std::optional<VectorBatch> changed, More... more) {
            const DraftForce draftForce =
                begin(owner, masses.shape(0), corrections.shape(0), more...);
            return rollOutInContext({context,
                                     move,
                                     masses,
                                     stepSize,
                                     farthest,
                                     {corrections, sites, neighbours, blocks, moved, changed},
                                     kicks,
                                     cmRemovals},
                                    draftForce);
        },
        nb::arg("context"), nb::arg("move").none(), nb::arg("masses"), nb::arg("step_size"), nb::arg("farthest"),
        nb::arg("kicks"), nb::arg("cm_removals"), nb::arg("corrections"), nb::arg("sites").none(),
        nb::arg("neighbours").none(), nb::arg("blocks").none(), nb::arg("moved").none(),
        nb::arg("changed").none(), annotations...,
        "After a move, if there is one: number of sites that were reached; sites, draft forces and "
        "corrections (K, n, 3).");
}

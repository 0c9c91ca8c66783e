#include "round.h"

#include "../core/checks.h"
#include "../core/subset.h"
#include "../openmm/constraints.h"
#include "bindings.h"
#include "jacobian.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

Corrections correctionsOf(const CorrectionArguments& given, Masses masses) {
    const size_t length = given.forces.shape(0), particles = given.forces.shape(1);
    if (given.sites.has_value() != given.neighbours.has_value() ||
        given.sites.has_value() != given.blocks.has_value())
        throw std::invalid_argument("sites, neighbours and blocks must be given together");
    if (given.moved.has_value() != given.changed.has_value() || (given.moved && !given.sites))
        throw std::invalid_argument("secants must be given with sites, both arrays of them");
    checkParticles(masses.shape(0), particles);
    for (const auto* each : {&given.moved, &given.changed, &given.sites})
        if (*each && ((*each)->shape(0) != length || (*each)->shape(1) != particles))
            throw std::invalid_argument("the arrays of corrections do not fit together");
    Corrections result(particles, given.forces.data());
    if (given.sites)
        result.setJacobian(given.sites->data(),
                           jacobianOf(*given.neighbours, *given.blocks, particles));
    if (given.moved)
        result.setSecants(given.moved->data(), given.changed->data(), masses.data());
    return result;
}

void checkProjection(const Scheme& scheme, size_t particles) {
    if (scheme.projection != nullptr)
        checkParticles(particles, scheme.projection->numParticles());
}

using CommitResult = std::tuple<NumpyArray, NumpyArray, std::vector<double>, bool>;

CommitResult commit(const Scheme& scheme, Masses masses, Masses noiseScale, Vectors startPositions,
                    Vectors startVelocities, VectorBatch draftVelocities, VectorBatch targetForces,
                    VectorBatch draftForces, VectorBatch noise, DoubleVector logUniforms,
                    Flags cmRemovals) {
    const size_t length = noise.shape(0), verified = targetForces.shape(0);
    const size_t particles = masses.shape(0);
    for (size_t given : {noiseScale.shape(0), startPositions.shape(0), startVelocities.shape(0),
                         draftVelocities.shape(1), targetForces.shape(1), draftForces.shape(1),
                         noise.shape(1)})
        checkParticles(given, particles);
    checkProjection(scheme, particles);
    if (logUniforms.shape(0) != length || cmRemovals.shape(0) != length || verified < 1 ||
        verified > length || draftVelocities.shape(0) < verified ||
        draftForces.shape(0) != verified)
        throw std::invalid_argument("the arrays of a window differ in length");

    const Round round{scheme,
                      particles,
                      length,
                      masses.data(),
                      startPositions.data(),
                      startVelocities.data(),
                      cmRemovals.data()};
    const Verified window{verified,
                          draftVelocities.data(),
                          targetForces.data(),
                          draftForces.data(),
                          noiseScale.data(),
                          noise.data(),
                          logUniforms.data()};
    Buffer positions({verified, particles, 3}), velocities(positions.shape);
    Committed committed;
    {
        nb::gil_scoped_release release;
        committed = commitWindow(round, window, positions.data.get(), velocities.data.get());
    }
    positions.shape[0] = velocities.shape[0] = committed.length;
    return {positions.numpy(), velocities.numpy(), committed.shifts, committed.accepted};
}

} // namespace

RolloutResult rollOut(const RolloutArguments& given, const DraftForce& draftForce) {
    const size_t length = given.corrections.forces.shape(0), particles = given.masses.shape(0);
    Corrections corrections = correctionsOf(given.corrections, given.masses);
    for (size_t each :
         {given.positions.shape(0), given.velocities.shape(0), given.kicks.shape(1)})
        checkParticles(each, particles);
    checkProjection(given.scheme, particles);
    if (given.kicks.shape(0) != length || given.cmRemovals.shape(0) != length)
        throw std::invalid_argument("corrections, kicks and removals differ in length");

    const Round round{given.scheme,
                      particles,
                      length,
                      given.masses.data(),
                      given.positions.data(),
                      given.velocities.data(),
                      given.cmRemovals.data()};
    Buffer sites({length, particles, 3}), velocities(sites.shape), forces(sites.shape),
        added(sites.shape);
    size_t drafted;
    {
        nb::gil_scoped_release release;
        drafted = draftWindow(
            round, corrections, given.kicks.data(), draftForce,
            {sites.data.get(), velocities.data.get(), forces.data.get(), added.data.get()});
    }
    return {drafted, sites.numpy(), velocities.numpy(), forces.numpy(), added.numpy()};
}

WholeRolloutResult rollOutWhole(const WholeRolloutArguments& given, const DraftForce& draftForce) {
    const size_t length = given.corrections.forces.shape(0), particles = given.masses.shape(0);
    const size_t own = given.subset.shape(0);
    for (size_t each : {given.noiseScale.shape(0), given.positions.shape(0),
                        given.velocities.shape(0),
                        given.shared.numParticles()})
        checkParticles(each, particles);
    checkProjection(given.scheme, particles);
    if (length < 1 || given.noise.size() != length || given.cmRemovals.shape(0) != length)
        throw std::invalid_argument("corrections, noise and removals differ in length");
    std::vector<const double*> noise;
    for (const Vectors& each : given.noise) {
        checkParticles(each.shape(0), particles);
        noise.push_back(each.data());
    }
    std::vector<double> masses(own);
    for (size_t i = 0; i < own; i++) {
        const int32_t index = given.subset.data()[i];
        if (index < 0 || (size_t)index >= particles)
            throw std::invalid_argument("the subset has a particle that is not there");
        masses[i] = given.masses.data()[index];
    }
    Corrections corrections =
        correctionsOf(given.corrections, Masses(masses.data(), {own, size_t{1}}));
    const Times when = timesOf(given.times, given.stepCounts, length);
    const auto sharedForce = [&given, when](size_t k, const double* site, double* force) {
        given.shared.forcesAt(site, when, k, force);
    };

    const Round round{given.scheme,
                      particles,
                      length,
                      given.masses.data(),
                      given.positions.data(),
                      given.velocities.data(),
                      given.cmRemovals.data()};
    const Subset subset{own, given.subset.data(), noise, given.noiseScale.data()};
    Buffer sites({length, own, 3}), velocities(sites.shape), forces(sites.shape),
        added(sites.shape);
    Buffer path({length + 1, particles, 3}), pathVelocities(path.shape);
    Buffer centres({length + 1, 2, 3}), sharedForces({length, own + 1, 3});
    WholeDrafted drafted;
    {
        nb::gil_scoped_release release;
        drafted = draftWholeWindow(
            round, subset, corrections, sharedForce, draftForce,
            {sites.data.get(), velocities.data.get(), forces.data.get(), added.data.get()},
            {path.data.get(), pathVelocities.data.get(), centres.data.get(),
             sharedForces.data.get()});
    }
    return {drafted.steps, sites.numpy(),       velocities.numpy(), forces.numpy(),
            added.numpy(), drafted.endsInState, path.numpy(),       pathVelocities.numpy(),
            centres.numpy(), sharedForces.numpy()};
}

ContextRolloutResult rollOutInContext(const ContextRolloutArguments& given,
                                      const DraftForce& draftForce) {
    const size_t length = given.corrections.forces.shape(0), own = given.masses.shape(0);
    checkParticles(own, given.context.numParticles());
    checkParticles(given.kicks.shape(1), own);
    if (length < 1 || given.kicks.shape(0) != length || given.cmRemovals.shape(0) != length)
        throw std::invalid_argument("corrections, kicks and removals differ in length");
    Corrections corrections = correctionsOf(given.corrections, given.masses);
    Buffer sites({length, own, 3}), forces(sites.shape), added(sites.shape);
    const size_t components = 3 * own;
    const double* masses = given.masses.data();
    const double most = given.farthest / (given.stepSize * given.stepSize);
    const auto standIn = [&](size_t k, const double* site, double* result) {
        double *force = forces.data.get() + k * components,
               *correction = added.data.get() + k * components;
        std::copy_n(site, components, sites.data.get() + k * components);
        draftForce(k, site, force);
        if (!allFinite(force, components))
            std::fill_n(force, components, 0.0);
        corrections.take(k, site, correction);
        bool isTooFar = false;
        for (size_t c = 0; c < components; c++) {
            result[c] = force[c] + correction[c];
            isTooFar |= !(std::abs(result[c]) <= most * masses[c / 3]) && masses[c / 3] > 0;
        }
        if (isTooFar) // a draft may propose anything, but the Context must survive it
            for (double* each : {force, correction, result})
                std::fill_n(each, components, 0.0);
    };
    DraftingContext::Move move;
    if (given.move)
        move = moveOf(*given.move, own);
    size_t reached;
    {
        nb::gil_scoped_release release;
        reached = given.context.draft(given.move ? &move : nullptr, length,
                                      given.cmRemovals.data(), given.kicks.data(), standIn);
    }
    return {reached, sites.numpy(), forces.numpy(), added.numpy()};
}

DraftingContext::Move moveOf(const MoveArguments& move, size_t particles) {
    const auto& [state, shift, drift, vectors] = move;
    if (shift.shape(0) != 3 || drift.shape(0) != 3 || vectors.shape(0) != 2)
        throw std::invalid_argument("a move has two vectors of all particles, two of each of the subset");
    checkParticles(vectors.shape(1), particles);
    return {state, shift.data(), drift.data(), vectors.data()};
}

void bindRound(nb::module_& m) {
    nb::class_<Scheme>(m, "Scheme", "A scheme of schemes.py, by its name.")
        .def(
            "__init__",
            [](Scheme* to, const std::string& name, double stepSize, double decay,
               Constraints* constraints) { new (to) Scheme(name, stepSize, decay, constraints); },
            nb::arg("name"), nb::arg("step_size"), nb::arg("decay"),
            nb::arg("constraints") = nb::none(), nb::keep_alive<1, 5>());
    m.def("commit", &commit, nb::arg("scheme"), nb::arg("masses"), nb::arg("noise_scale"),
          nb::arg("positions"), nb::arg("velocities"), nb::arg("draft_velocities"),
          nb::arg("target_forces"), nb::arg("draft_forces"), nb::arg("noise"),
          nb::arg("log_uniforms"), nb::arg("cm_removals"), "The fields of window.Committed.");
}

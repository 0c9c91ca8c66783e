// A Context in which windows are drafted: its integrator's program (draftingprogram.py) asks at
// every step for the forces and kicks of a few particles, the subset, and nothing else comes in or
// goes out. Units nm, ps, kJ/mol.

#pragma once

#include "../core/round.h"

#include <OpenMM.h>

#include <cstddef>
#include <memory>
#include <vector>

class DraftingContext {
public:
    // Gives the System two forces on these particles: what stands in for the target's own, and, in
    // another force group, vectors that the program adds to positions and velocities.
    DraftingContext(OpenMM::System& system, const std::vector<int>& particles, int standInGroup,
                    int vectorGroup);

    size_t numParticles() const { return particles; }

    // The Context that was made of the System is run by this integrator, which must outlive this.
    void attach(OpenMM::CustomIntegrator& program) { integrator = &program; }

    // Sites whose forces were asked for; the state in which the Context is left, by the number of
    // steps done; and whether that is not finite.
    struct Reached {
        size_t sites, state;
        bool isBroken;
    };

    // So many steps; kicks (K, n, 3) are added to the velocities of the subset. Raises what the
    // first step raises; others end the window.
    Reached draft(size_t length, const bool* cmRemovals, const double* kicks,
                  const DraftForce& standIn);

    // One step of the program in another mode, which takes so many times vectors (n, 3).
    void run(const double* vectors);

private:
    struct Exchange;
    class StandIn;
    class Vectors;

    OpenMM::CustomIntegrator& program() const;

    size_t particles;
    std::shared_ptr<Exchange> exchange; // with the forces, which live in the System
    OpenMM::CustomIntegrator* integrator = nullptr;
};

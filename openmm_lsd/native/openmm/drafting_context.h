// A Context in which windows are drafted: its integrator's program (draftingprogram.py) asks at
// every step for the forces and kicks of a few particles, the subset, and nothing else comes in or
// goes out. Units nm, ps, kJ/mol.

#pragma once

#include "../core/round.h"

#include <OpenMM.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

class DraftingContext {
public:
    // Gives the System two forces on these particles: what stands in for the target's own, and, in
    // another force group, vectors that the program adds to positions and velocities.
    DraftingContext(OpenMM::System& system, const std::vector<int>& particles, int standInGroup,
                    int vectorGroup);

    // A state of the last window, by the number of steps done, and what is added to it: to all
    // positions and velocities, and beyond that to those of the subset, (2, n, 3).
    struct Move {
        size_t state;
        const double *shift, *drift, *vectors;
    };

    // Which window it holds. All of it is changed within one call, so that no signal can come
    // between, nor an exception leave it half done.
    struct Record {
        long long windows = 0; // how many have been begun
        size_t drafted = 0;    // the last of its states
        size_t state = 0;      // the one that the Context is in
        size_t begunFrom = 0;  // the state of the window before
        bool isBroken = false; // whether positions are not finite
    };

    size_t numParticles() const { return particles; }
    const Record& record() const { return present; }
    void setRecord(const Record& other) { present = other; }

    // The Context that was made of the System, with a CustomIntegrator; it must outlive this.
    void attach(OpenMM::Context& made, size_t longestWindow);

    // The state in the Context is about to be set by others: there is no window any more.
    void forget();

    void goTo(const Move& move);

    // A window of so many steps, from where the Context is or after a move, and the number of its
    // sites that were reached; kicks (K, n, 3) are added to the velocities of the subset. Raises
    // what the first step raises; others end the window.
    size_t draft(const Move* move, size_t length, const bool* cmRemovals, const double* kicks,
                 const DraftForce& standIn);

private:
    struct Exchange;
    struct Guard;
    class StandIn;
    class Vectors;

    void set(const std::string& name, double value);

    size_t particles, capacity = 0;
    std::shared_ptr<Exchange> exchange; // with the forces, which live in the System
    OpenMM::Context* context = nullptr;
    OpenMM::CustomIntegrator* integrator = nullptr;
    bool hasVirtualSites = false;
    Record present;
};

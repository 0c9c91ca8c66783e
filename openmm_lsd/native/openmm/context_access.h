// The Context that owns an integrator: its state and forces as plain arrays, and what has changed
// in it. Units nm, ps, kJ/mol.

#pragma once

#include "../core/forces.h"

#include <OpenMM.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

class SpeculativeIntegrator;

class ContextAccess : public Forces {
public:
    explicit ContextAccess(uintptr_t integratorAddress);

    // Looked up at every use: the Context may have been deleted.
    OpenMM::Context& context() const;

    // How many states forces or energies were computed at by this object.
    long long evaluations() const { return evaluated; }

    size_t numParticles() const override { return context().getSystem().getNumParticles(); }

    // Whether the platform is another than Reference and CPU.
    bool isOnItsDevice() const { return onDevice; }

    // With positions and velocities; raises if the positions have never been set.
    OpenMM::State getState() const;

    // Arrays (N, 3) for so many particles, which are checked; virtual sites are put in place.
    void setState(const double* positions, const double* velocities, size_t particles);

    // Three vectors.
    std::vector<OpenMM::Vec3> box() const;
    void setBox(const double* vectors);

    // Temperature, friction, step size, seed, force groups and constraint tolerance of a
    // CustomIntegrator with these global variables.
    std::tuple<double, double, double, int, uint32_t, double> getSettings() const;

    int updates() const;
    void refuseStates(bool refuse);
    void renewPlainNoise();

    // Whether the Context may have been changed since markClean(). On a device nothing is read:
    // what moves atoms there must set ``touched`` of the integrator.
    bool maybeDirty() const;

    // Whether positions, velocities or box have changed since markClean().
    bool stateChanged() const;

    // Names of the parameters that have changed since markParameters().
    std::vector<std::string> changedParameters() const;

    // The present parameters are those that forces have been computed with.
    void markParameters();

    // Takes over what was last set or read if nothing has moved since; else it reads the state. A
    // parameter that has changed since markParameters() still counts as new.
    void markClean();

    std::map<std::string, std::string> getProperties() const;

    // See barostats.h.
    std::optional<long long> stepsBeforeMove() const;
    void countSteps(int steps);
    void beginStep();
    std::vector<double> barostatMemory() const;
    void setBarostatMemory(const double* values, size_t count);

    // Of a batch (B, N, 3), one after another; the Context is left at the last.
    void placeVirtualSites(size_t batch, size_t particles, const double* positions, double* result);
    void evaluate(size_t batch, size_t particles, const double* positions, int groups,
                  const Times& times, double* energies, double* forces);
    void forces(size_t batch, size_t particles, const double* positions, int groups,
                const Times& times, double* result);

    // Of the integrator's groups.
    void forcesAt(const double* positions, const Times& times, size_t row, double* result) override;

private:
    OpenMM::Integrator* integrator;
    std::vector<OpenMM::Vec3> vectors; // scratch
    // What the Context holds: as set, but for the rounding of a device, or as read.
    mutable std::vector<OpenMM::Vec3> positions, velocities;
    mutable long long known = -1; // the integrator's ``movements`` then; -1: not known
    std::vector<OpenMM::Vec3> cleanPositions, cleanVelocities, cleanBox;
    std::map<std::string, double> cleanParameters;
    long long evaluated = 0;
    bool wasEverClean = false;
    bool hasVirtualSites = false;
    bool onDevice = false;
    std::string precision; // of a device
    bool wraps = false;    // molecules at sites, for the sake of single precision
    std::vector<std::vector<int>> molecules; // that are wrapped, once they are needed

    OpenMM::ContextImpl& implementation() const;
    SpeculativeIntegrator& speculative() const;
    void remember(const std::vector<OpenMM::Vec3>& newPositions,
                  const std::vector<OpenMM::Vec3>& newVelocities) const;
    bool isSame(const std::vector<OpenMM::Vec3>& before,
                const std::vector<OpenMM::Vec3>& now) const;

    void setTime(const Times& times, size_t row);
    void setSite(const double* positions, size_t particles);
    void wrapMolecules();
    void setVectorsAsPositions();
    void takeVectors(const double* from, size_t particles);
    void copyForces(double* forces);
};

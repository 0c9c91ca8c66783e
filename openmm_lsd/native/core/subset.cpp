#include "subset.h"

#include "checks.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

namespace {

// One window's arrays of all particles, and those of the subset in them.
class Rollout {
public:
    Rollout(const Round& round, const Subset& subset, const WholePath& path)
        : round(round), subset(subset), path(path), components(3 * round.particles),
          own(3 * subset.size), inverseMasses(round.particles), isOfRest(round.particles),
          site(components), found(components), shared(components), acceleration(components),
          kick(components) {
        for (size_t i = 0; i < round.particles; i++) {
            inverseMasses[i] = round.masses[i] > 0 ? 1.0 / round.masses[i] : 0.0;
            isOfRest[i] = round.masses[i] > 0;
        }
        for (size_t i = 0; i < subset.size; i++)
            isOfRest[subset.indices[i]] = false;
        std::copy_n(round.positions, components, path.positions);
        std::copy_n(round.velocities, components, path.velocities);
    }

    double* positions(size_t k) const { return path.positions + k * components; }
    double* velocities(size_t k) const { return path.velocities + k * components; }

    void findSite(size_t k) {
        if (round.cmRemovals[k])
            removeCmMotion(round.particles, velocities(k), round.masses);
        round.scheme.findSite(components, positions(k), velocities(k), site.data());
    }

    void gather(const double* from, double* to) const {
        for (size_t i = 0; i < subset.size; i++)
            std::copy_n(from + 3 * subset.indices[i], 3, to + 3 * i);
    }

    const double* siteOfAll() const { return site.data(); }

    // Whether they can be had at the site of step k; if not, those of the step before are kept.
    bool findSharedForce(size_t k, const DraftForce& sharedForce) {
        try {
            sharedForce(k, site.data(), found.data());
        } catch (const std::exception& error) {
            if (k == 0)
                throw SharedForceError(std::string("the forces that it shares with the draft: ") +
                                       error.what());
            return false;
        }
        if (allFinite(found.data(), components)) {
            std::swap(found, shared);
            return true;
        }
        if (k == 0)
            throw SharedForceError("the forces that it shares with the draft are not finite");
        return false;
    }

    void keepSharedForce(size_t k) const {
        double* row = path.sharedForces + k * (own + 3);
        gather(shared.data(), row);
        double* total = row + own;
        std::fill(total, total + 3, 0.0);
        for (size_t i = 0; i < round.particles; i++)
            if (isOfRest[i])
                for (int j = 0; j < 3; j++)
                    total[j] += shared[3 * i + j];
    }

    // Raises ConstraintError.
    void step(size_t k, const double* force, const double* correction) {
        prepareStep(k);
        for (size_t i = 0; i < subset.size; i++)
            for (int j = 0; j < 3; j++) {
                const size_t at = subset.indices[i];
                acceleration[3 * at + j] +=
                    (force[3 * i + j] + correction[3 * i + j]) * inverseMasses[at];
            }
        doStep(k);
    }

    // The last, of the rest, whatever becomes of the subset; whether it could be done.
    bool stepOfRest(size_t k) {
        prepareStep(k);
        for (size_t i = 0; i < subset.size; i++)
            for (int j = 0; j < 3; j++) {
                const size_t at = 3 * subset.indices[i] + j;
                acceleration[at] = kick[at] = velocities(k + 1)[at] = 0.0;
            }
        try {
            doStep(k);
        } catch (const ConstraintError&) {
            return false;
        }
        return true;
    }

private:
    const Round& round;
    const Subset& subset;
    const WholePath& path;
    size_t components, own;
    std::vector<double> inverseMasses;
    std::vector<bool> isOfRest;
    std::vector<double> site, found, shared, acceleration, kick;

    void prepareStep(size_t k) {
        std::copy_n(positions(k), components, positions(k + 1));
        std::copy_n(velocities(k), components, velocities(k + 1));
        const double* noise = subset.noise + k * components;
        for (size_t i = 0; i < round.particles; i++)
            for (int j = 0; j < 3; j++) {
                acceleration[3 * i + j] = shared[3 * i + j] * inverseMasses[i];
                kick[3 * i + j] = noise[3 * i + j] * subset.noiseScale[i];
            }
    }

    void doStep(size_t k) {
        round.scheme.step(components, positions(k + 1), velocities(k + 1), acceleration.data(),
                          kick.data());
    }
};

} // namespace

WholeDrafted draftWholeWindow(const Round& round, const Subset& subset, Corrections& corrections,
                              const DraftForce& sharedForce, const DraftForce& draftForce,
                              const Drafted& to, const WholePath& path) {
    const size_t own = 3 * subset.size;
    Rollout rollout(round, subset, path);
    size_t steps = 0;
    while (steps < round.length) {
        const size_t k = steps;
        double *site = to.sites + k * own, *force = to.forces + k * own,
               *correction = to.corrections + k * own;
        rollout.findSite(k);
        rollout.gather(rollout.siteOfAll(), site);
        if (k > 0 && !allFinite(site, own))
            break;
        if (!rollout.findSharedForce(k, sharedForce))
            break;
        try {
            draftForce(k, site, force);
        } catch (const std::exception&) {
            if (k == 0)
                throw;
            break;
        }
        if (!allFinite(force, own))
            std::fill(force, force + own, 0.0);
        rollout.gather(rollout.velocities(k), to.velocities + k * own);
        corrections.take(k, site, correction);
        rollout.keepSharedForce(k);
        steps++;
        if (steps == round.length)
            break;
        try {
            rollout.step(k, force, correction);
        } catch (const ConstraintError&) { // a draft may lead anywhere
            break;
        }
    }
    return {steps, rollout.stepOfRest(steps - 1)};
}

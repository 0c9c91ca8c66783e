#include "subset.h"

#include "checks.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

namespace {

// The sum of weights times vectors, added up four at a time, so that it is vectorised.
void addUp(size_t count, const double* weights, const double* vectors, double* sum) {
    constexpr size_t at_a_time = 4;
    double parts[3 * at_a_time] = {};
    size_t i = 0;
    for (; i + at_a_time <= count; i += at_a_time)
        for (size_t c = 0; c < 3 * at_a_time; c++)
            parts[c] += weights[i + c / 3] * vectors[3 * i + c];
    for (; i < count; i++)
        for (size_t j = 0; j < 3; j++)
            parts[j] += weights[i] * vectors[3 * i + j];
    for (size_t j = 0; j < 3; j++)
        sum[j] = parts[j] + parts[3 + j] + parts[6 + j] + parts[9 + j];
}

// One window's arrays of all particles, and those of the subset in them.
class Rollout {
public:
    Rollout(const Round& round, const Subset& subset, const WholePath& path)
        : round(round), subset(subset), path(path), components(3 * round.particles),
          own(3 * subset.size), massesOfRest(round.masses, round.masses + round.particles),
          inverseMasses(round.particles), moves(round.particles), site(components),
          found(components), shared(components) {
        for (size_t i = 0; i < subset.size; i++)
            massesOfRest[subset.indices[i]] = 0.0;
        for (size_t i = 0; i < round.particles; i++) {
            inverseMasses[i] = round.masses[i] > 0 ? 1.0 / round.masses[i] : 0.0;
            moves[i] = massesOfRest[i] > 0;
            massOfRest += massesOfRest[i];
        }
        std::copy_n(round.positions, components, path.positions);
        std::copy_n(round.velocities, components, path.velocities);
    }

    double* positions(size_t k) const { return path.positions + k * components; }
    double* velocities(size_t k) const { return path.velocities + k * components; }

    void findSite(size_t k) {
        if (round.cmRemovals[k])
            removeCmMotion(round.particles, velocities(k), round.masses);
        if (round.scheme.aboba)
            round.scheme.findSite(components, positions(k), velocities(k), site.data());
    }

    void gather(const double* from, double* to) const {
        for (size_t i = 0; i < subset.size; i++)
            std::copy_n(from + 3 * subset.indices[i], 3, to + 3 * i);
    }

    const double* siteOfAll(size_t k) const {
        return round.scheme.aboba ? site.data() : positions(k);
    }

    // Whether they can be had at the site of step k; if not, those of the step before count. What is
    // not finite in one of the rest is not in their sum.
    bool findSharedForce(size_t k, const DraftForce& sharedForce) {
        try {
            sharedForce(k, siteOfAll(k), found.data());
        } catch (const std::exception& error) {
            if (k == 0)
                throw SharedForceError(std::string("the forces that it shares with the draft: ") +
                                       error.what());
            return false;
        }
        double* row = path.sharedForces + k * (own + 3);
        gather(found.data(), row);
        addUp(round.particles, moves.data(), found.data(), row + own);
        if (allFinite(row, own + 3)) {
            std::swap(found, shared);
            return true;
        }
        if (k == 0)
            throw SharedForceError("the forces that it shares with the draft are not finite");
        return false;
    }

    // Of mass of the rest, at the start of step k.
    void keepCentres(size_t k) const {
        double* row = path.centres + 6 * k;
        addUp(round.particles, massesOfRest.data(), positions(k), row);
        addUp(round.particles, massesOfRest.data(), velocities(k), row + 3);
        for (int j = 0; j < 6; j++)
            row[j] = massOfRest > 0 ? row[j] / massOfRest : 0.0;
    }

    // Raises ConstraintError.
    void step(size_t k, const double* force, const double* correction) {
        for (size_t i = 0; i < own; i++)
            shared[3 * subset.indices[i / 3] + i % 3] += force[i] + correction[i];
        doStep(k, velocities(k), subset.noise[k]);
    }

    // The last, of the rest, whatever becomes of the subset; whether it could be done.
    bool stepOfRest(size_t k) {
        std::vector<double> still(velocities(k), velocities(k) + components);
        std::vector<double> noise(subset.noise[k], subset.noise[k] + components);
        for (size_t i = 0; i < own; i++) {
            const size_t at = 3 * subset.indices[i / 3] + i % 3;
            shared[at] = still[at] = noise[at] = 0.0;
        }
        try {
            doStep(k, still.data(), noise.data());
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
    double massOfRest = 0.0;
    std::vector<double> massesOfRest, inverseMasses, moves;
    std::vector<double> site, found, shared;

    void doStep(size_t k, const double* v, const double* noise) {
        round.scheme.step(round.particles, positions(k), v, shared.data(), inverseMasses.data(),
                          noise, subset.noiseScale, positions(k + 1), velocities(k + 1));
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
        rollout.gather(rollout.siteOfAll(k), site);
        if (k > 0 && !allFinite(site, own))
            break;
        // First, so that the shared forces are those of the last step that counts.
        try {
            draftForce(k, site, force);
        } catch (const std::exception&) {
            if (k == 0)
                throw;
            break;
        }
        if (!rollout.findSharedForce(k, sharedForce))
            break;
        if (!allFinite(force, own))
            std::fill(force, force + own, 0.0);
        rollout.gather(rollout.velocities(k), to.velocities + k * own);
        corrections.take(k, site, correction);
        rollout.keepCentres(k);
        steps++;
        if (steps == round.length)
            break;
        try {
            rollout.step(k, force, correction);
        } catch (const ConstraintError&) { // a draft may lead anywhere
            break;
        }
    }
    const bool endsInState = rollout.stepOfRest(steps - 1);
    if (endsInState)
        rollout.keepCentres(steps);
    return {steps, endsInState};
}

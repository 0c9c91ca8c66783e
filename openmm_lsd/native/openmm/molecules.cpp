#include "molecules.h"

#include <map>
#include <numeric>

namespace {

class Joined {
public:
    explicit Joined(int particles) : parents(particles) {
        std::iota(parents.begin(), parents.end(), 0);
    }
    int find(int i) {
        while (parents[i] != i)
            i = parents[i] = parents[parents[i]];
        return i;
    }
    void join(int i, int j) { parents[find(i)] = find(j); }

private:
    std::vector<int> parents;
};

} // namespace

std::vector<std::vector<int>> joinedMolecules(const OpenMM::System& system,
                                              const std::vector<std::vector<int>>& molecules) {
    Joined joined(system.getNumParticles());
    for (const auto& molecule : molecules)
        for (int atom : molecule)
            joined.join(atom, molecule.front());
    for (int k = 0; k < system.getNumForces(); k++) {
        const OpenMM::Force& force = system.getForce(k);
        int i, j;
        double a, b, c;
        if (const auto* charges = dynamic_cast<const OpenMM::NonbondedForce*>(&force))
            for (int e = 0; e < charges->getNumExceptions(); e++) {
                charges->getExceptionParameters(e, i, j, a, b, c);
                joined.join(i, j);
            }
        else if (const auto* shapes = dynamic_cast<const OpenMM::GayBerneForce*>(&force))
            for (int e = 0; e < shapes->getNumExceptions(); e++) {
                shapes->getExceptionParameters(e, i, j, a, b);
                joined.join(i, j);
            }
    }
    std::map<int, std::vector<int>> result;
    for (int i = 0; i < system.getNumParticles(); i++)
        result[joined.find(i)].push_back(i);
    std::vector<std::vector<int>> lists;
    for (auto& each : result)
        lists.push_back(std::move(each.second));
    return lists;
}

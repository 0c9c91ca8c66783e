// Atoms that constraints tie together, and what constraints leave of forces on them: a projection in
// closed form, as constraints.Projection does it for masses times velocities.

#pragma once

#include "vector.h"

#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

class RigidClusters {
public:
    // Larger ones, of molecules all of whose bonds are rigid, count as free: the effort for a
    // state grows by the third power.
    static constexpr int mostAtoms = 12;

    RigidClusters(const double* inverseMasses, size_t particles,
                  const std::vector<std::pair<int, int>>& pairs)
        : inverseMasses(inverseMasses, inverseMasses + particles), clusters(particles, -1),
          places(particles, 0) {
        std::vector<int> labels(particles);
        for (size_t i = 0; i < particles; i++)
            labels[i] = (int)i;
        const auto root = [&](int i) {
            while (labels[i] != i)
                i = labels[i] = labels[labels[i]];
            return i;
        };
        for (const auto& [i, j] : pairs)
            labels[root(i)] = root(j);
        std::vector<std::vector<int>> members(particles);
        for (size_t i = 0; i < particles; i++)
            members[root((int)i)].push_back((int)i);
        for (const auto& atoms : members) {
            if (atoms.size() < 2 || atoms.size() > mostAtoms)
                continue;
            for (size_t a = 0; a < atoms.size(); a++) {
                clusters[atoms[a]] = (int)all.size();
                places[atoms[a]] = (int)a;
            }
            all.push_back({atoms, {}, {}, {}});
        }
        for (const auto& [i, j] : pairs)
            if (clusters[i] >= 0)
                all[clusters[i]].pairs.push_back({i, j});
    }

    // The number of an atom's cluster, or -1; its place among the atoms there; and these.
    int clusterOf(int atom) const { return clusters[atom]; }
    int placeOf(int atom) const { return places[atom]; }
    const std::vector<int>& atomsOf(int cluster) const { return all[cluster].atoms; }

    // Positions (N, 3), in a box of 9 numbers or null.
    void takeState(const double* positions, const double* box) {
        for (Cluster& cluster : all)
            cluster.takeState(positions, box, inverseMasses);
    }

    // Forces on the atoms of a cluster become those that are left.
    void project(int cluster, Vector* forces) {
        Cluster& own = all[cluster];
        const int count = (int)own.pairs.size();
        multipliers.resize(count);
        for (int c = 0; c < count; c++) {
            const auto [i, j] = own.pairs[c];
            const Vector approach =
                forces[places[i]] * inverseMasses[i] - forces[places[j]] * inverseMasses[j];
            multipliers[c] = own.gradients[c].dot(approach);
        }
        own.solve(multipliers.data());
        for (int c = 0; c < count; c++) {
            const auto [i, j] = own.pairs[c];
            const Vector along = own.gradients[c] * multipliers[c];
            forces[places[i]] = forces[places[i]] - along;
            forces[places[j]] = forces[places[j]] + along;
        }
    }

private:
    struct Cluster {
        std::vector<int> atoms;
        std::vector<std::pair<int, int>> pairs;
        std::vector<Vector> gradients; // of the pairs
        std::vector<double> factor;    // L L^T is the gradients' matrix of products over masses

        void takeState(const double* positions, const double* box,
                       const std::vector<double>& inverseMasses) {
            const int count = (int)pairs.size();
            gradients.resize(count);
            factor.resize((size_t)count * count);
            for (int c = 0; c < count; c++) {
                const Vector d = between(positions, pairs[c].second, pairs[c].first, box);
                gradients[c] = d * (1.0 / std::sqrt(d.dot(d)));
            }
            for (int c = 0; c < count; c++)
                for (int e = 0; e <= c; e++) {
                    const auto [i, j] = pairs[c];
                    const auto [k, m] = pairs[e];
                    const double shared = (i == k) * inverseMasses[i] + (j == m) * inverseMasses[j] -
                                          (i == m) * inverseMasses[i] - (j == k) * inverseMasses[j];
                    double sum = gradients[c].dot(gradients[e]) * shared;
                    for (int f = 0; f < e; f++)
                        sum -= factor[c * count + f] * factor[e * count + f];
                    // A constraint that follows from others says nothing.
                    if (c == e)
                        factor[c * count + c] = sum > 1e-12 * shared ? std::sqrt(sum) : 0.0;
                    else
                        factor[c * count + e] =
                            factor[e * count + e] > 0 ? sum / factor[e * count + e] : 0.0;
                }
        }

        void solve(double* b) const {
            const int count = (int)pairs.size();
            for (int c = 0; c < count; c++) {
                for (int e = 0; e < c; e++)
                    b[c] -= factor[c * count + e] * b[e];
                b[c] = factor[c * count + c] > 0 ? b[c] / factor[c * count + c] : 0.0;
            }
            for (int c = count - 1; c >= 0; c--) {
                for (int e = c + 1; e < count; e++)
                    b[c] -= factor[e * count + c] * b[e];
                b[c] = factor[c * count + c] > 0 ? b[c] / factor[c * count + c] : 0.0;
            }
        }
    };

    std::vector<double> inverseMasses;
    std::vector<int> clusters, places; // of each atom
    std::vector<Cluster> all;
    std::vector<double> multipliers; // scratch
};

// A valence force field that is linear in its parameters; valence.py is the readable reference.

#pragma once

#include "normal_equations.h"
#include "rigid_clusters.h"
#include "vector.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

class ValenceTerms {
public:
    enum Kind : int8_t { Distance = 0, Angle = 1, Torsion = 2, OutOfPlane = 3 };
    static constexpr int numberOfKinds = 4;
    static constexpr int atomsOfKind[numberOfKinds] = {2, 3, 4, 4};
    static constexpr double morseExponent = 2.3;
    static constexpr int mostFactors = 4;

    struct Coordinate {
        Kind kind;
        int atoms[4];
        double reference, limit;
        int vectors[3];  // one less than atoms: see endsOfVector
        double signs[3]; // -1 where the vector is stored the other way round
    };
    struct Term {
        int factors[mostFactors]; // those there are come first
        int count;
        int parameter;
    };

    int particles = 0, parameters = 0;

    void addCoordinate(Coordinate c) {
        for (int a = 0; a < atomsOfKind[c.kind] - 1; a++) {
            const auto [from, to] = endsOfVector(c.kind, a);
            const int i = c.atoms[from], j = c.atoms[to];
            const auto ends = std::minmax(i, j);
            const auto [place, isNew] = vectorOf.try_emplace(ends, (int)vectors.size());
            if (isNew)
                vectors.push_back({ends.first, ends.second});
            c.vectors[a] = place->second;
            c.signs[a] = i < j ? 1.0 : -1.0;
        }
        coordinates.push_back(c);
    }

    void addTerm(const Term& term) {
        parameters = std::max(parameters, term.parameter + 1);
        terms.push_back(term);
    }

    // What acts along the constraints of clusters is not learned: of the features only that counts
    // which is left of them. To be called before ``addNormalEquations``.
    void setRigidClusters(RigidClusters rigidClusters) { clusters = std::move(rigidClusters); }

    // To be called after all coordinates and terms are there; theta has one number a parameter.
    void setParameters(const double* theta) {
        if (!isPrepared)
            prepareTerms();
        std::fill(weights.begin(), weights.end(), 0.0);
        for (const Share& share : shares)
            weights[share.place] += share.factor * theta[share.parameter];
    }

    // Forces (N, 3) are added to ``forces``. ``box``: 9 numbers, or null.
    void addForces(const double* positions, const double* box, double* forces) {
        measure(positions, box);
        takeSlopes();
        pulls.assign(vectors.size(), {});
        for (size_t q = 0; q < coordinates.size(); q++) {
            const Coordinate& c = coordinates[q];
            // What a coordinate has no vector for is not touched.
            addPulls(q, slopes[q], pulls[c.vectors[0]], pulls[c.vectors[1]], pulls[c.vectors[2]]);
        }
        for (size_t v = 0; v < vectors.size(); v++) {
            const Vector gradient = byVector(vectors[v], pulls[v]);
            add(forces + 3 * vectors[v].from, gradient, 1.0);
            add(forces + 3 * vectors[v].to, gradient, -1.0);
        }
    }

    // Of the features at ``count`` states (N, 3), or, unless ``before`` is null, of what they are
    // more than those at the states there: see learning.add_normal_equations.
    void addNormalEquations(size_t count, const double* positions, const double* before,
                            const double* box, const double* residuals, const double* weights,
                            const double* offset, const double* scales, double* gram,
                            double* moment) {
        if (!equations)
            prepareEquations();
        for (size_t start = 0; start < count; start += NormalEquations::mostStates) {
            const size_t size = std::min<size_t>(NormalEquations::mostStates, count - start);
            const size_t components = 3 * (size_t)particles;
            states.resize(2 * NormalEquations::mostStates);
            for (size_t s = 0; s < size; s++) {
                takeState(positions + (start + s) * components, box, states[s]);
                if (before != nullptr)
                    takeState(before + (start + s) * components, box, states[size + s]);
            }
            equations->add(states, (int)size, before != nullptr, residuals + start * components,
                           weights, offset, scales + start, gram, moment);
        }
    }

private:
    // Among a coordinate's atoms: from one to the next, or from the centre to its neighbours.
    static std::pair<int, int> endsOfVector(Kind kind, int vector) {
        if (kind == OutOfPlane)
            return {1, vector == 0 ? 0 : vector + 1};
        return {vector, vector + 1};
    }

    std::vector<Coordinate> coordinates;
    std::vector<Term> terms;

    // The energy is a polynomial in each coordinate by itself, and a quadratic form in the
    // coordinates and some products of two coordinates: the variables, products last.
    struct Product {
        int first, second; // coordinates
    };
    struct Share { // of a term in a weight
        size_t place;
        int parameter;
        double factor;
    };
    bool isPrepared = false;
    std::vector<Product> products;
    std::vector<int> others;     // the variables that each is multiplied by, in turn
    std::vector<int> ends;       // in ``others``, of each variable
    std::vector<double> weights; // slopes by the powers 0 to 3 of each coordinate; of the products;
                                 // and of ``others``
    std::vector<Share> shares;

    // Bonds are part of many coordinates: length and direction are taken once.
    struct Direction {
        int from, to;
        Vector unit;
        double length, inverse;
    };
    std::vector<Direction> vectors;
    std::map<std::pair<int, int>, int> vectorOf;

    std::vector<double> values, slopes; // of the variables
    // Of an angle: its cosine, and 1 / sine. Of a torsion: cosines between its first and second
    // vector, and its second and third. Of a distance: nothing, and its slope by the length.
    std::vector<double> firsts, seconds;

    // Derivatives of the energy by the direction, as if its parts were free, and by the length.
    struct Pull {
        Vector byUnit;
        double byLength;
    };
    std::vector<Pull> pulls;
    struct Gradient {
        Vector byAtom[4];
    };

    // Which atoms feel a coordinate: how many, where among them its own are, and which clusters,
    // from where on.
    struct Reach {
        int atoms;
        int places[4];
        std::vector<std::pair<int, int>> clusters;
    };
    std::optional<RigidClusters> clusters;
    std::vector<Reach> reaches;   // of the coordinates, if there are clusters
    std::vector<Vector> reached; // scratch

    std::optional<NormalEquations> equations;
    std::vector<NormalEquations::State> states;

    using Name = std::pair<int, int>; // of a product

    // The ways to write a term of three or four factors as one of two variables: products of two
    // of its factors, and what they leave.
    struct Split {
        Name product, rest; // the second of ``rest`` is -1 if one factor is left
    };
    static std::vector<Split> splits(const Term& term) {
        int q[mostFactors];
        std::copy(term.factors, term.factors + term.count, q);
        std::sort(q, q + term.count);
        if (term.count == 3)
            return {{{q[0], q[1]}, {q[2], -1}}, {{q[0], q[2]}, {q[1], -1}},
                    {{q[1], q[2]}, {q[0], -1}}};
        return {{{q[0], q[1]}, {q[2], q[3]}}, {{q[0], q[2]}, {q[1], q[3]}},
                {{q[0], q[3]}, {q[1], q[2]}}};
    }

    static bool isPower(const Term& term) {
        return std::all_of(term.factors, term.factors + term.count,
                           [&](int q) { return q == term.factors[0]; });
    }

    // Writes the terms with as few products as is easily found: each takes those that most could.
    void prepareTerms() {
        isPrepared = true;
        const int count = (int)coordinates.size();
        std::map<Name, int> takers;
        for (const Term& term : terms)
            if (term.count > 2 && !isPower(term))
                for (const Split& split : splits(term)) {
                    takers[split.product]++;
                    if (split.rest.second >= 0)
                        takers[split.rest]++;
                }
        std::map<Name, int> numbers; // of the variables that are products
        const auto variable = [&](const Name& name) {
            if (name.second < 0)
                return name.first;
            const auto [place, isNew] = numbers.try_emplace(name, count + (int)products.size());
            if (isNew)
                products.push_back({name.first, name.second});
            return place->second;
        };
        std::map<Name, std::vector<std::pair<int, double>>> form; // parameters and factors
        const auto addToForm = [&](int x, int y, int parameter) {
            form[{x, y}].push_back({parameter, x == y ? 2.0 : 1.0});
            if (x != y)
                form[{y, x}].push_back({parameter, 1.0});
        };
        for (const Term& term : terms) {
            if (isPower(term) || term.count == 2)
                continue;
            const auto all = splits(term);
            const auto popularity = [&](const Split& split) {
                return takers[split.product] + (split.rest.second < 0 ? 0 : takers[split.rest]);
            };
            const Split& best =
                *std::max_element(all.begin(), all.end(), [&](const Split& a, const Split& b) {
                    return popularity(a) < popularity(b);
                });
            addToForm(variable(best.product), variable(best.rest), term.parameter);
        }
        const size_t powers = (size_t)mostFactors * count;
        for (const Term& term : terms) {
            const int* q = term.factors;
            if (term.count == 0)
                continue;
            if (isPower(term)) {
                const size_t place = (size_t)(term.count - 1) * count + q[0];
                shares.push_back({place, term.parameter, (double)term.count});
            } else if (term.count == 2) {
                const auto known = numbers.find(std::minmax(q[0], q[1]));
                if (known == numbers.end())
                    addToForm(q[0], q[1], term.parameter);
                else
                    shares.push_back({powers + (known->second - count), term.parameter, 1.0});
            }
        }
        const size_t variables = count + products.size(), first = powers + products.size();
        ends.assign(variables, 0);
        for (const auto& [name, sum] : form) { // in the order of the first variable
            for (const auto& [parameter, factor] : sum)
                shares.push_back({first + others.size(), parameter, factor});
            others.push_back(name.second);
            ends[name.first] = (int)others.size();
        }
        for (size_t x = 1; x < variables; x++)
            ends[x] = std::max(ends[x], ends[x - 1]);
        weights.resize(first + others.size());
        values.resize(variables);
        slopes.resize(variables);
    }

    void prepareEquations() {
        std::vector<std::vector<int>> atoms;
        for (const Coordinate& c : coordinates) {
            atoms.emplace_back(c.atoms, c.atoms + atomsOfKind[c.kind]);
            if (clusters)
                reaches.push_back(reachOf(atoms.back()));
        }
        equations.emplace(particles, parameters, std::move(atoms));
        for (const Term& term : terms)
            for (int f = 0; f < term.count; f++) {
                int others[mostFactors], count = 0;
                for (int other = 0; other < term.count; other++)
                    if (other != f)
                        others[count++] = term.factors[other];
                equations->addDerivative(term.factors[f], term.parameter, others, count);
            }
        equations->finish();
    }

    // The ``atoms`` of a coordinate become those that feel it through constraints: those of its
    // clusters, one cluster after another.
    Reach reachOf(std::vector<int>& atoms) const {
        const std::vector<int> own = std::move(atoms);
        Reach result = {};
        atoms.clear();
        for (size_t a = 0; a < own.size(); a++) {
            const int cluster = clusters->clusterOf(own[a]);
            if (cluster < 0) {
                result.places[a] = (int)atoms.size();
                atoms.push_back(own[a]);
                continue;
            }
            auto known = std::find_if(result.clusters.begin(), result.clusters.end(),
                                      [&](const auto& each) { return each.first == cluster; });
            if (known == result.clusters.end()) {
                known = result.clusters.insert(known, {cluster, (int)atoms.size()});
                const std::vector<int>& more = clusters->atomsOf(cluster);
                atoms.insert(atoms.end(), more.begin(), more.end());
            }
            result.places[a] = known->second + clusters->placeOf(own[a]);
        }
        result.atoms = (int)atoms.size();
        return result;
    }

    void takeState(const double* positions, const double* box, NormalEquations::State& state) {
        measure(positions, box);
        state.values.assign(values.begin(), values.begin() + coordinates.size());
        state.gradients.clear();
        if (clusters)
            clusters->takeState(positions, box);
        for (size_t q = 0; q < coordinates.size(); q++) {
            const Gradient byAtoms = gradient(q);
            const int count = atomsOfKind[coordinates[q].kind];
            if (clusters)
                appendReach(byAtoms, count, reaches[q], state.gradients);
            else
                append(byAtoms.byAtom, count, state.gradients);
        }
    }

    void appendReach(const Gradient& byAtoms, int count, const Reach& reach,
                     std::vector<double>& to) {
        reached.assign(reach.atoms, {});
        for (int a = 0; a < count; a++)
            reached[reach.places[a]] = byAtoms.byAtom[a];
        for (const auto& [cluster, start] : reach.clusters)
            clusters->project(cluster, reached.data() + start);
        append(reached.data(), reach.atoms, to);
    }

    static void append(const Vector* from, int count, std::vector<double>& to) {
        for (int i = 0; i < count; i++)
            to.insert(to.end(), {from[i].x, from[i].y, from[i].z});
    }

    static void add(double* to, const Vector& v, double scale) {
        to[0] += scale * v.x;
        to[1] += scale * v.y;
        to[2] += scale * v.z;
    }
    static void add(Vector& to, const Vector& v, double scale) { to = to + v * scale; }

    void measure(const double* positions, const double* box) {
        const size_t count = coordinates.size();
        for (auto* array : {&firsts, &seconds})
            array->resize(count);
        for (Direction& v : vectors) {
            const Vector d = between(positions, v.from, v.to, box);
            v.length = std::sqrt(d.dot(d));
            v.inverse = 1.0 / v.length;
            v.unit = d * v.inverse;
        }
        for (size_t q = 0; q < count; q++) {
            const Coordinate& c = coordinates[q];
            const Direction& v1 = vectors[c.vectors[0]];
            double value;
            if (c.kind == Distance) {
                seconds[q] = std::exp(-morseExponent * (v1.length / c.reference - 1.0));
                value = c.reference + (1.0 - seconds[q]) * c.reference / morseExponent;
            }
            else if (c.kind == OutOfPlane)
                value = c.signs[0] * c.signs[1] * c.signs[2] *
                        v1.unit.dot(vectors[c.vectors[1]].unit.cross(vectors[c.vectors[2]].unit));
            else {
                const Direction& v2 = vectors[c.vectors[1]];
                const double c12 = c.signs[0] * c.signs[1] * v1.unit.dot(v2.unit);
                if (c.kind == Angle) { // between minus the first and the second
                    const double cosine = std::clamp(-c12, -1.0, 1.0);
                    const double sine = std::sqrt(1.0 - cosine * cosine);
                    value = std::acos(cosine);
                    firsts[q] = cosine;
                    seconds[q] = sine < 1e-6 ? 0.0 : 1.0 / sine;
                } else {
                    const Direction& v3 = vectors[c.vectors[2]];
                    const double c23 = c.signs[1] * c.signs[2] * v2.unit.dot(v3.unit);
                    value = c12 * c23 - c.signs[0] * c.signs[2] * v1.unit.dot(v3.unit);
                    firsts[q] = c12;
                    seconds[q] = c23;
                }
            }
            values[q] = std::clamp(value - c.reference, -c.limit, c.limit);
        }
    }

    void takeSlopes() {
        const size_t count = coordinates.size();
        double* u = values.data();
        double* slope = slopes.data();
        for (size_t p = 0; p < products.size(); p++)
            u[count + p] = u[products[p].first] * u[products[p].second];
        const double *w0 = weights.data(), *w1 = w0 + count, *w2 = w1 + count, *w3 = w2 + count;
        for (size_t q = 0; q < count; q++)
            slope[q] = w0[q] + u[q] * (w1[q] + u[q] * (w2[q] + u[q] * w3[q]));
        const double* w = w3 + count;
        std::copy(w, w + products.size(), slope + count);
        w += products.size();
        int e = 0;
        for (size_t x = 0; x < ends.size(); x++) {
            double even = 0.0, odd = 0.0; // need not wait for each other
            for (; e + 1 < ends[x]; e += 2) {
                even += w[e] * u[others[e]];
                odd += w[e + 1] * u[others[e + 1]];
            }
            if (e < ends[x]) {
                even += w[e] * u[others[e]];
                e++;
            }
            slope[x] += even + odd;
        }
        for (size_t p = 0; p < products.size(); p++) {
            const auto [first, second] = products[p];
            const double s = slope[count + p];
            slope[first] += s * u[second];
            slope[second] += s * u[first];
        }
    }

    // What a slope of coordinate q does to its vectors.
    void addPulls(size_t q, double slope, Pull& first, Pull& second, Pull& third) const {
        const Coordinate& c = coordinates[q];
        if (c.kind == Distance) {
            first.byLength += slope * seconds[q];
            return;
        }
        const Vector &e1 = vectors[c.vectors[0]].unit, &e2 = vectors[c.vectors[1]].unit;
        const double s12 = c.signs[0] * c.signs[1];
        if (c.kind == Angle) {
            add(first.byUnit, e2, s12 * slope * seconds[q]);
            add(second.byUnit, e1, s12 * slope * seconds[q]);
            return;
        }
        const Vector& e3 = vectors[c.vectors[2]].unit;
        if (c.kind == OutOfPlane) {
            const double signedSlope = s12 * c.signs[2] * slope;
            add(first.byUnit, e2.cross(e3), signedSlope);
            add(second.byUnit, e3.cross(e1), signedSlope);
            add(third.byUnit, e1.cross(e2), signedSlope);
            return;
        }
        const double s23 = c.signs[1] * c.signs[2], s13 = c.signs[0] * c.signs[2];
        const double by12 = s12 * slope * seconds[q], by23 = s23 * slope * firsts[q];
        const double by13 = -s13 * slope;
        first.byUnit = first.byUnit + e2 * by12 + e3 * by13;
        second.byUnit = second.byUnit + e1 * by12 + e3 * by23;
        third.byUnit = third.byUnit + e2 * by23 + e1 * by13;
    }

    // Derivative by a vector; a direction can only turn.
    static Vector byVector(const Direction& v, const Pull& pull) {
        const double along = pull.byUnit.dot(v.unit);
        return v.unit * (pull.byLength - along * v.inverse) + pull.byUnit * v.inverse;
    }

    // Of coordinate q by its atoms.
    Gradient gradient(size_t q) const {
        const Coordinate& c = coordinates[q];
        Pull own[3] = {};
        addPulls(q, 1.0, own[0], own[1], own[2]);
        Gradient result = {};
        for (int a = 0; a < atomsOfKind[c.kind] - 1; a++) {
            const Vector g = byVector(vectors[c.vectors[a]], own[a]) * c.signs[a];
            const auto [from, to] = endsOfVector(c.kind, a);
            result.byAtom[from] = result.byAtom[from] - g;
            result.byAtom[to] = result.byAtom[to] + g;
        }
        return result;
    }
};

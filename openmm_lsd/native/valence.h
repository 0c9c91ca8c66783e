// A valence force field that is linear in its parameters; valence.py is the readable reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

struct Vector {
    double x, y, z;
    Vector operator+(const Vector& o) const { return {x + o.x, y + o.y, z + o.z}; }
    Vector operator-(const Vector& o) const { return {x - o.x, y - o.y, z - o.z}; }
    Vector operator*(double s) const { return {x * s, y * s, z * s}; }
    double dot(const Vector& o) const { return x * o.x + y * o.y + z * o.z; }
};

class ValenceTerms {
public:
    enum Kind : int8_t { Distance = 0, Angle = 1, Torsion = 2 };
    static constexpr int mostFactors = 4;

    struct Coordinate {
        Kind kind;
        int atoms[4];
        double reference, limit;
        int vectors[3];  // along it: from atom 0 to 1, 1 to 2, 2 to 3
        double signs[3]; // -1 where the vector is stored the other way round
    };
    struct Term {
        int factors[mostFactors]; // those there are come first
        int count;
        int parameter;
    };

    std::vector<Coordinate> coordinates;
    std::vector<Term> terms;
    int particles = 0, parameters = 0;

    void addCoordinate(Coordinate c) {
        for (int a = 0; a <= c.kind; a++) {
            const int i = c.atoms[a], j = c.atoms[a + 1];
            const auto ends = std::minmax(i, j);
            const auto [place, isNew] = vectorOf.try_emplace(ends, (int)vectors.size());
            if (isNew)
                vectors.push_back({ends.first, ends.second});
            c.vectors[a] = place->second;
            c.signs[a] = i < j ? 1.0 : -1.0;
        }
        coordinates.push_back(c);
    }

    // Forces (N, 3) are added to ``forces``. ``box``: 9 numbers, or null.
    void addForces(const double* positions, const double* theta, const double* box,
                   double* forces) {
        measure(positions, box);
        std::fill(slopes.begin(), slopes.end(), 0.0);
        for (const Term& term : terms) {
            const double weight = theta[term.parameter];
            const int* q = term.factors;
            switch (term.count) {
            case 1:
                slopes[q[0]] += weight;
                break;
            case 2:
                slopes[q[0]] += weight * values[q[1]];
                slopes[q[1]] += weight * values[q[0]];
                break;
            case 3: {
                const double u = values[q[0]], v = values[q[1]], w = weight * values[q[2]];
                slopes[q[0]] += w * v;
                slopes[q[1]] += w * u;
                slopes[q[2]] += weight * u * v;
                break;
            }
            default:
                for (int f = 0; f < term.count; f++)
                    slopes[q[f]] += weight * productOfOthers(term, f);
            }
        }
        for (size_t q = 0; q < coordinates.size(); q++)
            for (int a = 0; a < atomsOf(coordinates[q].kind); a++)
                add(forces + 3 * coordinates[q].atoms[a], gradients[4 * q + a], -slopes[q]);
    }

    // Features (N, 3, P) of one state, to be zero before.
    void addFeatures(const double* positions, const double* box, double* features) {
        measure(positions, box);
        for (const Term& term : terms)
            for (int f = 0; f < term.count; f++) {
                const int q = term.factors[f];
                const double slope = -productOfOthers(term, f);
                for (int a = 0; a < atomsOf(coordinates[q].kind); a++) {
                    const Vector& g = gradients[4 * q + a];
                    double* row = features + 3 * (size_t)coordinates[q].atoms[a] * parameters +
                                  term.parameter;
                    row[0] += slope * g.x;
                    row[parameters] += slope * g.y;
                    row[2 * parameters] += slope * g.z;
                }
            }
    }

private:
    std::vector<double> values, slopes; // of the coordinates
    std::vector<Vector> gradients;      // four for each coordinate

    // Bonds are part of many coordinates: length and direction are taken once.
    struct Direction {
        int from, to;
        Vector unit;
        double length, inverse;
    };
    std::vector<Direction> vectors;
    std::map<std::pair<int, int>, int> vectorOf;

    static int atomsOf(Kind kind) { return 2 + kind; }

    static void add(double* to, const Vector& v, double scale) {
        to[0] += scale * v.x;
        to[1] += scale * v.y;
        to[2] += scale * v.z;
    }

    double productOfOthers(const Term& term, int f) const {
        double product = 1.0;
        for (int other = 0; other < term.count; other++)
            if (other != f)
                product *= values[term.factors[other]];
        return product;
    }

    static Vector between(const double* positions, int from, int to, const double* box) {
        const double *a = positions + 3 * from, *b = positions + 3 * to;
        Vector d = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
        if (box != nullptr) { // OpenMM's reduced form
            d = d - Vector{box[6], box[7], box[8]} * std::round(d.z / box[8]);
            d = d - Vector{box[3], box[4], 0.0} * std::round(d.y / box[4]);
            d.x -= box[0] * std::round(d.x / box[0]);
        }
        return d;
    }

    void measure(const double* positions, const double* box) {
        values.resize(coordinates.size());
        slopes.resize(coordinates.size());
        gradients.resize(4 * coordinates.size());
        for (Direction& v : vectors) {
            const Vector d = between(positions, v.from, v.to, box);
            v.length = std::sqrt(d.dot(d));
            v.inverse = 1.0 / v.length;
            v.unit = d * v.inverse;
        }
        for (size_t q = 0; q < coordinates.size(); q++) {
            const Coordinate& c = coordinates[q];
            Vector* g = &gradients[4 * q];
            const Direction* v[3];
            for (int a = 0; a <= c.kind; a++)
                v[a] = &vectors[c.vectors[a]];
            const Vector e1 = v[0]->unit * c.signs[0];
            double value;
            if (c.kind == Distance) {
                value = v[0]->length;
                g[1] = e1;
                g[0] = e1 * -1.0;
            } else if (c.kind == Angle) { // between -e1 and e2
                const Vector e2 = v[1]->unit * c.signs[1];
                const double cosine = std::clamp(-e1.dot(e2), -1.0, 1.0);
                const double sine = std::sqrt(1.0 - cosine * cosine);
                value = std::acos(cosine);
                const double scale = sine < 1e-6 ? 0.0 : 1.0 / sine;
                g[0] = (e1 * cosine + e2) * (-scale * v[0]->inverse);
                g[2] = (e2 * cosine + e1) * (scale * v[1]->inverse);
                g[1] = (g[0] + g[2]) * -1.0;
            } else {
                const Vector e2 = v[1]->unit * c.signs[1], e3 = v[2]->unit * c.signs[2];
                const double c12 = e1.dot(e2), c23 = e2.dot(e3);
                value = c12 * c23 - e1.dot(e3);
                const Vector g1 = normalPart(e2 * c23 - e3, e1) * v[0]->inverse;
                const Vector g2 = normalPart(e1 * c23 + e3 * c12, e2) * v[1]->inverse;
                const Vector g3 = normalPart(e2 * c12 - e1, e3) * v[2]->inverse;
                g[0] = g1 * -1.0;
                g[1] = g1 - g2;
                g[2] = g2 - g3;
                g[3] = g3;
            }
            values[q] = std::clamp(value - c.reference, -c.limit, c.limit);
        }
    }

    static Vector normalPart(const Vector& v, const Vector& e) { return v - e * v.dot(e); }
};

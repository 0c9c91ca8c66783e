// Sums A^T A and A^T b of equations whose unknowns are the parameters of a valence force field, for
// many states at once; learning.add_normal_equations is the readable reference.

#pragma once

#include "clones.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

namespace kernels {

#ifdef __x86_64__
constexpr int lanes = 4; // states that are computed with side by side
#else
constexpr int lanes = 2;
#endif
constexpr int width = 2 * lanes, height = 4; // of what is kept in registers, in columns
constexpr int mostOthers = 3;

// In arrays of double.
typedef double Lanes
    __attribute__((vector_size(lanes * sizeof(double)), aligned(sizeof(double)), may_alias));

struct Monomial {
    double multiplicity;
    int count;
    int factors[mostOthers];
};
struct Piece { // of a feature: indices of a slope and a gradient
    int slope, gradient;
};

// Sums of monomials of ``values`` (Q, lanes), which end at ``ends`` (count).
OPENMM_LSD_CLONES
static void sumMonomials(const Monomial* monomials, const int* ends, int count,
                         const Lanes* values, Lanes* sums) {
    int m = 0;
    for (int s = 0; s < count; s++) {
        Lanes sum = {};
        for (; m < ends[s]; m++) {
            const Monomial& monomial = monomials[m];
            Lanes product = Lanes{} + monomial.multiplicity;
            for (int f = 0; f < monomial.count; f++)
                product *= values[monomial.factors[f]];
            sum += product;
        }
        sums[s] = sum;
    }
}

// To the features (count, 3, lanes), made of the pieces that end at ``ends`` (count), is added what
// they are times ``sign``.
OPENMM_LSD_CLONES
static void addFeatures(const Piece* pieces, int begin, const int* ends, int count, double sign,
                        const Lanes* slopes, const Lanes* gradients, Lanes* features) {
    int p = begin;
    for (int i = 0; i < count; i++) {
        Lanes x = features[3 * i], y = features[3 * i + 1], z = features[3 * i + 2];
        for (; p < ends[i]; p++) {
            const Lanes slope = sign * slopes[pieces[p].slope];
            const Lanes* gradient = gradients + 3 * pieces[p].gradient;
            x += slope * gradient[0];
            y += slope * gradient[1];
            z += slope * gradient[2];
        }
        features[3 * i] = x;
        features[3 * i + 1] = y;
        features[3 * i + 2] = z;
    }
}

// Products (columns, columns) of all pairs of columns, the upper triangle of which counts; the
// columns are given as panels (columns / width, rows, width).
OPENMM_LSD_CLONES
static void multiplyColumns(const double* panels, int rows, int columns, double* products) {
    for (int j = 0; j < columns; j += width)
        for (int i = 0; i < j + width; i += height) {
            const double* a = panels + (size_t)(i / width) * rows * width + i % width;
            const double* b = panels + (size_t)j * rows;
            Lanes t00 = {}, t01 = {}, t10 = {}, t11 = {}, t20 = {}, t21 = {}, t30 = {}, t31 = {};
            for (int k = 0; k < rows; k++, a += width, b += width) {
                const Lanes b0 = ((const Lanes*)b)[0], b1 = ((const Lanes*)b)[1];
                t00 += a[0] * b0;
                t01 += a[0] * b1;
                t10 += a[1] * b0;
                t11 += a[1] * b1;
                t20 += a[2] * b0;
                t21 += a[2] * b1;
                t30 += a[3] * b0;
                t31 += a[3] * b1;
            }
            const Lanes tile[height][2] = {{t00, t01}, {t10, t11}, {t20, t21}, {t30, t31}};
            for (int h = 0; h < height; h++)
                std::memcpy(products + (size_t)(i + h) * columns + j, tile[h], sizeof tile[h]);
        }
}

} // namespace kernels

class NormalEquations {
public:
    static constexpr int mostStates = 32; // whose equations are summed before they meet ``gram``

    // What the features of a state are made of.
    struct State {
        std::vector<double> values;    // of the coordinates
        std::vector<double> gradients; // of the coordinates by their atoms, in turn
    };

    NormalEquations(int particles, int parameters, std::vector<std::vector<int>> atomsOfCoordinates)
        : particles(particles), parameters(parameters), atoms(std::move(atomsOfCoordinates)) {
        for (const auto& each : atoms)
            gradientStarts.push_back(gradientStarts.back() + (int)each.size());
    }

    // The energy contains parameter times a product whose factors are ``coordinate`` and
    // ``others``, of which there are ``count``.
    void addDerivative(int coordinate, int parameter, const int* others, int count) {
        Monomial monomial = {1.0, count, {}};
        std::copy(others, others + count, monomial.factors);
        std::sort(monomial.factors, monomial.factors + count);
        auto& sum = sums[{coordinate, parameter}];
        for (Monomial& known : sum)
            if (known.count == count &&
                std::equal(known.factors, known.factors + count, monomial.factors)) {
                known.multiplicity += 1.0;
                return;
            }
        sum.push_back(monomial);
    }

    // To be called once, after all derivatives are there.
    void finish() {
        std::vector<std::map<int, std::vector<Piece>>> byAtom(particles); // and by parameter
        for (const auto& [key, sum] : sums) {
            const auto [coordinate, parameter] = key;
            const int slope = (int)slopeEnds.size();
            monomials.insert(monomials.end(), sum.begin(), sum.end());
            slopeEnds.push_back((int)monomials.size());
            for (size_t a = 0; a < atoms[coordinate].size(); a++)
                byAtom[atoms[coordinate][a]][parameter].push_back(
                    {slope, gradientStarts[coordinate] + (int)a});
        }
        sums.clear();
        starts.push_back(0);
        size_t most = 0;
        for (const auto& ofAtom : byAtom) {
            for (const auto& [parameter, sum] : ofAtom) {
                present.push_back(parameter);
                pieces.insert(pieces.end(), sum.begin(), sum.end());
                pieceEnds.push_back((int)pieces.size());
            }
            starts.push_back(present.size());
            most = std::max(most, ofAtom.size());
        }
        features.resize(3 * lanes * most);
        panels.resize((most / width + 1) * width * 3 * mostStates);
        products.resize((most + width) * (most + 2 * width));
    }

    // ``states``: so many of them, at most ``mostStates``, after which come as many that are to be
    // subtracted if ``differences``. ``scales`` is of the states, ``weights`` (3 N).
    void add(const std::vector<State>& states, int count, bool differences, const double* residuals,
             const double* weights, const double* offset, const double* scales, double* gram,
             double* moment) {
        const int groups = (count + lanes - 1) / lanes, sides = differences ? 2 : 1;
        takeSides(states, count, groups, sides);
        for (int atom = 0; atom < particles; atom++) {
            const int first = (int)starts[atom], unknowns = (int)starts[atom + 1] - first;
            if (unknowns == 0)
                continue;
            const int columns = unknowns + 1, rows = 3 * count;
            for (int k = 0; k < rows; k++) {
                const int component = 3 * atom + k % 3;
                const size_t row = (size_t)(k / 3) * 3 * particles + component;
                rowWeights[k] = scales[k / 3] * weights[component];
                right[k] = residuals[row];
            }
            fillPanels(first, unknowns, count, groups, sides, offset);
            const int padded = (columns + width - 1) / width * width;
            for (int k = 0; k < rows; k++) {
                double* end = panels.data() + panelPlace(unknowns, k, rows);
                *end = right[k] * rowWeights[k];
                for (int column = columns; column < padded; column++)
                    *++end = 0.0;
            }
            kernels::multiplyColumns(panels.data(), rows, padded, products.data());
            scatter(first, unknowns, padded, gram, moment);
        }
    }

private:
    static constexpr int lanes = kernels::lanes, width = kernels::width;
    using Lanes = kernels::Lanes;
    using Monomial = kernels::Monomial;
    using Piece = kernels::Piece;

    int particles, parameters;
    std::vector<std::vector<int>> atoms;  // of each coordinate
    std::vector<int> gradientStarts = {0}; // of each coordinate, and the end

    // A slope is the derivative of the energy by a coordinate and a parameter: a sum of monomials.
    std::map<std::pair<int, int>, std::vector<Monomial>> sums;
    std::vector<Monomial> monomials;
    std::vector<int> slopeEnds; // in ``monomials``

    // An atom's equations have few parameters: those of its terms.
    std::vector<int> present;   // in increasing order, of the first atom, of the second, ...
    std::vector<size_t> starts; // in ``present``, of each atom
    std::vector<Piece> pieces;  // of the features by ``present``
    std::vector<int> pieceEnds;

    std::vector<double> values, gradients, slopes, features; // with lanes last
    std::vector<double> panels;   // the equations of an atom: (columns / width, rows, width)
    std::vector<double> products; // of their columns; the upper triangle
    double rowWeights[3 * mostStates], right[3 * mostStates];

    static Lanes* lanesOf(std::vector<double>& array) {
        return reinterpret_cast<Lanes*>(array.data());
    }
    static size_t panelPlace(int column, int row, int rows) {
        return ((size_t)(column / width) * rows + row) * width + column % width;
    }

    // Lanes without a state are zero, and take no part.
    void takeSides(const std::vector<State>& states, int count, int groups, int sides) {
        const size_t blocks = (size_t)groups * sides, coordinates = atoms.size();
        const size_t numbers = 3 * (size_t)gradientStarts.back();
        values.assign(blocks * coordinates * lanes, 0.0);
        gradients.assign(blocks * numbers * lanes, 0.0);
        slopes.resize(blocks * slopeEnds.size() * lanes);
        for (int side = 0; side < sides; side++)
            for (int s = 0; s < count; s++) {
                const State& state = states[side * count + s];
                const size_t block = (size_t)side * groups + s / lanes;
                double* value = values.data() + block * coordinates * lanes + s % lanes;
                for (size_t q = 0; q < coordinates; q++)
                    value[q * lanes] = state.values[q];
                double* gradient = gradients.data() + block * numbers * lanes + s % lanes;
                for (size_t i = 0; i < numbers; i++)
                    gradient[i * lanes] = state.gradients[i];
            }
        for (size_t block = 0; block < blocks; block++)
            kernels::sumMonomials(monomials.data(), slopeEnds.data(), (int)slopeEnds.size(),
                                  lanesOf(values) + block * coordinates,
                                  lanesOf(slopes) + block * slopeEnds.size());
    }

    // The features of an atom times the weights of the rows; and what they give with ``offset`` is
    // added to the right-hand sides.
    void fillPanels(int first, int unknowns, int count, int groups, int sides,
                    const double* offset) {
        const int rows = 3 * count, begin = first == 0 ? 0 : pieceEnds[first - 1];
        for (int group = 0; group < groups; group++) {
            std::fill(features.begin(), features.begin() + 3 * lanes * unknowns, 0.0);
            for (int side = 0; side < sides; side++) {
                const size_t block = (size_t)side * groups + group;
                // A force is minus a derivative.
                kernels::addFeatures(pieces.data(), begin, pieceEnds.data() + first, unknowns,
                                     side == 0 ? -1.0 : 1.0,
                                     lanesOf(slopes) + block * slopeEnds.size(),
                                     lanesOf(gradients) +
                                         block * 3 * (size_t)gradientStarts.back(),
                                     lanesOf(features));
            }
            Lanes sums[3] = {};
            const int used = std::min(lanes, count - group * lanes);
            const double* weight = rowWeights + 3 * group * lanes;
            for (int i = 0; i < unknowns; i++) {
                double* to = panels.data() + panelPlace(i, 3 * group * lanes, rows);
                const Lanes* feature = lanesOf(features) + 3 * i;
                for (int c = 0; c < 3; c++) {
                    sums[c] += offset[present[first + i]] * feature[c];
                    for (int lane = 0; lane < used; lane++)
                        to[(3 * lane + c) * width] = weight[3 * lane + c] * feature[c][lane];
                }
            }
            for (int lane = 0; lane < used; lane++)
                for (int c = 0; c < 3; c++)
                    right[3 * (group * lanes + lane) + c] += sums[c][lane];
        }
    }

    void scatter(int first, int unknowns, int columns, double* gram, double* moment) const {
        const int* names = present.data() + first;
        for (int i = 0; i < unknowns; i++) {
            const double* row = products.data() + (size_t)i * columns;
            double* gramRow = gram + (size_t)names[i] * parameters;
            for (int j = i; j < unknowns; j++)
                gramRow[names[j]] += row[j];
            moment[names[i]] += row[unknowns];
        }
    }
};

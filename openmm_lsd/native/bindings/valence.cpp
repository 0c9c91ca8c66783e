#include "../core/valence.h"

#include "../core/checks.h"
#include "../core/forces.h"
#include "bindings.h"
#include "round.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

// A valence force field, by itself or on top of other forces.
class Valence {
public:
    Valence(int particles, IntVector kinds, IntFours atoms, DoubleVector references,
            DoubleVector limits, IntFours factors, IntVector classes) {
        const size_t coordinates = kinds.shape(0), count = classes.shape(0);
        if (atoms.shape(0) != coordinates || references.shape(0) != coordinates ||
            limits.shape(0) != coordinates || factors.shape(0) != count)
            throw std::invalid_argument("the arrays of a valence force field differ in length");
        terms.particles = particles;
        for (size_t q = 0; q < coordinates; q++) {
            if (kinds.data()[q] < 0 || kinds.data()[q] >= ValenceTerms::numberOfKinds)
                throw std::invalid_argument("a coordinate is of a kind that is not there");
            ValenceTerms::Coordinate c{static_cast<ValenceTerms::Kind>(kinds.data()[q]),
                                       {},
                                       references.data()[q],
                                       limits.data()[q],
                                       {},
                                       {}};
            for (int a = 0; a < 4; a++) {
                c.atoms[a] = atoms.data()[4 * q + a];
                if (a < ValenceTerms::atomsOfKind[c.kind] &&
                    (c.atoms[a] < 0 || c.atoms[a] >= particles))
                    throw std::invalid_argument("a coordinate has an atom that is not there");
            }
            terms.addCoordinate(c);
        }
        for (size_t m = 0; m < count; m++) {
            ValenceTerms::Term term{{}, 0, classes.data()[m]};
            for (int f = 0; f < ValenceTerms::mostFactors; f++) {
                const int q = factors.data()[4 * m + f];
                if (q >= (int)coordinates)
                    throw std::invalid_argument("a term has a coordinate that is not there");
                if (q >= 0)
                    term.factors[term.count++] = q;
            }
            if (term.parameter < 0)
                throw std::invalid_argument("a term has a negative class");
            terms.addTerm(term);
        }
        terms.setParameters(std::vector<double>(terms.parameters).data());
    }

    void setParameters(DoubleVector values) {
        if ((int)values.shape(0) != terms.parameters)
            throw std::invalid_argument("there are " + std::to_string(terms.parameters) +
                                        " parameters, not " + std::to_string(values.shape(0)));
        terms.setParameters(values.data());
    }

    void setConstraints(IntPairs pairs, DoubleVector inverseMasses) {
        checkParticles(inverseMasses.shape(0), terms.particles);
        std::vector<std::pair<int, int>> list;
        for (size_t c = 0; c < pairs.shape(0); c++) {
            const int i = pairs.data()[2 * c], j = pairs.data()[2 * c + 1];
            if (std::min(i, j) < 0 || std::max(i, j) >= terms.particles)
                throw std::invalid_argument("a constraint has an atom that is not there");
            list.push_back({i, j});
        }
        terms.setRigidClusters({inverseMasses.data(), inverseMasses.shape(0), list});
    }

    void setBox(std::optional<Vectors> vectors) {
        if (vectors && vectors->shape(0) != 3)
            throw std::invalid_argument("the periodic box must have shape (3, 3)");
        box.clear();
        if (vectors)
            box.assign(vectors->data(), vectors->data() + 9);
    }

    NumpyArray forces(VectorBatch positions, Forces* base, std::optional<DoubleVector> times,
                      std::optional<LongVector> stepCounts) {
        const size_t batch = positions.shape(0), particles = positions.shape(1);
        checkParticles(particles, terms.particles);
        const Times when = timesOf(times, stepCounts, batch);
        Buffer result({batch, particles, 3});
        {
            nb::gil_scoped_release release;
            for (size_t b = 0; b < batch; b++)
                forcesAt(positions.data() + b * particles * 3, base, when, b,
                         result.data.get() + b * particles * 3);
        }
        return result.numpy();
    }

    void addNormalEquations(VectorBatch positions, std::optional<VectorBatch> before,
                            Matrix residuals, DoubleVector weights, DoubleVector offset,
                            DoubleVector scales, OwnMatrix gram, OwnVector moment) {
        const size_t batch = positions.shape(0), parameters = terms.parameters;
        const size_t components = 3 * positions.shape(1);
        checkParticles(positions.shape(1), terms.particles);
        if ((before && (before->shape(0) != batch || before->shape(1) != positions.shape(1))) ||
            residuals.shape(0) != batch || residuals.shape(1) != components ||
            weights.shape(0) != components || offset.shape(0) != parameters ||
            scales.shape(0) != batch || gram.shape(0) != parameters ||
            gram.shape(1) != parameters || moment.shape(0) != parameters)
            throw std::invalid_argument("the arrays of normal equations do not fit together");
        nb::gil_scoped_release release;
        terms.addNormalEquations(batch, positions.data(), before ? before->data() : nullptr,
                                 boxOrNull(), residuals.data(), weights.data(), offset.data(),
                                 scales.data(), gram.data(), moment.data());
    }

    // On top of those of ``base``, if that is not null.
    void forcesAt(const double* positions, Forces* base, const Times& times, size_t row,
                  double* result) {
        if (base != nullptr)
            base->forcesAt(positions, times, row, result);
        else
            std::fill(result, result + 3 * terms.particles, 0.0);
        terms.addForces(positions, boxOrNull(), result);
    }

    size_t numParticles() const { return terms.particles; }

private:
    ValenceTerms terms;
    std::vector<double> box;

    const double* boxOrNull() const { return box.empty() ? nullptr : box.data(); }
};

DraftForce beginRollout(Valence& valence, size_t particles, size_t length, Forces* base,
                        std::optional<DoubleVector> times, std::optional<LongVector> stepCounts) {
    checkParticles(particles, valence.numParticles());
    const Times when = timesOf(times, stepCounts, length);
    return [&valence, base, when](size_t k, const double* site, double* force) {
        valence.forcesAt(site, base, when, k, force);
    };
}

} // namespace

void bindValence(nb::module_& m) {
    nb::class_<Valence> type(
        m, "Valence",
        "A valence force field linear in its parameters (valence.py), by itself or, with ``base``, "
        "on top of other forces. Parameters start as zero.");
    type.def(nb::init<int, IntVector, IntFours, DoubleVector, DoubleVector, IntFours, IntVector>(),
             nb::arg("particles"), nb::arg("kinds"), nb::arg("atoms"), nb::arg("references"),
             nb::arg("limits"), nb::arg("factors"), nb::arg("classes"))
        .def("set_parameters", &Valence::setParameters, nb::arg("parameters"))
        .def("set_constraints", &Valence::setConstraints, nb::arg("pairs"),
             nb::arg("inverse_masses"),
             "What acts along constraints between pairs (C, 2) is not learned; unless one cluster of "
             "them holds very many atoms.")
        .def("set_box", &Valence::setBox, nb::arg("box").none())
        .def("forces", &Valence::forces, nb::arg("positions"), nb::arg("base").none(),
             nb::arg("times") = nb::none(), nb::arg("step_counts") = nb::none(),
             "Forces (B, N, 3) at positions (B, N, 3).")
        .def("add_normal_equations", &Valence::addNormalEquations, nb::arg("positions"),
             nb::arg("before").none(), nb::arg("residuals"), nb::arg("weights"), nb::arg("offset"),
             nb::arg("scales"), nb::arg("gram"), nb::arg("moment"),
             "As learning.add_normal_equations with the features at positions (B, N, 3) and at those "
             "before, or None.");
    defineRollout(type, &beginRollout, nb::arg("base").none(), nb::arg("times") = nb::none(),
                  nb::arg("step_counts") = nb::none());
}

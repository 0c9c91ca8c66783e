#include "../core/checks.h"
#include "../core/differences.h"
#include "../core/prediction.h"
#include "arrays.h"
#include "bindings.h"
#include "jacobian.h"

#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

namespace {

// See jacobian.add_differences.
void addDifferences(VectorBatch displacements, VectorBatch changes, IntMatrix neighbours,
                    IntVector counts, OwnMatrices gram, OwnMatrices moment,
                    std::optional<Matrices> estimate, OwnMatrix agreement, double memory,
                    double leastShare) {
    const size_t batch = displacements.shape(0), particles = displacements.shape(1);
    const size_t most = neighbours.shape(1), size = 3 * most;
    const auto fits = [&](const auto& array, size_t columns) {
        return array.shape(0) == particles && array.shape(1) == size && array.shape(2) == columns;
    };
    if (changes.shape(0) != batch || changes.shape(1) != particles ||
        neighbours.shape(0) != particles || counts.shape(0) != particles || !fits(gram, size) ||
        !fits(moment, 3) || (estimate && !fits(*estimate, 3)) || agreement.shape(0) != 2 ||
        agreement.shape(1) != particles)
        throw std::invalid_argument("the arrays of differences do not fit together");
    checkCounts(counts.data(), particles, most);
    checkNeighbours(neighbours.data(), neighbours.size(), particles);
    nb::gil_scoped_release release;
    const Differences differences{batch,
                                  particles,
                                  most,
                                  displacements.data(),
                                  changes.data(),
                                  neighbours.data(),
                                  counts.data()};
    differences.addTo(gram.data(), moment.data(), estimate ? estimate->data() : nullptr,
                      agreement.data(), memory, leastShare);
}

// See prediction.changes_in_time.
NumpyArray changesInTime(VectorBatch sites, VectorBatch discrepancies, IntMatrix neighbours,
                         Blocks blocks) {
    const size_t batch = sites.shape(0), particles = sites.shape(1);
    if (batch < 1 || discrepancies.shape(0) != batch || discrepancies.shape(1) != particles)
        throw std::invalid_argument("sites and discrepancies do not fit together");
    LocalJacobian jacobian = jacobianOf(neighbours, blocks, particles);
    Buffer result({batch - 1, particles, 3});
    {
        nb::gil_scoped_release release;
        takeChangesInTime(batch, sites.data(), discrepancies.data(), jacobian, result.data.get());
    }
    return result.numpy();
}

// See prediction.add_lagged.
void addLaggedChanges(VectorBatch changes, OwnMatrices gram, OwnMatrix moment, double memory) {
    const size_t particles = changes.shape(1), order = moment.shape(1);
    if (gram.shape(0) != particles || gram.shape(1) != order || gram.shape(2) != order ||
        moment.shape(0) != particles)
        throw std::invalid_argument("the arrays of the autoregressions do not fit together");
    nb::gil_scoped_release release;
    addLagged(changes.shape(0), particles, order, changes.data(), memory, gram.data(),
              moment.data());
}

// See prediction.predict_changes.
NumpyArray predictNextChanges(VectorBatch sites, VectorBatch discrepancies, IntMatrix neighbours,
                              Blocks blocks, Matrix coefficients, Masses largest, size_t ahead) {
    const size_t particles = sites.shape(1), order = coefficients.shape(1);
    if (sites.shape(0) != order + 1 || discrepancies.shape(0) != order + 1 ||
        discrepancies.shape(1) != particles || coefficients.shape(0) != particles ||
        largest.shape(0) != particles)
        throw std::invalid_argument("the arrays of a prediction do not fit together");
    LocalJacobian jacobian = jacobianOf(neighbours, blocks, particles);
    Buffer result({ahead, particles, 3});
    {
        nb::gil_scoped_release release;
        predictChanges(order, ahead, sites.data(), discrepancies.data(), jacobian,
                       coefficients.data(), largest.data(), result.data.get());
    }
    return result.numpy();
}

// See jacobian.solve_ridge.
NumpyArray solveRidgeOfAtoms(Matrices gram, Matrices moment, IntVector counts, double ridge) {
    const size_t particles = gram.shape(0), size = gram.shape(1);
    if (gram.shape(2) != size || size % 3 != 0 || moment.shape(0) != particles ||
        moment.shape(1) != size || moment.shape(2) != 3 || counts.shape(0) != particles)
        throw std::invalid_argument("the arrays of the regressions do not fit together");
    checkCounts(counts.data(), particles, size / 3);
    Buffer result({particles, size, 3});
    {
        nb::gil_scoped_release release;
        solveRidge(particles, size / 3, counts.data(), gram.data(), moment.data(), ridge,
                   result.data.get());
    }
    return result.numpy();
}

} // namespace

void bindEstimates(nb::module_& m) {
    m.def("add_differences", &addDifferences, nb::arg("displacements"), nb::arg("changes"),
          nb::arg("neighbours"), nb::arg("counts"), nb::arg("gram"), nb::arg("moment"),
          nb::arg("estimate").none(), nb::arg("agreement"), nb::arg("memory"),
          nb::arg("least_share"), "jacobian.add_differences in native code.");
    m.def("solve_ridge", &solveRidgeOfAtoms, nb::arg("gram"), nb::arg("moment"), nb::arg("counts"),
          nb::arg("ridge"), "jacobian.solve_ridge in native code.");
    m.def("changes_in_time", &changesInTime, nb::arg("sites"), nb::arg("discrepancies"),
          nb::arg("neighbours"), nb::arg("blocks"), "prediction.changes_in_time in native code.");
    m.def("add_lagged", &addLaggedChanges, nb::arg("changes"), nb::arg("gram"), nb::arg("moment"),
          nb::arg("memory"), "prediction.add_lagged in native code.");
    m.def("predict_changes", &predictNextChanges, nb::arg("sites"), nb::arg("discrepancies"),
          nb::arg("neighbours"), nb::arg("blocks"), nb::arg("coefficients"), nb::arg("largest"),
          nb::arg("ahead"), "prediction.predict_changes in native code.");
}

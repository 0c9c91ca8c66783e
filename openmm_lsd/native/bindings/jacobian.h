// A derivative from NumPy arrays.

#pragma once

#include "../core/checks.h"
#include "../core/local_jacobian.h"
#include "arrays.h"

#include <cstddef>
#include <stdexcept>

// ``neighbours`` must outlive it.
inline LocalJacobian jacobianOf(const IntMatrix& neighbours, const Blocks& blocks,
                                size_t particles) {
    if (neighbours.shape(0) != particles || blocks.shape(0) != particles ||
        blocks.shape(1) != neighbours.shape(1))
        throw std::invalid_argument("the arrays of a derivative do not fit together");
    checkNeighbours(neighbours.data(), neighbours.size(), particles);
    return {particles, neighbours.shape(1), neighbours.data(), blocks.data()};
}

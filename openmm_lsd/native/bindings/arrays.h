// NumPy arrays: those that are taken, and new ones.

#pragma once

#include "../core/times.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace nb = nanobind;

using Vectors = nb::ndarray<const double, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using VectorBatch = nb::ndarray<const double, nb::shape<-1, -1, 3>, nb::c_contig, nb::device::cpu>;
using Masses = nb::ndarray<const double, nb::shape<-1, 1>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<const bool, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using IntVector = nb::ndarray<const int32_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using IntFours = nb::ndarray<const int32_t, nb::shape<-1, 4>, nb::c_contig, nb::device::cpu>;
using IntPairs = nb::ndarray<const int32_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using IntMatrix = nb::ndarray<const int32_t, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const double, nb::shape<-1, -1, 3, 3>, nb::c_contig, nb::device::cpu>;
using DoubleVector = nb::ndarray<const double, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using LongVector = nb::ndarray<const int64_t, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OwnMatrix = nb::ndarray<double, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OwnMatrices = nb::ndarray<double, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using Matrices = nb::ndarray<const double, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using OwnVector = nb::ndarray<double, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using NumpyArray = nb::ndarray<nb::numpy, double>;

// A NumPy array that owns new memory.
struct Buffer {
    std::vector<size_t> shape;
    std::unique_ptr<double[]> data;
    size_t size = 1;

    explicit Buffer(std::vector<size_t> shape_) : shape(std::move(shape_)) {
        for (size_t length : shape)
            size *= length;
        data.reset(new double[size]);
    }
    NumpyArray numpy() {
        double* pointer = data.release();
        nb::capsule owner(pointer, [](void* p) noexcept { delete[] static_cast<double*>(p); });
        return NumpyArray(pointer, shape.size(), shape.data(), owner);
    }
};

// Of a batch; the arrays must outlive them.
inline Times timesOf(const std::optional<DoubleVector>& times,
                     const std::optional<LongVector>& stepCounts, size_t batch) {
    if (times.has_value() != stepCounts.has_value() ||
        (times && (times->shape(0) != batch || stepCounts->shape(0) != batch)))
        throw std::invalid_argument("times and step counts must be given for every state");
    return times ? Times{times->data(), stepCounts->data()} : Times{};
}

// Sums of products of rows that have few columns each, and where they belong in a large matrix.

#pragma once

#include <cstddef>

// What takes most of the time of learning; the build is for all processors, this also for new ones.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_NEW_PROCESSORS_TOO __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FOR_NEW_PROCESSORS_TOO
#endif

namespace normal_equations {

// Rows are padded with zeros to a multiple of this.
constexpr size_t tileWidth = 8, tileHeight = 4;

inline size_t padded(size_t columns) { return (columns + tileWidth - 1) / tileWidth * tileWidth; }

// rows^T rows of ``rows`` (count, width), into ``products`` (width, width); of what lies below the
// diagonal only a part.
FOR_NEW_PROCESSORS_TOO static void multiplyWithThemselves(const double* rows, size_t count,
                                                          size_t width, double* products) {
    for (size_t i = 0; i < width; i += tileHeight)
        for (size_t j = i / tileWidth * tileWidth; j < width; j += tileWidth) {
            double sums[tileHeight][tileWidth] = {};
            for (size_t k = 0; k < count; k++) {
                const double* row = rows + k * width;
                for (size_t a = 0; a < tileHeight; a++)
                    for (size_t b = 0; b < tileWidth; b++)
                        sums[a][b] += row[i + a] * row[j + b];
            }
            for (size_t a = 0; a < tileHeight; a++)
                for (size_t b = 0; b < tileWidth; b++)
                    products[(i + a) * width + j + b] = sums[a][b];
        }
}

} // namespace normal_equations

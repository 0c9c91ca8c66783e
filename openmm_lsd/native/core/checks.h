// What arrays are checked for.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

inline bool allFinite(const double* values, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(values[i]))
            return false;
    return true;
}

inline void checkParticles(size_t given, size_t expected) {
    if (given != expected)
        throw std::invalid_argument("got arrays for " + std::to_string(given) +
                                    " particles; the System has " + std::to_string(expected));
}

inline void checkNeighbours(const int32_t* neighbours, size_t count, size_t particles) {
    for (size_t i = 0; i < count; i++)
        if (neighbours[i] < 0 || (size_t)neighbours[i] >= particles)
            throw std::invalid_argument("a neighbour is an atom that is not there");
}

inline void checkCounts(const int32_t* counts, size_t particles, size_t most) {
    for (size_t i = 0; i < particles; i++)
        if (counts[i] < 0 || (size_t)counts[i] > most)
            throw std::invalid_argument("an atom has more neighbours than there is room for");
}

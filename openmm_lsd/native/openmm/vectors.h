// Arrays of OpenMM's vectors as arrays of numbers.

#pragma once

#include <OpenMM.h>

#include <cstring>
#include <vector>

static_assert(sizeof(OpenMM::Vec3) == 3 * sizeof(double),
              "arrays of Vec3 are copied as arrays of double");

inline void copyOut(const std::vector<OpenMM::Vec3>& from, double* to) {
    std::memcpy(to, from.data(), from.size() * sizeof(OpenMM::Vec3));
}

// As many as there is room for.
inline void copyIn(const double* from, std::vector<OpenMM::Vec3>& to) {
    std::memcpy(static_cast<void*>(to.data()), from, to.size() * sizeof(OpenMM::Vec3));
}

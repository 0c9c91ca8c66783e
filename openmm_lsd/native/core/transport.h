// The noise of a drafted step as that of the target's; transport.py is the readable reference.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

// In place; whether the drafted step is accepted.
inline bool transport(double* noise, const double* shift, double logUniform, size_t components) {
    double overlap = 0.0, squared = 0.0, scale = 1.0;
    const auto project = [&] {
        overlap = squared = 0.0;
        for (size_t i = 0; i < components; i++) {
            overlap += noise[i] * (shift[i] / scale);
            squared += (shift[i] / scale) * (shift[i] / scale);
        }
    };
    project();
    if (logUniform <= overlap - 0.5 * squared) {
        for (size_t i = 0; i < components; i++)
            noise[i] -= shift[i];
        return true;
    }
    if (!std::isfinite(squared)) {
        scale = 0.0;
        for (size_t i = 0; i < components; i++)
            scale = std::max(scale, std::abs(shift[i]));
        project();
    }
    for (size_t i = 0; i < components; i++)
        noise[i] -= 2.0 * overlap / squared * (shift[i] / scale);
    return false;
}

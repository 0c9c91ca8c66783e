// Time and step count of each state of a batch, or neither; clock.Times is their counterpart.

#pragma once

#include <cstddef>
#include <cstdint>

struct Times {
    const double* times = nullptr;
    const int64_t* stepCounts = nullptr;

    bool areGiven() const { return times != nullptr; }
    double time(size_t row) const { return areGiven() ? times[row] : 0.0; }
    long long stepCount(size_t row) const { return areGiven() ? stepCounts[row] : 0; }
};

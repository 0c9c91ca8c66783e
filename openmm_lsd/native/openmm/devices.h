// What is different where a platform computes elsewhere than on this processor.

#pragma once

#include <OpenMM.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

// Such a platform computes in single precision unless told otherwise.
inline bool isOnDevice(const OpenMM::Platform& platform) {
    return platform.getName() != "Reference" && platform.getName() != "CPU";
}

// "single", "mixed" or "double"; empty if the platform has no such property.
inline std::string precisionOf(const OpenMM::Context& context) {
    const OpenMM::Platform& platform = context.getPlatform();
    for (const std::string& name : platform.getPropertyNames())
        if (name == "Precision")
            return platform.getPropertyValue(context, name);
    return "";
}

inline bool isInDoublePrecision(const OpenMM::Context& context) {
    return precisionOf(context) == "double";
}

// On a device forces are sums of integers: one that is NaN, or too large, arrives as the last of
// them.
constexpr double lastOfFixedPoint = 2147483000.0; // kJ/mol/nm

inline void markFailures(double* forces, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (std::abs(forces[i]) >= lastOfFixedPoint)
            forces[i] = std::numeric_limits<double>::quiet_NaN();
}

// Vectors in space.

#pragma once

#include <cmath>

struct Vector {
    double x, y, z;
    Vector operator+(const Vector& o) const { return {x + o.x, y + o.y, z + o.z}; }
    Vector operator-(const Vector& o) const { return {x - o.x, y - o.y, z - o.z}; }
    Vector operator*(double s) const { return {x * s, y * s, z * s}; }
    double dot(const Vector& o) const { return x * o.x + y * o.y + z * o.z; }
    Vector cross(const Vector& o) const {
        return {y * o.z - z * o.y, z * o.x - x * o.z, x * o.y - y * o.x};
    }
};

// From one of the positions (N, 3) to the nearest image of another in a box, 9 numbers, or null.
inline Vector between(const double* positions, int from, int to, const double* box) {
    const double *a = positions + 3 * from, *b = positions + 3 * to;
    Vector d = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
    if (box != nullptr) { // OpenMM's reduced form
        d = d - Vector{box[6], box[7], box[8]} * std::round(d.z / box[8]);
        d = d - Vector{box[3], box[4], 0.0} * std::round(d.y / box[4]);
        d.x -= box[0] * std::round(d.x / box[0]);
    }
    return d;
}

// What Forces are, and hold.

#pragma once

#include <OpenMM.h>

#include <string>

// Of the C++ class.
std::string className(const OpenMM::Force& force);

// Whether there are neighbour lists of a periodic box: then a device wraps molecules by itself.
bool hasPeriodicCutoff(const OpenMM::System& system);

// Whether a PythonForce is the Force, or in it. Python's layer does not say what an ATMForce holds.
bool callsPython(const OpenMM::Force& force);

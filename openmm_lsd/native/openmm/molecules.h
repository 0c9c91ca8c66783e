// What a device keeps together when it moves particles by vectors of the periodic box.

#pragma once

#include <OpenMM.h>

#include <vector>

// Indices of the particles of each: OpenMM's molecules (of constraints and bonded terms), joined
// where nonbonded forces have exceptions. In a System with some of the forces only, these may be
// all that says what belongs together.
std::vector<std::vector<int>> joinedMolecules(const OpenMM::System& system,
                                              const std::vector<std::vector<int>>& molecules);

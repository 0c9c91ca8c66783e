// Virtual sites of one System in another.

#pragma once

#include <OpenMM.h>

// Of the same particles.
void copyVirtualSites(const OpenMM::System& from, OpenMM::System& to);

// Loops that are compiled for more than one kind of processor.

#pragma once

// Functions with this mark are compiled once more for processors that have FMA; which version runs
// is chosen when the library is loaded. GCC does this for functions that are no members and not
// inline.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define OPENMM_LSD_CLONES __attribute__((target_clones("fma", "default")))
#else
#define OPENMM_LSD_CLONES
#endif

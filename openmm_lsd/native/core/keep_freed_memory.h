// A batch's temporary arrays are too large for the heap as glibc comes, and fresh pages cost as
// much as computing with them.

#pragma once

// Keep freed memory for the next batch from now on; whether that was done. Not if the user has
// tuned malloc by the environment.
bool keepFreedMemory();

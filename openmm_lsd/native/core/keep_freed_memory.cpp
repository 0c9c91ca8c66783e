#include "keep_freed_memory.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef __GLIBC__ // says one of the above
#include <malloc.h>
#endif

bool keepFreedMemory() {
#ifdef __GLIBC__
    for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
                             "MALLOC_MMAP_MAX_"})
        if (std::getenv(name) != nullptr)
            return false;
    const char* tunables = std::getenv("GLIBC_TUNABLES");
    if (tunables != nullptr && std::strstr(tunables, "glibc.malloc.") != nullptr)
        return false;
    constexpr int mebibyte = 1 << 20;
    // The first is the largest value that is allowed.
    return mallopt(M_MMAP_THRESHOLD, 32 * mebibyte) == 1 &&
           mallopt(M_TRIM_THRESHOLD, 256 * mebibyte) == 1;
#else
    return false;
#endif
}

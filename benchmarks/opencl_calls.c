// Counts what crosses between this processor and an OpenCL device; to be preloaded.
//
//     gcc -O2 -shared -fPIC opencl_calls.c -o opencl_calls.so -ldl

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

// Reads, those of them that wait, bytes; writes, those of them that wait, bytes.
long long opencl_calls[6];

typedef int32_t (*Read)(void*, void*, uint32_t, size_t, size_t, void*, uint32_t, const void*, void*);
typedef int32_t (*Write)(void*, void*, uint32_t, size_t, size_t, const void*, uint32_t, const void*,
                         void*);

// Of the library itself: this one may stand before it, or have been loaded without it.
static void* original(const char* name) {
    return dlsym(dlopen("libOpenCL.so.1", RTLD_NOW), name);
}

static void count(int first, uint32_t waits, size_t bytes) {
    __atomic_fetch_add(&opencl_calls[first], 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&opencl_calls[first + 1], waits != 0, __ATOMIC_RELAXED);
    __atomic_fetch_add(&opencl_calls[first + 2], (long long)bytes, __ATOMIC_RELAXED);
}

int32_t clEnqueueReadBuffer(void* queue, void* buffer, uint32_t waits, size_t offset, size_t bytes,
                            void* to, uint32_t events, const void* after, void* event) {
    static Read read;
    if (!read)
        read = (Read)original("clEnqueueReadBuffer");
    count(0, waits, bytes);
    return read(queue, buffer, waits, offset, bytes, to, events, after, event);
}

int32_t clEnqueueWriteBuffer(void* queue, void* buffer, uint32_t waits, size_t offset, size_t bytes,
                             const void* from, uint32_t events, const void* after, void* event) {
    static Write write;
    if (!write)
        write = (Write)original("clEnqueueWriteBuffer");
    count(3, waits, bytes);
    return write(queue, buffer, waits, offset, bytes, from, events, after, event);
}

#include "support/allocation_counter.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

#include <mhr/config.hpp>

// Every form of new is replaced: those of the standard library call each other, those of a
// sanitizer's runtime do not.

namespace {

std::atomic<std::size_t> count{0};

/// `new` does not count again what malloc has counted.
void count_new() noexcept {
    if (!mhr::test::counts_malloc) ++count;
}

void* allocate(std::size_t bytes) noexcept {
    count_new();
    return std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate(std::size_t bytes, std::align_val_t alignment) noexcept {
    count_new();
    // aligned_alloc wants a multiple of the alignment, which is a power of two.
    const auto mask = static_cast<std::size_t>(alignment) - 1;
    return std::aligned_alloc(mask + 1, (bytes + mask) & ~mask);
}

void* or_throw(void* memory) {
#if MHR_EXCEPTIONS
    if (memory == nullptr) throw std::bad_alloc();
#else
    if (memory == nullptr) std::abort();
#endif
    return memory;
}

} // namespace

#if MHR_TEST_HAS_ASAN

extern "C" int __sanitizer_install_malloc_and_free_hooks( // NOLINT: that is its name
    void (*on_malloc)(const volatile void*, std::size_t), void (*on_free)(const volatile void*));

namespace {
const int installed = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, std::size_t) { ++count; }, [](const volatile void*) {});
} // namespace

#elif MHR_TEST_GLIBC_HOOKS

// The program's functions are found before those of the C library, by all of its libraries. Memory
// is that of the C library, and so is free.
extern "C" {

void* __libc_malloc(std::size_t);                // NOLINT: these are their names
void* __libc_calloc(std::size_t, std::size_t);   // NOLINT
void* __libc_realloc(void*, std::size_t);        // NOLINT
void* __libc_memalign(std::size_t, std::size_t); // NOLINT

void* malloc(std::size_t bytes) noexcept {
    ++count;
    return __libc_malloc(bytes);
}
void* calloc(std::size_t elements, std::size_t bytes) noexcept {
    ++count;
    return __libc_calloc(elements, bytes);
}
void* realloc(void* memory, std::size_t bytes) noexcept {
    ++count;
    return __libc_realloc(memory, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
    ++count;
    return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
    ++count;
    return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
    if (alignment % sizeof(void*) != 0 || (alignment & (alignment - 1)) != 0 || alignment == 0)
        return EINVAL;
    ++count;
    void* const taken = __libc_memalign(alignment, bytes);
    if (taken == nullptr) return ENOMEM;
    *memory = taken;
    return 0;
}

} // extern "C"

#endif

std::size_t mhr::test::allocation_count() noexcept {
    return count;
}

using std::align_val_t;
using std::nothrow_t;
using std::size_t;

void* operator new(size_t n) {
    return or_throw(allocate(n));
}
void* operator new[](size_t n) {
    return or_throw(allocate(n));
}
void* operator new(size_t n, align_val_t a) {
    return or_throw(allocate(n, a));
}
void* operator new[](size_t n, align_val_t a) {
    return or_throw(allocate(n, a));
}
void* operator new(size_t n, const nothrow_t&) noexcept {
    return allocate(n);
}
void* operator new[](size_t n, const nothrow_t&) noexcept {
    return allocate(n);
}
void* operator new(size_t n, align_val_t a, const nothrow_t&) noexcept {
    return allocate(n, a);
}
void* operator new[](size_t n, align_val_t a, const nothrow_t&) noexcept {
    return allocate(n, a);
}

void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete[](void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, size_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, size_t) noexcept {
    std::free(p);
}
void operator delete(void* p, align_val_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, align_val_t) noexcept {
    std::free(p);
}
void operator delete(void* p, size_t, align_val_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, size_t, align_val_t) noexcept {
    std::free(p);
}
void operator delete(void* p, const nothrow_t&) noexcept {
    std::free(p);
}
void operator delete[](void* p, const nothrow_t&) noexcept {
    std::free(p);
}
void operator delete(void* p, align_val_t, const nothrow_t&) noexcept {
    std::free(p);
}
void operator delete[](void* p, align_val_t, const nothrow_t&) noexcept {
    std::free(p);
}

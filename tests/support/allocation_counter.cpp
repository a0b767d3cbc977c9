#include "support/allocation_counter.hpp"

#include <atomic>
#include <cstdlib>
#include <new>

// Every form is replaced: those of the standard library call each other, those of a sanitizer's
// runtime do not.

namespace {

std::atomic<std::size_t> count{0};

void* allocate(std::size_t bytes) noexcept {
    ++count;
    return std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate(std::size_t bytes, std::align_val_t alignment) noexcept {
    ++count;
    // aligned_alloc wants a multiple of the alignment, which is a power of two.
    const auto mask = static_cast<std::size_t>(alignment) - 1;
    return std::aligned_alloc(mask + 1, (bytes + mask) & ~mask);
}

void* or_throw(void* memory) {
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

} // namespace

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

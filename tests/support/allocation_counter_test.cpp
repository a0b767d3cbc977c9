#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <doctest/doctest.h>

#include "support/allocation_counter.hpp"

using mhr::test::allocations_of;
using mhr::test::counts_malloc;

namespace {

struct alignas(256) wide {
    char bytes[256];
};

/// Where compilers do not see it is pointless, and leave it out.
void* volatile seen;

template <class T>
void make_one(T* object) {
    seen = object;
    delete object;
}
template <class T>
void make_some(T* objects) {
    seen = objects;
    delete[] objects;
}

void free_memory(void* memory) {
    seen = memory;
    std::free(memory);
}

} // namespace

// A counter that stands still would let every kernel pass.
TEST_CASE("allocations are counted, in every form") {
    CHECK(allocations_of([] {}) == 0);
    CHECK(allocations_of([] { make_one(new int); }) == 1);
    CHECK(allocations_of([] { make_some(new int[1000]); }) == 1);
    CHECK(allocations_of([] { make_one(new wide); }) == 1);
    CHECK(allocations_of([] { make_some(new wide[2]); }) == 1);
    CHECK(allocations_of([] { make_one(new (std::nothrow) int); }) == 1);
    CHECK(allocations_of([] { make_some(new (std::nothrow) int[1000]); }) == 1);
    CHECK(allocations_of([] { make_one(new (std::nothrow) wide); }) == 1);
    CHECK(allocations_of([] { make_some(new (std::nothrow) wide[2]); }) == 1);
    CHECK(allocations_of([] {
              std::vector<int> memory(1000);
              seen = memory.data();
          }) == 1);
}

TEST_CASE("memory of the C library is counted where the counter says so") {
    const std::size_t one = counts_malloc ? 1 : 0;
    CHECK(allocations_of([] { free_memory(std::malloc(100)); }) == one);
    CHECK(allocations_of([] { free_memory(std::calloc(10, 10)); }) == one);
    CHECK(allocations_of([] { free_memory(std::aligned_alloc(64, 128)); }) == one);
    CHECK(allocations_of([] {
              seen = std::malloc(10);
              free_memory(std::realloc(seen, 1000));
          }) == 2 * one);
#ifdef __GLIBC__
    // Not of the standard, and what the C library allocates itself.
    CHECK(allocations_of([] {
              void* memory = nullptr;
              CHECK(posix_memalign(&memory, 128, 256) == 0);
              CHECK(reinterpret_cast<std::uintptr_t>(memory) % 128 == 0);
              free_memory(memory);
          }) == one);
    CHECK(allocations_of([] { free_memory(memalign(256, 512)); }) == one);
    CHECK(allocations_of([] { free_memory(strdup("text")); }) == one);
#endif
#if MHR_TEST_GLIBC_HOOKS
    // The C library does it so; sanitizers end the program.
    void* untouched = &untouched;
    CHECK(posix_memalign(&untouched, 3, 16) == EINVAL);
    CHECK(untouched == &untouched);
#endif
}

TEST_CASE("memory is what it should be: aligned, cleared, kept when it grows") {
    auto* const text = static_cast<char*>(std::malloc(6));
    std::strcpy(text, "grows");
    auto* const grown = static_cast<char*>(std::realloc(text, 100000));
    CHECK(std::strcmp(grown, "grows") == 0);
    std::free(grown);
    auto* const cleared = static_cast<unsigned char*>(std::calloc(1000, 3));
    CHECK(std::count(cleared, cleared + 3000, 0) == 3000);
    std::free(cleared);
    void* const aligned = std::aligned_alloc(4096, 8192);
    CHECK(reinterpret_cast<std::uintptr_t>(aligned) % 4096 == 0);
    std::free(aligned);
}

TEST_CASE("allocations of other threads are counted") {
    CHECK(allocations_of([] { std::thread([] { make_some(new int[100]); }).join(); }) >=
          2); // that of the thread, too
}

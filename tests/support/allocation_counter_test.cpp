#include <new>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocation_counter.hpp"

using mhr::test::allocations_of;

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

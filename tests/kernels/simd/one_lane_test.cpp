#include <mhr/kernels/simd/one_lane.hpp>

#include <doctest/doctest.h>

#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE_TEMPLATE("a vector of one number is that number", A, MHR_TEST_ACCUMULATORS) {
    using V = kernels::one_lane<A>;
    const A from[] = {3, 5};
    A to[] = {-1, -1, -1};
    V::load_aligned(from).store_aligned(to);
    V::load_unaligned(from + 1).store_unaligned(to + 1);
    CHECK(to[0] == 3);
    CHECK(to[1] == 5);
    CHECK(to[2] == -1);

    V sum(2);
    sum += V(7);
    sum.store_aligned(to);
    CHECK(to[0] == 9);
    (V(2) * V(7)).store_aligned(to);
    CHECK(to[0] == 14);
    multiply_add(V(2), V(7), V(-3)).store_aligned(to);
    CHECK(to[0] == 11);
}

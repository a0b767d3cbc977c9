#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/combining.hpp>

#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("pruning by magnitude keeps the largest, of equal ones the first") {
    tensor<double, 2> x({2, 3});
    x.values() = {1, -2, 2, -5, 2, 0};
    auto pruned = x;
    reference::prune_by_magnitude(0.5, pruned.view());
    CHECK(pruned.values() == std::vector<double>{0, -2, 2, -5, 0, 0});
    pruned = x;
    reference::prune_by_magnitude(0.3, pruned.view()); // 1.8 elements
    CHECK(pruned.values() == std::vector<double>{0, 0, 0, -5, 0, 0});
    pruned = x;
    reference::prune_by_magnitude(1, pruned.view());
    CHECK(pruned.values() == x.values());
}

TEST_CASE("pruning by a mask divides what it keeps") {
    tensor<double, 2> x({1, 3});
    x.values() = {1, 2, 3};
    tensor<std::uint8_t, 2> keep({1, 3});
    keep.values() = {1, 0, 255};
    reference::prune_by_mask(0.25, keep.const_view(), x.view());
    CHECK(x.values() == std::vector<double>{4, 0, 12});
}

TEST_CASE("sums with and without elections") {
    using reference::election_kind;
    // Columns: all agree; total and frequency differ; the sum is 0; one is 0; all are 0.
    tensor<double, 3> x({3, 1, 5});
    x.values() = {1, 1, 2, 0, 0, 2, 1, -2, -1, 0, 3, -5, 0, -2, 0};
    tensor<double, 1> factors({3});
    factors.values() = {1, 10, -100};
    tensor<double, 2> sum({1, 5});
    const auto run = [&](election_kind election) {
        reference::combine_matrices(x.const_view(), factors.const_view(), election, sum.view());
        return sum.values();
    };
    CHECK(run(election_kind::none) == std::vector<double>{-279, 511, -18, 190, 0});
    CHECK(run(election_kind::total) == std::vector<double>{-93, 500, 2, 95, 0});
    CHECK(run(election_kind::frequency) == std::vector<double>{-93, 5.5, 2, 95, 0});
}

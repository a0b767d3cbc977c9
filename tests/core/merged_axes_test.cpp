#include <array>
#include <cstddef>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/merged_axes.hpp>

using namespace mhr;

namespace {

template <std::size_t Rank>
detail::merged_axes<Rank> merge(const std::vector<index_t>& extents,
                                const std::vector<index_t>& strides) {
    return detail::merge_leading_axes<Rank>(
        extents.size(), [&](std::size_t axis) { return extents[axis]; },
        [&](std::size_t axis) { return strides[axis]; });
}

} // namespace

TEST_CASE("as many axes as the view has stay as they are") {
    const auto merged = merge<3>({2, 5, 7}, {1, -40, 3});
    CHECK(merged.evenly_spaced);
    CHECK(merged.extents == std::array<index_t, 3>{2, 5, 7});
    CHECK(merged.strides == std::array<index_t, 3>{1, -40, 3});
}

TEST_CASE("more axes: the leading ones become one") {
    // Rows of 7 with a gap of 3, in matrices without one.
    const auto rows = merge<2>({2, 3, 5, 7}, {150, 50, 10, 1});
    CHECK(rows.evenly_spaced);
    CHECK(rows.extents == std::array<index_t, 2>{30, 7});
    CHECK(rows.strides == std::array<index_t, 2>{10, 1});
    const auto vector = merge<1>({2, 3, 5}, {-15, -5, -1});
    CHECK(vector.evenly_spaced);
    CHECK(vector.extents == std::array<index_t, 1>{30});
    CHECK(vector.strides == std::array<index_t, 1>{-1});
}

TEST_CASE("fewer axes: extents of 1 come first") {
    const auto merged = merge<3>({4}, {2});
    CHECK(merged.evenly_spaced);
    CHECK(merged.extents == std::array<index_t, 3>{1, 1, 4});
    CHECK(merged.strides[2] == 2);
}

TEST_CASE("axes that are not evenly spaced are found, those without a second element ignored") {
    CHECK_FALSE(merge<2>({2, 3, 7}, {22, 7, 1}).evenly_spaced); // a gap between matrices
    CHECK_FALSE(merge<2>({2, 3, 7}, {7, 14, 1}).evenly_spaced); // permuted
    CHECK_FALSE(merge<2>({2, 3, 4, 7}, {84, 28, 8, 1}).evenly_spaced);
    CHECK_FALSE(merge<1>({3, 7}, {8, 1}).evenly_spaced);
    const auto ones = merge<2>({1, 6, 1, 7}, {99, 9, 5, 1});
    CHECK(ones.evenly_spaced);
    CHECK(ones.extents == std::array<index_t, 2>{6, 7});
    CHECK(ones.strides == std::array<index_t, 2>{9, 1});
    for (const auto& extents : {std::vector<index_t>{0, 6, 7}, {6, 0, 7}}) {
        const auto none = merge<2>(extents, {99, 9, 1});
        CHECK(none.evenly_spaced);
        CHECK(none.extents == std::array<index_t, 2>{0, 7});
    }
}

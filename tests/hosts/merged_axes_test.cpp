#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/hosts/merged_axes.hpp>

using namespace mhr;

namespace {

template <std::size_t Rank>
host_details::merged_axes<Rank> merge(const std::vector<index_t>& extents,
                                      const std::vector<index_t>& strides) {
    return host_details::merge_leading_axes<Rank>(
        extents.size(), [&](std::size_t axis) { return extents[axis]; },
        [&](std::size_t axis) { return strides[axis]; });
}

/// Returns what is wrong with a tensor that somebody else made, or nothing.
template <std::size_t Rank>
std::string why_not(const std::vector<index_t>& extents, const std::vector<index_t>& strides) {
    argument_checks checks("f");
    (void)host_details::merge_leading_axes<Rank>(
        checks, "x", extents.size(), [&](std::size_t axis) { return extents[axis]; },
        [&](std::size_t axis) { return strides[axis]; });
    return std::move(checks).why();
}

} // namespace

TEST_CASE("as many axes as the view has stay as they are") {
    const auto merged = merge<3>({2, 5, 7}, {1, -40, 3});
    CHECK(merged.evenly_spaced);
    CHECK(merged.axes.extents == std::array<index_t, 3>{2, 5, 7});
    CHECK(merged.axes.strides == std::array<index_t, 3>{1, -40, 3});
}

TEST_CASE("more axes: the leading ones become one") {
    // Rows of 7 with a gap of 3, in matrices without one.
    const auto rows = merge<2>({2, 3, 5, 7}, {150, 50, 10, 1});
    CHECK(rows.evenly_spaced);
    CHECK(rows.axes.extents == std::array<index_t, 2>{30, 7});
    CHECK(rows.axes.strides == std::array<index_t, 2>{10, 1});
    const auto vector = merge<1>({2, 3, 5}, {-15, -5, -1});
    CHECK(vector.evenly_spaced);
    CHECK(vector.axes.extents == std::array<index_t, 1>{30});
    CHECK(vector.axes.strides == std::array<index_t, 1>{-1});
}

TEST_CASE("fewer axes: extents of 1 come first") {
    const auto merged = merge<3>({4}, {2});
    CHECK(merged.evenly_spaced);
    CHECK(merged.axes.extents == std::array<index_t, 3>{1, 1, 4});
    CHECK(merged.axes.strides[2] == 2);
}

TEST_CASE("axes that are not evenly spaced are found, those without a second element ignored") {
    CHECK_FALSE(merge<2>({2, 3, 7}, {22, 7, 1}).evenly_spaced); // a gap between matrices
    CHECK_FALSE(merge<2>({2, 3, 7}, {7, 14, 1}).evenly_spaced); // permuted
    CHECK_FALSE(merge<2>({2, 3, 4, 7}, {84, 28, 8, 1}).evenly_spaced);
    CHECK_FALSE(merge<1>({3, 7}, {8, 1}).evenly_spaced);
    const auto ones = merge<2>({1, 6, 1, 7}, {99, 9, 5, 1});
    CHECK(ones.evenly_spaced);
    CHECK(ones.axes.extents == std::array<index_t, 2>{6, 7});
    CHECK(ones.axes.strides == std::array<index_t, 2>{9, 1});
    for (const auto& extents : {std::vector<index_t>{0, 6, 7}, {6, 0, 7}}) {
        const auto none = merge<2>(extents, {99, 9, 1});
        CHECK(none.evenly_spaced);
        CHECK(none.axes.extents == std::array<index_t, 2>{0, 7});
    }
}

TEST_CASE("messages tell a tensor's own axes") {
    CHECK(why_not<2>({2, 3, 7}, {21, 7, 1}).empty());
    CHECK(
        why_not<2>({2, 3, 7}, {22, 7, 1}) ==
        "f: x: expected elements spaced evenly, to be seen as 2 axes, got strides [22, 7, 1] with "
        "extents [2, 3, 7]");
    CHECK(why_not<2>({2, -3}, {3, 1}) == "f: x: expected extents of 0 or more, got [2, -3]");
}

TEST_CASE("numbers that overflow become ones that are refused, not ones that fit") {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    constexpr index_t least = std::numeric_limits<index_t>::min();
    constexpr index_t half = largest / 2 + 1;
    const std::vector<std::pair<std::vector<index_t>, std::vector<index_t>>> tensors{
        {{half, half, 2}, {0, 0, 1}}, // more elements than there can be
        {{largest, largest, 2}, {2, 2, 1}},
        {{2, 2}, {0, least}},    // 2 * least wraps to 0
        {{2, 2}, {least, half}}, // as 2 * half does to least
        {{4, 4}, {0, half}},
    };
    for (const auto& tensor : tensors) {
        const auto& extents = tensor.first; // Clang's CAPTURE takes no structured bindings
        const auto& strides = tensor.second;
        CAPTURE(extents.size());
        const auto merged = merge<1>(extents, strides);
        const double number = 0;
        argument_checks checks("f");
        checks.input("x", const_tensor_ref<1>(merged.axes, &number, element_type::f64));
        CHECK((!merged.evenly_spaced || !checks.passed()));
    }
}

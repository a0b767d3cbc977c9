#include <array>
#include <limits>
#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/core/tensor_view.hpp>

using namespace mhr;

static_assert(std::is_trivially_copyable_v<tensor_axes<3>>);
static_assert(std::is_standard_layout_v<tensor_axes<3>>);
static_assert(std::is_signed_v<index_t>);

// Everything is computed at compile time.
constexpr tensor_axes<3> rows = tensor_axes<3>::row_major({2, 3, 4});
static_assert(rows.offset_of(1, 2, 3) == 23 && rows.size() == 24 && rows.is_contiguous());
static_assert(rows.without(1).offset_of(1, 3) == 15);
static_assert(rows.exchanged(0, 2).offset_of(3, 2, 1) == 23);
static_assert(rows.split(2, 2).offset_of(1, 2, 1, 1) == 23);
static_assert(rows.prepended().offset_of(0, 1, 2, 3) == 23);
static_assert(rows.with_extent(1, 2).size() == 16);

TEST_CASE("row-major axes are dense, the last one fastest") {
    CHECK(rows.extents == std::array<index_t, 3>{2, 3, 4});
    CHECK(rows.strides == std::array<index_t, 3>{12, 4, 1});
    CHECK(tensor_axes<1>::row_major({5}).strides == std::array<index_t, 1>{1});
    CHECK(tensor_axes<2>::row_major({5, 0}).strides == std::array<index_t, 2>{0, 1});
    // Absurd extents do not overflow (which would be undefined): what comes of them is refused.
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    CHECK(tensor_axes<3>::row_major({2, largest, largest}).extents[2] == largest);
    CHECK(tensor_axes<2>::row_major({3, -1}).strides == std::array<index_t, 2>{-1, 1});
}

TEST_CASE("axes without elements") {
    CHECK(tensor_axes<2>{}.empty());
    CHECK(tensor_axes<2>{}.size() == 0);
    CHECK(tensor_axes<2>::row_major({3, 0}).empty());
    CHECK_FALSE(rows.empty());
    // A product of 2^64 must not be taken for 0.
    const index_t half_of_bits = index_t{1} << (sizeof(index_t) * 4);
    CHECK_FALSE(tensor_axes<2>{{half_of_bits, half_of_bits}, {0, 0}}.empty());
}

TEST_CASE("axes are removed, cut, exchanged, split and put in front, whatever their strides") {
    const tensor_axes<3> axes{{2, 6, 5}, {-40, 7, 0}};
    CHECK(axes.offset_of(1, 2, 3) == -26);
    CHECK(axes.without(0).extents == std::array<index_t, 2>{6, 5});
    CHECK(axes.without(0).strides == std::array<index_t, 2>{7, 0});
    CHECK(axes.without(2).strides == std::array<index_t, 2>{-40, 7});
    CHECK(axes.with_extent(1, 3).extents == std::array<index_t, 3>{2, 3, 5});
    CHECK(axes.with_extent(1, 3).strides == axes.strides);
    CHECK(axes.exchanged(0, 1).extents == std::array<index_t, 3>{6, 2, 5});
    CHECK(axes.exchanged(0, 1).strides == std::array<index_t, 3>{7, -40, 0});
    CHECK(axes.exchanged(1, 1).strides == axes.strides);
    CHECK(axes.split(1, 3).extents == std::array<index_t, 4>{2, 3, 2, 5});
    CHECK(axes.split(1, 3).strides == std::array<index_t, 4>{-40, 14, 7, 0});
    CHECK(axes.split(0, 2).extents == std::array<index_t, 4>{2, 1, 6, 5});
    CHECK(axes.split(0, 2).strides == std::array<index_t, 4>{-40, -40, 7, 0});
    CHECK(axes.split(2, 0).extents == std::array<index_t, 4>{2, 6, 0, 0}); // 0 blocks have nothing
    CHECK(axes.prepended().extents == std::array<index_t, 4>{1, 2, 6, 5});
    for (index_t i = 0; i < 2; ++i)
        for (index_t j = 0; j < 6; ++j)
            for (index_t k = 0; k < 5; ++k) {
                const index_t offset = axes.offset_of(i, j, k);
                CHECK(offset == -40 * i + 7 * j);
                CHECK(axes.without(1).offset_of(i, k) + 7 * j == offset);
                CHECK(axes.exchanged(0, 2).offset_of(k, j, i) == offset);
                CHECK(axes.split(1, 3).offset_of(i, j / 2, j % 2, k) == offset);
                CHECK(axes.prepended().offset_of(0, i, j, k) == offset);
            }
    // Indices of any integer type.
    CHECK(axes.offset_of(1, std::size_t(2), short(3)) == -26);
}

TEST_CASE("is_contiguous means dense and row-major; axes of one element do not matter") {
    const auto contiguous = [](std::array<index_t, 3> extents, std::array<index_t, 3> strides) {
        return tensor_axes<3>{extents, strides}.is_contiguous();
    };
    CHECK(contiguous({2, 3, 4}, {12, 4, 1}));
    CHECK(contiguous({1, 3, 4}, {-5, 4, 1}));
    CHECK(contiguous({2, 1, 4}, {4, 99, 1}));
    CHECK(contiguous({1, 1, 1}, {0, 0, 0}));
    CHECK_FALSE(contiguous({2, 3, 4}, {13, 4, 1}));
    CHECK_FALSE(contiguous({2, 3, 4}, {12, 5, 1}));
    CHECK_FALSE(contiguous({2, 3, 4}, {12, 4, 2}));
    CHECK_FALSE(contiguous({2, 3, 4}, {1, 2, 6}));
    CHECK_FALSE(contiguous({2, 3, 4}, {-12, -4, -1}));
    CHECK_FALSE(contiguous({2, 3, 4}, {0, 0, 0}));
}

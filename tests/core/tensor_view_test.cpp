#include <array>
#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/core/tensor_view.hpp>

#include "support/guarded_buffer.hpp"
#include "support/positions.hpp"

using namespace mhr;
using test::layout;

// Hosts copy views into their own structures, and pass them by value.
static_assert(std::is_trivially_copyable_v<tensor_view<float, 3>>);
static_assert(std::is_trivially_destructible_v<tensor_view<float, 3>>);
static_assert(std::is_standard_layout_v<tensor_view<float, 3>>);
static_assert(std::is_nothrow_default_constructible_v<tensor_view<float, 3>>);
static_assert(sizeof(tensor_view<float, 3>) == sizeof(float*) + 6 * sizeof(index_t));

// Mutable to const, and no other conversion.
static_assert(std::is_convertible_v<tensor_view<float, 2>, tensor_view<const float, 2>>);
static_assert(!std::is_constructible_v<tensor_view<float, 2>, tensor_view<const float, 2>>);
static_assert(!std::is_constructible_v<tensor_view<const double, 2>, tensor_view<float, 2>>);
static_assert(!std::is_constructible_v<tensor_view<double, 2>, tensor_view<float, 2>>);
static_assert(!std::is_constructible_v<tensor_view<float, 3>, tensor_view<float, 2>>);
static_assert(!std::is_constructible_v<tensor_view<float, 2>, tensor_view<float, 3>>);
static_assert(!std::is_constructible_v<tensor_view<float, 1>, float*>);
static_assert(!std::is_assignable_v<tensor_view<float, 2>&, tensor_view<const float, 2>>);
static_assert(std::is_same_v<tensor_view<const float, 2>::value_type, float>);
static_assert(
    std::is_same_v<decltype(as_const(tensor_view<float, 2>{})), tensor_view<const float, 2>>);

// Views are made and moved about at compile time.
constexpr int constants[] = {0, 1, 2, 3, 4, 5};
constexpr tensor_view<const int, 2> table(constants, {2, 3});
static_assert(table(1, 2) == 5 && table.transpose(0, 1)(2, 1) == 5);
static_assert(table.slice(0, 1)(0) == 3 && table.block(1, 1, 2)(1, 1) == 5);
static_assert(table.split(1, 3)(1, 2, 0) == 5 && table.prepend_axis()(0, 1, 2) == 5);
static_assert(table.size() == 6 && !table.absent() && table.is_contiguous());
static_assert(tensor_view<int, 2>{}.absent());

namespace {

// A buffer whose elements are numbered 0, 1, ... in order of positions.
template <std::size_t Rank>
void number(test::guarded_buffer<int, Rank>& buffer) {
    int next = 0;
    test::for_each_position(buffer.view().extents(), [&](const test::position<Rank>& at) {
        test::element(buffer.view(), at) = next++;
    });
}

} // namespace

TEST_CASE("a default view is absent, an empty one with memory is not") {
    int value = 7;
    CHECK(tensor_view<int, 3>{}.absent());
    CHECK(tensor_view<int, 3>{}.size() == 0);
    CHECK(tensor_view<int, 2>(nullptr, {0, 5}).absent());
    CHECK_FALSE(tensor_view<int, 2>(nullptr, {1, 5}).absent());
    CHECK_FALSE(tensor_view<int, 2>(&value, {0, 5}).absent());
    CHECK_FALSE(tensor_view<int, 2>(&value, {1, 1}).absent());
}

TEST_CASE("null memory with more elements than an index can count is not absent") {
    // The product of these extents is 2^64: it must not be taken for 0.
    const index_t half_of_bits = index_t{1} << (sizeof(index_t) * 4);
    CHECK_FALSE(tensor_view<int, 2>(nullptr, {half_of_bits, half_of_bits}, {0, 0}).absent());
}

TEST_CASE("contiguous views are row-major") {
    std::array<int, 24> memory{};
    const tensor_view<int, 3> view(memory.data(), {2, 3, 4});
    CHECK(view.strides() == std::array<index_t, 3>{12, 4, 1});
    CHECK(view.size() == 24);
    CHECK(&view(1, 2, 3) == &memory[23]);
    CHECK(view.data() == memory.data());
    CHECK(view.extent(1) == 3);
    CHECK(view.stride(1) == 4);
}

TEST_CASE("slice, block, transpose, split and prepend_axis move no element, in every layout") {
    for (layout order : test::all_layouts) {
        CAPTURE(test::name_of(order));
        test::guarded_buffer<int, 3> buffer({2, 6, 5}, order);
        number(buffer);
        const tensor_view<int, 3> view = buffer.view();
        test::for_each_position(view.extents(), [&](const test::position<3>& at) {
            const index_t i = at[0];
            const index_t j = at[1];
            const index_t k = at[2];
            const int* const address = &view(i, j, k);
            CHECK(*address == 30 * i + 5 * j + k);
            CHECK(&view.slice(0, i)(j, k) == address);
            CHECK(&view.slice(1, j)(i, k) == address);
            CHECK(&view.slice(2, k)(i, j) == address);
            CHECK(&view.block(1, j, 1)(i, 0, k) == address);
            CHECK(&view.transpose(0, 2)(k, j, i) == address);
            CHECK(&view.split(1, 3)(i, j / 2, j % 2, k) == address);
            CHECK(&view.split(0, 2)(i, 0, j, k) == address);
            CHECK(&view.split(2, 1)(i, j, 0, k) == address);
            CHECK(&view.prepend_axis()(0, i, j, k) == address);
            CHECK(&as_const(view)(i, j, k) == address);
        });
        CHECK(view.slice(1, 0).extents() == std::array<index_t, 2>{2, 5});
        CHECK(view.block(2, 1, 3).extents() == std::array<index_t, 3>{2, 6, 3});
        CHECK(view.block(2, 5, 0).size() == 0);
        CHECK(view.transpose(0, 1).extents() == std::array<index_t, 3>{6, 2, 5});
        CHECK(view.transpose(0, 1).transpose(0, 1).strides() == view.strides());
        CHECK(view.split(1, 3).extents() == std::array<index_t, 4>{2, 3, 2, 5});
        CHECK(view.prepend_axis().extents() == std::array<index_t, 4>{1, 2, 6, 5});
        CHECK(buffer.intact());
    }
}

TEST_CASE("views without memory or elements may be cut up") {
    const tensor_view<int, 2> absent;
    CHECK(absent.slice(0, 3).data() == nullptr);
    CHECK(absent.block(1, 2, 0).data() == nullptr);
    CHECK(absent.transpose(0, 1).absent());
    CHECK(absent.split(0, 2).absent());
    CHECK(absent.split(0, 0).absent());
    CHECK(tensor_view<int, 2>(nullptr, {3, 0}, {7, 1}).slice(0, 2).data() == nullptr);
}

TEST_CASE("is_contiguous means dense and row-major; axes of one element do not matter") {
    int value = 0;
    const auto contiguous = [&](std::array<index_t, 3> extents, std::array<index_t, 3> strides) {
        return tensor_view<int, 3>(&value, extents, strides).is_contiguous();
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

TEST_CASE("a stride of 0 repeats an element") {
    int value = 7;
    const tensor_view<int, 2> repeated(&value, {3, 4}, {0, 0});
    CHECK(&repeated(2, 3) == &value);
    CHECK(repeated.size() == 12);
}

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mdspan>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/hosts/mdspan.hpp>

#include "support/bad_views.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/positions.hpp"

using namespace mhr;
using namespace mhr::test;
using mhr::mdspan::span_of;
using mhr::mdspan::view_of;

namespace {

template <class Span>
using view_of_t = decltype(view_of(std::declval<Span>()));

template <class T, std::size_t Rank>
using strided = std::mdspan<T, std::dextents<index_t, Rank>, std::layout_stride>;

static_assert(
    std::is_same_v<view_of_t<std::mdspan<float, std::dextents<int, 3>>>, tensor_view<float, 3>>);
static_assert(std::is_same_v<view_of_t<std::mdspan<const double, std::extents<std::size_t, 2, 3>>>,
                             tensor_view<const double, 2>>);
static_assert(std::is_same_v<decltype(span_of(tensor_view<float, 2>{})), strided<float, 2>>);
static_assert(
    std::is_same_v<decltype(span_of(tensor_view<const int, 1>{})), strided<const int, 1>>);

// At compile time, too.
constexpr int constants[] = {0, 1, 2, 3, 4, 5};
constexpr auto table = view_of(std::mdspan<const int, std::extents<int, 2, 3>>(constants));
static_assert(table(1, 2) == 5 && table.is_contiguous());
constexpr auto turned =
    view_of(std::mdspan<const int, std::extents<int, 3, 2>, std::layout_left>(constants));
static_assert(turned(2, 1) == 5 && turned.stride(0) == 1 && turned.stride(1) == 3);

/// True if both have the same elements at the same addresses.
template <class T, std::size_t Rank, class Span>
bool shows(const tensor_view<T, Rank>& view, const Span& span) {
    bool same = true;
    for (std::size_t axis = 0; axis < Rank; ++axis)
        same = same && view.extent(axis) == static_cast<index_t>(span.extent(axis));
    for_each_position(view.extents(), [&](const position<Rank>& at) {
        same = same && &element(view, at) == &span[at];
    });
    return same;
}

template <class Span>
bool is_shown(const Span& span) {
    return shows(view_of(span), span);
}

} // namespace

TEST_CASE("mdspans of every layout, of static and dynamic extents, of every index type") {
    std::vector<float> memory(1000);
    float* const data = memory.data();
    CHECK(is_shown(std::mdspan<float, std::dextents<std::size_t, 4>>(data, 2, 3, 4, 5)));
    CHECK(is_shown(std::mdspan<float, std::dextents<std::uint8_t, 2>>(data, 20, 10)));
    CHECK(is_shown(std::mdspan<float, std::extents<int, 2, 3, 4>>(data)));
    CHECK(is_shown(std::mdspan<float, std::extents<int, 2, std::dynamic_extent>>(data, 7)));
    CHECK(is_shown(std::mdspan<float, std::dextents<int, 1>>(data, 9)));
    CHECK(is_shown(
        std::mdspan<float, std::dextents<std::size_t, 3>, std::layout_left>(data, 2, 3, 4)));

    using extents = std::dextents<unsigned, 3>;
    const std::layout_stride::mapping<extents> mapping(extents(2, 3, 4),
                                                       std::array<unsigned, 3>{5, 60, 1});
    const std::mdspan padded(data, mapping);
    CHECK(is_shown(padded));
    CHECK(view_of(padded).strides() == std::array<index_t, 3>{5, 60, 1});
    CHECK(view_of(padded).data() == data);
}

TEST_CASE("every view is a tensor whose type is that of the elements") {
    std::vector<double> memory(6);
    const std::mdspan<double, std::extents<int, 2, 3>, std::layout_left> span(memory.data());
    const tensor_ref<2> ref = view_of(span);
    CHECK(ref.type() == element_type::f64);
    CHECK(ref.data() == memory.data());
    CHECK(ref.strides() == std::array<index_t, 2>{1, 2});
    CHECK(shows(view_of(span), span_of(ref.as<double>())));
}

TEST_CASE("views without elements or memory, both ways") {
    const std::mdspan<float, std::dextents<int, 2>> none;
    CHECK(view_of(none).absent());
    float value = 0;
    for (const tensor_view<float, 2>& view :
         {tensor_view<float, 2>{}, tensor_view<float, 2>(nullptr, {0, 5}),
          tensor_view<float, 2>(&value, {5, 0}), tensor_view<float, 2>(&value, {3, 0}, {-1, 0})}) {
        CAPTURE(to_text(view.extents()));
        const auto span = span_of(view);
        CHECK(span.data_handle() == view.data());
        CHECK(span.extent(0) == view.extent(0));
        CHECK(span.extent(1) == view.extent(1));
        CHECK(span.mapping().required_span_size() == 0);
    }
}

TEST_CASE("views as mdspans and back") {
    for (layout order : all_layouts) {
        if (order == layout::reversed) continue; // see below
        CAPTURE(name_of(order));
        guarded_buffer<double, 3> buffer({2, 3, 4}, order);
        buffer.fill(0);
        const auto span = span_of(buffer.view());
        CHECK(shows(buffer.view(), span));
        CHECK(view_of(span).strides() == buffer.view().strides());
        CHECK(shows(buffer.const_view(), span_of(buffer.const_view())));
        span[1, 2, 3] = 5;
        CHECK(buffer.view()(1, 2, 3) == 5);
        CHECK(buffer.intact());
    }
    // Strides that lead nowhere may be anything in a view, and are positive in an mdspan.
    std::array<int, 12> memory{};
    const tensor_view<int, 2> table_view(memory.data(), {4, 3});
    CHECK(shows(table_view.prepend_axis(), span_of(table_view.prepend_axis())));
    const tensor_view<int, 3> ones(memory.data(), {1, 3, 1}, {-7, 4, 0});
    CHECK(shows(ones, span_of(ones)));
    // Axes may follow each other in any order.
    const tensor_view<int, 3> any_order(memory.data(), {2, 3, 2}, {2, 4, 1});
    CHECK(shows(any_order, span_of(any_order)));
}

TEST_CASE("what no mdspan can be is refused") {
    std::array<float, 64> memory{};
    float* const data = memory.data() + 32;
    const auto refused = [](const auto& view) {
        return refuses("mdspan::span_of", "view", [&] { span_of(view); });
    };
    using view = tensor_view<float, 2>;
    CHECK(refused(view(data, {4, 3}, {0, 1})));  // repeated
    CHECK(refused(view(data, {4, 3}, {-3, 1}))); // backwards
    CHECK(refused(view(data, {4, 3}, {2, 1})));  // overlapping
    CHECK(refused(view(data, {4, 3}, {1, 3})));
    CHECK(refused(view(data, {2, 3}, {5, 2}))); // interleaved, although nothing overlaps
    for (const view& bad : bad_inputs(view(data, {4, 3})))
        CHECK(refused(bad));
    CHECK_NOTHROW(span_of(view(data, {4, 3}, {1, 4})));
    CHECK_NOTHROW(span_of(view(data, {2, 3}, {6, 2})));
    // Without elements, but with extents that overflow as soon as strides are made of them.
    constexpr index_t many = std::numeric_limits<index_t>::max() / 2;
    CHECK(refused(tensor_view<float, 3>(nullptr, {many, many, 0}, {0, 0, 0})));
}

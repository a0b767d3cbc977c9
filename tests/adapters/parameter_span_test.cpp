#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/adapters/parameter_span.hpp>

#include "support/bad_views.hpp"
#include "support/error_check.hpp"
#include "support/positions.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr lora_shape query{4, 3, 20, 12, 2};
constexpr lora_shape value{1, 2, 7, 9, 3};

/// A model of two layers and a router, with one tensor of the host's.
struct model {
    parameter_layout layout;
    inventory_place of_query = layout.place_inventory(query);
    parameter_place<1> bias = layout.place<1>({5});
    inventory_place of_value = layout.place_inventory(value);
    index_t modules_end = layout.size();
    parameter_place<3> logits = layout.place<3>({6, 4, 3});
};

template <class T>
tensor_view<T, 1> view_of(std::vector<T>& values) {
    return {values.data(), {static_cast<index_t>(values.size())}};
}

/// Adds 1 to each element of a tensor.
template <class T, std::size_t Rank>
void count(const tensor_view<T, Rank>& view) {
    for_each_position(view.extents(), [&](const position<Rank>& at) { element(view, at) += 1; });
}

} // namespace

TEST_CASE("tensors in a span do not overlap and have the shapes they were given") {
    const model m;
    std::vector<float> values(static_cast<std::size_t>(m.layout.size()));
    const auto span = view_of(values);
    const auto of_query = m.of_query.in(span);
    const auto of_value = m.of_value.in(span);
    CHECK(of_query.a.extents() == std::array<index_t, 4>{4, 3, 5, 2});
    CHECK(of_query.b.extents() == std::array<index_t, 4>{4, 3, 2, 3});
    CHECK(of_value.a.extents() == std::array<index_t, 4>{1, 2, 7, 3});
    CHECK(of_value.b.extents() == std::array<index_t, 4>{1, 2, 3, 9});
    CHECK(m.logits.in(span).extents() == std::array<index_t, 3>{6, 4, 3});
    CHECK(m.of_query.size() == 4 * 3 * 5 * 2 + 4 * 3 * 2 * 3);
    CHECK(m.logits.size() == 72);

    count(of_query.a);
    count(of_query.b);
    count(of_value.a);
    count(of_value.b);
    count(m.bias.in(span));
    count(m.logits.in(span));
    index_t parameters = 0;
    for (float v : values) {
        CHECK(v <= 1); // no element of two tensors
        parameters += detail::is_exactly(v, 1) ? 1 : 0;
    }
    CHECK(parameters == m.of_query.size() + m.of_value.size() + 5 + 72);
}

TEST_CASE("every tensor of a span is aligned, for each storage type") {
    const model m;
    const auto check = [&](auto zero) {
        using T = decltype(zero);
        std::vector<T, Eigen::aligned_allocator<T>> values(
            static_cast<std::size_t>(m.layout.size()) + 64);
        auto* start = values.data();
        while (reinterpret_cast<std::uintptr_t>(start) % 64 != 0)
            ++start;
        const tensor_view<T, 1> span(start, {m.layout.size()});
        const auto aligned = [&](const auto& view) {
            return view.is_contiguous() && reinterpret_cast<std::uintptr_t>(view.data()) % 64 == 0;
        };
        CHECK(aligned(m.of_query.in(span).a));
        CHECK(aligned(m.of_query.in(span).b));
        CHECK(aligned(m.of_value.in(span).a));
        CHECK(aligned(m.of_value.in(span).b));
        CHECK(aligned(m.bias.in(span)));
        CHECK(aligned(m.logits.in(span)));
    };
    check(0.0);
    check(0.0F);
    check(Eigen::bfloat16());
    check(Eigen::half());
}

TEST_CASE("what is placed later begins at the size before") {
    const model m;
    CHECK(m.logits.first == m.modules_end);
    CHECK(m.modules_end % parameter_layout::alignment == 0);
    CHECK(m.layout.size() == m.modules_end + 96);
    CHECK(parameter_layout{}.size() == 0);
}

TEST_CASE("gradients of an absent span are absent") {
    const model m;
    const tensor_view<float, 1> absent;
    CHECK(m.of_query.in(absent).a.absent());
    CHECK(m.of_query.in(absent).b.absent());
    CHECK(m.logits.in(absent).absent());
}

TEST_CASE("bad spans are refused") {
    const model m;
    std::vector<float> values(static_cast<std::size_t>(m.layout.size()));
    const auto span = view_of(values);
    const auto refused = [&](const tensor_view<float, 1>& bad) {
        return refuses("parameter_place::in", "span", [&] { (void)m.logits.in(bad); });
    };
    for (const auto& bad : bad_inputs(span)) {
        CAPTURE(to_text(bad.extents()));
        CAPTURE(to_text(bad.strides()));
        CHECK(refused(bad));
    }
    CHECK(refused({values.data(), {m.modules_end + 71}}));
    CHECK(refused({values.data(), {m.modules_end / 2}}));
    CHECK(refused({values.data(), {m.modules_end + 72}, {2}}));
    CHECK(m.logits.in(tensor_view<float, 1>(values.data(), {m.modules_end + 72})).size() == 72);
}

TEST_CASE("bad shapes are refused, and place nothing") {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    parameter_layout layout;
    (void)layout.place<1>({3});
    const index_t before = layout.size();
    const auto refuses_shape = [&](const lora_shape& shape) {
        return refuses("parameter_layout::place_inventory", "shape",
                       [&] { (void)layout.place_inventory(shape); });
    };
    CHECK(refuses_shape({0, 2, 8, 8, 2}));
    CHECK(refuses_shape({-1, 2, 8, 8, 2}));
    CHECK(refuses_shape({3, 2, 8, 9, 2}));
    CHECK(refuses_shape({3, 2, 9, 8, 2}));
    CHECK(refuses_shape({2, -1, 8, 8, 2}));
    CHECK(refuses_shape({2, 2, 8, 8, -2}));
    CHECK(refuses_shape({2, 2, -8, 8, 2}));
    CHECK(refuses_shape({1, 1, 8, largest, 1})); // a would fit
    const auto refuses_extents = [&](const std::array<index_t, 2>& extents) {
        return refuses("parameter_layout::place", "extents",
                       [&] { (void)layout.place<2>(extents); });
    };
    CHECK(refuses_extents({-1, 0}));
    CHECK(refuses_extents({2, std::numeric_limits<index_t>::min()}));
    CHECK(refuses_extents({largest, 2}));
    CHECK(refuses_extents({largest - 31, 1}));
    CHECK(layout.size() == before);
    CHECK(layout.place<2>({0, 5}).size() == 0);
    CHECK(layout.size() == before);
}

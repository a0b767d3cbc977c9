#include <array>
#include <limits>
#include <string>

#include <doctest/doctest.h>

#include <mhr/core/checks.hpp>

#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"

using namespace mhr;
using test::refuses;

namespace {

constexpr index_t largest = std::numeric_limits<index_t>::max();
constexpr index_t lowest = std::numeric_limits<index_t>::min();

using shape = std::array<index_t, 2>;

alignas(8) float memory[64];

struct layout_case {
    shape extents;
    shape strides;
};

tensor_view<float, 2> view_of(const layout_case& layout) {
    return {memory, layout.extents, layout.strides};
}

void input(const tensor_view<float, 2>& view, const shape& expected = {any_extent, any_extent}) {
    require_input("f", "x", as_const(view), expected);
}
void output(const tensor_view<float, 2>& view, const shape& expected = {any_extent, any_extent}) {
    require_output("f", "x", view, expected);
}

} // namespace

TEST_CASE("require names function, argument, expected and actual, and makes texts when needed") {
    bool made = false;
    const auto unused = [&] {
        made = true;
        return "a text";
    };
    require_that(true, "f", "x", unused, unused);
    CHECK_FALSE(made);
    CHECK(test::error_of([] {
              require_that(
                  false, "f", "x", [] { return "1"; }, [] { return "2"; });
          }) == "f: x: expected 1, got 2");
}

TEST_CASE("products and reaches saturate") {
    CHECK(detail::saturating_product(0, largest) == 0);
    CHECK(detail::saturating_product(largest, 0) == 0);
    CHECK(detail::saturating_product(3, 5) == 15);
    CHECK(detail::saturating_product(largest, 1) == largest);
    CHECK(detail::saturating_product(largest / 2 + 1, 2) == largest);
    CHECK(detail::axis_reach(0, 5) == 0);
    CHECK(detail::axis_reach(1, lowest) == 0);
    CHECK(detail::axis_reach(4, 5) == 15);
    CHECK(detail::axis_reach(4, -5) == 15);
    CHECK(detail::axis_reach(2, lowest) == largest);
    CHECK(detail::axis_reach(2, -largest) == largest);
    CHECK(detail::axis_reach(largest, 2) == largest);
}

TEST_CASE("inputs may have any strides") {
    for (const layout_case& good : {
             layout_case{{2, 3}, {3, 1}},
             {{2, 3}, {7, 1}},
             {{2, 3}, {1, 2}},
             {{2, 3}, {-3, -1}},
             {{2, 3}, {0, 0}},
             {{2, 3}, {0, 1}},
             {{2, 3}, {1, 1}},
             {{1, 1}, {lowest, largest}},
             {{0, 3}, {3, 1}},
             {{0, 0}, {0, 0}},
         })
        CHECK(test::error_of([&] { input(view_of(good)); }).empty());
    CHECK(test::error_of([&] { input({}); }).empty());
    CHECK(test::error_of([&] { input({nullptr, {0, 5}}, {0, 5}); }).empty());
    CHECK(test::error_of([&] { input({memory, {2, 3}}, {any_extent, 3}); }).empty());
    CHECK(test::error_of([&] { input({memory, {2, 3}}, {2, 3}); }).empty());
    CHECK(test::error_of([&] { require_input("f", "x", view_of({{0, 3}, {3, 1}})); }).empty());
    CHECK(refuses("f", "x", [] { require_input("f", "x", view_of({{2, -3}, {3, 1}})); }));
}

TEST_CASE("outputs may have any strides that place every element at its own address") {
    for (const layout_case& good : {
             layout_case{{2, 3}, {3, 1}},
             {{2, 3}, {7, 2}},
             {{2, 3}, {1, 2}},
             {{2, 3}, {-3, 1}},
             {{2, 3}, {3, -1}},
             {{3, 2}, {-1, -3}},
             {{1, 3}, {0, 1}},
             {{2, 1}, {1, 0}},
             {{1, 1}, {0, 0}},
             {{1, 1}, {lowest, 0}},
             {{0, 3}, {0, 0}},
             {{0, 3}, {1, 1}},
         }) {
        CAPTURE(test::to_text(good.extents));
        CAPTURE(test::to_text(good.strides));
        CHECK(test::error_of([&] { output(view_of(good)); }).empty());
    }
    CHECK(test::error_of([&] { output({}); }).empty());
}

TEST_CASE("outputs with elements that share an address are refused") {
    for (const layout_case& bad : {
             layout_case{{2, 3}, {0, 1}},
             {{2, 3}, {3, 0}},
             {{2, 3}, {0, 0}},
             {{2, 3}, {1, 1}},
             {{2, 3}, {2, 1}},
             {{2, 3}, {1, 1}},
             {{2, 3}, {-2, 1}},
             {{2, 3}, {1, -1}},
             {{3, 2}, {1, 2}},
             {{1, 3}, {5, 0}},
             {{2, 1}, {0, 5}},
         }) {
        CAPTURE(test::to_text(bad.extents));
        CAPTURE(test::to_text(bad.strides));
        CHECK(test::error_of([&] { input(view_of(bad)); }).empty());
        const auto outcome = refuses("f", "x", [&] { output(view_of(bad)); });
        CHECK(outcome);
        CHECK(outcome.message ==
              "f: x: expected strides that place every element at its own address, got strides " +
                  test::to_text(bad.strides) + " with extents " + test::to_text(bad.extents));
    }
}

TEST_CASE("nesting is decided over all axes") {
    const auto nested = [](std::array<index_t, 3> extents, std::array<index_t, 3> strides) {
        return detail::is_nested(
            detail::memory_of(tensor_view<float, 3>(memory, extents, strides)));
    };
    CHECK(nested({2, 3, 4}, {12, 4, 1}));
    CHECK(nested({2, 3, 4}, {4, 8, 1}));
    CHECK(nested({2, 3, 4}, {1, 8, 2}));
    CHECK(nested({2, 3, 4}, {-12, 4, -1}));
    CHECK(nested({2, 1, 4}, {4, 1, 1}));
    CHECK_FALSE(nested({2, 3, 4}, {11, 4, 1}));
    CHECK_FALSE(nested({2, 3, 4}, {12, 3, 1}));
    CHECK_FALSE(nested({2, 3, 4}, {1, 1, 1}));
    CHECK_FALSE(nested({2, 2, 2}, {4, 4, 1}));
}

TEST_CASE("other extents are refused, each by its axis") {
    for (const shape& expected : {shape{2, 4}, {3, 3}, {any_extent, 2}, {0, 3}, {2, 0}}) {
        CHECK(refuses("f", "x", [&] { input({memory, {2, 3}}, expected); }));
        CHECK(refuses("f", "x", [&] { output({memory, {2, 3}}, expected); }));
    }
    CHECK(test::error_of([] {
              input({memory, {2, 3}}, {any_extent, 4});
          }) == "f: x: expected extents [any, 4], got [2, 3]");
}

TEST_CASE("negative extents are refused, whatever is expected") {
    for (const shape& extents : {shape{-1, 3}, {2, -1}, {-1, -1}, {lowest, 1}, {0, -1}}) {
        const tensor_view<float, 2> view(memory, extents, {1, 1});
        CHECK(refuses("f", "x", [&] { input(view); }));
        CHECK(refuses("f", "x", [&] { input(view, extents); }));
        CHECK(refuses("f", "x", [&] { output(view); }));
    }
}

TEST_CASE("null memory is refused where there are elements") {
    CHECK(refuses("f", "x", [] { input({nullptr, {2, 3}}); }));
    CHECK(refuses("f", "x", [] { output({nullptr, {1, 1}}); }));
    CHECK(test::error_of([] {
              input({nullptr, {2, 3}});
          }) == "f: x: expected memory, got a null pointer with extents [2, 3]");
}

TEST_CASE("misaligned memory is refused") {
    auto* const misaligned =
        static_cast<float*>(static_cast<void*>(reinterpret_cast<unsigned char*>(memory) + 2));
    CHECK(refuses("f", "x", [&] { input({misaligned, {2, 3}}); }));
    CHECK(refuses("f", "x", [&] { output({misaligned, {2, 3}}); }));
    CHECK(test::error_of([&] {
              input({misaligned, {2, 3}});
          }) == "f: x: expected a pointer aligned to 4 bytes, got remainder 2");
}

TEST_CASE("offsets that overflow an index are refused") {
    for (const layout_case& bad : {
             layout_case{{2, 3}, {largest, 1}},
             {{2, 3}, {lowest, 1}},
             {{2, 3}, {-largest, 1}},
             {{2, 3}, {1, largest / 2}},
             {{2, 2}, {largest / 6, largest / 6}}, // each fits, the sum of bytes does not
             {{largest, 1}, {0, 0}},
             {{largest / 2, 3}, {0, 0}}, // the number of elements overflows
             {{largest, largest}, {0, 0}},
             {{largest / 4, 1}, {1, 1}},
             {{largest, 3}, {largest, 1}},
         }) {
        CAPTURE(test::to_text(bad.extents));
        CAPTURE(test::to_text(bad.strides));
        CHECK(refuses("f", "x", [&] { input(view_of(bad)); }));
        CHECK(refuses("f", "x", [&] { output(view_of(bad)); }));
    }
    // Just below: never read, only checked.
    CHECK(test::error_of([&] { input({memory, {2, 1}, {largest / 4 - 1, 1}}); }).empty());
}

TEST_CASE("contiguous views with more elements than an index can count are refused") {
    // The strides that the constructor computes must not overflow on the way.
    CHECK(refuses("f", "x", [] { input({memory, {largest, largest}}); }));
    CHECK(refuses("f", "x", [] { output({memory, {3, largest / 2}}); }));
    CHECK(refuses("f", "x", [] {
        require_input("f", "x", tensor_view<float, 3>(memory, {2, largest, largest}),
                      {any_extent, any_extent, any_extent});
    }));
}

TEST_CASE("optional outputs may be absent, and are checked otherwise") {
    const auto optional = [](const tensor_view<float, 2>& view) {
        require_optional_output("f", "d_x", view, {2, 3});
    };
    CHECK(test::error_of([&] { optional({}); }).empty());
    CHECK(test::error_of([&] { optional({memory, {2, 3}}); }).empty());
    CHECK(refuses("f", "d_x", [&] { optional({memory, {2, 4}}); }));
    CHECK(refuses("f", "d_x", [&] { optional({memory, {0, 3}}); }));
    CHECK(refuses("f", "d_x", [&] { optional({memory, {2, 3}, {0, 1}}); }));
    CHECK(refuses("f", "d_x", [&] { optional({nullptr, {2, 3}}); }));
}

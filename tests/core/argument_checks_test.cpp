#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include <mhr/core/argument_checks.hpp>

#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/positions.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr index_t largest = std::numeric_limits<index_t>::max();
constexpr index_t lowest = std::numeric_limits<index_t>::min();

using shape = std::array<index_t, 2>;
constexpr shape any_shape{any_extent, any_extent};

alignas(8) std::array<unsigned char, 512> memory;

struct layout_case {
    shape extents;
    shape strides;
};

tensor_ref<2> tensor_of(const layout_case& layout, element_type type = element_type::f32) {
    return {memory.data(), type, layout.extents, layout.strides};
}

// Returns what is said of an argument: nothing, if it is good.
std::string why_not_input(const const_tensor_ref<2>& x, const shape& expected = any_shape) {
    argument_checks checks("f");
    checks.input("x", x, expected);
    return std::move(checks).why();
}
std::string why_not_output(const tensor_ref<2>& y, const shape& expected = any_shape) {
    argument_checks checks("f");
    checks.output("y", y, expected);
    return std::move(checks).why();
}
template <class T>
std::string why_not_numbers(const tensor_view<T, 1>& ids, index_t expected = any_extent) {
    argument_checks checks("f");
    checks.numbers("ids", ids, {expected});
    return std::move(checks).why();
}

} // namespace

TEST_CASE("a check names function, argument, expected and actual, and makes texts when needed") {
    bool made = false;
    const auto unused = [&] {
        made = true;
        return std::string("a text");
    };
    argument_checks checks("function");
    checks.expect(true, "x", unused, unused);
    CHECK(checks.passed());
    CHECK(error_of([&] { checks.raise(); }).empty());
    argument_checks copy = checks;
    CHECK(std::move(copy).why().empty());

    // The first that fails is kept; those after it do nothing.
    const auto text = [](const char* of) { return [of] { return std::string(of); }; };
    checks.expect(false, "y", text("1"), text("2"));
    CHECK_FALSE(checks.passed());
    checks.expect(false, "z", unused, unused);
    checks.expect(true, "z", unused, unused);
    checks.input("x", const_tensor_ref<2>(nullptr, element_type::f32, {1, 1}));
    checks.output("x", tensor_ref<2>(nullptr, element_type::f32, {1, 1}), any_shape);
    checks.numbers("x", tensor_view<const int, 1>(nullptr, {1}), {1});
    checks.sums_type("x", element_type::bf16);
    checks.every_part(share_executor{0, 2});
    checks.workspace_size(workspace(), 5);
    CHECK_FALSE(made);
    CHECK(error_of([&] { checks.raise(); }) == "function: y: expected 1, got 2");
    CHECK(refuses("function", "y", [&] { checks.raise(); }));
    CHECK(std::move(checks).why() == "function: y: expected 1, got 2");
}

TEST_CASE("what is expected and what came are texts, numbers, types, or several of these") {
    const auto why = [](const auto& expected, const auto& actual) {
        argument_checks checks("f");
        checks.expect(false, "x", expected, actual);
        return std::move(checks).why();
    };
    CHECK(why("a text", 7) == "f: x: expected a text, got 7");
    CHECK(why(index_t(-3), std::size_t(5)) == "f: x: expected -3, got 5");
    CHECK(why(element_type::bf16, static_cast<element_type>(9)) ==
          "f: x: expected bf16, got unknown");
    CHECK(why(std::array<index_t, 3>{2, -1, 0}, 0.5) == "f: x: expected [2, -1, 0], got 0.500000");
    const shape extents{4, 5};
    CHECK(why(joined("up to ", 8, " of ", element_type::f16), joined(extents, " at ", 2)) ==
          "f: x: expected up to 8 of f16, got [4, 5] at 2");
    CHECK(why(joined(), [] { return "made late"; }) == "f: x: expected , got made late");
}

TEST_CASE("a function of checks returns its result, or raises what failed") {
    const auto halved = [](int number) {
        return checked("halved", [&](argument_checks& checks) {
            checks.expect(number % 2 == 0, "number", "an even one", number);
            return number / 2;
        });
    };
    CHECK(halved(6) == 3);
    CHECK(error_of([&] { halved(7); }) == "halved: number: expected an even one, got 7");
}

TEST_CASE("an element type is known, and f64 only where sums are") {
    for (element_type type : all_element_types) {
        argument_checks wide("f"), narrow("f");
        wide.element("type", type);
        narrow.sums_are(element_type::f32);
        narrow.element("type", type);
        CHECK(wide.passed());
        CHECK(narrow.passed() == (type != element_type::f64));
    }
    argument_checks checks("f");
    checks.element("type", static_cast<element_type>(9));
    CHECK(std::move(checks).why() ==
          "f: type: expected an element type (f32, f64, bf16 or f16), got number 9");
}

TEST_CASE("products and reaches saturate") {
    using namespace check_details;
    CHECK(saturating_product(0, largest) == 0);
    CHECK(saturating_product(largest, 0) == 0);
    CHECK(saturating_product(3, 5) == 15);
    CHECK(saturating_product(largest, 1) == largest);
    CHECK(saturating_product(largest / 2 + 1, 2) == largest);
    // Round the square root, below which products are not looked at closely.
    constexpr index_t root = index_t(1) << (std::numeric_limits<index_t>::digits / 2);
    CHECK(saturating_product(root - 1, root - 1) == (root - 1) * (root - 1));
    CHECK(saturating_product(root, root) == root * root);
    CHECK(saturating_product(root, 2 * root) == largest);
    CHECK(saturating_product(4 * root, root) == largest);
    CHECK(axis_reach(0, 5) == 0);
    CHECK(axis_reach(1, lowest) == 0);
    CHECK(axis_reach(4, 5) == 15);
    CHECK(axis_reach(4, -5) == 15);
    CHECK(axis_reach(2, lowest) == largest);
    CHECK(axis_reach(2, -largest) == largest);
    CHECK(axis_reach(largest, 2) == largest);
}

TEST_CASE("inputs may have any strides, of every type") {
    for (element_type type : all_element_types)
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
            CHECK(why_not_input(tensor_of(good, type)) == "");
    CHECK(why_not_input({}) == "");
    CHECK(why_not_input({nullptr, element_type::f16, {0, 5}}, {0, 5}) == "");
    CHECK(why_not_input(tensor_of({{2, 3}, {3, 1}}), {any_extent, 3}) == "");
    CHECK(why_not_input(tensor_of({{2, 3}, {3, 1}}), {2, 3}) == "");
    argument_checks checks("f");
    checks.input("x", const_tensor_ref<2>(tensor_of({{0, 3}, {3, 1}})));
    CHECK(checks.passed());
    checks.input("x", const_tensor_ref<2>(tensor_of({{2, -3}, {3, 1}})));
    CHECK(std::move(checks).why() == "f: x: expected extents [any, any], got [2, -3]");
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
        CAPTURE(to_text(good.extents));
        CAPTURE(to_text(good.strides));
        CHECK(why_not_output(tensor_of(good)) == "");
    }
    CHECK(why_not_output({}) == "");
}

TEST_CASE("outputs with elements that share an address are refused") {
    for (const layout_case& bad : {
             layout_case{{2, 3}, {0, 1}},
             {{2, 3}, {3, 0}},
             {{2, 3}, {0, 0}},
             {{2, 3}, {1, 1}},
             {{2, 3}, {2, 1}},
             {{2, 3}, {-2, 1}},
             {{2, 3}, {1, -1}},
             {{3, 2}, {1, 2}},
             {{1, 3}, {5, 0}},
             {{2, 1}, {0, 5}},
         }) {
        CHECK(why_not_input(tensor_of(bad)) == "");
        for (element_type type : all_element_types)
            CHECK(why_not_output(tensor_of(bad, type)) ==
                  "f: y: expected strides that place every element at its own address, got "
                  "strides " +
                      to_text(bad.strides) + " with extents " + to_text(bad.extents));
    }
}

TEST_CASE("nesting is decided over all axes") {
    const auto nested = [](std::array<index_t, 3> extents, std::array<index_t, 3> strides) {
        return check_details::is_nested(check_details::memory_of(
            tensor_ref<3>(memory.data(), element_type::f32, extents, strides)));
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

TEST_CASE("numbers that are no element type are refused") {
    for (int number : {4, 17, 255}) {
        const auto type = static_cast<element_type>(number);
        const std::string text = " expected an element type (f32, f64, bf16 or f16), got number " +
                                 std::to_string(number);
        CHECK(why_not_input(tensor_of({{2, 3}, {3, 1}}, type)) == "f: x:" + text);
        CHECK(why_not_output(tensor_of({{2, 3}, {3, 1}}, type)) == "f: y:" + text);
        // Even where there are no elements, or the memory is bad, too.
        CHECK(why_not_input({nullptr, type, {0, 3}}) == "f: x:" + text);
        CHECK(why_not_input({memory.data() + 1, type, {2, -3}}) == "f: x:" + text);
    }
}

TEST_CASE("f64 is refused beside sums of f32") {
    const std::string text =
        " expected f32, bf16 or f16 where sums are f32 (f64 needs sums of f64), got f64";
    for (element_type type : all_element_types) {
        argument_checks wide("f"), narrow("f"), of_output("f");
        wide.sums_are(element_type::f64);
        narrow.sums_are(element_type::f32);
        of_output.sums_are(element_type::f32);
        const tensor_ref<2> tensor = tensor_of({{2, 3}, {3, 1}}, type);
        wide.input("x", const_tensor_ref<2>(tensor), any_shape);
        wide.output("y", tensor, any_shape);
        CHECK(wide.passed());
        narrow.input("x", const_tensor_ref<2>(tensor), any_shape);
        of_output.optional_output("y", tensor, any_shape);
        const bool is_f64 = type == element_type::f64;
        CHECK(std::move(narrow).why() == (is_f64 ? "f: x:" + text : ""));
        CHECK(std::move(of_output).why() == (is_f64 ? "f: y:" + text : ""));
    }
    // Unless told otherwise, sums are of f64; an absent output has no type that matters.
    CHECK(why_not_input(tensor_of({{2, 3}, {3, 1}}, element_type::f64)) == "");
    argument_checks checks("f");
    checks.sums_are(element_type::f32);
    checks.optional_output("y", tensor_ref<2>(nullptr, element_type::f64, {0, 0}), {2, 3});
    CHECK(checks.passed());
    // Numbers of the host are no elements: they may be as wide as they like.
    const double number = 0;
    checks.numbers("n", tensor_view<const double, 1>(&number, {1}), {1});
    CHECK(checks.passed());
}

TEST_CASE("the type of sums is f32 or f64") {
    for (element_type type : all_element_types) {
        argument_checks checks("f");
        checks.sums_type("state", type);
        const bool good = type == element_type::f32 || type == element_type::f64;
        CHECK(std::move(checks).why() ==
              (good ? std::string()
                    : std::string("f: state: expected f32 or f64, the type of sums, got ") +
                          name_of(type)));
    }
    argument_checks checks("f");
    checks.sums_type("state", static_cast<element_type>(9));
    CHECK(std::move(checks).why() ==
          "f: state: expected f32 or f64, the type of sums, got unknown");
}

TEST_CASE("other extents are refused, each by its axis") {
    const tensor_ref<2> tensor = tensor_of({{2, 3}, {3, 1}});
    for (const shape& expected : {shape{2, 4}, {3, 3}, {any_extent, 2}, {0, 3}, {2, 0}}) {
        const auto text = [&](const index_t extent) {
            return extent == any_extent ? std::string("any") : std::to_string(extent);
        };
        const std::string why =
            " expected extents [" + text(expected[0]) + ", " + text(expected[1]) + "], got [2, 3]";
        CHECK(why_not_input(tensor, expected) == "f: x:" + why);
        CHECK(why_not_output(tensor, expected) == "f: y:" + why);
    }
}

TEST_CASE("negative extents are refused, whatever is expected") {
    for (const shape& extents : {shape{-1, 3}, {2, -1}, {-1, -1}, {lowest, 1}, {0, -1}}) {
        const tensor_ref<2> tensor = tensor_of({extents, {1, 1}});
        const std::string got = ", got " + to_text(extents);
        CHECK(why_not_input(tensor) == "f: x: expected extents [any, any]" + got);
        CHECK(why_not_output(tensor) == "f: y: expected extents [any, any]" + got);
        CHECK(why_not_input(tensor, extents) != "");
    }
}

TEST_CASE("null memory is refused where there are elements") {
    for (element_type type : all_element_types) {
        CHECK(why_not_input({nullptr, type, {2, 3}}) ==
              "f: x: expected memory, got a null pointer with extents [2, 3]");
        CHECK(why_not_output({nullptr, type, {1, 1}}) ==
              "f: y: expected memory, got a null pointer with extents [1, 1]");
        CHECK(why_not_input({nullptr, type, {2, 0}}) == "");
    }
}

TEST_CASE("misaligned memory is refused, by the size of the elements") {
    for (element_type type : all_element_types) {
        const std::size_t alignment = size_of(type);
        for (std::size_t beyond = 0; beyond < 2 * alignment; ++beyond) {
            const std::size_t remainder = beyond % alignment;
            const std::string why = remainder == 0
                                        ? std::string()
                                        : "f: x: expected a pointer aligned to " +
                                              std::to_string(alignment) + " bytes, got remainder " +
                                              std::to_string(remainder);
            CHECK(why_not_input({memory.data() + beyond, type, {2, 3}}) == why);
            CHECK(why_not_output({memory.data() + beyond, type, {2, 3}}).empty() == why.empty());
        }
    }
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
        const std::string why = " expected offsets that fit an index, got strides " +
                                to_text(bad.strides) + " with extents " + to_text(bad.extents);
        CHECK(why_not_input(tensor_of(bad)) == "f: x:" + why);
        CHECK(why_not_output(tensor_of(bad)) == "f: y:" + why);
    }
    // Just below, which depends on the size of an element: never read, only checked.
    for (element_type type : all_element_types) {
        const index_t most = largest / static_cast<index_t>(size_of(type));
        CHECK(why_not_input(tensor_of({{most - 1, 1}, {1, 1}}, type)) == "");
        CHECK(why_not_input(tensor_of({{most, 1}, {1, 1}}, type)) != "");
        CHECK(why_not_input(tensor_of({{2, 1}, {most - 1, 1}}, type)) == "");
        CHECK(why_not_input(tensor_of({{2, 1}, {most, 1}}, type)) != "");
    }
}

TEST_CASE("contiguous tensors with more elements than an index can count are refused") {
    // The strides that the constructor computes must not overflow on the way.
    const auto why = [](const std::array<index_t, 3>& extents) {
        argument_checks checks("f");
        checks.input("x", const_tensor_ref<3>(memory.data(), element_type::f32, extents));
        return std::move(checks).why();
    };
    const std::string start = "f: x: expected offsets that fit an index, got strides ";
    CHECK(why({1, largest, largest}).compare(0, start.size(), start) == 0);
    CHECK(why({2, largest, largest}).compare(0, start.size(), start) == 0);
    CHECK(why({1, 3, largest / 2}).compare(0, start.size(), start) == 0);
}

TEST_CASE("optional outputs may be absent, and are checked otherwise") {
    const auto why = [](const tensor_ref<2>& tensor) {
        argument_checks checks("f");
        checks.optional_output("d_x", tensor, {2, 3});
        return std::move(checks).why();
    };
    CHECK(why({}) == "");
    CHECK(why(tensor_of({{2, 3}, {3, 1}})) == "");
    CHECK(why(tensor_of({{2, 4}, {4, 1}})) == "f: d_x: expected extents [2, 3], got [2, 4]");
    CHECK(why(tensor_of({{0, 3}, {3, 1}})) == "f: d_x: expected extents [2, 3], got [0, 3]");
    CHECK(why(tensor_of({{2, 3}, {0, 1}})) != "");
    CHECK(why({nullptr, element_type::f32, {2, 3}}) ==
          "f: d_x: expected memory, got a null pointer with extents [2, 3]");
}

TEST_CASE("numbers of the host are checked as inputs are, of any type") {
    auto* const at = static_cast<std::int64_t*>(static_cast<void*>(memory.data()));
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>(at, {5}, {-3})) == "");
    CHECK(why_not_numbers(tensor_view<std::int64_t, 1>(at, {5}, {0}), 5) == "");
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>{}) == "");
    CHECK(why_not_numbers(tensor_view<const std::uint8_t, 1>(memory.data() + 1, {5})) == "");
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>(at, {5}), 4) ==
          "f: ids: expected extents [4], got [5]");
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>(at, {-5})) ==
          "f: ids: expected extents [any], got [-5]");
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>(nullptr, {5})) ==
          "f: ids: expected memory, got a null pointer with extents [5]");
    const auto* const odd = static_cast<const std::int32_t*>(static_cast<void*>(memory.data() + 2));
    CHECK(why_not_numbers(tensor_view<const std::int32_t, 1>(odd, {5})) ==
          "f: ids: expected a pointer aligned to 4 bytes, got remainder 2");
    CHECK(why_not_numbers(tensor_view<const std::int64_t, 1>(at, {5}, {largest / 8})) ==
          "f: ids: expected offsets that fit an index, got strides [" +
              std::to_string(largest / 8) + "] with extents [5]");
}

TEST_CASE("numbers that are written have an address each") {
    auto* const at = static_cast<std::int64_t*>(static_cast<void*>(memory.data()));
    const auto why = [](const tensor_view<std::int64_t, 1>& view) {
        argument_checks checks("f");
        checks.output_numbers("ids", view, {5});
        return std::move(checks).why();
    };
    CHECK(why({at, {5}}) == "");
    CHECK(why({at + 10, {5}, {-2}}) == "");
    CHECK(why({at, {4}}) == "f: ids: expected extents [5], got [4]");
    CHECK(why({at, {5}, {0}}) ==
          "f: ids: expected strides that place every element at its own address, got strides [0] "
          "with extents [5]");
}

TEST_CASE("functions with several phases refuse an executor that runs a share") {
    const auto why = [](const executor_ref& executor) {
        argument_checks checks("f");
        checks.every_part(executor);
        return std::move(checks).why();
    };
    CHECK(why({}) == "");
    CHECK(why(serial_executor{}) == "");
    // Even the only participant: whether it works must not depend on the number of threads.
    for (index_t nth : {1, 2})
        CHECK(why(share_executor{0, nth}) ==
              "f: executor: expected one that runs every part (this function has several "
              "phases), got one that runs a share");
}

TEST_CASE("one byte less of workspace is refused, and says how much there is") {
    const auto why = [](const workspace& scratch, std::size_t bytes) {
        argument_checks checks("f");
        checks.workspace_size(scratch, bytes);
        return std::move(checks).why();
    };
    const workspace scratch(memory.data(), 256);
    CHECK(why(scratch, 0) == "");
    CHECK(why(scratch, 256) == "");
    CHECK(why(scratch, 257) == "f: workspace: expected at least 257 bytes, got 256");
    CHECK(why(workspace(), 1) == "f: workspace: expected at least 1 bytes, got 0");
    CHECK(why(scratch, std::numeric_limits<std::size_t>::max()) != "");
}

TEST_CASE("checks of several arguments are one call, and the first that is bad is told") {
    argument_checks checks("f");
    const tensor_ref<2> good = tensor_of({{2, 3}, {3, 1}});
    checks.input("x", const_tensor_ref<2>(good), {2, any_extent});
    checks.output("y", good, {2, 4});
    checks.input("z", const_tensor_ref<2>(good), {5, 5});
    CHECK_FALSE(checks.passed());
    CHECK(error_of([&] { checks.raise(); }) == "f: y: expected extents [2, 4], got [2, 3]");
    guarded_tensor<2> output(element_type::f16, {3, 3});
    CHECK(refuses(
        "f", "y", [&] { checks.raise(); }, output));
}

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/routing/logits.hpp>
#include <mhr/routing/router.hpp>

#include "support/bad_arguments.hpp"
#include "support/bad_views.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/uniformity.hpp"

using namespace mhr;
using namespace mhr::test;

// Computed once by an independent implementation of std::mt19937_64, from the formula
// bound (2 (k + 1/2) / 2^52 - 1). They must not change: hosts reproduce training runs with them.
TEST_CASE("the first logits are those of every platform and every later version") {
    const std::array<double, 4> want{0x1.0abe08fd9f577p-11, 0x1.d7205f8f446dbp-11,
                                     -0x1.912b9269fa37bp-11, 0x1.9af3646dfbe54p-11};
    guarded_buffer<double, 3> logits({2, 1, 2});
    initialise_logits(7, logits.view());
    guarded_buffer<double, 2> row({2, 2});
    uniform_row{7}(tensor_view<const double, 3>(nullptr, {0, 2, 2}), row.view());
    for (index_t i = 0; i < 4; ++i) {
        CHECK(logits(i / 2, 0, i % 2) == want[static_cast<std::size_t>(i)]);
        CHECK(row(i / 2, i % 2) == want[static_cast<std::size_t>(i)]);
    }
}

TEST_CASE("logits are uniform in +-1e-3") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        guarded_tensor<3> logits(type, {20, 8, 32});
        initialise_logits(9, logits);
        check_uniform(values_as<double>(logits.ref()).view(), 1e-3, precision_of(type).epsilon);
        CHECK(logits.intact());
    }
}

TEST_CASE("logits: seeds give different numbers, the same seed the same, in every layout") {
    guarded_buffer<float, 3> want({3, 2, 5});
    initialise_logits(3, want.view());
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<float, 3> got({3, 2, 5}, order);
        initialise_logits(3, got.view());
        CHECK(compare_bitwise(got.view(), want.view()));
        CHECK(got.intact());
        initialise_logits(4, got.view());
        CHECK_FALSE(compare_bitwise(got.view(), want.view()));
    }
    CHECK_NOTHROW(initialise_logits(1, {}));
    for (const auto& list : {bad_inputs(want.view()), overlapping(want.view())})
        for (const auto& view : list)
            CHECK(refuses(
                "initialise_logits", "logits", [&] { initialise_logits(1, view); }, want));
}

TEST_CASE("first rows of a new task") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> trained(type, {5, 8, 32}, order);
            trained.fill(random_source(107), -3, 3);
            const snapshot before = trained.take_snapshot();
            guarded_tensor<2> row(type, {8, 32}, order);
            const auto is_zero_everywhere = [&] {
                bool all = true;
                for_each_position(row.extents(), [&](const position<2>& at) {
                    all = all && is_exactly(element(row.ref(), at), 0);
                });
                return all;
            };

            zero_row{}(trained, row);
            CHECK(is_zero_everywhere());
            CHECK_FALSE(std::signbit(element(row.ref(), {7, 31})));

            uniform_row{5}(trained, row);
            check_uniform(values_as<double>(row.ref()).view(), 1e-3, precision_of(type).epsilon);
            uniform_row{5, 0.5}(trained, row);
            check_uniform(values_as<double>(row.ref()).view(), 0.5, precision_of(type).epsilon);
            uniform_row{5, 0}(trained, row);
            CHECK(is_zero_everywhere());

            mean_row{}(trained, row);
            tensor<long double, 2> mean({8, 32}), magnitudes({8, 32});
            for_each_position(trained.extents(), [&](const position<3>& at) {
                const auto value = static_cast<long double>(element(trained.ref(), at));
                mean(at[1], at[2]) += value / 5;
                magnitudes(at[1], at[2]) += std::abs(value) / 5;
            });
            CHECK(
                compare(row.ref(), mean.view(), magnitudes.view(), within(sums_of(type, type), 5)));

            copied_row{3}(trained, row);
            CHECK(compare_bitwise(row.ref(), trained.ref().slice(0, 3)));
            CHECK(row.intact());
            CHECK(trained.unchanged_since(before));
        }
}

TEST_CASE("rows may be of another type than the table, and of a table without tasks") {
    guarded_buffer<double, 3> trained({2, 1, 2});
    trained(0, 0, 0) = 1;
    trained(0, 0, 1) = 0.1;
    trained(1, 0, 0) = 2;
    trained(1, 0, 1) = 0.3;
    guarded_buffer<float, 2> row({1, 2});
    mean_row{}(trained.const_view(), row.view());
    CHECK(row(0, 0) == 1.5F);
    CHECK(row(0, 1) == 0.2F);
    copied_row{1}(trained.const_view(), row.view());
    CHECK(row(0, 1) == 0.3F);

    const tensor_view<const double, 3> none(nullptr, {0, 1, 2});
    row.fill(9);
    mean_row{}(none, row.view());
    CHECK(row(0, 0) == 0);
    CHECK(row(0, 1) == 0);
    row.fill(9);
    zero_row{}(none, row.view());
    CHECK(row(0, 1) == 0);
    CHECK(refuses(
        "copied_row", "task", [&] { copied_row{0}(none, row.view()); }, row));
}

TEST_CASE("first rows refuse bad arguments by name, the row untouched") {
    guarded_buffer<float, 3> trained({3, 2, 5});
    guarded_buffer<float, 2> row({2, 5});
    trained.fill(1);
    const auto all_refuse = [&](const char* argument, const tensor_view<float, 3>& table,
                                const tensor_view<float, 2>& out) {
        const auto refused = [&](const char* function, const auto& start) {
            CHECK(refuses(
                function, argument, [&] { start(table, out); }, row));
        };
        refused("zero_row", zero_row{});
        refused("uniform_row", uniform_row{});
        refused("mean_row", mean_row{});
        refused("copied_row", copied_row{});
    };
    for (const auto& bad : bad_as_input(trained.view(), {0, 1, 2})) {
        CAPTURE(bad.what);
        all_refuse("trained", bad.view, row.view());
    }
    for (const auto& bad : bad_as_output(row.view())) {
        CAPTURE(bad.what);
        all_refuse("row", trained.view(), bad.view);
    }
    for (double bad : and_non_finite<double>({-1e-3}))
        CHECK(refuses(
            "uniform_row", "bound",
            [&] {
                uniform_row{1, bad}(trained.const_view(), row.view());
            },
            row));
    for (std::int64_t bad :
         {std::int64_t{-1}, std::int64_t{3}, std::numeric_limits<std::int64_t>::max(),
          std::numeric_limits<std::int64_t>::min()})
        CHECK(refuses(
            "copied_row", "task", [&] { copied_row{bad}(trained.const_view(), row.view()); }, row));
}

namespace {

// A table of three rows, each from another start.
logits_table small_table(element_type type) {
    logits_table table(2, 3, type);
    table.add_task(uniform_row{1, 2});
    table.add_task(uniform_row{2, 2});
    table.add_task(mean_row{});
    return table;
}

comparison same(const logits_table& got, const tensor<double, 3>& want) {
    comparison result = compare(got.view(), want.view(), {0, 0, 0});
    return result;
}

} // namespace

TEST_CASE("a table grows by rows, the others keep every bit") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        logits_table table(2, 3, type);
        CHECK(table.tasks() == 0);
        CHECK(table.view().type() == type);
        CHECK(table.view().extents() == std::array<index_t, 3>{0, 2, 3});
        CHECK(table.add_task(zero_row{}) == 0);
        CHECK(table.add_task(uniform_row{1, 0.5}) == 1);
        set_element(table.view(), {1, 1, 2}, -0.0); // trained meanwhile
        CHECK(table.add_task(copied_row{1}) == 2);
        CHECK(table.tasks() == 3);
        CHECK(std::signbit(element(table.view(), {2, 1, 2})));
        CHECK(compare_bitwise(table.view().slice(0, 2), table.view().slice(0, 1)));
        // Through many reallocations.
        for (index_t task = 3; task < 100; ++task) {
            const logits_table before = table;
            CHECK(table.add_task(uniform_row{static_cast<std::uint64_t>(task), 4}) == task);
            CHECK(compare_bitwise(table.view().block(0, 0, task), before.view()));
            CHECK_FALSE(
                compare_bitwise(table.view().slice(0, task), table.view().slice(0, task - 1)));
        }
        const logits_table& constant = table;
        static_assert(std::is_same_v<decltype(constant.view()), const_tensor_ref<3>>);
        CHECK(constant.view().data() == table.view().data());
        CHECK(constant.view().is_contiguous());
        CHECK(constant.view().extents() == std::array<index_t, 3>{100, 2, 3});
    }
}

TEST_CASE("any callable may start a row, one with a state of its own, too") {
    logits_table table(1, 2, element_type::f64);
    table.add_task([](const auto& trained, const auto& row) {
        static_assert(std::is_same_v<std::decay_t<decltype(trained)>, const_tensor_ref<3>>);
        static_assert(std::is_same_v<std::decay_t<decltype(row)>, tensor_ref<2>>);
        CHECK(trained.extent(0) == 0); // the new row is not part of it
        set_element(row, {0, 0}, 1);
        set_element(row, {0, 1}, 2);
    });
    auto counting = [count = 0.0](const_tensor_ref<3>, tensor_ref<2> row) mutable {
        set_element(row, {0, 0}, ++count);
    };
    table.add_task(counting);
    table.add_task(counting);
    const auto view = table.view().as<double>();
    CHECK(view(1, 0, 0) == 1);
    CHECK(view(2, 0, 0) == 2);
    CHECK(view(2, 0, 1) == 0); // not left uninitialised
    CHECK(view(0, 0, 1) == 2);
}

TEST_CASE("if the start of a row throws, or refuses, the table is as before") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        auto table = small_table(type);
        const auto before = values_as<double>(table.view());
        CHECK(refuses("copied_row", "task", [&] { table.add_task(copied_row{3}); }));
        CHECK(refuses("uniform_row", "bound", [&] { table.add_task(uniform_row{1, -1}); }));
        CHECK_THROWS_AS(table.add_task([](const_tensor_ref<3>, tensor_ref<2> row) {
            set_element(row, {1, 2}, 7); // half done
            throw std::runtime_error("no");
        }),
                        std::runtime_error);
        CHECK(table.tasks() == 3);
        CHECK(same(table, before));
        CHECK(table.add_task(zero_row{}) == 3);
        CHECK(compare(table.view().block(0, 0, 3), before.view(), {0, 0, 0}));
    }
}

TEST_CASE("tables are copied and moved as values") {
    static_assert(std::is_nothrow_move_constructible_v<logits_table>);
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        auto table = small_table(type);
        const auto want = values_as<double>(table.view());
        logits_table copy = table;
        CHECK(same(copy, want));
        CHECK(copy.view().data() != table.view().data());
        set_element(copy.view(), {0, 0, 0}, 9);
        copy.add_task(zero_row{});
        CHECK(same(table, want));

        logits_table moved = std::move(table);
        CHECK(same(moved, want));
        // A table without tasks is left, which may be used again.
        CHECK(table.tasks() == 0); // NOLINT(bugprone-use-after-move)
        CHECK(table.view().size() == 0);
        CHECK(table.add_task(zero_row{}) == 0);
        CHECK(table.view().extents() == std::array<index_t, 3>{1, 2, 3});
        CHECK(element(table.view(), {0, 1, 2}) == 0);
        table = std::move(moved);
        CHECK(same(table, want));
        CHECK(moved.tasks() == 0); // NOLINT(bugprone-use-after-move)
        moved = table;
        CHECK(same(moved, want));
        // Among its likes.
        std::vector<logits_table> routers;
        for (int i = 0; i < 5; ++i)
            routers.push_back(small_table(type));
        CHECK(same(routers.front(), want));
    }
}

TEST_CASE("a table routes, and learns in place") {
    auto table = small_table(element_type::f32);
    const std::array<index_t, 2> ids{2, 0};
    const tensor_view<const index_t, 1> tasks(ids.data(), {2});
    guarded_buffer<float, 3> weights({2, 2, 3}), d_weights({2, 2, 3}), d_logits({3, 2, 3});
    random_source(109).fill(d_weights.view());
    d_logits.fill(0);
    const routing_rule rule{sigmoid_gate{}};
    router_forward(serial_executor{}, table.view(), tasks, rule, weights.view());
    router_backward(serial_executor{}, table.view(), tasks, rule, d_weights.const_view(),
                    d_logits.view());
    const float before = table.view().as<float>()(2, 1, 1);
    for_each_position(d_logits.view().extents(), [&](const position<3>& at) {
        element(table.view().as<float>(), at) -= element(d_logits.view(), at);
    });
    CHECK(table.view().as<float>()(2, 1, 1) != before);
}

TEST_CASE("tables without heads or modules, or too large to address, are refused") {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    constexpr index_t root = index_t{1} << (std::numeric_limits<index_t>::digits + 1) / 2;
    for (const auto& [heads, modules] : {std::array<index_t, 2>{0, 3},
                                         {3, 0},
                                         {-1, 3},
                                         {3, -1},
                                         {-2, -3},
                                         {largest, 2},
                                         {root, root},
                                         {1, largest / 4}})
        CHECK(refuses("logits_table", "heads, modules",
                      [h = heads, m = modules] { const logits_table table(h, m); }));
    CHECK_NOTHROW(logits_table(1, 1));
    // These extents have too many bytes for an index in one type, and fit in another.
    CHECK(refuses("logits_table", "heads, modules",
                  [] { const logits_table table(1, largest / 5, element_type::f64); }));
    CHECK_NOTHROW(logits_table(1, largest / 5, element_type::bf16));
    CHECK(refuses("logits_table", "type",
                  [] { const logits_table table(1, 1, static_cast<element_type>(9)); }));
}

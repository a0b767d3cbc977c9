#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/logits.hpp>
#include <mhr/routing/router.hpp>

#include "support/bad_arguments.hpp"
#include "support/bad_views.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
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

TEST_CASE_TEMPLATE("logits are uniform in +-1e-3", T, MHR_TEST_STORAGE_TYPES) {
    guarded_buffer<T, 3> logits({20, 8, 32});
    initialise_logits(9, logits.view());
    check_uniform(logits.view(), 1e-3);
    CHECK(logits.intact());
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
    CHECK_NOTHROW(initialise_logits(1, tensor_view<float, 3>{}));
    for (const auto& list : {bad_inputs(want.view()), overlapping(want.view())})
        for (const auto& view : list)
            CHECK(refuses(
                "initialise_logits", "logits", [&] { initialise_logits(1, view); }, want));
}

TEST_CASE_TEMPLATE("first rows of a new task", T, MHR_TEST_STORAGE_TYPES) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<T, 3> trained({5, 8, 32}, order);
        random_source(107).fill(trained.view(), 3);
        const snapshot before = trained.take_snapshot();
        guarded_buffer<T, 2> row({8, 32}, order);
        const auto each = [&](auto&& f) {
            for_each_position(row.view().extents(),
                              [&](const position<2>& at) { f(element(row.view(), at), at); });
        };

        zero_row{}(trained.const_view(), row.view());
        each([](T value, const position<2>&) {
            CHECK(load<float>(value) == 0);
            CHECK_FALSE(std::signbit(load<float>(value)));
        });

        uniform_row{5}(trained.const_view(), row.view());
        check_uniform(row.view(), 1e-3);
        uniform_row{5, 0.5}(trained.const_view(), row.view());
        check_uniform(row.view(), 0.5);
        uniform_row{5, 0}(trained.const_view(), row.view());
        each([](T value, const position<2>&) { CHECK(load<float>(value) == 0); });

        mean_row{}(trained.const_view(), row.view());
        tensor<oracle_t<T>, 2> mean({8, 32}), magnitudes({8, 32});
        for_each_position(trained.view().extents(), [&](const position<3>& at) {
            const auto value = load<oracle_t<T>>(element(trained.view(), at));
            mean(at[1], at[2]) += value / 5;
            magnitudes(at[1], at[2]) += std::abs(value) / 5;
        });
        CHECK(compare(row.view(), mean.view(), magnitudes.view(), within<accumulator_t<T>>(5)));

        copied_row{3}(trained.const_view(), row.view());
        CHECK(compare_bitwise(row.view(), trained.view().slice(0, 3)));
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
                function, argument, [&] { start(as_const(table), out); }, row));
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
template <class T>
logits_table<T> small_table() {
    logits_table<T> table(2, 3);
    table.add_task(uniform_row{1, 2});
    table.add_task(uniform_row{2, 2});
    table.add_task(mean_row{});
    return table;
}

template <class T>
tensor<T, 3> values_of(const logits_table<T>& table) {
    tensor<T, 3> values(table.view().extents());
    transform(table.view(), values.view(), [](const T& value) { return value; });
    return values;
}

template <class T>
comparison same(const logits_table<T>& got, const tensor<T, 3>& want) {
    return compare_bitwise(got.view(), want.view());
}

} // namespace

TEST_CASE_TEMPLATE("a table grows by rows, the others keep every bit", T, MHR_TEST_STORAGE_TYPES) {
    logits_table<T> table(2, 3);
    CHECK(table.tasks() == 0);
    CHECK(table.view().extents() == std::array<index_t, 3>{0, 2, 3});
    CHECK(table.add_task(zero_row{}) == 0);
    CHECK(table.add_task(uniform_row{1, 0.5}) == 1);
    table.view()(1, 1, 2) = T(-0.0F); // trained meanwhile
    CHECK(table.add_task(copied_row{1}) == 2);
    CHECK(table.tasks() == 3);
    CHECK(std::signbit(load<float>(table.view()(2, 1, 2))));
    CHECK(compare_bitwise(table.view().slice(0, 2), table.view().slice(0, 1)));
    // Through many reallocations.
    for (index_t task = 3; task < 100; ++task) {
        const tensor<T, 3> before = values_of(table);
        CHECK(table.add_task(uniform_row{static_cast<std::uint64_t>(task), 4}) == task);
        CHECK(compare_bitwise(as_const(table.view().block(0, 0, task)), before.view()));
        CHECK_FALSE(compare_bitwise(table.view().slice(0, task), table.view().slice(0, task - 1)));
    }
    const logits_table<T>& constant = table;
    static_assert(std::is_same_v<decltype(constant.view()), tensor_view<const T, 3>>);
    CHECK(constant.view().data() == table.view().data());
    CHECK(constant.view().is_contiguous());
    CHECK(constant.view().extents() == std::array<index_t, 3>{100, 2, 3});
}

TEST_CASE("any callable may start a row, one with a state of its own, too") {
    logits_table<double> table(1, 2);
    table.add_task([](const auto& trained, const auto& row) {
        CHECK(trained.extent(0) == 0); // the new row is not part of it
        row(0, 0) = 1;
        row(0, 1) = 2;
    });
    auto counting = [count = 0.0](const auto& trained, const auto& row) mutable {
        static_assert(std::is_const_v<typename std::decay_t<decltype(trained)>::element_type>);
        row(0, 0) = ++count;
    };
    table.add_task(counting);
    table.add_task(counting);
    CHECK(table.view()(1, 0, 0) == 1);
    CHECK(table.view()(2, 0, 0) == 2);
    CHECK(table.view()(2, 0, 1) == 0); // not left uninitialised
    CHECK(table.view()(0, 0, 1) == 2);
}

TEST_CASE_TEMPLATE("if the start of a row throws, or refuses, the table is as before", T,
                   MHR_TEST_STORAGE_TYPES) {
    auto table = small_table<T>();
    const auto before = values_of(table);
    CHECK(refuses("copied_row", "task", [&] { table.add_task(copied_row{3}); }));
    CHECK(refuses("uniform_row", "bound", [&] { table.add_task(uniform_row{1, -1}); }));
    CHECK_THROWS_AS(table.add_task([](const auto&, const auto& row) {
        row(1, 2) = T(7.F); // half done
        throw std::runtime_error("no");
    }),
                    std::runtime_error);
    CHECK(table.tasks() == 3);
    CHECK(same(table, before));
    CHECK(table.add_task(zero_row{}) == 3);
    CHECK(compare_bitwise(as_const(table.view().block(0, 0, 3)), before.view()));
}

TEST_CASE_TEMPLATE("tables are copied and moved as values", T, MHR_TEST_STORAGE_TYPES) {
    static_assert(std::is_nothrow_move_constructible_v<logits_table<T>>);
    auto table = small_table<T>();
    const auto want = values_of(table);
    logits_table<T> copy = table;
    CHECK(same(copy, want));
    CHECK(copy.view().data() != table.view().data());
    copy.view()(0, 0, 0) = T(9.F);
    copy.add_task(zero_row{});
    CHECK(same(table, want));

    logits_table<T> moved = std::move(table);
    CHECK(same(moved, want));
    // What is left is a table without tasks, that may be used again.
    CHECK(table.tasks() == 0); // NOLINT(bugprone-use-after-move)
    CHECK(table.view().size() == 0);
    CHECK(table.add_task(zero_row{}) == 0);
    CHECK(table.view().extents() == std::array<index_t, 3>{1, 2, 3});
    CHECK(load<float>(table.view()(0, 1, 2)) == 0);
    table = std::move(moved);
    CHECK(same(table, want));
    CHECK(moved.tasks() == 0); // NOLINT(bugprone-use-after-move)
    moved = table;
    CHECK(same(moved, want));
    // Among its likes.
    std::vector<logits_table<T>> routers;
    for (int i = 0; i < 5; ++i)
        routers.push_back(small_table<T>());
    CHECK(same(routers.front(), want));
}

TEST_CASE("a table routes, and learns in place") {
    auto table = small_table<float>();
    const std::array<index_t, 2> ids{2, 0};
    const tensor_view<const index_t, 1> tasks(ids.data(), {2});
    guarded_buffer<float, 3> weights({2, 2, 3}), d_weights({2, 2, 3}), d_logits({3, 2, 3});
    random_source(109).fill(d_weights.view());
    d_logits.fill(0);
    const routing_rule rule{sigmoid_gate{}};
    router_forward(serial_executor{}, table.view(), tasks, rule, weights.view());
    router_backward(serial_executor{}, table.view(), tasks, rule, d_weights.const_view(),
                    d_logits.view());
    const float before = table.view()(2, 1, 1);
    for_each_position(d_logits.view().extents(), [&](const position<3>& at) {
        element(table.view(), at) -= element(d_logits.view(), at);
    });
    CHECK(table.view()(2, 1, 1) != before);
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
                      [h = heads, m = modules] { const logits_table<float> table(h, m); }));
    CHECK_NOTHROW(logits_table<float>(1, 1));
}

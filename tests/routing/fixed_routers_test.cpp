#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/fixed_routers.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const std::array<std::int64_t, 4> ids{2, 0, 2, 4};
const tensor_view<const std::int64_t, 1> tasks(ids.data(), {4});

// The results that all of them write.
struct results {
    guarded_buffer<float, 3> one_hot, average, given, d_table;

    results() : one_hot({4, 3, 7}), average({4, 3, 7}), given({4, 3, 7}), d_table({5, 3, 7}) {
        d_table.fill(1);
    }
};

} // namespace

TEST_CASE("private: each task has its own module, in every head") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> weights(type, {4, 3, 5}, order);
            private_router_forward(serial_executor{}, tasks, weights);
            for_each_position(weights.extents(), [&](const position<3>& at) {
                const bool own = at[2] == ids[static_cast<std::size_t>(at[0])];
                CHECK(element(weights.ref(), at) == (own ? 1 : 0));
            });
            CHECK(weights.intact());
        }
}

TEST_CASE("average: 1 / modules, rounded once") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts)
            for (index_t modules : {1, 3, 7, 49}) {
                CAPTURE(std::string(mhr::name_of(type)));
                CAPTURE(name_of(order));
                CAPTURE(modules);
                guarded_tensor<3> weights(type, {2, 3, modules}, order);
                average_router_forward(serial_executor{}, weights);
                tensor<long double, 3> want(weights.extents());
                for (auto& w : want.values())
                    w = 1 / static_cast<long double>(modules);
                CHECK(compare(weights.ref(), want.view(), within(sums_of(type, type), 0.5, 0.5)));
                CHECK(weights.intact());
            }
}

TEST_CASE("given: the rows of the table, and their gradients added up") {
    for (element_type type : all_element_types)
        for (element_type other : all_element_types)
            for (layout order : all_layouts) {
                CAPTURE(std::string(mhr::name_of(type)));
                CAPTURE(std::string(mhr::name_of(other)));
                CAPTURE(name_of(order));
                guarded_tensor<3> table(type, {5, 3, 7}, order), d_table(type, {5, 3, 7}, order);
                guarded_tensor<3> weights(other, {4, 3, 7}, order),
                    d_weights(other, {4, 3, 7}, order);
                random_source random(89);
                table.fill(random);
                d_table.fill(random);
                d_weights.fill(random);
                // Rows of absent tasks are neither read nor touched.
                const double nan = std::numeric_limits<double>::quiet_NaN();
                set_element(table.ref(), {1, 0, 0}, nan);
                set_element(d_table.ref(), {3, 2, 6}, nan);
                auto want = values_as<double>(d_table.ref());
                tensor<double, 3> magnitudes = magnitudes_as<double>(d_table.ref());
                given_router_forward(serial_executor{}, table, tasks, weights);
                given_router_backward(serial_executor{}, tasks, d_weights, d_table);
                guarded_tensor<3> rounded(other, weights.extents());
                for_each_position(weights.extents(), [&](const position<3>& at) {
                    const index_t task = ids[static_cast<std::size_t>(at[0])];
                    const double d = element(d_weights.ref(), at);
                    set_element(rounded.ref(), at, element(table.ref(), {task, at[1], at[2]}));
                    want(task, at[1], at[2]) += d;
                    magnitudes(task, at[1], at[2]) += std::abs(d);
                });
                CHECK(compare_bitwise(weights.ref(), rounded.ref()));
                CHECK((is_fast_math || std::isnan(element(d_table.ref(), {3, 2, 6}))));
                set_element(d_table.ref(), {3, 2, 6}, 0);
                want(3, 2, 6) = magnitudes(3, 2, 6) = 0;
                // Rounded to its type at each of two additions.
                const double epsilon = precision_of(sums_of(type, other)).epsilon;
                CHECK(compare(d_table.ref(), want.view(), magnitudes.view(),
                              {4, std::max(epsilon, precision_of(type).epsilon), 1}));
                CHECK(weights.intact());
                CHECK(d_table.intact());
            }
}

TEST_CASE("given: one table for all heads, by a stride of 0") {
    guarded_buffer<float, 2> table({5, 7});
    random_source(97).fill(table.view());
    const tensor_view<const float, 3> broadcast(table.view().data(), {5, 3, 7}, {7, 0, 1});
    guarded_buffer<float, 3> weights({4, 3, 7});
    given_router_forward(serial_executor{}, broadcast, tasks, weights.view());
    for_each_position(weights.view().extents(), [&](const position<3>& at) {
        CHECK(element(weights.view(), at) == table(ids[static_cast<std::size_t>(at[0])], at[2]));
    });
}

TEST_CASE("given: the gradient is that of the forward, by finite differences") {
    guarded_buffer<double, 3> table({5, 2, 3}), d_table({5, 2, 3}), weights({4, 2, 3}),
        d_weights({4, 2, 3});
    random_source random(101);
    random.fill(table.view());
    random.fill(d_weights.view());
    d_table.fill(0);
    given_router_backward(serial_executor{}, tasks, d_weights.const_view(), d_table.view());
    const auto differences = central_difference_gradient(
        [&] {
            given_router_forward(serial_executor{}, table.const_view(), tasks, weights.view());
            return contract<double>(weights.view(), d_weights.view());
        },
        table.view());
    tensor<double, 3> ones(differences.extents());
    for (double& one : ones.values())
        one = 1;
    CHECK(compare(d_table.view(), differences.view(), ones.view(), {1, 1e-10, 1}));
    d_table(2, 1, 0) += 1e-8;
    CHECK_FALSE(compare(d_table.view(), differences.view(), ones.view(), {1, 1e-10, 1}));
}

TEST_CASE("fixed routers: every executor and share gives the same bits, without allocating") {
    guarded_buffer<float, 3> table({5, 3, 7}), d_weights({4, 3, 7});
    random_source random(103);
    random.fill(table.view());
    random.fill(d_weights.view());
    const auto run = [&](executor_ref executor, results& r) {
        private_router_forward(executor, tasks, r.one_hot.view());
        average_router_forward(executor, r.average.view());
        given_router_forward(executor, table.const_view(), tasks, r.given.view());
        given_router_backward(executor, tasks, d_weights.const_view(), r.d_table.view());
    };
    results want;
    CHECK(allocations_of([&] { run(serial_executor{}, want); }) == 0);
    const auto check = [&](results& got) {
        CHECK(compare_bitwise(got.one_hot.view(), want.one_hot.view()));
        CHECK(compare_bitwise(got.average.view(), want.average.view()));
        CHECK(compare_bitwise(got.given.view(), want.given.view()));
        CHECK(compare_bitwise(got.d_table.view(), want.d_table.view()));
    };
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        results got;
        run(executor, got);
        check(got);
    });
    for (index_t nth : {2, 9}) {
        results got;
        for_each_share(nth, [&](const executor_ref& executor) { run(executor, got); });
        check(got);
    }
}

TEST_CASE_TEMPLATE("fixed routers: task ids may be of any integer type", Id, signed char,
                   std::uint8_t, int, std::uint64_t) {
    const std::array<Id, 2> list{1, 0};
    const tensor_view<const Id, 1> short_list(list.data(), {2});
    guarded_buffer<float, 3> weights({2, 1, 2}), given({2, 1, 2}), d_table({2, 1, 2});
    d_table.fill(0);
    private_router_forward(serial_executor{}, short_list, weights.view());
    CHECK(weights(0, 0, 1) == 1);
    CHECK(weights(1, 0, 0) == 1);
    CHECK(weights(1, 0, 1) == 0);
    given_router_forward(serial_executor{}, weights.const_view(), short_list, given.view());
    CHECK(given(0, 0, 0) == 1);
    given_router_backward(serial_executor{}, short_list, weights.const_view(), d_table.view());
    CHECK(d_table(0, 0, 0) == 1);
    CHECK(d_table(0, 0, 1) == 0);
}

TEST_CASE("fixed routers: nothing to do is no error") {
    const tensor_view<const int, 1> none;
    for (const auto& e : {std::array<index_t, 3>{0, 2, 3}, {0, 0, 0}}) {
        const tensor_view<float, 3> weights(nullptr, e);
        const tensor_view<float, 3> table(nullptr, {0, e[1], e[2]});
        CHECK_NOTHROW(private_router_forward(serial_executor{}, none, weights));
        CHECK_NOTHROW(average_router_forward(serial_executor{}, weights));
        CHECK_NOTHROW(given_router_forward(serial_executor{}, table, none, weights));
        CHECK_NOTHROW(given_router_backward(serial_executor{}, none, weights, table));
    }
    CHECK_NOTHROW(
        average_router_forward(serial_executor{}, tensor_view<float, 3>(nullptr, {2, 3, 0})));
}

TEST_CASE("fixed routers refuse bad arguments by name, outputs untouched") {
    guarded_buffer<float, 3> table({5, 3, 7}), d_table({5, 3, 7}), weights({4, 3, 7});
    table.fill(0);
    const auto table_view = table.view();
    const auto weights_view = weights.view();
    const serial_executor serial;

    for (const auto& wrong : bad_as_output(weights_view, {1, 2})) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "private_router_forward", "weights",
            [&] { private_router_forward(serial, tasks, view); }, weights));
    }
    for (const auto& wrong : bad_as_output(weights_view, {0, 1, 2})) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "average_router_forward", "weights", [&] { average_router_forward(serial, view); },
            weights));
    }
    for (const auto& wrong : bad_as_output(weights_view)) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "given_router_forward", "weights",
            [&] { given_router_forward(serial, table_view, tasks, view); }, weights));
    }
    for (const auto& wrong : bad_as_input(table_view, {0, 1, 2})) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "given_router_forward", "table",
            [&] { given_router_forward(serial, view, tasks, weights_view); }, weights));
    }
    for (const auto& wrong : bad_as_input(weights_view)) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "given_router_backward", "d_weights",
            [&] { given_router_backward(serial, tasks, view, d_table.view()); }, d_table));
    }
    for (const auto& wrong : bad_as_output(table_view, {0, 1, 2})) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses(
            "given_router_backward", "d_table",
            [&] { given_router_backward(serial, tasks, weights_view, view); }, table));
    }

    // Tasks: bad views, and ids that are not there. (The private router has as many as modules.)
    const auto all_refuse = [&](const tensor_view<const std::int64_t, 1>& bad) {
        CHECK(refuses(
            "private_router_forward", "tasks",
            [&] { private_router_forward(serial, bad, weights_view); }, weights));
        CHECK(refuses(
            "given_router_forward", "tasks",
            [&] { given_router_forward(serial, table_view, bad, weights_view); }, weights));
        CHECK(refuses(
            "given_router_backward", "tasks",
            [&] { given_router_backward(serial, bad, weights_view, d_table.view()); }, d_table));
    };
    for (const auto& wrong : bad_as_input(tasks, {0})) {
        CAPTURE(wrong.what);
        all_refuse(wrong.view);
    }
    for (index_t extent : {-1, -4}) // of which -1 could pass for "any"
        all_refuse({ids.data(), {extent}});
    for (std::int64_t id :
         {std::int64_t{-1}, std::int64_t{7}, std::numeric_limits<std::int64_t>::max(),
          std::numeric_limits<std::int64_t>::min()})
        for (std::size_t where : {0U, 3U}) {
            auto list = ids;
            list[where] = id;
            all_refuse({list.data(), {4}});
        }
    const std::array<std::int64_t, 4> fifth{5, 0, 1, 2}; // a module, but no row of the table
    CHECK_NOTHROW(private_router_forward(
        serial, tensor_view<const std::int64_t, 1>(fifth.data(), {4}), weights_view));
    CHECK(refuses("given_router_forward", "tasks", [&] {
        given_router_forward(serial, table_view,
                             tensor_view<const std::int64_t, 1>(fifth.data(), {4}), weights_view);
    }));
}

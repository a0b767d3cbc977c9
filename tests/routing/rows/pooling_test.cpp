#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>
#include <mhr/routing/rows/pooling.hpp>

#include "support/batches.hpp"
#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;

void check(element_type stored, element_type sums, layout order, executor_ref executor = {}) {
    const index_t rows = 61, features = 519;
    const auto tasks = random_tasks(rows, 4);
    const batch_plan plan = plan_of(tasks);
    const batch on{plan, executor};
    tensor<index_t, 1> entries({rows});
    for (index_t& entry : entries.values())
        entry = -1;
    for (index_t g = 0; g < plan.entries(); ++g)
        for (index_t i = 0; i < plan.rows_of(g).extent(0); ++i)
            entries(plan.rows_of(g)(i)) = g;
    random_guarded<2> x(stored, {rows, features}, 1, order),
        d_x(stored, {rows, features}, 2, order);
    random_guarded<2> d_pooled(sums, {plan.entries(), features}, 3, order);
    guarded_tensor<2> pooled(sums, d_pooled.extents(), order);
    tensor<wide, 2> want(pooled.extents());
    auto want_d = values_as<wide>(d_x.ref());
    reference::pool_rows_forward(entries.const_view(), values_as<wide>(x.ref()).const_view(),
                                 want.view());
    reference::pool_rows_backward(entries.const_view(),
                                  values_as<wide>(d_pooled.ref()).const_view(), want_d.view());
    pool_rows_forward(on, x, pooled);
    pool_rows_backward(on, d_pooled, d_x);
    check_near(pooled, want, sums, 40);
    check_near(d_x, want_d, sums, 4);
}

} // namespace

TEST_CASE("pooling agrees with the oracle, forward and backward") {
    for (element_type sums : sum_types)
        for (element_type stored : all_element_types)
            for (layout order : all_layouts) {
                if (stored == element_type::f64 && sums == element_type::f32) continue;
                CAPTURE(std::string(name_of(stored)));
                CAPTURE(name_of(order));
                check(stored, sums, order);
            }
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        check(element_type::f32, element_type::f32, layout::row_major, executor);
    });
}

TEST_CASE("bad arguments of pooling are refused by name") {
    const batch_plan plan = plan_of({0, 1, 0, -1});
    random_guarded<2> x(element_type::f32, {4, 3}, 1), pooled(element_type::f32, {2, 3}, 2);
    check_bad_input("pool_rows_forward", "x", x.const_ref(), {1},
                    [&](const auto& bad) { pool_rows_forward({plan}, bad, pooled); });
    for (const auto& bad : bad_as_output(pooled.ref())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "pool_rows_forward", "pooled", [&] { pool_rows_forward({plan}, x, bad.ref); }, pooled));
    }
    for (const auto& bad : bad_as_input(pooled.const_ref())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "pool_rows_backward", "d_pooled", [&] { pool_rows_backward({plan}, bad.ref, x); }, x));
    }
    check_bad_output("pool_rows_backward", "d_x", x.ref(), {1},
                     [&](const auto& bad) { pool_rows_backward({plan}, pooled, bad); });
    guarded_tensor<2> half(element_type::f16, {2, 3});
    CHECK(refuses("pool_rows_forward", "pooled", [&] { pool_rows_forward({plan}, x, half); }));
}

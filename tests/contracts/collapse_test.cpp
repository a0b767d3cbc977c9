// Collapsing routing into one plain adapter: the mean of an inventory (MHR-mu), or the mixture of
// one task. No function of its own: average_lora_forward and mix_lora_forward make the adapter,
// lora_forward applies it. What is stored in the type of the sums of x, inventory and weights gives
// what routed_lora_forward gives, to the last bit; what is stored narrower was rounded once for
// each element.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/inventory.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>

#include "support/batches.hpp"
#include "support/combinations.hpp"
#include "support/comparison.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_checks.hpp"
#include "support/layer_problem.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// x and y, the inventory, and weights in the type of the sums of both.
layer_types types_of(element_type rows, element_type modules) {
    const element_type sums = sums_of(rows, modules);
    return {rows, modules, sums, modules, sums};
}

const std::vector<layer_types> types_of_collapse{
    types_of(element_type::f32, element_type::f32),
    types_of(element_type::f16, element_type::f16)
        MHR_TEST_ALSO(types_of(element_type::f64, element_type::f64),
                      types_of(element_type::bf16, element_type::bf16),
                      types_of(element_type::f32, element_type::bf16),
                      types_of(element_type::bf16, element_type::f32),
                      types_of(element_type::f64, element_type::f32))};

// Tiles that are not full, several heads; 7 modules, since 1/7 is rounded.
constexpr layer_sizes shapes[] = {{37, 3, 2, 7, 35, 40, 18}, {20, 2, 1, 7, 9, 70, 3}};

/// 1 / 7 as the type of sums has it.
double seventh(element_type sums) {
    return sums == element_type::f64 ? 1.0 / 7 : static_cast<double>(1.F / 7);
}

/// One plain adapter with its memory, or its gradient.
struct plain_adapter {
    guarded_tensor<2> a, b;

    plain_adapter(const layer_sizes& s, element_type type)
        : a(type, {s.in(), s.rank}), b(type, {s.rank, s.out()}) {
        a.fill(0);
        b.fill(0);
    }
    [[nodiscard]] lora scaled(double scale) const { return {a, b, scale}; }
    lora_matrices matrices() { return {a, b}; }
    stacked_lora_matrices stacked() { return {a.ref().prepend_axis(), b.ref().prepend_axis()}; }
};

/// A problem's rows, or some of them, through one plain adapter.
struct applied {
    guarded_tensor<2> y;
    guarded_tensor<2> hidden;

    applied(const lora& adapter, layer_problem& p, const batch_plan& plan,
            executor_ref executor = {})
        : y(p.types.rows, p.y.extents()), hidden(p.types.sums, {p.s.rows, p.s.rank}) {
        for_each_position(y.extents(), [&](const position<2>& at) {
            set_element(y.ref(), at, element(p.y.ref(), at));
        });
        lora_forward({plan, executor}, adapter, p.x, y, {hidden});
    }
};

/// Only the rows of one entry, or those of every task, all as one task.
batch_plan one_task(const batch_plan& plan, index_t wanted = -1) {
    const auto entries = entry_of_row(plan);
    std::vector<std::int64_t> task_of_row;
    for (index_t entry : entries.values())
        task_of_row.push_back(entry >= 0 && (wanted < 0 || entry == wanted) ? 0 : no_task);
    return plan_of(task_of_row);
}

/// Calls `f(sizes, types, layout of rows, layout of modules)` for all of them.
template <class F>
void for_each_problem(F&& f) {
    for (const layer_types& types : types_of_collapse)
        for (const layer_sizes& s : shapes)
            for (layout of_rows : all_layouts)
                for (layout of_modules : all_layouts) {
                    CAPTURE(std::string(name_of(types.rows)));
                    CAPTURE(std::string(name_of(types.modules)));
                    CAPTURE(name_of(of_rows));
                    CAPTURE(name_of(of_modules));
                    f(s, types, of_rows, of_modules);
                }
}

} // namespace

TEST_CASE("the mean adapter is uniform routing, to the last bit") {
    for_each_problem(
        [](const layer_sizes& s, const layer_types& types, layout of_rows, layout of_modules) {
            layer_problem p(s, types, of_rows, of_modules);
            p.weights.fill(seventh(types.sums));
            REQUIRE(p.plan.entries() > 1);
            plain_adapter mean(s, types.sums);
            average_lora_forward({}, p.layer().inventory(), mean.matrices());
            const applied got(mean.scaled(p.scale), p, one_task(p.plan));
            p.forward();
            CHECK(compare_bitwise(got.y.const_ref(), p.y.ref()));
        });
}

TEST_CASE("a task's mixture is its routing, to the last bit") {
    for_each_problem(
        [](const layer_sizes& s, const layer_types& types, layout of_rows, layout of_modules) {
            layer_problem all(s, types, of_rows, of_modules), before(s, types, of_rows, of_modules);
            const auto entries = entry_of_row(all.plan);
            REQUIRE(all.plan.entries() > 1);
            all.forward();
            for (index_t entry = 0; entry < all.plan.entries(); ++entry) {
                CAPTURE(entry);
                const auto weights = all.weights.ref().block(0, entry, 1);
                layer_problem alone(s, one_task(all.plan, entry), types, of_rows, of_modules);
                for_each_position(weights.extents(), [&](const position<3>& at) {
                    set_element(alone.weights.ref(), at, element(weights, at));
                });
                plain_adapter mixture(s, types.sums);
                mix_lora_forward({}, weights, all.layer().inventory(), mixture.stacked());
                const applied got(mixture.scaled(all.scale), alone, alone.plan);
                alone.forward();
                CHECK(compare_bitwise(got.y.const_ref(), alone.y.ref()));
                for (index_t row = 0; row < s.rows; ++row) {
                    const auto& want = entries(row) == entry ? all.y : before.y;
                    CHECK(compare_bitwise(got.y.const_ref().slice(0, row),
                                          want.const_ref().slice(0, row)));
                }
            }
        });
}

TEST_CASE("collapsed adapters are the same on every executor") {
    const layer_sizes& s = shapes[0];
    layer_problem p(s, one_task(random_plan(s.rows, s.tasks)));
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        plain_adapter mean(s, element_type::f32), mixture(s, element_type::f32);
        average_lora_forward(executor, p.layer().inventory(), mean.matrices());
        mix_lora_forward(executor, p.weights, p.layer().inventory(), mixture.stacked());
        const applied through_mean(mean.scaled(p.scale), p, p.plan, executor);
        const applied through_mixture(mixture.scaled(p.scale), p, p.plan, executor);
        layer_problem q(s, p.plan), r(s, p.plan);
        q.weights.fill(seventh(element_type::f32));
        q.forward(executor);
        r.forward(executor);
        CHECK(compare_bitwise(through_mean.y.const_ref(), q.y.ref()));
        CHECK(compare_bitwise(through_mixture.y.const_ref(), r.y.ref()));
    });
}

TEST_CASE("an adapter that is stored narrower is rounded once") {
    const layer_sizes& s = shapes[0];
    for (element_type type : {element_type::bf16, element_type::f16}) {
        CAPTURE(std::string(name_of(type)));
        layer_problem p(s, one_task(random_plan(s.rows, s.tasks)));
        plain_adapter wide(s, element_type::f32), narrow(s, type), rounded(s, type);
        mix_lora_forward({}, p.weights, p.layer().inventory(), wide.stacked());
        mix_lora_forward({}, p.weights, p.layer().inventory(), narrow.stacked());
        for (const auto& [from, to] :
             {std::pair(wide.a.ref(), rounded.a.ref()), std::pair(wide.b.ref(), rounded.b.ref())})
            for_each_position(from.extents(), [&, &from = from, &to = to](const position<2>& at) {
                set_element(to, at, element(from, at));
            });
        CHECK(compare_bitwise(narrow.a.ref(), rounded.a.ref()));
        CHECK(compare_bitwise(narrow.b.ref(), rounded.b.ref()));

        const applied got(narrow.scaled(p.scale), p, p.plan);
        layer_problem size(s, p.plan, all_of(element_type::f64));
        size.take_values_of(p);
        size.make_magnitudes();
        size.forward();
        p.forward();
        const auto want = values_as<double>(p.y.ref());
        const auto sizes = values_as<double>(size.y.ref());
        // Each product holds two rounded factors: half an epsilon each, and then a little.
        CHECK(compare(got.y.const_ref(), want.view(), sizes.view(),
                      error_bound{1.01, precision_of(type).epsilon, 0}));
        CHECK_FALSE(
            compare(got.y.const_ref(), want.view(), sizes.view(), within(element_type::f32, 10)));
    }
}

TEST_CASE("the gradient of the mean adapter is that of uniform routing") {
    for_each_problem(
        [](const layer_sizes& s, const layer_types& types, layout of_rows, layout of_modules) {
            // One entry: several would be summed one by one.
            const auto plan = one_task(random_plan(s.rows, s.tasks));
            layer_problem routed(s, plan, types, of_rows, of_modules);
            layer_problem collapsed(s, plan, types, of_rows, of_modules);
            routed.weights.fill(seventh(types.sums));
            routed.run();

            plain_adapter mean(s, types.sums), d_mean(s, types.sums);
            average_lora_forward({}, collapsed.layer().inventory(), mean.matrices());
            const lora adapter = mean.scaled(collapsed.scale);
            applied forward(adapter, collapsed, plan);
            poisoned_memory scratch(lora_backward_workspace_size({plan}, adapter, types.sums));
            lora_backward({plan}, adapter, collapsed.x, collapsed.d_y, {forward.hidden},
                          {collapsed.d_x, d_mean.matrices()}, scratch);
            average_lora_backward({}, d_mean.a, d_mean.b, {collapsed.d_a, collapsed.d_b});
            CHECK(compare_bitwise(collapsed.d_x.ref(), routed.d_x.ref()));
            CHECK(compare_bitwise(collapsed.d_a.ref(), routed.d_a.ref()));
            CHECK(compare_bitwise(collapsed.d_b.ref(), routed.d_b.ref()));
        });
}

TEST_CASE("a step on the mean adapter is a step on all modules, at a rate times their number") {
    // MHR-mu's fine-tuning against training every module under uniform routing, once through.
    const element_type type = element_type::f64;
    const layer_sizes s{15, 1, 2, 5, 6, 4, 3};
    batch_plan plan;
    plan.assign_single_task(s.rows);
    layer_problem p(s, plan, all_of(type));
    p.weights.fill(0.2);
    p.d_a.fill(0);
    p.d_b.fill(0);
    plain_adapter mean(s, type), d_mean(s, type), moved(s, type);
    average_lora_forward({}, p.layer().inventory(), mean.matrices());
    const lora adapter = mean.scaled(p.scale);
    applied forward(adapter, p, plan);
    poisoned_memory scratch(lora_backward_workspace_size({plan}, adapter, type));
    lora_backward({plan}, adapter, p.x, p.d_y, {forward.hidden}, {{}, d_mean.matrices()}, scratch);
    p.run();

    const double rate = 0.125;
    const auto step = [](const auto& variable, const auto& gradient, double size) {
        for_each_position(variable.extents(), [&](const auto& at) {
            set_element(variable, at, element(variable, at) - size * element(gradient, at));
        });
    };
    step(mean.a.ref(), d_mean.a.ref(), rate);
    step(mean.b.ref(), d_mean.b.ref(), rate);
    step(p.a.ref(), p.d_a.ref(), 5 * rate);
    step(p.b.ref(), p.d_b.ref(), 5 * rate);
    average_lora_forward({}, p.layer().inventory(), moved.matrices());
    const auto agree = [&](guarded_tensor<2>& got, guarded_tensor<2>& want) {
        auto size = values_as<double>(want.ref());
        for (double& value : size.values())
            value = 20; // a step and its 15 terms
        return compare(got.ref(), values_as<double>(want.ref()).view(), size.view(),
                       within(type, 4));
    };
    CHECK(agree(moved.a, mean.a));
    CHECK(agree(moved.b, mean.b));
    step(mean.a.ref(), d_mean.a.ref(), 1e-10);
    CHECK_FALSE(agree(moved.a, mean.a));
}

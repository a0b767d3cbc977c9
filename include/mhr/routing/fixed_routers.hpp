#pragma once

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/router.hpp>

/// \file
/// Routers without logits: one module for each task, the average, or weights from elsewhere. Their
/// weights go where those of router_forward go.

namespace mhr {
inline namespace MHR_ISA {

/// weights[n, h, m] = 1 if m = tasks[n], else 0: each task has a module of its own.
///
/// tasks [n], ids below the number of modules; weights [n, heads, modules], overwritten.
///
/// One phase. Errors: a shape, an id without a module, overlapping elements of weights.
/// Cost: one store for each weight.
template <class Id, class W>
void private_router_forward(executor_ref executor, tensor_view<Id, 1> tasks,
                            tensor_view<W, 3> weights) {
    constexpr const char* function = "private_router_forward";
    // Before their number is expected of the weights.
    require_input(function, "tasks", tasks, {any_extent});
    require_output(function, "weights", weights, {tasks.extent(0), any_extent, any_extent});
    detail::check_task_ids(function, tasks, weights.extent(2));
    executor.run(tasks.extent(0), [&](index_t n) noexcept {
        for (index_t h = 0; h < weights.extent(1); ++h)
            for (index_t m = 0; m < weights.extent(2); ++m)
                weights(n, h, m) =
                    store<W>(accumulator_t<W>(m == static_cast<index_t>(tasks(n)) ? 1 : 0));
    });
}

/// weights[n, h, m] = 1 / modules: the average of the inventory for every entry. Where nothing else
/// than the average is wanted, average_lora_forward computes it once.
///
/// weights [n, heads, modules], overwritten.
///
/// One phase. Errors: a shape, overlapping elements of weights. Cost: one store for each weight.
template <class W>
void average_router_forward(executor_ref executor, tensor_view<W, 3> weights) {
    require_output("average_router_forward", "weights", weights,
                   {any_extent, any_extent, any_extent});
    const index_t modules = weights.extent(2);
    const auto weight = store<W>(accumulator_t<W>(1) / static_cast<accumulator_t<W>>(modules));
    executor.run(weights.extent(0), [&](index_t n) noexcept {
        for (index_t h = 0; h < weights.extent(1); ++h)
            for (index_t m = 0; m < modules; ++m)
                weights(n, h, m) = weight;
    });
}

/// weights[n, h, m] = table[tasks[n], h, m]: given weights, or learnt ones without a gate.
///
/// table [tasks of the table, heads, modules]; a stride of 0 over the heads gives all heads the
/// same weights. tasks [n], ids that may repeat; weights [n, heads, modules], overwritten.
///
/// One phase. Errors: a shape, an id outside the table, overlapping elements of weights.
/// Cost: one copy for each weight.
template <class G, class Id, class W>
void given_router_forward(executor_ref executor, tensor_view<G, 3> table, tensor_view<Id, 1> tasks,
                          tensor_view<W, 3> weights) {
    constexpr const char* function = "given_router_forward";
    require_input(function, "table", table, {any_extent, any_extent, any_extent});
    detail::check_task_ids(function, tasks, table.extent(0));
    require_output(function, "weights", weights,
                   {tasks.extent(0), table.extent(1), table.extent(2)});
    using A = accumulator_t<G, W>;
    executor.run(tasks.extent(0), [&](index_t n) noexcept {
        for (index_t h = 0; h < table.extent(1); ++h)
            for (index_t m = 0; m < table.extent(2); ++m)
                weights(n, h, m) = store<W>(load<A>(table(static_cast<index_t>(tasks(n)), h, m)));
    });
}

/// The backward of given_router_forward: d_table[tasks[n], h, m] += d_weights[n, h, m].
///
/// d_weights [n, heads, modules]; d_table [tasks of the table, heads, modules] accumulates.
///
/// One phase. Errors: a shape, an id outside the table, overlapping elements of d_table.
/// Cost: n heads modules additions.
template <class Id, class DW, class DG>
void given_router_backward(executor_ref executor, tensor_view<Id, 1> tasks,
                           tensor_view<DW, 3> d_weights, tensor_view<DG, 3> d_table) {
    constexpr const char* function = "given_router_backward";
    require_output(function, "d_table", d_table, {any_extent, any_extent, any_extent});
    detail::check_task_ids(function, tasks, d_table.extent(0));
    require_input(function, "d_weights", d_weights,
                  {tasks.extent(0), d_table.extent(1), d_table.extent(2)});
    using A = accumulator_t<DW, DG>;
    // As in router_backward: one thread adds up a task that repeats.
    executor.run(d_table.extent(1), [&](index_t h) noexcept {
        for (index_t n = 0; n < tasks.extent(0); ++n)
            for (index_t m = 0; m < d_table.extent(2); ++m) {
                DG& target = d_table(static_cast<index_t>(tasks(n)), h, m);
                target = store<DG>(load<A>(target) + load<A>(d_weights(n, h, m)));
            }
    });
}

} // namespace MHR_ISA
} // namespace mhr

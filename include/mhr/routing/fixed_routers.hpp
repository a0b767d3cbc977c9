#pragma once

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
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
/// It has one phase. These are refused: an id without a module, no_task, or the largest value of an
/// unsigned type; weights of another number of entries, without memory, or of which elements
/// overlap. The cost is one store for each weight.
template <class Id>
void private_router_forward(executor_ref executor, tensor_view<Id, 1> tasks,
                            const tensor_ref<3>& weights) {
    argument_checks checks("private_router_forward");
    // Before their number is expected of the weights.
    checks.numbers("tasks", tasks, {any_extent});
    checks.output("weights", weights, {tasks.extent(0), any_extent, any_extent});
    router_details::check_tasks(checks, tasks, weights.extent(2));
    checks.raise();
    executor.run(tasks.extent(0), [&](index_t n) noexcept {
        const auto module = static_cast<index_t>(tasks(n));
        for (index_t h = 0; h < weights.extent(1); ++h)
            for (index_t m = 0; m < weights.extent(2); ++m)
                write_number(weights.type(), weights.address_of(n, h, m),
                             m == module ? 1.0F : 0.0F);
    });
}

/// weights[n, h, m] = 1 / modules: the average of the inventory for every entry. Where nothing else
/// than the average is wanted, average_lora_forward computes it once.
///
/// weights [n, heads, modules], overwritten.
///
/// It has one phase. These are refused: weights of negative extents, without memory, or of which
/// elements overlap. The cost is one store for each weight.
inline void average_router_forward(executor_ref executor, const tensor_ref<3>& weights) {
    argument_checks checks("average_router_forward");
    checks.output("weights", weights, argument_checks::any_extents<3>());
    checks.raise();
    with_sums(sums_of(weights.type(), weights.type()), [&](auto zero) {
        using A = decltype(zero);
        const A weight = A(1) / static_cast<A>(weights.extent(2));
        executor.run(weights.extent(0), [&](index_t n) noexcept {
            for (index_t h = 0; h < weights.extent(1); ++h)
                for (index_t m = 0; m < weights.extent(2); ++m)
                    write_number(weights.type(), weights.address_of(n, h, m), weight);
        });
    });
}

/// weights[n, h, m] = table[tasks[n], h, m]: given weights, or learnt ones without a gate.
///
/// table [tasks of the table, heads, modules]; a stride of 0 over the heads gives all heads the
/// same weights. tasks [n], ids that may repeat; weights [n, heads, modules], overwritten.
///
/// It has one phase. These are refused: tensors of other shapes or without memory; weights of which
/// elements overlap; an id outside the table, no_task, or the largest value of an unsigned type.
/// The cost is one copy for each weight.
template <class Id>
void given_router_forward(executor_ref executor, const const_tensor_ref<3>& table,
                          tensor_view<Id, 1> tasks, const tensor_ref<3>& weights) {
    argument_checks checks("given_router_forward");
    checks.input("table", table);
    router_details::check_tasks(checks, tasks, table.extent(0));
    checks.output("weights", weights, {tasks.extent(0), table.extent(1), table.extent(2)});
    checks.raise();
    with_sums(sums_of(table.type(), weights.type()), [&](auto zero) {
        using A = decltype(zero);
        executor.run(tasks.extent(0), [&](index_t n) noexcept {
            for (index_t h = 0; h < table.extent(1); ++h) {
                const auto from =
                    router_details::head_of<A>(table, static_cast<index_t>(tasks(n)), h);
                const auto to = router_details::head_of<A>(weights, n, h);
                for (index_t m = 0; m < table.extent(2); ++m)
                    to.set(m, from[m]);
            }
        });
    });
}

/// The backward of given_router_forward: d_table[tasks[n], h, m] += d_weights[n, h, m].
///
/// d_weights [n, heads, modules]; d_table [tasks of the table, heads, modules] accumulates.
///
/// It has one phase. These are refused: what the forward refuses; d_weights of another shape than
/// the weights; d_table of which elements overlap. The cost is n heads modules additions.
template <class Id>
void given_router_backward(executor_ref executor, tensor_view<Id, 1> tasks,
                           const const_tensor_ref<3>& d_weights, const tensor_ref<3>& d_table) {
    argument_checks checks("given_router_backward");
    checks.output("d_table", d_table, argument_checks::any_extents<3>());
    router_details::check_tasks(checks, tasks, d_table.extent(0));
    checks.input("d_weights", d_weights, {tasks.extent(0), d_table.extent(1), d_table.extent(2)});
    checks.raise();
    with_sums(sums_of(d_weights.type(), d_table.type()), [&](auto zero) {
        using A = decltype(zero);
        // One thread adds up a task that repeats, as in router_backward.
        executor.run(d_table.extent(1), [&](index_t h) noexcept {
            for (index_t n = 0; n < tasks.extent(0); ++n) {
                const auto from = router_details::head_of<A>(d_weights, n, h);
                const auto to =
                    router_details::head_of<A>(d_table, static_cast<index_t>(tasks(n)), h);
                for (index_t m = 0; m < d_table.extent(2); ++m)
                    to.add(m, from[m]);
            }
        });
    });
}

} // namespace MHR_ISA
} // namespace mhr

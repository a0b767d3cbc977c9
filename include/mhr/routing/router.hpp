#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/task_ids.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/gates.hpp>
#include <mhr/routing/normalisers.hpp>

/// \file
/// The router: from a table of logits to the weights with which modules are mixed, and back.
/// One router may serve a layer, a block or the whole model: run the forward once, let every layer
/// add to the same d_weights, run the backward once.

namespace mhr {
inline namespace MHR_ISA {

/// How logits become weights: a gate for each module, a normaliser for each head, then annealing
/// to uniform, w = annealing w' + (1 - annealing) / modules, with 1 for none (routing/annealing.hpp
/// has the schedule). `routing_rule{sigmoid_gate{}}` is that of Poly and MHR.
template <class Gate, class Normaliser = sum_normaliser>
struct routing_rule {
    Gate gate;               ///< from a logit to how far a module is switched on
    Normaliser normaliser{}; ///< from the gates of a head to its weights
    double annealing = 1;    ///< from 1 (none) to 0 (uniform)
};

/// Takes the types from the arguments.
/// @{
template <class Gate>
routing_rule(Gate) -> routing_rule<Gate>;
template <class Gate, class Normaliser>
routing_rule(Gate, Normaliser) -> routing_rule<Gate, Normaliser>;
template <class Gate, class Normaliser>
routing_rule(Gate, Normaliser, double) -> routing_rule<Gate, Normaliser>;
/// @}

namespace detail {

/// Checks ids into a table of so many tasks; core/task_ids.hpp has the rule.
template <class Id>
void check_task_ids(const char* function, const tensor_view<Id, 1>& tasks, index_t table_tasks) {
    using V = std::remove_const_t<Id>;
    const auto largest = (std::min)(std::int64_t{table_tasks} - 1, largest_task<V>());
    require_input(function, "tasks", tasks, {any_extent});
    for (index_t entry = 0; entry < tasks.extent(0); ++entry)
        require_that(
            is_task<V>(tasks(entry)) && static_cast<std::int64_t>(tasks(entry)) <= largest,
            function, "tasks", [&] { return "ids from 0 to " + std::to_string(largest); },
            [&] { return task_id_text(tasks, entry); });
}

template <class L, class Id, class Gate, class Normaliser>
void check_router(const char* function, const tensor_view<L, 3>& logits,
                  const tensor_view<Id, 1>& tasks, const routing_rule<Gate, Normaliser>& rule) {
    require_input(function, "logits", logits, {any_extent, any_extent, any_extent});
    check_task_ids(function, tasks, logits.extent(0));
    rule.gate.validate(function, tasks.extent(0), logits.extent(1), logits.extent(2));
    rule.normaliser.validate(function, logits.extent(1), logits.extent(2));
    require_that(
        rule.annealing >= 0 && rule.annealing <= 1, function, "rule.annealing",
        [] { return "a number from 0 to 1"; }, [&] { return std::to_string(rule.annealing); });
}

} // namespace detail

/// weights[n, h, .] = normaliser(gate(logits[tasks[n], h, .])), annealed to uniform as the rule
/// says. With the rule of Polytropon (Ponti et al. 2023, arXiv 2202.13914), which MHR applies to
/// each head (Caccia et al. 2023, arXiv 2211.03831, section 3), a sigmoid or Gumbel-sigmoid gate:
/// w[n, h, m] = s[n, h, m] / (sum over modules of s[n, h, .] + 1e-12).
///
/// logits [tasks of the table, heads, modules]; tasks [n], ids of any integer type that may repeat;
/// weights [n, heads, modules], overwritten.
///
/// One phase. Errors: a shape; an id outside the table, no_task, or the largest value of an
/// unsigned type (core/task_ids.hpp); the rule's own arguments. Cost: with the sum, 2 n h m gates
/// (an exp each).
template <class L, class Id, class Gate, class Normaliser, class W>
void router_forward(executor_ref executor, tensor_view<L, 3> logits, tensor_view<Id, 1> tasks,
                    const routing_rule<Gate, Normaliser>& rule, tensor_view<W, 3> weights) {
    constexpr const char* function = "router_forward";
    detail::check_router(function, logits, tasks, rule);
    require_output(function, "weights", weights,
                   {tasks.extent(0), logits.extent(1), logits.extent(2)});

    using A = accumulator_t<L, W>;
    const routing_shape shape{logits.extent(1), logits.extent(2)};
    const auto kept = static_cast<A>(rule.annealing);
    const auto uniform = static_cast<A>((1 - rule.annealing) / static_cast<double>(shape.modules));
    executor.run(tasks.extent(0), [&](index_t n) noexcept {
        const auto task = static_cast<index_t>(tasks(n));
        for (index_t h = 0; h < shape.heads; ++h)
            // The gates are computed as often as the normaliser asks rather than kept: there is no
            // scratch to ask for, and rounding them to the type of the weights would lose
            // precision.
            rule.normaliser.template forward<A>(
                shape,
                [&](index_t m) {
                    return rule.gate.value(load<A>(logits(task, h, m)),
                                           gate_position{n, h, m, shape.modules});
                },
                [&](index_t m, A weight) {
                    weights(n, h, m) = store<W>(
                        detail::is_exactly(rule.annealing, 1) ? weight : kept * weight + uniform);
                });
    });
}

/// The backward of router_forward, with its logits, tasks and rule (and so its noise):
/// d_logits[tasks[n], h, m] += gate'(l) d_s[m], where d_s is the normaliser's backward of
/// annealing d_weights[n, h, .]; for the rule of Polytropon
/// d_s[m] = (d_weights[n, h, m] - sum over modules of w d_weights) / (sum of s + 1e-12).
///
/// d_weights [n, heads, modules]; d_logits [tasks of the table, heads, modules] accumulates: a task
/// that repeats gets every contribution, a task that is absent is not touched. A logit at which the
/// gate's slope is 0 keeps its gradient as it is, even if that of its weight is not finite, and so
/// do the other logits of its head if the gate is 0, too.
///
/// One phase. Errors: as the forward. Cost: with the sum, 2 n h m gates.
template <class L, class Id, class Gate, class Normaliser, class DW, class DL>
void router_backward(executor_ref executor, tensor_view<L, 3> logits, tensor_view<Id, 1> tasks,
                     const routing_rule<Gate, Normaliser>& rule, tensor_view<DW, 3> d_weights,
                     tensor_view<DL, 3> d_logits) {
    constexpr const char* function = "router_backward";
    detail::check_router(function, logits, tasks, rule);
    require_input(function, "d_weights", d_weights,
                  {tasks.extent(0), logits.extent(1), logits.extent(2)});
    require_output(function, "d_logits", d_logits, logits.extents());

    using A = accumulator_t<L, DW, DL>;
    const routing_shape shape{logits.extent(1), logits.extent(2)};
    const auto kept = static_cast<A>(rule.annealing);
    // Parts are heads: a task that repeats is then added up by one thread, in the order of `tasks`.
    executor.run(shape.heads, [&](index_t h) noexcept {
        for (index_t n = 0; n < tasks.extent(0); ++n) {
            const auto task = static_cast<index_t>(tasks(n));
            const auto logit = [&](index_t m) { return load<A>(logits(task, h, m)); };
            const auto at = [&](index_t m) { return gate_position{n, h, m, shape.modules}; };
            rule.normaliser.template backward<A>(
                shape, [&](index_t m) { return rule.gate.value(logit(m), at(m)); },
                [&](index_t m) { return kept * load<A>(d_weights(n, h, m)); },
                [&](index_t m, A d_gate) {
                    const A slope = rule.gate.slope(logit(m), at(m));
                    if (detail::is_exactly(slope, 0)) return; // whatever d_gate is
                    DL& target = d_logits(task, h, m);
                    target = store<DL>(load<A>(target) + slope * d_gate);
                });
        }
    });
}

} // namespace MHR_ISA
} // namespace mhr

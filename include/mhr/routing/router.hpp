#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/routing/gates.hpp>

/// \file
/// The router: from a table of logits to the weights with which modules are mixed, and back.
/// One router may serve a layer, a block or the whole model: run the forward once, let every layer
/// add to the same d_weights, run the backward once.

namespace mhr {

/// Added to the sum of the gates of a head, as in the code of Polytropon, MHR and PEFT.
inline constexpr double normaliser_epsilon = 1e-12;

namespace detail {

template <class L, class Id, class Gate>
void check_router(const char* function, const tensor_view<L, 3>& logits,
                  const tensor_view<Id, 1>& tasks, const Gate& gate) {
    static_assert(std::is_integral_v<std::remove_const_t<Id>>, "mhr: task ids are integers");
    require_input(function, "logits", logits, {any_extent, any_extent, any_extent});
    require_input(function, "tasks", tasks, {any_extent});
    gate.check(function, tasks.extent(0), logits.extent(1), logits.extent(2));
    for (index_t entry = 0; entry < tasks.extent(0); ++entry) {
        const auto task = static_cast<std::int64_t>(tasks(entry));
        require(
            task >= 0 && task < logits.extent(0), function, "tasks",
            [&] { return "ids from 0 to " + std::to_string(logits.extent(0) - 1); },
            [&] { return std::to_string(task) + " at position " + std::to_string(entry); });
    }
}

} // namespace detail

/// weights[n, h, m] = s[n, h, m] / (sum over modules of s[n, h, .] + 1e-12) with
/// s[n, h, m] = gate(logits[tasks[n], h, m]); the task-skill allocation of
/// Polytropon (Ponti et al. 2023, arXiv 2202.13914), made for each head by MHR (Caccia et al. 2023,
/// arXiv 2211.03831, section 3).
///
/// logits [tasks of the table, heads, modules]; tasks [n], ids that may repeat; weights
/// [n, heads, modules], overwritten. If all gates of a head are 0, so are its weights.
///
/// One phase. Errors: a shape, an id outside the table, a gate's own arguments.
/// Cost: 2 n h m gates (an exp each).
template <class L, class Id, class Gate, class W>
void router_forward(executor_ref executor, tensor_view<L, 3> logits, tensor_view<Id, 1> tasks,
                    const Gate& gate, tensor_view<W, 3> weights) {
    constexpr const char* function = "router_forward";
    detail::check_router(function, logits, tasks, gate);
    require_output(function, "weights", weights,
                   {tasks.extent(0), logits.extent(1), logits.extent(2)});

    using A = accumulator_t<L, W>;
    executor.run(tasks.extent(0), [&](index_t n) noexcept {
        const auto task = static_cast<index_t>(tasks(n));
        for (index_t h = 0; h < logits.extent(1); ++h) {
            // The gates are computed twice rather than kept: there is no scratch to ask for, and
            // rounding them to the type of the weights in between would lose precision.
            const auto s = [&](index_t m) {
                return gate.value(load<A>(logits(task, h, m)), n, h, m);
            };
            A sum = static_cast<A>(normaliser_epsilon);
            for (index_t m = 0; m < logits.extent(2); ++m)
                sum += s(m);
            for (index_t m = 0; m < logits.extent(2); ++m)
                weights(n, h, m) = store<W>(s(m) / sum);
        }
    });
}

/// The backward of router_forward, with its logits, tasks and gate (and so its noise):
/// d_logits[tasks[n], h, m] += gate'(l) (d_weights[n, h, m] - sum over modules of w d_weights) /
/// sum with the weights w and the sum of the forward.
///
/// d_weights [n, heads, modules]; d_logits [tasks of the table, heads, modules] accumulates: a task
/// that repeats gets every contribution, a task that is absent is not touched.
///
/// One phase. Errors: as the forward. Cost: 3 n h m gates.
template <class L, class Id, class Gate, class DW, class DL>
void router_backward(executor_ref executor, tensor_view<L, 3> logits, tensor_view<Id, 1> tasks,
                     const Gate& gate, tensor_view<DW, 3> d_weights, tensor_view<DL, 3> d_logits) {
    constexpr const char* function = "router_backward";
    detail::check_router(function, logits, tasks, gate);
    require_input(function, "d_weights", d_weights,
                  {tasks.extent(0), logits.extent(1), logits.extent(2)});
    require_output(function, "d_logits", d_logits, logits.extents());

    using A = accumulator_t<L, DW, DL>;
    // Parts are heads: a task that repeats is then added up by one thread, in the order of `tasks`.
    executor.run(logits.extent(1), [&](index_t h) noexcept {
        for (index_t n = 0; n < tasks.extent(0); ++n) {
            const auto task = static_cast<index_t>(tasks(n));
            A sum = static_cast<A>(normaliser_epsilon);
            A weighted = 0;
            for (index_t m = 0; m < logits.extent(2); ++m) {
                const A s = gate.value(load<A>(logits(task, h, m)), n, h, m);
                sum += s;
                weighted += s * load<A>(d_weights(n, h, m));
            }
            const A mean = weighted / sum;
            for (index_t m = 0; m < logits.extent(2); ++m) {
                const A slope = gate.slope(load<A>(logits(task, h, m)), n, h, m);
                const A d_logit = slope * ((load<A>(d_weights(n, h, m)) - mean) / sum);
                DL& target = d_logits(task, h, m);
                target = store<DL>(load<A>(target) + d_logit);
            }
        }
    });
}

} // namespace mhr

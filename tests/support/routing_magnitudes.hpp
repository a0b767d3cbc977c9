#pragma once

#include <algorithm>
#include <cmath>

#include <mhr/core/tensor_view.hpp>
#include <mhr/reference/routing.hpp>

#include "support/tensor.hpp"

/// \file
/// Bounds of the rounding errors of routing: what the oracle on absolute values is for the linear
/// operations. Everything is added up that enters a weight or a gradient, so that a bound is a
/// small number of roundings of it.

namespace mhr::test {

/// 1 + the largest sum of |terms| of a head's gate arguments: a rounding of the argument z changes
/// sigmoid(z) by up to |z| roundings. Without noise the argument is the logit itself, exactly.
template <class S>
S gate_condition(const tensor_view<const S, 3>& logits, index_t task,
                 const tensor_view<const S, 3>& u, S temperature, index_t n, index_t h) {
    S condition = 1;
    if (u.absent()) return condition;
    for (index_t m = 0; m < logits.extent(2); ++m) {
        const S noise = u(n, h, m);
        condition =
            std::max(condition, 1 + (std::abs(logits(task, h, m)) + std::abs(std::log(noise)) +
                                     std::abs(std::log(1 - noise))) /
                                        temperature);
    }
    return condition;
}

/// The magnitudes of router_forward's weights, which are positive and hence their own sums of
/// |terms|.
template <class S>
tensor<S, 3> weight_magnitudes(const tensor_view<const S, 3>& logits,
                               const tensor_view<const index_t, 1>& tasks,
                               const tensor_view<const S, 3>& u, S temperature, S epsilon) {
    tensor<S, 3> result({tasks.extent(0), logits.extent(1), logits.extent(2)});
    reference::router_forward<S>(logits, tasks, u, temperature, epsilon, result.view());
    for_each_position(result.extents(), [&](const position<3>& at) {
        element(result.view(), at) *=
            gate_condition(logits, tasks(at[0]), u, temperature, at[0], at[1]);
    });
    return result;
}

/// The magnitudes of router_backward's contributions to d_logits: |d_weights| / sum and
/// sum |d_weights| s / sum^2, times the slope of the gate.
template <class S>
tensor<S, 3> logit_gradient_magnitudes(const tensor_view<const S, 3>& logits,
                                       const tensor_view<const index_t, 1>& tasks,
                                       const tensor_view<const S, 3>& u, S temperature, S epsilon,
                                       const tensor_view<const S, 3>& d_weights) {
    tensor<S, 3> result(logits.extents());
    const S slope_factor = u.absent() ? S(1) : S(1) / temperature;
    for (index_t n = 0; n < tasks.extent(0); ++n)
        for (index_t h = 0; h < logits.extent(1); ++h) {
            const index_t task = tasks(n);
            const S condition = gate_condition(logits, task, u, temperature, n, h);
            const auto gate = [&](index_t m) {
                return reference::gate_argument(logits(task, h, m), u, temperature, n, h, m);
            };
            S sum = epsilon;
            S weighted = 0;
            for (index_t m = 0; m < logits.extent(2); ++m) {
                sum += reference::sigmoid(gate(m));
                weighted += std::abs(d_weights(n, h, m)) * reference::sigmoid(gate(m));
            }
            for (index_t m = 0; m < logits.extent(2); ++m)
                result(task, h, m) +=
                    (std::abs(d_weights(n, h, m)) / sum + weighted / (sum * sum)) *
                    reference::sigmoid(gate(m)) * reference::sigmoid(-gate(m)) * slope_factor *
                    condition;
        }
    return result;
}

} // namespace mhr::test

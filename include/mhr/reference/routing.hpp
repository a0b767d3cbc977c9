#pragma once

#include <cmath>
#include <complex>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of the router: plain loops from the formulas, generic in the scalar type (double,
/// long double, std::complex<double> for complex-step derivatives). No checks, no speed.

namespace mhr::reference {

namespace detail {
template <class S>
S real_part(const S& value) {
    return value;
}
template <class S>
S real_part(const std::complex<S>& value) {
    return value.real();
}
} // namespace detail

/// 1 / (1 + exp(-z)), from the side on which exp does not overflow.
template <class S>
S sigmoid(const S& z) {
    using std::exp;
    if (detail::real_part(z) >= 0) return S(1) / (S(1) + exp(-z));
    const S e = exp(z);
    return e / (S(1) + e);
}

/// The argument of the sigmoid: l for the plain gate (`u` absent), and (l + log u - log(1 - u)) / T
/// for the Gumbel-sigmoid (relaxed Bernoulli; Ponti et al. 2023).
template <class S>
S gate_argument(const S& logit, const tensor_view<const S, 3>& u, const S& temperature,
                index_t entry, index_t head, index_t module) {
    using std::log;
    if (u.absent()) return logit;
    const S noise = u(entry, head, module);
    return (logit + log(noise) - log(S(1) - noise)) / temperature;
}

/// weights[n, h, m] = s / (sum over modules of s + epsilon), s = sigmoid(gate_argument), of the
/// logits[tasks[n], h, m].
template <class S>
void router_forward(tensor_view<const S, 3> logits, tensor_view<const index_t, 1> tasks,
                    tensor_view<const S, 3> u, S temperature, S epsilon,
                    tensor_view<S, 3> weights) {
    for (index_t n = 0; n < weights.extent(0); ++n)
        for (index_t h = 0; h < weights.extent(1); ++h) {
            S sum = epsilon;
            for (index_t m = 0; m < weights.extent(2); ++m)
                sum += sigmoid(gate_argument(logits(tasks(n), h, m), u, temperature, n, h, m));
            for (index_t m = 0; m < weights.extent(2); ++m)
                weights(n, h, m) =
                    sigmoid(gate_argument(logits(tasks(n), h, m), u, temperature, n, h, m)) / sum;
        }
}

/// d_logits[tasks[n], h, m] += d_s s (1 - s) / T with
/// d_s = d_weights / sum - (sum over modules of d_weights s) / sum^2.
template <class S>
void router_backward(tensor_view<const S, 3> logits, tensor_view<const index_t, 1> tasks,
                     tensor_view<const S, 3> u, S temperature, S epsilon,
                     tensor_view<const S, 3> d_weights, tensor_view<S, 3> d_logits) {
    const S slope_factor = u.absent() ? S(1) : S(1) / temperature;
    for (index_t n = 0; n < d_weights.extent(0); ++n)
        for (index_t h = 0; h < d_weights.extent(1); ++h) {
            const auto gate = [&](index_t m) {
                return gate_argument(logits(tasks(n), h, m), u, temperature, n, h, m);
            };
            S sum = epsilon;
            S weighted = S(0);
            for (index_t m = 0; m < d_weights.extent(2); ++m) {
                sum += sigmoid(gate(m));
                weighted += d_weights(n, h, m) * sigmoid(gate(m));
            }
            for (index_t m = 0; m < d_weights.extent(2); ++m) {
                const S d_gate = d_weights(n, h, m) / sum - weighted / (sum * sum);
                d_logits(tasks(n), h, m) +=
                    d_gate * sigmoid(gate(m)) * sigmoid(-gate(m)) * slope_factor;
            }
        }
}

} // namespace mhr::reference

#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of the router: plain loops from the formulas, generic in the scalar type (double,
/// long double, std::complex<double> for complex-step derivatives). No checks, no speed.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// The gates of routing/gates.hpp; with uniforms, that of the Gumbel-sigmoid's argument.
enum class gate_kind { identity, sigmoid, straight_through };
/// The normalisers of routing/normalisers.hpp.
enum class normaliser_kind { sum, average_correction, l2, softmax };

/// How logits become weights; by default as in the evaluation of Poly and MHR. Views are [entries,
/// heads, modules]; those that are absent play no part.
template <class S>
struct routing_options {
    tensor_view<const S, 3> noise;                        ///< added to the logits
    S noise_scale = S(1);                                 ///< of the same
    tensor_view<const S, 3> uniforms;                     ///< of the Gumbel-sigmoid, inside (0, 1)
    S temperature = S(1);                                 ///< of the same
    gate_kind gate = gate_kind::sigmoid;                  ///< before dropout
    tensor_view<const S, 3> keep;                         ///< dropout: 1 keeps, 0 drops
    S drop_probability = S(0);                            ///< kept gates are divided by 1 minus it
    bool shared_module = false;                           ///< the gate of the last module is 1
    normaliser_kind normaliser = normaliser_kind::sum;    ///< of the gates of a head
    S epsilon = S(1e-12);                                 ///< see normaliser_epsilon
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of the softmax
    S annealing = S(1);                                   ///< 1: none; 0: uniform weights
    bool detached_when_off = false;                       ///< gates that are all 0 get no gradient
};

namespace routing_details {
template <class S, class = void>
struct is_complex : std::false_type {};
template <class S>
struct is_complex<S, std::void_t<decltype(std::declval<S>().imag())>> : std::true_type {};

/// Returns the real part of a number of any kind. The name std::complex is avoided because
/// <complex.h> makes a macro of it.
template <class S>
auto real_part(const S& value) {
    if constexpr (is_complex<S>::value)
        return value.real();
    else
        return value;
}
} // namespace routing_details

/// 1 / (1 + exp(-z)), from the side on which exp does not overflow.
template <class S>
S sigmoid(const S& z) {
    using std::exp;
    if (routing_details::real_part(z) >= 0) return S(1) / (S(1) + exp(-z));
    const S e = exp(z);
    return e / (S(1) + e);
}

/// l + scale noise, and of that z, (z + log u - log(1 - u)) / T for the Gumbel-sigmoid (relaxed
/// Bernoulli; Ponti et al. 2023).
template <class S>
S gate_argument(const routing_options<S>& options, const S& logit, index_t n, index_t h,
                index_t m) {
    using std::log;
    S z = logit;
    if (!options.noise.absent()) z += options.noise_scale * options.noise(n, h, m);
    if (options.uniforms.absent()) return z;
    const S u = options.uniforms(n, h, m);
    return (z + log(u) - log(S(1) - u)) / options.temperature;
}

/// The gate of one module of one head.
template <class S>
S gate_value(const routing_options<S>& options, const S& logit, index_t n, index_t h, index_t m,
             index_t modules) {
    if (options.shared_module && m == modules - 1) return S(1);
    S s = gate_argument(options, logit, n, h, m);
    if (options.gate != gate_kind::identity) s = sigmoid(s);
    // The value of the rounding, the derivative of the sigmoid: what is added is a constant.
    if (options.gate == gate_kind::straight_through)
        s += S((2 * routing_details::real_part(s) > 1 ? 1 : 0) - routing_details::real_part(s));
    if (!options.keep.absent()) s *= options.keep(n, h, m) / (S(1) - options.drop_probability);
    return s;
}

/// d gate_value / d logit.
template <class S>
S gate_slope(const routing_options<S>& options, const S& logit, index_t n, index_t h, index_t m,
             index_t modules) {
    if (options.shared_module && m == modules - 1) return S(0);
    const S z = gate_argument(options, logit, n, h, m);
    S slope = options.gate == gate_kind::identity ? S(1) : sigmoid(z) * sigmoid(-z);
    if (!options.uniforms.absent()) slope /= options.temperature;
    if (options.keep.data() != nullptr)
        slope *= options.keep(n, h, m) / (S(1) - options.drop_probability);
    return slope;
}

/// Whether fewer than `kept` modules come before this one: larger ones, and equal ones with a lower
/// number.
template <class S>
bool is_kept(const std::vector<S>& s, std::size_t module, index_t kept) {
    index_t before = 0;
    for (std::size_t m = 0; m < s.size(); ++m) {
        const auto difference =
            routing_details::real_part(s[m]) - routing_details::real_part(s[module]);
        if (difference > 0 || (mhr::is_exactly(difference, 0) && m < module)) ++before;
    }
    return before < kept;
}

/// The Euclidean length, as an analytic function (without absolute values).
template <class S>
S length(const std::vector<S>& s) {
    using std::sqrt;
    S sum = S(0);
    for (const S& value : s)
        sum += value * value;
    return sqrt(sum);
}

/// sqrt(heads) / sqrt(modules)
template <class S>
S average_correction(index_t heads, std::size_t modules) {
    using std::sqrt;
    return sqrt(S(static_cast<double>(heads))) / sqrt(S(static_cast<double>(modules)));
}

/// Whether the gates of a head are taken for constants, since all of them are 0.
template <class S>
bool is_detached(const routing_options<S>& options, const std::vector<S>& s) {
    for (const S& gate : s)
        if (!mhr::is_exactly(routing_details::real_part(gate), 0)) return false;
    return options.detached_when_off;
}

/// The weights of one head, before annealing, from its gates.
template <class S>
std::vector<S> normalise(const routing_options<S>& options, index_t heads, std::vector<S> s) {
    using std::exp;
    if (is_detached(options, s)) s.assign(s.size(), S(0)); // without what may be imaginary
    std::vector<S> w = s;
    S divisor = S(1);
    switch (options.normaliser) {
    case normaliser_kind::sum:
        divisor = options.epsilon;
        for (const S& gate : s)
            divisor += gate;
        break;
    case normaliser_kind::average_correction:
        divisor = S(1) / average_correction<S>(heads, s.size());
        break;
    case normaliser_kind::l2:
        divisor = length(s);
        if (routing_details::real_part(divisor) < routing_details::real_part(options.epsilon))
            divisor = options.epsilon;
        break;
    case normaliser_kind::softmax:
        divisor = S(0);
        for (std::size_t m = 0; m < s.size(); ++m) {
            w[m] = is_kept(s, m, options.kept) ? exp(s[m]) : S(0);
            divisor += w[m];
        }
        break;
    }
    for (S& weight : w)
        weight /= divisor;
    return w;
}

/// The gradient of the gates of one head, s, from that of its weights, `d_w`:
///   sum: d_w / sum - (sum of d_w s) / sum^2
///   average correction: d_w sqrt(heads / modules)
///   L2: d_w / |s| - s (sum of d_w s) / |s|^3; d_w / epsilon where |s| < epsilon
///   softmax: w d_w - w (sum of w d_w), over the modules that are kept
/// and 0 where the gates are detached.
template <class S>
std::vector<S> normalise_backward(const routing_options<S>& options, index_t heads,
                                  const std::vector<S>& s, const std::vector<S>& d_w) {
    const std::vector<S> w = normalise(options, heads, s);
    S sum = options.epsilon;
    S along_gates = S(0);
    S along_weights = S(0);
    for (std::size_t m = 0; m < s.size(); ++m) {
        sum += s[m];
        along_gates += d_w[m] * s[m];
        along_weights += d_w[m] * w[m];
    }
    const S norm = length(s);
    const bool is_short =
        routing_details::real_part(norm) < routing_details::real_part(options.epsilon);
    std::vector<S> d_s(s.size());
    if (is_detached(options, s)) return d_s;
    for (std::size_t m = 0; m < s.size(); ++m)
        switch (options.normaliser) {
        case normaliser_kind::sum:
            d_s[m] = d_w[m] / sum - along_gates / (sum * sum);
            break;
        case normaliser_kind::average_correction:
            d_s[m] = d_w[m] * average_correction<S>(heads, s.size());
            break;
        case normaliser_kind::l2:
            d_s[m] = is_short ? d_w[m] / options.epsilon
                              : d_w[m] / norm - s[m] * along_gates / (norm * norm * norm);
            break;
        case normaliser_kind::softmax:
            d_s[m] = w[m] * d_w[m] - w[m] * along_weights;
            break;
        }
    return d_s;
}

namespace routing_details {
template <class S>
std::vector<S> gates_of_head(const routing_options<S>& options, tensor_view<const S, 3> logits,
                             index_t task, index_t n, index_t h) {
    std::vector<S> gates;
    for (index_t m = 0; m < logits.extent(2); ++m)
        gates.push_back(gate_value(options, logits(task, h, m), n, h, m, logits.extent(2)));
    return gates;
}
} // namespace routing_details

/// weights[n, h, .] = annealing normalise(gates of logits[tasks[n], h, .]) + (1 - annealing) /
/// modules.
template <class S>
void router_forward(tensor_view<const S, 3> logits, tensor_view<const index_t, 1> tasks,
                    const routing_options<S>& options, tensor_view<S, 3> weights) {
    for (index_t n = 0; n < weights.extent(0); ++n)
        for (index_t h = 0; h < weights.extent(1); ++h) {
            const std::vector<S> w =
                normalise(options, weights.extent(1),
                          routing_details::gates_of_head(options, logits, tasks(n), n, h));
            for (index_t m = 0; m < weights.extent(2); ++m)
                weights(n, h, m) =
                    options.annealing * w[static_cast<std::size_t>(m)] +
                    (S(1) - options.annealing) / S(static_cast<double>(weights.extent(2)));
        }
}

/// d_logits[tasks[n], h, m] += gate_slope normalise_backward(annealing d_weights[n, h, .])[m].
template <class S>
void router_backward(tensor_view<const S, 3> logits, tensor_view<const index_t, 1> tasks,
                     const routing_options<S>& options, tensor_view<const S, 3> d_weights,
                     tensor_view<S, 3> d_logits) {
    const index_t modules = d_weights.extent(2);
    for (index_t n = 0; n < d_weights.extent(0); ++n)
        for (index_t h = 0; h < d_weights.extent(1); ++h) {
            std::vector<S> d_w;
            for (index_t m = 0; m < modules; ++m)
                d_w.push_back(options.annealing * d_weights(n, h, m));
            const std::vector<S> d_s = normalise_backward(
                options, d_weights.extent(1),
                routing_details::gates_of_head(options, logits, tasks(n), n, h), d_w);
            for (index_t m = 0; m < modules; ++m)
                d_logits(tasks(n), h, m) +=
                    d_s[static_cast<std::size_t>(m)] *
                    gate_slope(options, logits(tasks(n), h, m), n, h, m, modules);
        }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

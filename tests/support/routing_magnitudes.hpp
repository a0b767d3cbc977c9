#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include <mhr/core/tensor_view.hpp>
#include <mhr/reference/routing.hpp>

#include "support/tensor.hpp"

/// \file
/// Bounds of the rounding errors of routing: what the oracle on absolute values is for the linear
/// operations. Everything is added up that enters a weight or a gradient, and what the roundings of
/// the gates do to it, so that a bound is a small number of roundings of it.

namespace mhr::test {

/// One head of one entry: its gates, and how far a rounding moves them.
template <class S>
struct rounded_head {
    std::vector<S> gates;
    std::vector<S> errors; ///< of the gates, in roundings
    S condition = 1;       ///< 1 + the largest error of an argument of a gate

    rounded_head(const reference::routing_options<S>& options,
                 const tensor_view<const S, 3>& logits, index_t task, index_t n, index_t h) {
        const index_t modules = logits.extent(2);
        for (index_t m = 0; m < modules; ++m) {
            const S logit = logits(task, h, m);
            // Without noise the argument is the logit itself, exactly.
            S terms = 0;
            if (!options.noise.absent())
                terms = std::abs(logit) + std::abs(options.noise_scale * options.noise(n, h, m));
            if (!options.uniforms.absent()) {
                const S u = options.uniforms(n, h, m);
                terms = (std::max(terms, std::abs(logit)) + std::abs(std::log(u)) +
                         std::abs(std::log(1 - u))) /
                        options.temperature;
            }
            const bool exact = options.gate == reference::gate_kind::identity;
            const S gate = reference::gate_value(options, logit, n, h, m, modules);
            // gate_slope is by the logit, the argument is that over the temperature.
            const S slope = reference::gate_slope(options, logit, n, h, m, modules) *
                            (options.uniforms.absent() ? S(1) : options.temperature);
            gates.push_back(gate);
            errors.push_back((exact ? S(0) : std::abs(gate)) + std::abs(slope) * terms);
            condition = std::max(condition, 1 + terms);
        }
    }
};

/// The magnitudes of the weights of a head, before annealing.
template <class S>
std::vector<S> normalised_magnitudes(const reference::routing_options<S>& options, index_t heads,
                                     const rounded_head<S>& head) {
    using reference::normaliser_kind;
    const std::vector<S>& s = head.gates;
    const S correction = reference::average_correction<S>(heads, s.size());
    std::vector<S> w = reference::normalise(options, heads, s);
    const S largest = s.empty() ? S(0) : *std::max_element(s.begin(), s.end());
    // The relative error of the divisor.
    S sum = options.epsilon;
    S errors = 0;
    S of_length = 0;
    S of_exponentials = 0;
    const auto error_of_exponent = [&](std::size_t m) {
        return head.condition - 1 + std::abs(s[m] - largest) / 2;
    };
    for (std::size_t m = 0; m < s.size(); ++m) {
        sum += s[m];
        errors += head.errors[m];
        of_length += std::abs(s[m]) * head.errors[m];
        of_exponentials += std::abs(w[m]) * error_of_exponent(m);
    }
    const S norm = std::max(reference::length(s), options.epsilon);
    for (std::size_t m = 0; m < s.size(); ++m) {
        const S weight = std::abs(w[m]);
        switch (options.normaliser) {
        case normaliser_kind::sum:
            w[m] = weight * (1 + errors / sum) + head.errors[m] / sum;
            break;
        case normaliser_kind::average_correction:
            w[m] = weight + head.errors[m] * correction;
            break;
        case normaliser_kind::l2:
            w[m] = weight * (1 + of_length / (norm * norm)) + head.errors[m] / norm;
            break;
        case normaliser_kind::softmax:
            w[m] = weight * (1 + error_of_exponent(m) + of_exponentials);
            break;
        }
    }
    return w;
}

/// The magnitudes of the gradient of the gates of a head: each term of normalise_backward.
template <class S>
std::vector<S> gate_gradient_magnitudes(const reference::routing_options<S>& options, index_t heads,
                                        const rounded_head<S>& head, const std::vector<S>& d_w) {
    using reference::normaliser_kind;
    const std::vector<S>& s = head.gates;
    const S correction = reference::average_correction<S>(heads, s.size());
    const std::vector<S> weights = normalised_magnitudes(options, heads, head);
    S sum = options.epsilon;
    S along_gates = 0;
    S along_weights = 0;
    S of_length = 0;
    for (std::size_t m = 0; m < s.size(); ++m) {
        sum += s[m];
        along_gates += std::abs(d_w[m]) * (std::abs(s[m]) + head.errors[m]);
        along_weights += std::abs(d_w[m]) * weights[m];
        of_length += std::abs(s[m]) * head.errors[m];
    }
    const S norm = std::max(reference::length(s), options.epsilon);
    std::vector<S> result(s.size());
    if (reference::is_detached(options, s)) return result;
    for (std::size_t m = 0; m < s.size(); ++m) {
        const S d = std::abs(d_w[m]);
        const S gate = std::abs(s[m]) + head.errors[m];
        switch (options.normaliser) {
        case normaliser_kind::sum:
            result[m] = (d / sum + along_gates / (sum * sum)) * head.condition;
            break;
        case normaliser_kind::average_correction:
            result[m] = d * correction * head.condition;
            break;
        case normaliser_kind::l2:
            result[m] = (d / norm + gate * along_gates / (norm * norm * norm)) *
                        (1 + 3 * of_length / (norm * norm));
            break;
        case normaliser_kind::softmax:
            result[m] = weights[m] * d + weights[m] * along_weights;
            break;
        }
    }
    return result;
}

/// The magnitudes of router_forward's weights.
template <class S>
tensor<S, 3> weight_magnitudes(const tensor_view<const S, 3>& logits,
                               const tensor_view<const index_t, 1>& tasks,
                               const reference::routing_options<S>& options) {
    tensor<S, 3> result({tasks.extent(0), logits.extent(1), logits.extent(2)});
    for (index_t n = 0; n < tasks.extent(0); ++n)
        for (index_t h = 0; h < logits.extent(1); ++h) {
            const auto w = normalised_magnitudes(options, logits.extent(1),
                                                 rounded_head<S>(options, logits, tasks(n), n, h));
            for (index_t m = 0; m < logits.extent(2); ++m)
                result(n, h, m) = options.annealing * w[static_cast<std::size_t>(m)] +
                                  (1 - options.annealing) / S(logits.extent(2));
        }
    return result;
}

/// The magnitudes of router_backward's contributions to d_logits.
template <class S>
tensor<S, 3> logit_gradient_magnitudes(const tensor_view<const S, 3>& logits,
                                       const tensor_view<const index_t, 1>& tasks,
                                       const reference::routing_options<S>& options,
                                       const tensor_view<const S, 3>& d_weights) {
    tensor<S, 3> result(logits.extents());
    const index_t modules = logits.extent(2);
    for (index_t n = 0; n < tasks.extent(0); ++n)
        for (index_t h = 0; h < logits.extent(1); ++h) {
            std::vector<S> d_w;
            for (index_t m = 0; m < modules; ++m)
                d_w.push_back(options.annealing * d_weights(n, h, m));
            const auto d_s = gate_gradient_magnitudes(
                options, logits.extent(1), rounded_head<S>(options, logits, tasks(n), n, h), d_w);
            for (index_t m = 0; m < modules; ++m)
                result(tasks(n), h, m) +=
                    d_s[static_cast<std::size_t>(m)] *
                    reference::gate_slope(options, logits(tasks(n), h, m), n, h, m, modules);
        }
    return result;
}

} // namespace mhr::test

#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/reference/routing.hpp>

/// \file
/// Oracles of the routers of rows: plain loops from the formulas, generic in the scalar type. No
/// checks, no speed.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// logits[row, m] = sum over i of x[row, i] gate[i, m] + bias[m]; an absent bias is 0.
template <class S>
void row_gate_forward(tensor_view<const S, 2> x, tensor_view<const S, 2> gate,
                      tensor_view<const S, 1> bias, tensor_view<S, 2> logits) {
    for (index_t row = 0; row < x.extent(0); ++row)
        for (index_t m = 0; m < gate.extent(1); ++m) {
            logits(row, m) = bias.absent() ? S(0) : bias(m);
            for (index_t i = 0; i < x.extent(1); ++i)
                logits(row, m) += x(row, i) * gate(i, m);
        }
}

/// d_x[row, i] += d_logits[row, m] gate[i, m], d_gate[i, m] += x[row, i] d_logits[row, m] and
/// d_bias[m] += d_logits[row, m], summed over what the left does not have.
template <class S>
void row_gate_backward(tensor_view<const S, 2> x, tensor_view<const S, 2> gate,
                       tensor_view<const S, 2> d_logits, tensor_view<S, 2> d_x,
                       tensor_view<S, 2> d_gate, tensor_view<S, 1> d_bias) {
    for (index_t row = 0; row < x.extent(0); ++row)
        for (index_t m = 0; m < gate.extent(1); ++m) {
            const S d = d_logits(row, m);
            d_bias(m) += d;
            for (index_t i = 0; i < x.extent(1); ++i) {
                d_x(row, i) += d * gate(i, m);
                d_gate(i, m) += x(row, i) * d;
            }
        }
}

/// y = (x - mean) / sqrt(variance + 1e-5), or x / max(|x|, 1e-8), of each row.
template <class S>
void row_norm_forward(bool is_layer, tensor_view<const S, 2> x, tensor_view<S, 2> y) {
    using std::sqrt;
    const S n = S(static_cast<double>(x.extent(1)));
    for (index_t row = 0; row < x.extent(0); ++row) {
        S mean = S(0);
        S squares = S(0);
        for (index_t i = 0; i < x.extent(1) && is_layer; ++i)
            mean += x(row, i) / n;
        for (index_t i = 0; i < x.extent(1); ++i)
            squares += (x(row, i) - mean) * (x(row, i) - mean);
        S divisor = is_layer ? sqrt(squares / n + S(1e-5)) : sqrt(squares);
        if (routing_details::real_part(divisor) < 1e-8) divisor = S(1e-8);
        for (index_t i = 0; i < x.extent(1); ++i)
            y(row, i) = (x(row, i) - mean) / divisor;
    }
}

/// With y the row that the forward gives and s its divisor,
///   layer: d_x += (d_y - mean d_y - y mean (y d_y)) / s
///   unit:  d_x += (d_y - y sum (y d_y)) / s, without the second term where s is 1e-8.
template <class S>
void row_norm_backward(bool is_layer, tensor_view<const S, 2> x, tensor_view<const S, 2> d_y,
                       tensor_view<S, 2> d_x) {
    using std::sqrt;
    const index_t n = x.extent(1);
    const S count = S(static_cast<double>(n));
    for (index_t row = 0; row < x.extent(0); ++row) {
        S mean = S(0);
        S squares = S(0);
        S mean_d = S(0);
        S along = S(0);
        for (index_t i = 0; i < n && is_layer; ++i) {
            mean += x(row, i) / count;
            mean_d += d_y(row, i) / count;
        }
        for (index_t i = 0; i < n; ++i)
            squares += (x(row, i) - mean) * (x(row, i) - mean);
        S divisor = is_layer ? sqrt(squares / count + S(1e-5)) : sqrt(squares);
        const bool is_short = routing_details::real_part(divisor) < 1e-8;
        if (is_short) divisor = S(1e-8);
        for (index_t i = 0; i < n && !is_short; ++i)
            along += (x(row, i) - mean) / divisor * d_y(row, i) / (is_layer ? count : S(1));
        for (index_t i = 0; i < n; ++i)
            d_x(row, i) += (d_y(row, i) - mean_d - (x(row, i) - mean) / divisor * along) / divisor;
    }
}

/// What becomes of the gates of a row: those that are kept, their softmax, the softmax of all of
/// which some are kept, or the softmax of those that are kept and not 0.
enum class row_weights_kind { kept, softmax_of_kept, softmax_of_all, softmax_of_nonzero };

/// How logits become row weights.
template <class S>
struct row_weights_options {
    bool magnitude = false;                               ///< |l| for l
    S temperature = S(1);                                 ///< l / temperature
    index_t kept = (std::numeric_limits<index_t>::max)(); ///< of the modules
    row_weights_kind kind = row_weights_kind::kept;       ///< of what is kept
    S factor = S(1);                                      ///< of the weights
    tensor_view<const S, 1> factors{};                    ///< [modules], or absent
};

namespace row_routing_details {

/// The gates of one row, and d gate / d logit.
template <class S>
std::vector<S> gates_of(const row_weights_options<S>& options, tensor_view<const S, 1> logits,
                        std::vector<S>* slopes = nullptr) {
    std::vector<S> s;
    for (index_t m = 0; m < logits.extent(0); ++m) {
        const auto real = mhr::reference::routing_details::real_part(logits(m));
        const S sign = !options.magnitude ? S(1) : S(real > 0 ? 1 : real < 0 ? -1 : 0);
        s.push_back(sign * logits(m) / options.temperature);
        if (slopes != nullptr) slopes->push_back(sign / options.temperature);
    }
    return s;
}

template <class S>
S factor_of(const row_weights_options<S>& options, std::size_t m) {
    return options.factors.absent() ? options.factor
                                    : options.factor * options.factors(static_cast<index_t>(m));
}

/// Whether a module takes part in the sum of the softmax, and whether it has a weight.
template <class S>
bool is_summed(const row_weights_options<S>& options, const std::vector<S>& s, std::size_t m) {
    if (options.kind == row_weights_kind::softmax_of_all) return true;
    if (options.kind == row_weights_kind::softmax_of_nonzero &&
        mhr::is_exactly(mhr::reference::routing_details::real_part(s[m]), 0))
        return false;
    return is_kept(s, m, options.kept);
}

/// The softmax over the modules that are summed.
template <class S>
std::vector<S> softmax_of(const row_weights_options<S>& options, const std::vector<S>& s) {
    using std::exp;
    std::vector<S> p(s.size());
    S sum = S(0);
    for (std::size_t m = 0; m < s.size(); ++m)
        if (is_summed(options, s, m)) sum += p[m] = exp(s[m]);
    for (std::size_t m = 0; m < s.size(); ++m)
        if (is_summed(options, s, m)) p[m] /= sum;
    return p;
}

} // namespace row_routing_details

/// weights[row, m] from logits[row, m] as the options say.
template <class S>
void row_weights_forward(const row_weights_options<S>& options, tensor_view<const S, 2> logits,
                         tensor_view<S, 2> weights) {
    using namespace row_routing_details;
    for (index_t row = 0; row < logits.extent(0); ++row) {
        const std::vector<S> s = gates_of(options, logits.slice(0, row));
        const std::vector<S> p =
            options.kind == row_weights_kind::kept ? s : softmax_of(options, s);
        for (std::size_t m = 0; m < s.size(); ++m)
            weights(row, static_cast<index_t>(m)) =
                is_kept(s, m, options.kept) ? factor_of(options, m) * p[m] : S(0);
    }
}

/// d_logits[row, m] += slope d_s[m], where d_s is d_w of what is kept, or p (d_w - sum of p d_w) of
/// what the softmax sums.
template <class S>
void row_weights_backward(const row_weights_options<S>& options, tensor_view<const S, 2> logits,
                          tensor_view<const S, 2> d_weights, tensor_view<S, 2> d_logits) {
    using namespace row_routing_details;
    for (index_t row = 0; row < logits.extent(0); ++row) {
        std::vector<S> slopes;
        const std::vector<S> s = gates_of(options, logits.slice(0, row), &slopes);
        const std::vector<S> p = softmax_of(options, s);
        std::vector<S> d_w(s.size());
        S along = S(0);
        for (std::size_t m = 0; m < s.size(); ++m) {
            if (is_kept(s, m, options.kept))
                d_w[m] = factor_of(options, m) * d_weights(row, static_cast<index_t>(m));
            along += p[m] * d_w[m];
        }
        for (std::size_t m = 0; m < s.size(); ++m)
            d_logits(row, static_cast<index_t>(m)) +=
                slopes[m] *
                (options.kind == row_weights_kind::kept ? d_w[m] : p[m] * (d_w[m] - along));
    }
}

/// modules sum over m of (share of rows whose weight is not 0) (mean over rows of probability).
template <class S>
S load_balancing_loss(tensor_view<const S, 2> probabilities, tensor_view<const S, 2> weights) {
    const S rows = S(static_cast<double>(weights.extent(0)));
    S loss = S(0);
    for (index_t m = 0; m < weights.extent(1); ++m) {
        S users = S(0);
        S sum = S(0);
        for (index_t row = 0; row < weights.extent(0); ++row) {
            if (!mhr::is_exactly(routing_details::real_part(weights(row, m)), 0)) users += S(1);
            sum += probabilities(row, m);
        }
        loss += users / rows * (sum / rows);
    }
    return S(static_cast<double>(weights.extent(1))) * loss;
}

/// d_probabilities[row, m] += d_loss modules (share of rows whose weight is not 0) / rows.
template <class S>
void load_balancing_loss_backward(tensor_view<const S, 2> weights, S d_loss,
                                  tensor_view<S, 2> d_probabilities) {
    const S rows = S(static_cast<double>(weights.extent(0)));
    for (index_t m = 0; m < weights.extent(1); ++m) {
        S users = S(0);
        for (index_t row = 0; row < weights.extent(0); ++row)
            if (!mhr::is_exactly(routing_details::real_part(weights(row, m)), 0)) users += S(1);
        for (index_t row = 0; row < weights.extent(0); ++row)
            d_probabilities(row, m) +=
                d_loss * S(static_cast<double>(weights.extent(1))) * users / rows / rows;
    }
}

/// pooled[g] = mean of x over the rows whose entry is g; -1 is none.
template <class S>
void pool_rows_forward(tensor_view<const index_t, 1> entry_of_row, tensor_view<const S, 2> x,
                       tensor_view<S, 2> pooled) {
    for (index_t g = 0; g < pooled.extent(0); ++g)
        for (index_t i = 0; i < x.extent(1); ++i) {
            S sum = S(0);
            S rows = S(0);
            for (index_t row = 0; row < x.extent(0); ++row)
                if (entry_of_row(row) == g) {
                    sum += x(row, i);
                    rows += S(1);
                }
            pooled(g, i) = sum / rows;
        }
}

/// d_x[row] += d_pooled[g] / number of rows of g.
template <class S>
void pool_rows_backward(tensor_view<const index_t, 1> entry_of_row,
                        tensor_view<const S, 2> d_pooled, tensor_view<S, 2> d_x) {
    for (index_t row = 0; row < d_x.extent(0); ++row) {
        const index_t g = entry_of_row(row);
        if (g < 0) continue;
        S rows = S(0);
        for (index_t other = 0; other < d_x.extent(0); ++other)
            if (entry_of_row(other) == g) rows += S(1);
        for (index_t i = 0; i < d_x.extent(1); ++i)
            d_x(row, i) += d_pooled(g, i) / rows;
    }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

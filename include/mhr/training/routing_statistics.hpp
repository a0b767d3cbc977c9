#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/routing/gates.hpp>

/// \file
/// Statistics of a routing table: how many gates are open, how decided they are, how evenly the
/// modules are used, and how many modules a task's weights really mix.

namespace mhr {

/// Three numbers in [0, 1] on a table of logits; see routing_statistics_of.
struct routing_statistics {
    double active_share; ///< share of the gates that are more open than shut
    double discreteness; ///< mean entropy of a gate in bits: 1 undecided, 0 discrete
    double efficiency;   ///< entropy of the modules' use over its maximum: 1 evenly used
};

inline namespace MHR_ISA {
namespace statistics_details {

/// The entropy of a gate that is open with probability sigmoid(logit), in bits. Both terms are of
/// the likelier side's complement, so that nothing cancels: with e = exp(-|logit|), the entropy is
/// log(1 + e) + |logit| e / (1 + e) nats.
inline double gate_entropy(double logit) noexcept {
    const double magnitude = (std::abs)(logit);
    const double e = std::exp(-magnitude);
    if (!(e > 0)) return 0; // an infinite magnitude times 0 would be NaN
    return (std::log1p(e) + magnitude * e / (1 + e)) / std::log(2.0);
}

/// Entropy of the modules' mean gates, normalised to 1, over the logarithm of their number.
inline double module_efficiency(const const_tensor_ref<3>& logits) noexcept {
    const index_t heads = logits.extent(1);
    const index_t modules = logits.extent(2);
    if (heads * modules == 1) return 1;
    // Summed twice rather than stored: tables are small.
    const auto use_of = [&](index_t h, index_t m) {
        double sum = 0;
        for (index_t t = 0; t < logits.extent(0); ++t)
            sum += gate_details::stable_sigmoid(read_element(logits, t, h, m));
        return sum;
    };
    double total = 0;
    for (index_t h = 0; h < heads; ++h)
        for (index_t m = 0; m < modules; ++m)
            total += use_of(h, m);
    if (!(total > 0)) return 0;
    constexpr double epsilon = std::numeric_limits<double>::epsilon();
    double entropy = 0;
    for (index_t h = 0; h < heads; ++h)
        for (index_t m = 0; m < modules; ++m) {
            const double share = use_of(h, m) / total;
            entropy -= share * std::log(std::clamp(share, epsilon, 1 - epsilon));
        }
    return entropy / std::log(static_cast<double>(heads * modules));
}

} // namespace statistics_details

/// The statistics of a routing table that the paper's code logs, with p = sigmoid(logits):
///     active_share   the share of the logits with p >= 1/2, which are those of 0 and more
///     discreteness   mean of -p log2 p - (1 - p) log2(1 - p)
///     efficiency     -sum over heads and modules of c log c / log(heads modules), c the mean of p
///                    over the tasks, normalised to the sum 1
///
/// logits [tasks, heads, modules]; of several tables (layers), take the mean of the results. They
/// are right for every logit, infinite ones too; as in that code, log c is taken of c inside
/// [e, 1 - e], e being the epsilon of f64. A single module of a single head is used evenly: its
/// efficiency is 1 (where that code divides by 0). Where every gate is shut for good (the sigmoid
/// is 0 in f64), efficiency is 0. A table without elements, and one with a NaN, gives NaN.
///
/// These are refused: extents below 0, or elements without memory. The cost is four exponentials
/// for each logit.
inline routing_statistics routing_statistics_of(const const_tensor_ref<3>& logits) {
    argument_checks checks("routing_statistics_of");
    checks.input("logits", logits);
    checks.raise();
    constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
    double active = 0;
    double entropy = 0;
    for (index_t t = 0; t < logits.extent(0); ++t)
        for (index_t h = 0; h < logits.extent(1); ++h)
            for (index_t m = 0; m < logits.extent(2); ++m) {
                const double logit = read_element(logits, t, h, m);
                if (std::isnan(logit)) return {not_a_number, not_a_number, not_a_number};
                active += logit >= 0 ? 1 : 0;
                entropy += statistics_details::gate_entropy(logit);
            }
    if (logits.size() == 0) return {not_a_number, not_a_number, not_a_number};
    const auto count = static_cast<double>(logits.size());
    return {active / count, entropy / count, statistics_details::module_efficiency(logits)};
}

namespace statistics_details {

/// The entropy in bits of weights that are 0 or more, normalised to the sum 1.
inline double weights_entropy(const const_tensor_ref<1>& weights) noexcept {
    double largest = 0;
    for (index_t m = 0; m < weights.extent(0); ++m)
        largest = (std::max)(largest, read_element(weights, m));
    if (!(largest > 0)) return 0;
    // With c = weight / largest, whose sum cannot overflow: log2(sum c) - sum(c log2 c) / sum c.
    double sum = 0;
    double sum_of_logs = 0;
    for (index_t m = 0; m < weights.extent(0); ++m) {
        const double c = read_element(weights, m) / largest;
        sum += c;
        if (c > 0) sum_of_logs -= c * std::log2(c);
    }
    return std::log2(sum) + sum_of_logs / sum;
}

} // namespace statistics_details

/// entropy[t, h] = -sum over modules of c log2 c, with c the weights[t, h] normalised to the sum 1:
/// how many bits a choice among the modules of that head has. It is 0 where one module is used
/// alone, and log2(modules) where all are used alike; 2^entropy counts the modules that are really
/// mixed. A head of all-zero weights mixes nothing and has 0.
///
/// weights [tasks, heads, modules], finite and not negative (those of an L2-normalised router may
/// be negative: they are no shares, and are refused); entropy [tasks, heads], overwritten.
///
/// These are refused: an entropy of other extents, or two of whose elements overlap; a weight that
/// is negative or not finite. The cost is one logarithm for each weight.
inline void routing_entropy(const const_tensor_ref<3>& weights, const tensor_ref<2>& entropy) {
    argument_checks checks("routing_entropy");
    checks.input("weights", weights);
    checks.output("entropy", entropy, {weights.extent(0), weights.extent(1)});
    for (index_t t = 0; checks.passed() && t < weights.extent(0); ++t)
        for (index_t h = 0; checks.passed() && h < weights.extent(1); ++h)
            for (index_t m = 0; checks.passed() && m < weights.extent(2); ++m) {
                const double weight = read_element(weights, t, h, m);
                checks.expect(weight >= 0 && std::isfinite(weight), "weights",
                              "finite numbers, 0 and more",
                              joined(weight, " at ", std::array<index_t, 3>{t, h, m}));
            }
    checks.raise();
    for (index_t t = 0; t < weights.extent(0); ++t)
        for (index_t h = 0; h < weights.extent(1); ++h)
            write_element(statistics_details::weights_entropy(weights.slice(0, t).slice(0, h)),
                          entropy, t, h);
}

} // namespace MHR_ISA
} // namespace mhr

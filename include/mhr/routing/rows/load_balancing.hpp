#pragma once

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// The auxiliary loss that keeps a router of rows from using few of its modules.

namespace mhr {
inline namespace MHR_ISA {

/// modules sum over m of f[m] P[m], where f[m] is the share of rows that use module m (whose weight
/// is not 0) and P[m] the mean over rows of its probability (Fedus et al. 2022, arXiv 2101.03961,
/// equations 4 to 6, without their factor alpha; Li et al. 2024, arXiv 2404.15159, equation 4, for
/// MixLoRA, whose rows use k modules each). It is 1, with k modules a row k, if all modules are
/// used alike.
///
/// probabilities [rows, modules], the softmax over all modules (row_weights_forward with
/// softmax_normaliser{}); weights [rows, modules], the row weights. It returns 0 for no rows. The
/// sums are in f64.
///
/// These are refused: tensors of other shapes or without memory. The cost is rows modules
/// additions.
inline double load_balancing_loss_forward(const const_tensor_ref<2>& probabilities,
                                          const const_tensor_ref<2>& weights);

/// The backward of load_balancing_loss_forward, with the shares f held constant, as they are
/// counts: d_probabilities[row, m] += d_loss modules f[m] / rows.
///
/// weights [rows, modules]; d_probabilities [rows, modules] accumulates. `d_loss` is the factor of
/// the loss in what is minimised (alpha, .01 to Fedus et al.).
///
/// These are refused: tensors of other shapes or without memory; d_probabilities of which elements
/// overlap. The cost is rows modules additions.
inline void load_balancing_loss_backward(const const_tensor_ref<2>& weights, double d_loss,
                                         const tensor_ref<2>& d_probabilities);

namespace load_balancing_details {

/// The numbers of one module, those of all rows.
inline element_row<double> column_of(const const_tensor_ref<2>& values, index_t module) noexcept {
    return {values.type(), values.address_of(0, module), values.stride(0), values.extent(0)};
}

/// The share of rows that use a module.
inline double share_of(const const_tensor_ref<2>& weights, index_t module) noexcept {
    const element_row<double> numbers = column_of(weights, module);
    index_t users = 0;
    for (index_t row = 0; row < weights.extent(0); ++row)
        users += !is_exactly(numbers[row], 0);
    return static_cast<double>(users) / static_cast<double>(weights.extent(0));
}

} // namespace load_balancing_details

inline double load_balancing_loss_forward(const const_tensor_ref<2>& probabilities,
                                          const const_tensor_ref<2>& weights) {
    argument_checks checks("load_balancing_loss_forward");
    checks.input("probabilities", probabilities);
    checks.input("weights", weights, probabilities.extents());
    checks.raise();
    const index_t rows = weights.extent(0);
    const index_t modules = weights.extent(1);
    double loss = 0;
    for (index_t m = 0; m < modules && rows > 0; ++m) {
        const element_row<double> numbers = load_balancing_details::column_of(probabilities, m);
        double sum = 0;
        for (index_t row = 0; row < rows; ++row)
            sum += numbers[row];
        loss += load_balancing_details::share_of(weights, m) * sum / static_cast<double>(rows);
    }
    return static_cast<double>(modules) * loss;
}

inline void load_balancing_loss_backward(const const_tensor_ref<2>& weights, double d_loss,
                                         const tensor_ref<2>& d_probabilities) {
    argument_checks checks("load_balancing_loss_backward");
    checks.input("weights", weights);
    checks.output("d_probabilities", d_probabilities, weights.extents());
    checks.raise();
    const index_t rows = weights.extent(0);
    const double factor =
        d_loss * static_cast<double>(weights.extent(1)) / static_cast<double>(rows);
    for (index_t m = 0; m < weights.extent(1) && rows > 0; ++m) {
        const double d = factor * load_balancing_details::share_of(weights, m);
        const element_row_output<double> to(
            d_probabilities.type(), d_probabilities.address_of(0, m), d_probabilities.stride(0));
        for (index_t row = 0; row < rows; ++row)
            to.add(row, d);
    }
}

} // namespace MHR_ISA
} // namespace mhr

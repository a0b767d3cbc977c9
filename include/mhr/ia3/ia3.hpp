#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// (IA)3 with ready scales, one vector for each distinct task of a batch (`prepend_axis()` makes a
/// vector [features] the scales of a plan of one task). ia3/routed_ia3.hpp does the mixing as well.

namespace mhr {

/// The scales that the entries of a batch are multiplied with.
struct ia3 {
    const_tensor_ref<2> scales; ///< [entries, features]
};

/// The gradients that a backward computes. Each is added to; one that is absent is not computed.
struct ia3_gradients {
    tensor_ref<2> x{};      ///< [rows, features]
    tensor_ref<2> scales{}; ///< [entries, features]
};

inline namespace MHR_ISA {

/// Why ia3_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& y);

/// y[row, i] = x[row, i] scales[g, i] for every row that has a task, g the row's entry in the plan
/// (Liu et al. 2022, arXiv 2205.05638, section 3.3), and y[row] = x[row] for rows of no task. It is
/// computed in f64 if a tensor is f64, else in f32.
///
/// x [rows, features] is what the host has at the adapted place, such as the output of a linear
/// layer: with its bias, if that is to be scaled too, as the papers' code does; y [rows, features],
/// overwritten.
///
/// y may *be* x (one pointer, one type, equal strides): the rows of tasks are then scaled where
/// they are, those of no task not touched. Otherwise y must not overlap x. The backward to scales
/// wants x as it was.
///
/// It has one phase. These are refused: shapes that do not fit; a y two of whose elements overlap.
/// The cost is rows features multiplications; x is read and y written once.
inline void ia3_forward(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                        const tensor_ref<2>& y);

/// The backward of ia3_forward:
///     gradients.x[row, i] += d_y[row, i] scales[g, i], and d_y[row, i] for rows of no task
///     gradients.scales[g, i] += sum over the rows of g of x[row, i] d_y[row, i]
///
/// d_y [rows, features]; neither gradient may overlap an input.
///
/// x is that of the forward. A host that worked in place has to keep a copy for the gradient of
/// scales (dividing y by the scales fails where one is 0); without that gradient x is not read, and
/// may be y.
///
/// It has one phase. These are refused: shapes that do not fit; a gradient two of whose elements
/// overlap. The cost is rows features multiply-adds for each gradient.
inline void ia3_backward(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                         const const_tensor_ref<2>& d_y, const ia3_gradients& gradients);

namespace ia3_details {

/// The rows that one part of the work rescales, and their entry: -1 for rows of no task.
struct rescaled_rows {
    index_t entry;
    row_set rows;
};

/// The blocks of the plan come first, then the rows of no task in blocks of the same size.
/// @{
inline index_t rescaling_parts(const batch_plan& plan) noexcept {
    constexpr index_t size = batch_details::rows_per_block;
    return static_cast<index_t>(plan.data().blocks.size()) +
           (plan.base_rows().extent(0) + size - 1) / size;
}
inline rescaled_rows rescaling_part(const batch_plan& plan, index_t part) noexcept {
    const auto blocks = static_cast<index_t>(plan.data().blocks.size());
    if (part < blocks) {
        const auto& block = plan.data().blocks[static_cast<std::size_t>(part)];
        return {block.entry, {plan.row_order().data() + block.first, block.count}};
    }
    constexpr index_t size = batch_details::rows_per_block;
    const auto rows = plan.base_rows();
    const index_t first = (part - blocks) * size;
    return {-1, {rows.data() + first, (std::min)(size, rows.extent(0) - first)}};
}
/// @}

inline void check_layer(argument_checks& checks, const batch& rows, const ia3& layer,
                        const const_tensor_ref<2>& x) {
    checks.input("x", x, {rows.plan.rows(), any_extent});
    checks.input("layer.scales", layer.scales, {rows.plan.entries(), x.extent(1)});
}

inline argument_checks check_forward(const batch& rows, const ia3& layer,
                                     const const_tensor_ref<2>& x, const tensor_ref<2>& y) {
    argument_checks checks("ia3_forward");
    check_layer(checks, rows, layer, x);
    checks.output("y", y, x.extents());
    return checks;
}

/// ia3_forward without checks.
inline void forward(const batch& rows, const const_tensor_ref<2>& scales,
                    const const_tensor_ref<2>& x, const tensor_ref<2>& y) {
    if (y.size() == 0) return;
    const element_type sums = sums_of(sums_of(x.type(), scales.type()), y.type());
    const bool in_place = x.data() == y.data(); // or they would overlap
    rows.executor.run(rescaling_parts(rows.plan), [&](index_t part) noexcept {
        const auto [entry, numbers] = rescaling_part(rows.plan, part);
        if (entry >= 0)
            kernels::rescale_rows(numbers, x, scales.slice(0, entry), y, false, sums);
        else if (!in_place)
            kernels::rescale_rows(numbers, x, {}, y, false, sums);
    });
}

/// ia3_backward without checks.
inline void backward(const batch& rows, const const_tensor_ref<2>& scales,
                     const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                     const ia3_gradients& gradients) {
    if (x.size() == 0) return;
    if (!gradients.x.absent()) {
        const element_type sums = sums_of(sums_of(d_y.type(), scales.type()), gradients.x.type());
        rows.executor.run(rescaling_parts(rows.plan), [&](index_t part) noexcept {
            const auto [entry, numbers] = rescaling_part(rows.plan, part);
            kernels::rescale_rows(numbers, d_y,
                                  entry >= 0 ? scales.slice(0, entry) : const_tensor_ref<1>{},
                                  gradients.x, true, sums);
        });
    }
    if (!gradients.scales.absent()) {
        constexpr index_t features_per_part = 128;
        const element_type sums = sums_of(sums_of(x.type(), d_y.type()), gradients.scales.type());
        const index_t features = x.extent(1);
        const index_t parts = (features + features_per_part - 1) / features_per_part;
        rows.executor.run(rows.plan.entries() * parts, [&](index_t part) noexcept {
            const index_t entry = part / parts;
            const index_t first = part % parts * features_per_part;
            const index_t count = (std::min)(features_per_part, features - first);
            const auto numbers = rows.plan.rows_of(entry);
            kernels::add_products_of_rows({numbers.data(), numbers.extent(0)},
                                          x.block(1, first, count), d_y.block(1, first, count),
                                          gradients.scales.slice(0, entry).block(0, first, count),
                                          sums);
        });
    }
}

} // namespace ia3_details

inline std::string why_not(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& y) {
    return ia3_details::check_forward(rows, layer, x, y).why();
}

inline void ia3_forward(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                        const tensor_ref<2>& y) {
    ia3_details::check_forward(rows, layer, x, y).raise();
    ia3_details::forward(rows, layer.scales, x, y);
}

inline void ia3_backward(const batch& rows, const ia3& layer, const const_tensor_ref<2>& x,
                         const const_tensor_ref<2>& d_y, const ia3_gradients& gradients) {
    argument_checks checks("ia3_backward");
    ia3_details::check_layer(checks, rows, layer, x);
    checks.input("d_y", d_y, x.extents());
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.scales", gradients.scales, layer.scales.extents());
    checks.raise();
    ia3_details::backward(rows, layer.scales, x, d_y, gradients);
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

#include <mhr/adapters/lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/skinny_products.hpp>

/// \file
/// Merging one adapter into the weights of its base layer, which then costs what it cost without
/// any, and taking it out again. Weights are [out_features, in_features], as PyTorch stores them;
/// the other order is the same view with `.transpose(0, 1)`.
///
/// The adapter of one task, or the mean of an inventory, is made first:
///
///     mhr::mix_lora_forward(executor, weights_of_task, inventory, as_batch(adapter)); // [1, h, m]
///     mhr::merge_lora(executor, adapter, scale, weight);
///
/// with mhr::average_lora_forward(executor, inventory, adapter) for the mean.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Rows of a weight of which a part owns the changes, and columns whose sums it keeps on the stack.
inline constexpr index_t merged_rows_per_part = 24;
inline constexpr index_t merged_columns = 128;

/// weight[o, i] += factor sum over k of left[o, k] right[k, i], left [out, rank], right
/// [rank, in]. Elements whose sum is 0 keep their bits (-0 + 0 would be +0).
template <class P, class W>
void add_product(executor_ref executor, tensor_view<const P, 2> left, tensor_view<const P, 2> right,
                 double factor, tensor_view<W, 2> weight) {
    using A = accumulator_t<P, W>;
    constexpr index_t height = merged_rows_per_part;
    const index_t rows = weight.extent(0);
    const index_t n = weight.extent(1);
    executor.run((rows + height - 1) / height, [&](index_t part) noexcept {
        const index_t first = part * height;
        const index_t count = (std::min)(height, rows - first);
        index_t places[height]; // the rows of what is kept on the stack
        for (index_t r = 0; r < height; ++r)
            places[r] = r;
        for (index_t j0 = 0; j0 < n; j0 += merged_columns) {
            const index_t width = (std::min)(merged_columns, n - j0);
            A sum[as_size(height * merged_columns)] = {};
            const tensor_view<A, 2> sums(sum, {count, width}, {merged_columns, 1});
            expand(row_set{places, count}, left.block(0, first, count), right.block(1, j0, width),
                   factor, sums);
            for (index_t r = 0; r < count; ++r)
                for (index_t j = 0; j < width; ++j) {
                    W& target = weight(first + r, j0 + j);
                    if (!is_exactly(sums(r, j), 0)) target = store<W>(load<A>(target) + sums(r, j));
                }
        }
    });
}

template <class P, class W>
void add_lora(const char* function, executor_ref executor, const lora<P>& adapter, double factor,
              const tensor_view<W, 2>& weight) {
    require_input(function, "adapter.a", adapter.a, {any_extent, any_extent});
    require_input(function, "adapter.b", adapter.b, {adapter.a.extent(1), any_extent});
    require_output(function, "weight", weight, {adapter.b.extent(1), adapter.a.extent(0)});
    using V = std::remove_const_t<P>;
    const tensor_view<const V, 2> a = adapter.a;
    const tensor_view<const V, 2> b = adapter.b;
    // Along the memory of the weight; either way the sums are the same.
    if (weight.stride(0) == 1 && weight.stride(1) != 1)
        add_product(executor, a, b, factor, weight.transpose(0, 1));
    else
        add_product(executor, b.transpose(0, 1), a.transpose(0, 1), factor, weight);
}

} // namespace detail

/// weight += scale (a b)^T: the layer x weight^T then gives what it gave before plus the output of
/// lora_forward (Hu et al. 2022, arXiv 2106.09685, section 4.1).
///
/// adapter a [in_features, rank], b [rank, out_features]; weight [out_features, in_features],
/// rounded once to its type. Elements that the adapter does not change keep their bits: all of them
/// if scale or b is 0. weight must not overlap the adapter.
///
/// One phase. Errors: a shape; overlapping elements of weight. Cost: rank in out multiply-adds;
/// weight is read and written once.
template <class P, class W>
void merge_lora(executor_ref executor, lora<P> adapter, double scale, tensor_view<W, 2> weight) {
    detail::add_lora("merge_lora", executor, adapter, scale, weight);
}

/// weight -= scale (a b)^T: takes out what merge_lora, called with the same adapter and scale, has
/// added. What is subtracted is to the last bit what was added, and so only the rounding to the
/// type of weight is left: with u its unit roundoff (2^-24 for f32, 2^-11 for f16, 2^-8 for bf16)
/// and D = scale (a b)^T, each element is about
///     u (|weight + D| + |weight|), at most u (2 |weight| + |D|),
/// from what it was before the merge. These errors add up: a host that changes adapters often keeps
/// a copy of its weights, or does not merge.
///
/// Arguments, errors and cost as those of merge_lora.
template <class P, class W>
void unmerge_lora(executor_ref executor, lora<P> adapter, double scale, tensor_view<W, 2> weight) {
    detail::add_lora("unmerge_lora", executor, adapter, -scale, weight);
}

namespace detail {

template <bool Divide, class P, class T>
void rescale(const P& scale, T& target) noexcept {
    using A = accumulator_t<P, T>;
    const A factor = load<A>(scale);
    target = store<T>(Divide ? load<A>(target) / factor : load<A>(target) * factor);
}

template <bool Divide, class P, class W, class B>
void rescale_layer(const char* function, executor_ref executor, tensor_view<P, 1> scales,
                   tensor_view<W, 2> weight, tensor_view<B, 1> bias) {
    require_input(function, "scales", scales, {any_extent});
    require_output(function, "weight", weight, {scales.extent(0), any_extent});
    require_optional_output(function, "bias", bias, {scales.extent(0)});
    for (index_t row = 0; row < scales.extent(0); ++row) {
        const auto scale = load<accumulator_t<P>>(scales(row));
        require_that(
            std::isfinite(scale) && !detail::is_exactly(scale, 0), function, "scales",
            [] { return "finite numbers other than 0 (which no division takes back)"; },
            [&] { return std::to_string(scale) + " at position " + std::to_string(row); });
    }
    executor.run(scales.extent(0), [&](index_t row) noexcept {
        for (index_t i = 0; i < weight.extent(1); ++i)
            rescale<Divide>(scales(row), weight(row, i));
        if (!bias.absent()) rescale<Divide>(scales(row), bias(row));
    });
}

} // namespace detail

/// weight[o, i] *= scales[o] and bias[o] *= scales[o]: the layer then gives its output rescaled as
/// ia3_forward does it (Liu et al. 2022, arXiv 2205.05638, section 3.3). Where (IA)3 rescales the
/// *input* of a layer, as in feed-forward blocks, merge into `weight.transpose(0, 1)`, with
/// scales [in_features] and no bias.
///
/// scales [out_features], one task's or the mean; weight [out_features, in_features]; bias
/// [out_features], absent if there is none. weight and bias must overlap neither each other nor
/// scales.
///
/// One phase. Errors: a shape; overlapping elements of weight or bias; a scale that is 0 or not
/// finite, which would destroy a row of weight for good. Cost: in out multiplications.
template <class P, class W, class B = W>
void merge_ia3(executor_ref executor, tensor_view<P, 1> scales, tensor_view<W, 2> weight,
               tensor_view<B, 1> bias) {
    detail::rescale_layer<false>("merge_ia3", executor, scales, weight, bias);
}

/// weight[o, i] /= scales[o] and bias[o] /= scales[o]: takes out what merge_ia3, called with the
/// same scales, has multiplied. Two roundings are left, about 2 u |weight| with u the unit roundoff
/// of weight's type, unless the product left that type's range.
///
/// Arguments, errors and cost as those of merge_ia3, with divisions.
template <class P, class W, class B = W>
void unmerge_ia3(executor_ref executor, tensor_view<P, 1> scales, tensor_view<W, 2> weight,
                 tensor_view<B, 1> bias) {
    detail::rescale_layer<true>("unmerge_ia3", executor, scales, weight, bias);
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cmath>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/adapters.hpp>

/// \file
/// Merging one adapter into the base weights of its layer, which then costs what it cost without
/// any, and taking it out again. Base weights are [out_features, in_features], as PyTorch stores
/// them; the other order is the same tensor with `.transpose(0, 1)`.
///
/// The adapter of one task, or the average of an inventory, is made first:
///
///     const mhr::lora_matrices made{{a, {in, rank}}, {b, {rank, out}}};
///     mhr::average_lora_forward(executor, inventory, made);
///     mhr::merge_lora(executor, {made.a, made.b, scale}, {w, {out, in}});
///
/// with mhr::mix_lora_forward(executor, weights_of_task, inventory, {made.a.prepend_axis(),
/// made.b.prepend_axis()}) for the mixture of one task, whose weights are [1, heads, modules].

namespace mhr {
inline namespace MHR_ISA {

/// base_weight += scale (a b)^T: the layer x base_weight^T then gives what it gave before plus the
/// output of lora_forward (Hu et al. 2022, arXiv 2106.09685, section 4.1). Sums are f64 if a tensor
/// is, else f32.
///
/// base_weight [out_features, in_features] is rounded once to its type. Elements that the adapter
/// does not change keep their bits: all of them if scale or b is 0. base_weight must not overlap
/// the adapter.
///
/// It has one phase. These are refused: shapes that do not fit; a base_weight two of whose elements
/// overlap. The cost is rank in out multiply-adds; base_weight is read and written once.
inline void merge_lora(executor_ref executor, const lora& adapter,
                       const tensor_ref<2>& base_weight);

/// base_weight -= scale (a b)^T: takes out what merge_lora, called with the same adapter, has
/// added. What is subtracted is to the last bit what was added, and so only the rounding to the
/// type of base_weight is left: with u its unit roundoff (2^-24 for f32, 2^-11 for f16, 2^-8 for
/// bf16) and D = scale (a b)^T, each element is about
///     u (|base_weight + D| + |base_weight|), at most u (2 |base_weight| + |D|),
/// from what it was before the merge. These errors add up: a host that changes adapters often keeps
/// a copy of its base weights, or does not merge.
///
/// Arguments, what is refused and the cost are those of merge_lora.
inline void unmerge_lora(executor_ref executor, const lora& adapter,
                         const tensor_ref<2>& base_weight);

/// base_weight[o, i] *= scales[o] and bias[o] *= scales[o]: the layer then gives its output
/// rescaled as (IA)3 does it (Liu et al. 2022, arXiv 2205.05638, section 3.3). Where (IA)3 rescales
/// the *input* of a layer, as in feed-forward blocks, merge into `base_weight.transpose(0, 1)`,
/// with scales [in_features] and no bias.
///
/// scales [out_features], those of one task or the average; base_weight
/// [out_features, in_features]; bias [out_features], absent if there is none. base_weight and bias
/// must overlap neither each other nor scales.
///
/// It has one phase. These are refused: shapes that do not fit; a base_weight or bias two of whose
/// elements overlap; a scale that is 0 or not finite, which would destroy a row of base_weight for
/// good. The cost is in out multiplications.
inline void merge_ia3(executor_ref executor, const const_tensor_ref<1>& scales,
                      const tensor_ref<2>& base_weight, const tensor_ref<1>& bias);

/// base_weight[o, i] /= scales[o] and bias[o] /= scales[o]: takes out what merge_ia3, called with
/// the same scales, has multiplied. Two roundings are left, about 2 u |base_weight| with u the unit
/// roundoff of base_weight's type, unless the product left that type's range.
///
/// Arguments, what is refused and the cost are those of merge_ia3, with divisions.
inline void unmerge_ia3(executor_ref executor, const const_tensor_ref<1>& scales,
                        const tensor_ref<2>& base_weight, const tensor_ref<1>& bias);

namespace merge_details {

/// Rows of a base weight of which a part owns the changes.
inline constexpr index_t rows_per_part = 24;

inline void add_lora(const char* function, executor_ref executor, const lora& adapter,
                     double factor, tensor_ref<2> base_weight) {
    argument_checks checks(function);
    checks.input("adapter.a", adapter.a);
    checks.input("adapter.b", adapter.b, {adapter.a.extent(1), any_extent});
    checks.output("base_weight", base_weight, {adapter.b.extent(1), adapter.a.extent(0)});
    checks.raise();
    const_tensor_ref<2> left = adapter.b.transpose(0, 1);
    const_tensor_ref<2> right = adapter.a.transpose(0, 1);
    // Along the memory of the base weight; either way the sums are the same.
    if (base_weight.stride(0) == 1 && base_weight.stride(1) != 1) {
        left = adapter.a;
        right = adapter.b;
        base_weight = base_weight.transpose(0, 1);
    }
    const element_type sums =
        sums_of(sums_of(adapter.a.type(), adapter.b.type()), base_weight.type());
    const index_t rows = base_weight.extent(0);
    executor.run((rows + rows_per_part - 1) / rows_per_part, [&](index_t part) noexcept {
        const index_t first = part * rows_per_part;
        const index_t count = (std::min)(rows_per_part, rows - first);
        kernels::add_product(left.block(0, first, count), right, factor,
                             base_weight.block(0, first, count), sums);
    });
}

inline void rescale_layer(const char* function, executor_ref executor,
                          const const_tensor_ref<1>& scales, const tensor_ref<2>& base_weight,
                          const tensor_ref<1>& bias, bool divide) {
    argument_checks checks(function);
    checks.input("scales", scales);
    checks.output("base_weight", base_weight, {scales.extent(0), any_extent});
    checks.optional_output("bias", bias, {scales.extent(0)});
    for (index_t row = 0; checks.passed() && row < scales.extent(0); ++row) {
        const double scale = read_element(scales, row);
        checks.expect(std::isfinite(scale) && (scale < 0 || scale > 0), "scales",
                      "finite numbers other than 0 (which no division takes back)",
                      joined(scale, " at position ", row));
    }
    checks.raise();
    executor.run(scales.extent(0), [&](index_t row) noexcept {
        const double scale = read_element(scales, row);
        kernels::rescale_run(base_weight.slice(0, row), scale, divide,
                             sums_of(scales.type(), base_weight.type()));
        if (!bias.absent())
            kernels::rescale_run(bias.block(0, row, 1), scale, divide,
                                 sums_of(scales.type(), bias.type()));
    });
}

} // namespace merge_details

inline void merge_lora(executor_ref executor, const lora& adapter,
                       const tensor_ref<2>& base_weight) {
    merge_details::add_lora("merge_lora", executor, adapter, adapter.scale, base_weight);
}

inline void unmerge_lora(executor_ref executor, const lora& adapter,
                         const tensor_ref<2>& base_weight) {
    merge_details::add_lora("unmerge_lora", executor, adapter, -adapter.scale, base_weight);
}

inline void merge_ia3(executor_ref executor, const const_tensor_ref<1>& scales,
                      const tensor_ref<2>& base_weight, const tensor_ref<1>& bias) {
    merge_details::rescale_layer("merge_ia3", executor, scales, base_weight, bias, false);
}

inline void unmerge_ia3(executor_ref executor, const const_tensor_ref<1>& scales,
                        const tensor_ref<2>& base_weight, const tensor_ref<1>& bias) {
    merge_details::rescale_layer("unmerge_ia3", executor, scales, base_weight, bias, true);
}

} // namespace MHR_ISA
} // namespace mhr

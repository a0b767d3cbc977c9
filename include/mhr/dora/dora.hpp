#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/ia3/ia3.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/adapters.hpp>

/// \file
/// DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): the rows of W + scale (a b)^T, each
/// brought to a length of its own, the magnitude. PEFT and mlx-lm hold the lengths that are divided
/// by constant in the backward (section 4.3), and so does this.
///
/// DoRA is what follows LoRA, so that both stand in one batch. For each layer a host calls:
///
///     dora_quotient(executor, base_weight, adapter, magnitude, quotient); // when it is loaded
///     ...
///     y = x W^T, without the bias                     // the host's own
///     lora_forward(rows, loras, x, y, state);         // for LoRA and DoRA alike
///     lora_bias_forward(rows, {biases, count}, y);    // if adapters have biases on B
///     dora_forward(rows, {doras, count}, y, y);       // rows of LoRA, or of no task, keep their y
///     y += the bias                                   // the host's own: DoRA does not scale it
///
/// An adapter has the same number in both lists. In training, y stays beside the adapted output
/// that it is made of; dora_backward then gives the gradient of the latter, which is the d_y of
/// lora_backward and of the host's base layer.

namespace mhr {

/// What DoRA adds to one adapter; plain LoRA has a dora without a quotient.
struct dora {
    const_tensor_ref<1> quotient{};     ///< [out_features], of dora_quotient
    const_tensor_ref<1> inverse_norm{}; ///< [out_features], dora_quotient without a magnitude;
                                        ///< only the gradient of the magnitude needs it
};

/// What DoRA adds to the adapters of a list. The arrays must outlive it.
struct dora_list {
    const dora* adapters;                                ///< as many as the next says
    index_t count;                                       ///< of the adapters
    tensor_view<const index_t, 1> adapter_of_entry = {}; ///< if absent, entry g uses adapters[g]
};

/// The gradients that dora_backward computes. Each is added to; one that is absent is not computed.
struct dora_gradients {
    tensor_ref<2> adapted{};                   ///< [rows, out_features]
    const tensor_ref<1>* magnitudes = nullptr; ///< [out_features] for each adapter of the list
};

inline namespace MHR_ISA {

/// quotient[o] = magnitude[o] / || W[o] + scale sum over k of b[k, o] a[:, k] || (Liu et al. 2024,
/// arXiv 2402.09353, equation 5). Without a magnitude (an absent one) it is 1 / the norm, and
/// quotient may be used as dora::inverse_norm.
///
/// base_weight [out_features, in_features]; magnitude [out_features]; quotient [out_features],
/// overwritten. The weight that is adapted is never stored: it passes by in blocks of 16 KiB at
/// most. Its elements are computed in f64 if a tensor is f64, else in f32, and their squares are
/// summed in f64. Nothing is added to the norm: a row of zeros gives infinity, or NaN where the
/// magnitude is 0 too, as PEFT does.
///
/// It has one phase. These are refused: shapes that do not fit; a quotient two of whose elements
/// overlap. The cost is in out (rank + 1) multiply-adds; the base weight is read once.
inline void dora_quotient(executor_ref executor, const const_tensor_ref<2>& base_weight,
                          const lora& adapter, const const_tensor_ref<1>& magnitude,
                          const tensor_ref<1>& quotient);

/// Why dora_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const dora_list& adapters,
                           const const_tensor_ref<2>& adapted, const tensor_ref<2>& y);

/// y[row, o] = quotient[o] adapted[row, o] for the rows of DoRA, with the quotient of the adapter
/// of the row's entry (Liu et al. 2024, arXiv 2402.09353, equation 5), and y[row] = adapted[row]
/// for other rows. It is computed in f64 if one of the three tensors is f64, else in f32.
///
/// adapted [rows, out_features] is x W^T + scale (x a) b, without the bias; y [rows, out_features],
/// overwritten, may *be* adapted (one pointer, one type, equal strides), or must not overlap it. In
/// place, rows of LoRA and of no task are not touched.
///
/// It has one phase. These are refused: shapes that do not fit; a number of an adapter that is not
/// in the list; a y two of whose elements overlap. The cost is rows out_features multiplications.
inline void dora_forward(const batch& rows, const dora_list& adapters,
                         const const_tensor_ref<2>& adapted, const tensor_ref<2>& y);

/// The backward of dora_forward, with the norm held constant:
///     gradients.adapted[row, o] += quotient[o] d_y[row, o], and d_y[row, o] for rows without DoRA
///     gradients.magnitudes[n][o] += inverse_norm[o] sum over the rows of adapter n of
///                                   adapted[row, o] d_y[row, o]
///
/// adapted is that of the forward, and is only read for the gradient of a magnitude; d_y
/// [rows, out_features]. Neither gradient may overlap an input. Entries that share an adapter add
/// to its gradient in their order. The magnitude of an adapter without DoRA has no gradient.
///
/// It has one phase. These are refused: what the forward refuses; gradients whose shapes do not
/// fit, or two of whose elements overlap; a gradient of a magnitude without its inverse_norm. The
/// cost is rows out_features multiply-adds for each of the two gradients.
inline void dora_backward(const batch& rows, const dora_list& adapters,
                          const const_tensor_ref<2>& adapted, const const_tensor_ref<2>& d_y,
                          const dora_gradients& gradients);

namespace dora_details {

/// Rows and columns of the adapted weight that are computed at a time: 16 KiB of f64.
inline constexpr index_t rows_per_part = 16;
inline constexpr index_t columns_at_a_time = 128;
/// Output features whose sums over rows are one part of the work.
inline constexpr index_t features_per_part = 128;

/// Writes rows_per_part quotients, or those that are left, from output feature `first` on.
template <class A>
void write_quotients(const const_tensor_ref<2>& base_weight, const lora& adapter,
                     const const_tensor_ref<1>& magnitude, const tensor_ref<1>& quotient,
                     index_t first) noexcept {
    const index_t in_features = base_weight.extent(1);
    const index_t count = (std::min)(rows_per_part, base_weight.extent(0) - first);
    alignas(64) A values[static_cast<std::size_t>(rows_per_part * columns_at_a_time)];
    double squares[static_cast<std::size_t>(rows_per_part)] = {};
    const const_tensor_ref<2> left = adapter.b.transpose(0, 1).block(0, first, count);
    for (index_t i = 0; i < in_features; i += columns_at_a_time) {
        const index_t columns = (std::min)(columns_at_a_time, in_features - i);
        const tensor_ref<2> block(values, {count, columns});
        for (index_t o = 0; o < count; ++o)
            kernels::read_elements(base_weight.slice(0, first + o).block(0, i, columns),
                                   values + o * columns);
        kernels::add_product(left, adapter.a.block(0, i, columns).transpose(0, 1), adapter.scale,
                             block, block.type());
        for (index_t o = 0; o < count; ++o)
            for (index_t j = 0; j < columns; ++j) {
                const auto value = static_cast<double>(values[o * columns + j]);
                squares[o] += value * value;
            }
    }
    for (index_t o = 0; o < count; ++o) {
        const double length = magnitude.absent() ? 1 : read_element(magnitude, first + o);
        write_element(length / std::sqrt(squares[o]), quotient, first + o);
    }
}

/// The adapter of an entry.
inline index_t adapter_of(const dora_list& adapters, index_t entry) noexcept {
    return lora_details::number_of(adapters.adapter_of_entry, entry);
}

inline void check_list(argument_checks& checks, const batch& rows, const dora_list& adapters,
                       const const_tensor_ref<2>& adapted) {
    const index_t entries = rows.plan.entries();
    checks.input("adapted", adapted, {rows.plan.rows(), any_extent});
    lora_details::check_numbers(checks, entries, adapters.adapters, adapters.count,
                                adapters.adapter_of_entry);
    for (index_t entry = 0; checks.passed() && entry < entries; ++entry) {
        const dora& adapter = adapters.adapters[adapter_of(adapters, entry)];
        if (!adapter.quotient.absent())
            checks.input("adapters.quotient", adapter.quotient, {adapted.extent(1)});
    }
}

inline argument_checks check_forward(const batch& rows, const dora_list& adapters,
                                     const const_tensor_ref<2>& adapted, const tensor_ref<2>& y) {
    argument_checks checks("dora_forward");
    check_list(checks, rows, adapters, adapted);
    checks.output("y", y, adapted.extents());
    return checks;
}

/// True if the magnitude of the adapter of an entry is to get its gradient.
inline bool has_gradient(const dora_list& adapters, const dora_gradients& gradients,
                         index_t entry) noexcept {
    if (gradients.magnitudes == nullptr) return false;
    const index_t adapter = adapter_of(adapters, entry);
    return !adapters.adapters[adapter].quotient.absent() && !gradients.magnitudes[adapter].absent();
}

/// to[row] = quotient from[row], or += that, and from[row] itself where there is no quotient.
inline void rescale(const batch& rows, const dora_list& adapters, const const_tensor_ref<2>& from,
                    const tensor_ref<2>& to, bool accumulate) {
    if (to.size() == 0) return;
    const bool in_place = from.data() == to.data(); // or they would overlap
    rows.executor.run(ia3_details::rescaling_parts(rows.plan), [&](index_t part) noexcept {
        const auto [entry, numbers] = ia3_details::rescaling_part(rows.plan, part);
        const const_tensor_ref<1> quotient =
            entry >= 0 ? adapters.adapters[adapter_of(adapters, entry)].quotient
                       : const_tensor_ref<1>{};
        if (quotient.absent() && in_place) return;
        element_type sums = sums_of(from.type(), to.type());
        if (!quotient.absent()) sums = sums_of(sums, quotient.type());
        kernels::rescale_rows(numbers, from, quotient, to, accumulate, sums);
    });
}

/// Adds the gradients of the magnitudes of `count` output features from `first` on.
template <class A>
void add_to_magnitudes(const batch& rows, const dora_list& adapters,
                       const const_tensor_ref<2>& adapted, const const_tensor_ref<2>& d_y,
                       const dora_gradients& gradients, index_t first, index_t count) noexcept {
    for (index_t entry = 0; entry < rows.plan.entries(); ++entry) {
        if (!has_gradient(adapters, gradients, entry)) continue;
        const index_t adapter = adapter_of(adapters, entry);
        const auto numbers = rows.plan.rows_of(entry);
        A totals[static_cast<std::size_t>(features_per_part)] = {};
        const tensor_ref<1> sums(totals, {count});
        kernels::add_products_of_rows({numbers.data(), numbers.extent(0)},
                                      adapted.block(1, first, count), d_y.block(1, first, count),
                                      sums, sums.type());
        const const_tensor_ref<1>& inverse_norm = adapters.adapters[adapter].inverse_norm;
        const tensor_ref<1>& gradient = gradients.magnitudes[adapter];
        for (index_t o = 0; o < count; ++o) {
            const double added =
                read_element(inverse_norm, first + o) * static_cast<double>(totals[o]);
            write_element(read_element(gradient, first + o) + added, gradient, first + o);
        }
    }
}

} // namespace dora_details

inline void dora_quotient(executor_ref executor, const const_tensor_ref<2>& base_weight,
                          const lora& adapter, const const_tensor_ref<1>& magnitude,
                          const tensor_ref<1>& quotient) {
    argument_checks checks("dora_quotient");
    checks.input("base_weight", base_weight);
    const auto [out_features, in_features] = base_weight.extents();
    checks.input("adapter.a", adapter.a, {in_features, any_extent});
    checks.input("adapter.b", adapter.b, {adapter.a.extent(1), out_features});
    if (!magnitude.absent()) checks.input("magnitude", magnitude, {out_features});
    checks.output("quotient", quotient, {out_features});
    checks.raise();
    const element_type sums =
        sums_of(base_weight.type(), sums_of(adapter.a.type(), adapter.b.type()));
    constexpr index_t size = dora_details::rows_per_part;
    const index_t cost = size * in_features * (adapter.a.extent(1) + 1);
    executor.run((out_features + size - 1) / size, cost, [&](index_t part) noexcept {
        with_sums(sums, [&](auto zero) {
            dora_details::write_quotients<decltype(zero)>(base_weight, adapter, magnitude, quotient,
                                                          part * size);
        });
    });
}

inline std::string why_not(const batch& rows, const dora_list& adapters,
                           const const_tensor_ref<2>& adapted, const tensor_ref<2>& y) {
    return dora_details::check_forward(rows, adapters, adapted, y).why();
}

inline void dora_forward(const batch& rows, const dora_list& adapters,
                         const const_tensor_ref<2>& adapted, const tensor_ref<2>& y) {
    dora_details::check_forward(rows, adapters, adapted, y).raise();
    dora_details::rescale(rows, adapters, adapted, y, false);
}

inline void dora_backward(const batch& rows, const dora_list& adapters,
                          const const_tensor_ref<2>& adapted, const const_tensor_ref<2>& d_y,
                          const dora_gradients& gradients) {
    argument_checks checks("dora_backward");
    dora_details::check_list(checks, rows, adapters, adapted);
    checks.input("d_y", d_y, adapted.extents());
    checks.optional_output("gradients.adapted", gradients.adapted, adapted.extents());
    const element_type sums = sums_of(adapted.type(), d_y.type());
    bool wants_magnitudes = false;
    for (index_t entry = 0; checks.passed() && entry < rows.plan.entries(); ++entry) {
        if (!dora_details::has_gradient(adapters, gradients, entry)) continue;
        const index_t n = dora_details::adapter_of(adapters, entry);
        checks.input("adapters.inverse_norm", adapters.adapters[n].inverse_norm,
                     {adapted.extent(1)});
        checks.output("gradients.magnitudes", gradients.magnitudes[n], {adapted.extent(1)});
        wants_magnitudes = true;
    }
    checks.raise();
    if (!gradients.adapted.absent())
        dora_details::rescale(rows, adapters, d_y, gradients.adapted, true);
    if (!wants_magnitudes) return;
    constexpr index_t size = dora_details::features_per_part;
    const index_t out_features = adapted.extent(1);
    rows.executor.run((out_features + size - 1) / size, [&](index_t part) noexcept {
        const index_t first = part * size;
        const index_t count = (std::min)(size, out_features - first);
        with_sums(sums, [&](auto zero) {
            dora_details::add_to_magnitudes<decltype(zero)>(rows, adapters, adapted, d_y, gradients,
                                                            first, count);
        });
    });
}

} // namespace MHR_ISA
} // namespace mhr

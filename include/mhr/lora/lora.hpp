#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/passes.hpp>

/// \file
/// LoRA with ready adapters: what MHR-mu fine-tunes, and what serves tasks that were mixed before.
/// lora/routed_lora.hpp does the mixing as well. A bias on B (PEFT's lora_bias) is a call of its
/// own after lora_forward, so that layers without one do not pay for it.

namespace mhr {

/// The state that a forward leaves for its backward. Its type, f32 or f64, is the type of all sums.
struct lora_state {
    tensor_ref<2> hidden; ///< [rows, rank or more]: x a of each row that has a task
};

/// The gradients that a backward computes. Each is added to; one that is absent is not computed.
struct lora_gradients {
    tensor_ref<2> x{};              ///< [rows, in_features]
    lora_list_gradients adapters{}; ///< one for each adapter of the list
};

/// The bias on B of one adapter; an adapter without has an absent one.
struct lora_bias {
    const_tensor_ref<1> bias{}; ///< [out_features]
    double scale = 1;           ///< that of the adapter
};

/// The biases of the adapters of a list, in its order. The arrays must outlive this.
struct lora_bias_list {
    const lora_bias* biases;                             ///< as many as the next says
    index_t count;                                       ///< of the adapters
    tensor_view<const index_t, 1> adapter_of_entry = {}; ///< if absent, entry g uses biases[g]
};

inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline lora_state take_lora_state(workspace& memory, const batch& rows, const lora_list& adapters,
                                  element_type sums = element_type::f32) noexcept {
    return {
        memory.take<2>(sums, {rows.plan.rows(), lora_details::largest_rank(rows.plan, adapters)})};
}

/// Returns the bytes that take_lora_state takes.
inline std::size_t lora_state_size(const batch& rows, const lora_list& adapters,
                                   element_type sums = element_type::f32) noexcept {
    workspace meter;
    (void)take_lora_state(meter, rows, adapters, sums);
    return meter.used();
}

/// Why lora_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const lora_list& adapters,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const lora_state& state);

/// y[row] += scale (x[row] a) b for every row that has a task, with the adapter of the row's entry
/// (Hu et al. 2022, arXiv 2106.09685, section 4.1). Rows of no task keep their y.
///
/// x [rows, in_features]; y [rows, out_features] accumulates; state.hidden, [rows, the largest rank
/// or more], receives x a: the backward wants it.
///
/// It has one phase, unless ranks share the layer; y must not overlap x. These are refused: shapes
/// that do not fit; a number of an adapter that is not in the list; f64 beside a state of f32; a y
/// or a state two of whose elements overlap. The cost for R rows of an entry is R rank (in + out)
/// multiply-adds; x is read, y is read and written once.
inline void lora_forward(const batch& rows, const lora_list& adapters, const const_tensor_ref<2>& x,
                         const tensor_ref<2>& y, const lora_state& state);

/// Returns the bytes of workspace that lora_backward needs for sums of this type.
inline std::size_t lora_backward_workspace_size(const batch& rows, const lora_list& adapters,
                                                element_type sums = element_type::f32) noexcept {
    return lora_details::backward_scratch::size(rows.plan, adapters, sums);
}

/// Computes the backward of lora_forward, with its arguments and the state that it left. With the
/// rows' d_hidden = scale d_y b^T, it adds:
///     gradients.x[row]      += d_hidden[row] a^T
///     gradients.adapters[n].a += sum over the rows of adapter n of x[row]^T d_hidden[row]
///     gradients.adapters[n].b += scale sum over the rows of adapter n of hidden[row]^T d_y[row]
///
/// d_y [rows, out_features]; gradients.x as x; gradients.adapters has one element for each adapter
/// of the list. Entries that share an adapter add to its gradient in their order. d_y is not passed
/// on: the host's base layer has its own backward.
///
/// It needs an executor that runs every part, and the workspace of `lora_backward_workspace_size`.
/// These are refused: what the forward refuses; gradients whose number or shapes do not fit, or two
/// of whose elements overlap; a workspace that is too small. The cost for R rows of an entry is
/// R rank (2 in + 2 out) multiply-adds.
inline void lora_backward(const batch& rows, const lora_list& adapters,
                          const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                          const lora_state& state, const lora_gradients& gradients,
                          workspace scratch);

/// Why lora_bias_forward would refuse these arguments, or nothing.
inline std::string why_not(const batch& rows, const lora_bias_list& adapters,
                           const tensor_ref<2>& y);

/// y[row] += scale bias for every row whose adapter has a bias: with lora_forward,
/// y += scale ((x a) b + bias), as PEFT's lora_bias. It is computed in f64 if y or the bias is f64,
/// else in f32.
///
/// y [rows, out_features] accumulates. Rows of no task, and of adapters without, keep their y. Of
/// ranks that share a layer, each adds the bias of the output features that it holds.
///
/// It has one phase. These are refused: shapes that do not fit; a number of an adapter that is not
/// in the list; a y two of whose elements overlap. The cost is rows out_features multiply-adds.
inline void lora_bias_forward(const batch& rows, const lora_bias_list& adapters,
                              const tensor_ref<2>& y);

/// The backward of lora_bias_forward:
///     gradients[n] += scale sum over the rows of adapter n of d_y[row]
///
/// d_y [rows, out_features]; gradients has one element [out_features] for each adapter of the list,
/// which may be absent. Entries that share an adapter add to its gradient in their order.
///
/// It has one phase. These are refused: what the forward refuses; gradients whose shapes do not
/// fit, or two of whose elements overlap. The cost is rows out_features multiply-adds.
inline void lora_bias_backward(const batch& rows, const lora_bias_list& adapters,
                               const const_tensor_ref<2>& d_y, const tensor_ref<1>* gradients);

namespace lora_details {

/// Checks what forward and backward have in common, and returns the adapters' out_features.
inline index_t check_lora(argument_checks& checks, const batch& rows, const lora_list& adapters,
                          const const_tensor_ref<2>& x, const lora_state& state) {
    checks.sums_type("state.hidden", state.hidden.type());
    checks.sums_are(state.hidden.type());
    checks.input("x", x, {rows.plan.rows(), any_extent});
    const index_t out_features = check_adapters(checks, rows.plan, adapters, x.extent(1));
    if (!checks.passed()) return any_extent;
    checks.output("state.hidden", state.hidden, {rows.plan.rows(), any_extent});
    const index_t rank = largest_rank(rows.plan, adapters);
    checks.expect(state.hidden.extent(1) >= rank, "state.hidden", joined(rank, " columns or more"),
                  state.hidden.extent(1));
    check_rank_sum(checks, rows, state.hidden);
    return out_features;
}

inline argument_checks check_lora_forward(const batch& rows, const lora_list& adapters,
                                          const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                          const lora_state& state) {
    argument_checks checks("lora_forward");
    const index_t out_features = check_lora(checks, rows, adapters, x, state);
    checks.output("y", y, {rows.plan.rows(), out_features});
    return checks;
}

inline void check_biases(argument_checks& checks, const batch& rows, const lora_bias_list& adapters,
                         index_t out_features) {
    check_numbers(checks, rows.plan.entries(), adapters.biases, adapters.count,
                  adapters.adapter_of_entry);
    for (index_t entry = 0; checks.passed() && entry < rows.plan.entries(); ++entry) {
        const const_tensor_ref<1>& bias =
            adapters.biases[lora_details::number_of(adapters.adapter_of_entry, entry)].bias;
        if (!bias.absent()) checks.input("adapters.bias", bias, {out_features});
    }
}

inline argument_checks check_bias_forward(const batch& rows, const lora_bias_list& adapters,
                                          const tensor_ref<2>& y) {
    argument_checks checks("lora_bias_forward");
    checks.output("y", y, {rows.plan.rows(), any_extent});
    check_biases(checks, rows, adapters, y.extent(1));
    return checks;
}

/// Output features whose sums over rows are one part of the work.
inline constexpr index_t features_of_bias = 128;

/// Calls `f` with a matrix of this many rows and columns, all of whose elements are one 1.
template <class Function>
void with_ones(element_type sums, index_t rows, index_t columns, Function&& f) noexcept {
    with_sums(sums, [&](auto one) {
        one = 1;
        f(const_tensor_ref<2>(&one, element_type_of_v<decltype(one)>, {rows, columns}, {0, 0}));
    });
}

/// Adds the gradient of the bias of one entry, for `count` output features from `first` on.
template <class A>
void add_to_bias(const row_set& numbers, double scale, const const_tensor_ref<2>& d_y,
                 const tensor_ref<1>& gradient) noexcept {
    A totals[static_cast<std::size_t>(features_of_bias)] = {};
    const index_t count = d_y.extent(1);
    const tensor_ref<1> sums(totals, {count});
    with_ones(sums.type(), d_y.extent(0), count, [&](const const_tensor_ref<2>& ones) {
        kernels::add_products_of_rows(numbers, ones, d_y, sums, sums.type());
    });
    for (index_t o = 0; o < count; ++o)
        write_element(read_element(gradient, o) + scale * static_cast<double>(totals[o]), gradient,
                      o);
}

} // namespace lora_details

inline std::string why_not(const batch& rows, const lora_bias_list& adapters,
                           const tensor_ref<2>& y) {
    return lora_details::check_bias_forward(rows, adapters, y).why();
}

inline std::string why_not(const batch& rows, const lora_list& adapters,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const lora_state& state) {
    return lora_details::check_lora_forward(rows, adapters, x, y, state).why();
}

inline void lora_forward(const batch& rows, const lora_list& adapters, const const_tensor_ref<2>& x,
                         const tensor_ref<2>& y, const lora_state& state) {
    lora_details::check_lora_forward(rows, adapters, x, y, state).raise();
    lora_details::forward(rows, adapters, x, y, state.hidden);
}

inline void lora_backward(const batch& rows, const lora_list& adapters,
                          const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                          const lora_state& state, const lora_gradients& gradients,
                          workspace scratch) {
    argument_checks checks("lora_backward");
    const index_t out_features = lora_details::check_lora(checks, rows, adapters, x, state);
    checks.input("d_y", d_y, {rows.plan.rows(), out_features});
    checks.optional_output("gradients.x", gradients.x, x.extents());
    lora_details::check_gradients(checks, adapters, gradients.adapters, x.extent(1), d_y.extent(1));
    checks.every_part(rows.executor);
    if (checks.passed())
        checks.workspace_size(scratch,
                              lora_backward_workspace_size(rows, adapters, state.hidden.type()));
    checks.raise();

    const lora_details::wanted_sums wanted = lora_details::wanted_of(gradients.adapters);
    const auto sums = lora_details::sum_backward(
        rows, adapters, {x, d_y, state.hidden, gradients.x}, wanted,
        lora_details::backward_scratch::take(scratch, rows.plan, adapters, state.hidden.type()));
    lora_details::add_to_gradients(rows, adapters, sums, gradients.adapters);
}

inline void lora_bias_forward(const batch& rows, const lora_bias_list& adapters,
                              const tensor_ref<2>& y) {
    lora_details::check_bias_forward(rows, adapters, y).raise();
    const auto& blocks = rows.plan.data().blocks;
    rows.executor.run(static_cast<index_t>(blocks.size()), [&](index_t block) noexcept {
        const auto& range = blocks[static_cast<std::size_t>(block)];
        const lora_bias& adapter =
            adapters.biases[lora_details::number_of(adapters.adapter_of_entry, range.entry)];
        if (adapter.bias.absent()) return;
        // A product with a hidden of 1.
        lora_details::with_ones(sums_of(y.type(), adapter.bias.type()), rows.plan.rows(), 1,
                                [&](const const_tensor_ref<2>& ones) {
                                    kernels::expand(lora_details::rows_of(rows.plan, range), ones,
                                                    adapter.bias.prepend_axis(), adapter.scale, y);
                                });
    });
}

inline void lora_bias_backward(const batch& rows, const lora_bias_list& adapters,
                               const const_tensor_ref<2>& d_y, const tensor_ref<1>* gradients) {
    argument_checks checks("lora_bias_backward");
    checks.input("d_y", d_y, {rows.plan.rows(), any_extent});
    const index_t out_features = d_y.extent(1);
    lora_details::check_biases(checks, rows, adapters, out_features);
    const index_t entries = gradients == nullptr ? 0 : rows.plan.entries();
    for (index_t entry = 0; checks.passed() && entry < entries; ++entry)
        checks.optional_output("gradients",
                               gradients[lora_details::number_of(adapters.adapter_of_entry, entry)],
                               {out_features});
    checks.raise();
    constexpr index_t size = lora_details::features_of_bias;
    rows.executor.run((out_features + size - 1) / size, [&](index_t part) noexcept {
        const index_t first = part * size;
        const index_t count = (std::min)(size, out_features - first);
        for (index_t entry = 0; entry < entries; ++entry) {
            const index_t n = lora_details::number_of(adapters.adapter_of_entry, entry);
            if (gradients[n].absent() || adapters.biases[n].bias.absent()) continue;
            const auto numbers = rows.plan.rows_of(entry);
            with_sums(sums_of(d_y.type(), gradients[n].type()), [&](auto zero) {
                lora_details::add_to_bias<decltype(zero)>(
                    {numbers.data(), numbers.extent(0)}, adapters.biases[n].scale,
                    d_y.block(1, first, count), gradients[n].block(0, first, count));
            });
        }
    });
}

} // namespace MHR_ISA
} // namespace mhr

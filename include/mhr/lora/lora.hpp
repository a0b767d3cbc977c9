#pragma once

#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/passes.hpp>

/// \file
/// LoRA with ready adapters: what MHR-mu fine-tunes, and what serves tasks that were mixed before.
/// lora/routed_lora.hpp does the mixing as well.

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

inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline lora_state take_lora_state(workspace& memory, const batch& rows, const lora_list& adapters,
                                  element_type sums = element_type::f32) noexcept {
    return {
        memory.take<2>(sums, {rows.plan.rows(), lora_details::largest_rank(rows.plan, adapters)})};
}

/// Bytes that take_lora_state takes.
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

/// Bytes of workspace that lora_backward needs for sums of this type.
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

} // namespace lora_details

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

} // namespace MHR_ISA
} // namespace mhr

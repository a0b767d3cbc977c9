#pragma once

#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/module_backward.hpp>
#include <mhr/lora/module_passes.hpp>

/// \file
/// LoRA modules that each row weighs for itself, as X-LoRA (Buehler and Buehler 2024, arXiv
/// 2402.07148), Arrow (Ostapenko et al. 2024, arXiv 2405.11157), Phatgoose (Muqeeth et al. 2024,
/// arXiv 2402.05859) and gates of experts do. No mixed adapter is written: the work goes module by
/// module over the rows that use it. Weights are any numbers: those below 0 and a scale for each
/// request are weights, too.

namespace mhr {

/// What the weights of a row mix.
enum class mixture {
    of_parameters, ///< a and b of the modules, so that a weight enters twice: Poly, MHR, SMEAR
    of_outputs,    ///< x a b of the modules, which take one head: X-LoRA, Arrow, Phatgoose
};

/// A layer with an inventory and the weights that each row has for its modules.
struct row_routed_lora {
    const_tensor_ref<4> a;                  ///< [heads, modules, in_features / heads, rank]
    const_tensor_ref<4> b;                  ///< [heads, modules, rank, out_features / heads]
    const_tensor_ref<3> weights;            ///< [rows, heads, modules]
    double scale = 1;                       ///< 1 / rank, alpha / rank, or any other number
    mixture mixes = mixture::of_parameters; ///< what the weights mix

    /// Returns the modules alone.
    [[nodiscard]] MHR_INLINE lora_inventory inventory() const noexcept { return {a, b}; }
};

/// What a forward keeps for its backward. Its type, f32 or f64, is the type of all sums.
struct row_routed_lora_state {
    module_products products{}; ///< the rows' weights, and x a of each module that a row uses
    tensor_ref<2> hidden{};     ///< [rows, rank], if parameters are mixed: x of the mixed a
};

/// The gradients that a backward computes. Each is added to; one that is absent is not computed.
struct row_routed_lora_gradients {
    tensor_ref<2> x{};       ///< [rows, in_features]
    tensor_ref<4> a{};       ///< [heads, modules, in_features / heads, rank]
    tensor_ref<4> b{};       ///< [heads, modules, rank, out_features / heads]
    tensor_ref<3> weights{}; ///< [rows, heads, modules]

    /// Whether weights of 0 are left without a gradient. A router that keeps some modules and drops
    /// the others passes no gradient to what it dropped, and saves the products of all of them.
    bool only_used_weights = false;
};

inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline row_routed_lora_state
take_row_routed_lora_state(workspace& memory, const batch& rows, const row_routed_lora& layer,
                           element_type sums = element_type::f32) noexcept {
    const lora_shape shape = shape_of(layer.inventory());
    row_routed_lora_state state{take_module_products(memory, rows, shape, sums)};
    if (layer.mixes == mixture::of_parameters)
        state.hidden = memory.take<2>(sums, {rows.plan.rows(), shape.rank});
    return state;
}

/// Returns the bytes that take_row_routed_lora_state takes.
inline std::size_t row_routed_lora_state_size(const batch& rows, const row_routed_lora& layer,
                                              element_type sums = element_type::f32) noexcept {
    workspace meter;
    (void)take_row_routed_lora_state(meter, rows, layer, sums);
    return meter.used();
}

/// Why row_routed_lora_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const row_routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const row_routed_lora_state& state);

/// For every row that has a task, with x_h and y_h the blocks of head h: where parameters are mixed
///     hidden[row] = sum over heads h and modules m of weights[row, h, m] x_h[row] a[h, m]
///     y_h[row]   += scale sum over modules of weights[row, h, m] hidden[row] b[h, m]
/// and where outputs are, which takes one head,
///     y[row]     += scale sum over modules of weights[row, 0, m] (x[row] a[0, m]) b[0, m].
/// Rows of no task keep their y; which task a row has does not matter here.
///
/// x [rows, in_features]; y [rows, out_features] accumulates; the state is overwritten and is what
/// the backward wants. A pair of a row and a module of weight 0 is not computed, and its product in
/// the state is left alone: with k of m modules the cost is k / m. A row's result does not depend
/// on the batch that it is in.
///
/// It needs an executor that runs every part; y must not overlap x. These are refused: shapes that
/// do not fit; a mixture that is neither of the two; several heads, or ranks that share the layer,
/// where outputs are mixed; f64 beside a state of f32; a y or a state two of whose elements
/// overlap. The cost for R triples of a row, a head and a module whose weight is not 0 is R rank
/// (in + out) / heads multiply-adds. Each module is read once for 48 rows.
inline void row_routed_lora_forward(const batch& rows, const row_routed_lora& layer,
                                    const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                    const row_routed_lora_state& state);

/// Returns the bytes of workspace that row_routed_lora_backward needs for sums of this type.
inline std::size_t
row_routed_lora_backward_workspace_size(const batch& rows, const row_routed_lora& layer,
                                        element_type sums = element_type::f32) noexcept;

/// The backward of row_routed_lora_forward, with its arguments and the state that it left: the
/// derivative of sum(y d_y) by each of x, a, b and weights. With, for short,
///
///     w = weights[row, h, m]       p = x_h[row] a[h, m]       u = d_y_h[row] b[h, m]^T
///     d_hidden[row] = sum over heads and modules of w u
///
/// and with all sums over rows going over those that use the module, it adds:
///
///     gradients.x_h[row]           += scale sum over modules of w d_hidden[row] a[h, m]^T
///     gradients.a[h, m]            += scale sum over rows of w x_h[row]^T d_hidden[row]
///     gradients.b[h, m]            += scale sum over rows of w hidden[row]^T d_y_h[row]
///     gradients.weights[row, h, m] += scale (hidden[row] . u + d_hidden[row] . p)
///
/// Where outputs are mixed, u stands for d_hidden[row], p for hidden[row], and the last line adds
/// scale p . u.
///
/// d_y [rows, out_features]; the gradients have the shapes of what they belong to. Sums over rows
/// take them by their tasks and then in the order of the batch. A module of weight 0 gets no
/// gradient and gives none to x, but its weight has a gradient, unless `only_used_weights`.
///
/// It needs an executor that runs every part, and the workspace of
/// `row_routed_lora_backward_workspace_size`. These are refused: what the forward refuses;
/// gradients whose shapes do not fit, or two of whose elements overlap; a workspace that is too
/// small. The cost for R triples as above is R rank (2 in + 2 out) / heads multiply-adds, and for
/// the gradient of R' weights of 0 R' rank (in + out) / heads more.
inline void row_routed_lora_backward(const batch& rows, const row_routed_lora& layer,
                                     const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                     const row_routed_lora_state& state,
                                     const row_routed_lora_gradients& gradients, workspace scratch);

namespace lora_details {

inline void check_row_routed_lora(argument_checks& checks, const batch& rows,
                                  const row_routed_lora& layer, const const_tensor_ref<2>& x,
                                  const row_routed_lora_state& state) {
    const element_type sums = state.products.each.type();
    const bool outputs = layer.mixes == mixture::of_outputs;
    checks.sums_type("state.products.each", sums);
    checks.sums_are(sums);
    check_inventory(checks, layer.inventory());
    const lora_shape shape = shape_of(layer.inventory());
    checks.expect(outputs || layer.mixes == mixture::of_parameters, "layer.mixes",
                  "of_parameters or of_outputs", joined("number ", static_cast<int>(layer.mixes)));
    checks.expect(!outputs || shape.heads == 1, "layer.a",
                  "one head (the output of a module cannot be mixed in blocks of its rows)",
                  shape.heads);
    checks.expect(!outputs || !rows.sum_over_ranks, "batch.sum_over_ranks",
                  "none (one head cannot be shared by ranks)", "a sum");
    checks.input("layer.weights", layer.weights, {rows.plan.rows(), shape.heads, shape.modules});
    checks.input("x", x, {rows.plan.rows(), shape.in_features});
    check_module_products(checks, rows, shape, state.products, sums);
    if (!outputs) {
        checks.output("state.hidden", state.hidden, {rows.plan.rows(), shape.rank});
        checks.of_sums("state.hidden", state.hidden.type(), sums);
        check_rank_sum(checks, rows, state.hidden);
    }
    checks.every_part(rows.executor);
}

inline argument_checks check_row_routed_lora_forward(const batch& rows,
                                                     const row_routed_lora& layer,
                                                     const const_tensor_ref<2>& x,
                                                     const tensor_ref<2>& y,
                                                     const row_routed_lora_state& state) {
    argument_checks checks("row_routed_lora_forward");
    check_row_routed_lora(checks, rows, layer, x, state);
    checks.output("y", y, {rows.plan.rows(), layer.b.extent(0) * layer.b.extent(3)});
    return checks;
}

inline module_layer module_layer_of(const row_routed_lora& layer,
                                    const row_routed_lora_state& state) noexcept {
    const bool outputs = layer.mixes == mixture::of_outputs;
    return {layer.inventory(), layer.scale, state.products,
            outputs ? tensor_ref<2>() : state.hidden};
}

} // namespace lora_details

inline std::string why_not(const batch& rows, const row_routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const row_routed_lora_state& state) {
    return lora_details::check_row_routed_lora_forward(rows, layer, x, y, state).why();
}

inline void row_routed_lora_forward(const batch& rows, const row_routed_lora& layer,
                                    const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                    const row_routed_lora_state& state) {
    lora_details::check_row_routed_lora_forward(rows, layer, x, y, state).raise();
    with_sums(state.products.each.type(), [&](auto zero) {
        lora_details::forward_by_module<decltype(zero)>(
            rows, lora_details::module_layer_of(layer, state), layer.weights, false, x, y);
    });
}

inline std::size_t row_routed_lora_backward_workspace_size(const batch& rows,
                                                           const row_routed_lora& layer,
                                                           element_type sums) noexcept {
    workspace meter;
    (void)lora_details::module_scratch::take(meter, rows, shape_of(layer.inventory()), sums);
    return meter.used();
}

inline void row_routed_lora_backward(const batch& rows, const row_routed_lora& layer,
                                     const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                     const row_routed_lora_state& state,
                                     const row_routed_lora_gradients& gradients,
                                     workspace scratch) {
    argument_checks checks("row_routed_lora_backward");
    lora_details::check_row_routed_lora(checks, rows, layer, x, state);
    const lora_shape shape = shape_of(layer.inventory());
    const element_type sums = state.products.each.type();
    checks.input("d_y", d_y, {rows.plan.rows(), shape.out_features});
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.a", gradients.a, layer.a.extents());
    checks.optional_output("gradients.b", gradients.b, layer.b.extents());
    checks.optional_output("gradients.weights", gradients.weights, layer.weights.extents());
    if (checks.passed())
        checks.workspace_size(scratch, row_routed_lora_backward_workspace_size(rows, layer, sums));
    checks.raise();

    const auto taken = lora_details::module_scratch::take(scratch, rows, shape, sums);
    with_sums(sums, [&](auto zero) {
        lora_details::backward_by_module<decltype(zero)>(
            rows, lora_details::module_layer_of(layer, state), x, d_y,
            {gradients.x, gradients.a, gradients.b, gradients.weights, false,
             !gradients.only_used_weights},
            taken);
    });
}

} // namespace MHR_ISA
} // namespace mhr

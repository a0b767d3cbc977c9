#pragma once

#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/module_backward.hpp>
#include <mhr/lora/module_passes.hpp>
#include <mhr/lora/passes.hpp>

/// \file
/// Routed LoRA: the modules of an inventory mixed once for each distinct task of a batch, then
/// applied to the rows of that task. One head is Poly, several are MHR.

namespace mhr {

/// A layer with an inventory and, for each entry of a batch, the weights of its modules.
struct routed_lora {
    const_tensor_ref<4> a;       ///< [heads, modules, in_features / heads, rank]
    const_tensor_ref<4> b;       ///< [heads, modules, rank, out_features / heads]
    const_tensor_ref<3> weights; ///< [entries, heads, modules], from a router
    double scale = 1;            ///< 1 / rank, alpha / rank, or any other number

    /// Returns the modules alone.
    [[nodiscard]] MHR_INLINE lora_inventory inventory() const noexcept { return {a, b}; }
};

/// What a forward keeps for its backward: the adapters mixed for each entry, and x a. Its type, f32
/// or f64, is the type of all sums.
struct routed_lora_state {
    /// a [entries, in_features, rank], b [entries, rank, out_features]; absent where the batch is
    /// evaluated by module
    stacked_lora_matrices mixed;
    tensor_ref<2> hidden;       ///< [rows, rank]: x a of each row that has a task
    module_products products{}; ///< of a batch that is evaluated by module, and only of it
};

/// The gradients that a backward computes. Each is added to; one that is absent is not computed:
/// MHR-z wants weights (and x) alone, a frozen adapter only x.
struct routed_lora_gradients {
    tensor_ref<2> x{};       ///< [rows, in_features]
    tensor_ref<4> a{};       ///< [heads, modules, in_features / heads, rank]
    tensor_ref<4> b{};       ///< [heads, modules, rank, out_features / heads]
    tensor_ref<3> weights{}; ///< [entries, heads, modules]; layers that share a router share it
};

inline namespace MHR_ISA {

namespace lora_details {

/// Products of a row and a module, for each entry, up to which a batch is faster by module.
inline constexpr index_t most_products_by_module = 16;

/// Whether a batch goes through a layer module by module: as its caller says, or if mixing costs
/// more. Mixing writes an adapter for each entry, which is then read once a row; by module, each
/// row is multiplied with each module. (Measured on an AVX-512 processor for 2 to 32 modules of
/// rank 16: about equal at 4 rows an entry with 4 modules and at 2 with 8; a single row an entry is
/// faster by module with 32 modules, too.)
inline bool goes_by_module(const batch& rows, const lora_shape& shape) noexcept {
    if (rows.mixtures != evaluation::automatic) return rows.mixtures == evaluation::by_module;
    const index_t routed = rows.plan.row_order().extent(0);
    const index_t entries = rows.plan.entries();
    // Divided, since nothing has been checked yet: a product could overflow.
    return routed <= entries || shape.modules <= most_products_by_module * entries / routed;
}

} // namespace lora_details

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline routed_lora_state take_routed_lora_state(workspace& memory, const batch& rows,
                                                const routed_lora& layer,
                                                element_type sums = element_type::f32) noexcept {
    const lora_shape shape = shape_of(layer.inventory());
    const index_t entries = rows.plan.entries();
    if (lora_details::goes_by_module(rows, shape)) {
        const auto hidden = memory.take<2>(sums, {rows.plan.rows(), shape.rank});
        return {{}, hidden, take_module_products(memory, rows, shape, sums)};
    }
    // The columns of a are dense, as those of b's rows are: what the products read fastest.
    const auto a = memory.take_rows<3>(sums, {entries, shape.rank, shape.in_features});
    const auto b = memory.take_rows<3>(sums, {entries, shape.rank, shape.out_features});
    return {{a.transpose(1, 2), b}, memory.take<2>(sums, {rows.plan.rows(), shape.rank})};
}

/// Returns the bytes that take_routed_lora_state takes.
inline std::size_t routed_lora_state_size(const batch& rows, const routed_lora& layer,
                                          element_type sums = element_type::f32) noexcept {
    workspace meter;
    (void)take_routed_lora_state(meter, rows, layer, sums);
    return meter.used();
}

/// Why routed_lora_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const routed_lora_state& state);

/// y[row] += scale (x[row] A[g]) B[g] for every row that has a task, g the row's entry in the plan,
/// where head k of A[g] and B[g] is the mixture of head k's modules with weights[g, k] (Ponti et
/// al. 2023, arXiv 2202.13914, one head; Caccia et al. 2023, arXiv 2211.03831, section 3). Rows of
/// no task keep their y.
///
/// x [rows, in_features]; y [rows, out_features] accumulates; layer.weights come from
/// router_forward over the plan's tasks; the state is overwritten and is what the backward wants.
///
/// With batch::mixtures the same function is computed without mixed adapters, rounded in another
/// order: by module, the state has the products of the modules instead. A weight of 0 is not
/// computed then.
///
/// It needs an executor that runs every part (hosts that hand out shares mix first and call
/// lora_forward); y must not overlap x. These are refused: shapes that do not fit; a
/// batch::mixtures that is none of the three; f64 beside a state of f32; a y or a state two of
/// whose elements overlap. The cost is entries modules rank
/// (in + out) multiply-adds to mix, then that of lora_forward.
inline void routed_lora_forward(const batch& rows, const routed_lora& layer,
                                const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                const routed_lora_state& state);

/// Returns the bytes of workspace that routed_lora_backward needs for sums of this type.
inline std::size_t
routed_lora_backward_workspace_size(const batch& rows, const routed_lora& layer,
                                    element_type sums = element_type::f32) noexcept;

/// The backward of routed_lora_forward, with its arguments and the state that it left:
/// lora_backward to x and to the mixed adapters, and mix_lora_backward from those to the inventory
/// and the weights. What is wanted besides changes no bit of a gradient.
///
/// d_y [rows, out_features]; the gradients have the shapes of what they belong to.
///
/// It needs an executor that runs every part, and the workspace of
/// `routed_lora_backward_workspace_size`. These are refused: what the forward refuses; gradients
/// whose shapes do not fit, or two of whose elements overlap; a workspace that is too small. The
/// cost is that of lora_backward, and entries modules rank (in + out) multiply-adds for each of the
/// inventory and the weights.
inline void routed_lora_backward(const batch& rows, const routed_lora& layer,
                                 const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                 const routed_lora_state& state,
                                 const routed_lora_gradients& gradients, workspace scratch);

namespace lora_details {

/// The mixed adapters of a state as the adapters of the batch.
inline lora_list mixed_list(const routed_lora& layer, const routed_lora_state& state) noexcept {
    return {state.mixed.a, state.mixed.b, layer.scale};
}

inline void check_layer(argument_checks& checks, const batch& rows, const routed_lora& layer) {
    check_inventory(checks, layer.inventory());
    checks.input("layer.weights", layer.weights,
                 {rows.plan.entries(), layer.a.extent(0), layer.a.extent(1)});
}

inline void check_routed_lora(argument_checks& checks, const batch& rows, const routed_lora& layer,
                              const const_tensor_ref<2>& x, const routed_lora_state& state) {
    checks.sums_type("state.hidden", state.hidden.type());
    checks.sums_are(state.hidden.type());
    check_layer(checks, rows, layer);
    checks.expect(rows.mixtures == evaluation::by_entry || rows.mixtures == evaluation::by_module ||
                      rows.mixtures == evaluation::automatic,
                  "batch.mixtures", "by_entry, by_module or automatic",
                  joined("number ", static_cast<int>(rows.mixtures)));
    const lora_shape shape = shape_of(layer.inventory());
    const index_t entries = rows.plan.entries();
    checks.input("x", x, {rows.plan.rows(), shape.in_features});
    checks.output("state.hidden", state.hidden, {rows.plan.rows(), shape.rank});
    checks.every_part(rows.executor);
    check_rank_sum(checks, rows, state.hidden);
    if (checks.passed() && goes_by_module(rows, shape))
        return check_module_products(checks, rows, shape, state.products, state.hidden.type());
    checks.output("state.mixed.a", state.mixed.a, {entries, shape.in_features, shape.rank});
    checks.output("state.mixed.b", state.mixed.b, {entries, shape.rank, shape.out_features});
    checks.of_sums("state.mixed.a", state.mixed.a.type(), state.hidden.type());
    checks.of_sums("state.mixed.b", state.mixed.b.type(), state.hidden.type());
}

inline argument_checks check_routed_lora_forward(const batch& rows, const routed_lora& layer,
                                                 const const_tensor_ref<2>& x,
                                                 const tensor_ref<2>& y,
                                                 const routed_lora_state& state) {
    argument_checks checks("routed_lora_forward");
    check_routed_lora(checks, rows, layer, x, state);
    checks.output("y", y, {rows.plan.rows(), layer.b.extent(0) * layer.b.extent(3)});
    return checks;
}

} // namespace lora_details

inline std::string why_not(const batch& rows, const routed_lora& layer,
                           const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                           const routed_lora_state& state) {
    return lora_details::check_routed_lora_forward(rows, layer, x, y, state).why();
}

inline void routed_lora_forward(const batch& rows, const routed_lora& layer,
                                const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                const routed_lora_state& state) {
    lora_details::check_routed_lora_forward(rows, layer, x, y, state).raise();
    if (lora_details::goes_by_module(rows, shape_of(layer.inventory())))
        return with_sums(state.hidden.type(), [&](auto zero) {
            lora_details::forward_by_module<decltype(zero)>(
                rows, {layer.inventory(), layer.scale, state.products, state.hidden}, layer.weights,
                true, x, y);
        });
    lora_details::mix(rows.executor, layer.weights, layer.inventory(), state.mixed);
    lora_details::forward(rows, lora_details::mixed_list(layer, state), x, y, state.hidden);
}

inline std::size_t routed_lora_backward_workspace_size(const batch& rows, const routed_lora& layer,
                                                       element_type sums) noexcept {
    const lora_shape shape = shape_of(layer.inventory());
    if (lora_details::goes_by_module(rows, shape)) {
        workspace meter;
        (void)lora_details::module_scratch::take(meter, rows, shape, sums);
        return meter.used();
    }
    // The extents of the mixed adapters, which need no memory to be counted.
    const index_t entries = rows.plan.entries();
    const const_tensor_ref<3> a(nullptr, sums, {entries, shape.in_features, shape.rank});
    const const_tensor_ref<3> b(nullptr, sums, {entries, shape.rank, shape.out_features});
    return lora_backward_workspace_size(rows, lora_list(a, b, layer.scale), sums);
}

inline void routed_lora_backward(const batch& rows, const routed_lora& layer,
                                 const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                 const routed_lora_state& state,
                                 const routed_lora_gradients& gradients, workspace scratch) {
    argument_checks checks("routed_lora_backward");
    lora_details::check_routed_lora(checks, rows, layer, x, state);
    const lora_shape shape = shape_of(layer.inventory());
    const element_type sums_type = state.hidden.type();
    checks.input("d_y", d_y, {rows.plan.rows(), shape.out_features});
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.a", gradients.a, layer.a.extents());
    checks.optional_output("gradients.b", gradients.b, layer.b.extents());
    checks.optional_output("gradients.weights", gradients.weights, layer.weights.extents());
    if (checks.passed())
        checks.workspace_size(scratch, routed_lora_backward_workspace_size(rows, layer, sums_type));
    checks.raise();

    if (lora_details::goes_by_module(rows, shape)) {
        const auto taken = lora_details::module_scratch::take(scratch, rows, shape, sums_type);
        return with_sums(sums_type, [&](auto zero) {
            lora_details::backward_by_module<decltype(zero)>(
                rows, {layer.inventory(), layer.scale, state.products, state.hidden}, x, d_y,
                {gradients.x, gradients.a, gradients.b, gradients.weights, true, true}, taken);
        });
    }
    const bool wants_weights = !gradients.weights.absent();
    const lora_details::wanted_sums wanted{!gradients.a.absent() || wants_weights,
                                           !gradients.b.absent() || wants_weights};
    const lora_list mixed = lora_details::mixed_list(layer, state);
    const auto sums = lora_details::sum_backward(
        rows, mixed, {x, d_y, state.hidden, gradients.x}, wanted,
        lora_details::backward_scratch::take(scratch, rows.plan, mixed, sums_type));
    const index_t entries = rows.plan.entries();
    const auto of_entries = [&](const tensor_ref<2>& of_ranks) {
        return const_tensor_ref<3>(of_ranks.block(0, 0, entries * shape.rank).split(0, entries));
    };
    lora_details::mix_back(rows.executor, layer.weights, layer.inventory(),
                           of_entries(sums.a).transpose(1, 2), of_entries(sums.b),
                           {gradients.a, gradients.b, gradients.weights});
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/ia3/ia3.hpp>
#include <mhr/lora/mixing.hpp>

/// \file
/// Routed (IA)3: the scale vectors of an inventory mixed once for each distinct task of a batch,
/// then applied to the rows of that task. One head is Poly, several are MHR.

namespace mhr {

/// A layer with an inventory of scale vectors and, for each entry of a batch, the weights of its
/// modules. Other memory orders are the same tensor with other strides (mttl's
/// [modules, heads, ..]: `transpose(0, 1)`).
struct routed_ia3 {
    const_tensor_ref<3> inventory; ///< [heads, modules, features / heads]
    const_tensor_ref<3> weights;   ///< [entries, heads, modules], from a router
};

/// The state that a forward leaves for its backward. Its type, f32 or f64, is the type of all sums.
struct routed_ia3_state {
    tensor_ref<2> scales; ///< [entries, features], mixed
};

/// The gradients that a backward computes. Each is added to; one that is absent is not computed.
struct routed_ia3_gradients {
    tensor_ref<2> x{};         ///< [rows, features]
    tensor_ref<3> inventory{}; ///< [heads, modules, features / heads]
    tensor_ref<3> weights{};   ///< [entries, heads, modules]; layers that share a router share it
};

/// The gradients that mix_ia3_backward computes. Each is added to; one that is absent is not
/// computed.
struct mix_ia3_gradients {
    tensor_ref<3> inventory{}; ///< [heads, modules, features / heads]
    tensor_ref<3> weights{};   ///< [entries, heads, modules]
};

inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
inline routed_ia3_state take_routed_ia3_state(workspace& memory, const batch& rows,
                                              const routed_ia3& layer,
                                              element_type sums = element_type::f32) noexcept {
    return {memory.take<2>(
        sums, {rows.plan.entries(), layer.inventory.extent(0) * layer.inventory.extent(2)})};
}

/// Returns the bytes that take_routed_ia3_state takes.
inline std::size_t routed_ia3_state_size(const batch& rows, const routed_ia3& layer,
                                         element_type sums = element_type::f32) noexcept {
    workspace meter;
    (void)take_routed_ia3_state(meter, rows, layer, sums);
    return meter.used();
}

/// Mixes an inventory into one vector of scales for each entry of `weights`; see mix_forward.
///
/// weights [entries, heads, modules]; inventory [heads, modules, features / heads]; scales
/// [entries, features], overwritten.
///
/// It has one phase. These are refused: shapes that do not fit; scales two of whose elements
/// overlap. The cost is entries modules features multiply-adds.
inline void mix_ia3_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                            const const_tensor_ref<3>& inventory, const tensor_ref<2>& scales);

/// The backward of mix_ia3_forward; see mix_backward.
///
/// d_scales [entries, features].
///
/// It has one phase. These are refused: shapes that do not fit; a gradient two of whose elements
/// overlap. The cost is entries modules features multiply-adds for each gradient.
inline void mix_ia3_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                             const const_tensor_ref<3>& inventory,
                             const const_tensor_ref<2>& d_scales,
                             const mix_ia3_gradients& gradients);

/// The average of an inventory as one vector of scales (MHR-mu: Caccia et al. 2023, arXiv
/// 2211.03831); equal to the mixture with weights 1 / modules to the last bit.
///
/// inventory [heads, modules, features / heads]; average [features], overwritten.
///
/// It has one phase. These are refused: shapes that do not fit; an average two of whose elements
/// overlap. The cost is modules features multiply-adds.
inline void average_ia3_forward(executor_ref executor, const const_tensor_ref<3>& inventory,
                                const tensor_ref<1>& average);

/// The backward of average_ia3_forward: each module's gradient gets 1 / modules of the average's.
/// d_average [features]; d_inventory [heads, modules, features / heads] accumulates.
///
/// It has one phase. These are refused: shapes that do not fit; a d_inventory two of whose elements
/// overlap. The cost is modules features multiply-adds.
inline void average_ia3_backward(executor_ref executor, const const_tensor_ref<1>& d_average,
                                 const tensor_ref<3>& d_inventory);

/// Why routed_ia3_forward would refuse these arguments, or nothing: for hosts that fall back.
inline std::string why_not(const batch& rows, const routed_ia3& layer, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& y, const routed_ia3_state& state);

/// y[row] = x[row] * s[g], feature by feature, for every row that has a task, g the row's entry in
/// the plan, where block k of s[g] is the mixture of head k's modules with weights[g, k] ((IA)3:
/// Liu et al. 2022, arXiv 2205.05638, section 3.3; heads: Caccia et al. 2023, arXiv 2211.03831,
/// section 3). Rows of no task: y[row] = x[row].
///
/// x and y [rows, features] as in ia3_forward (y may be x); layer.weights come from router_forward
/// over the plan's tasks; the state is overwritten and is what the backward wants.
///
/// It needs an executor that runs every part (hosts that hand out shares mix first and call
/// ia3_forward). These are refused: shapes that do not fit; f64 beside a state of f32; a y or a
/// state two of whose elements overlap. The cost is entries modules features multiply-adds to mix,
/// then that of ia3_forward.
inline void routed_ia3_forward(const batch& rows, const routed_ia3& layer,
                               const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                               const routed_ia3_state& state);

/// Returns the bytes of workspace that routed_ia3_backward needs for sums of this type.
inline std::size_t
routed_ia3_backward_workspace_size(const batch& rows, const routed_ia3& layer,
                                   element_type sums = element_type::f32) noexcept {
    return routed_ia3_state_size(rows, layer, sums);
}

/// The backward of routed_ia3_forward, with its arguments and the state that it left: ia3_backward
/// to x (see there about hosts that work in place) and to the mixed scales, and mix_ia3_backward
/// from those to the inventory and the weights.
///
/// d_y [rows, features]; the gradients have the shapes of what they belong to.
///
/// It needs an executor that runs every part, and the workspace of
/// `routed_ia3_backward_workspace_size`. These are refused: what the forward refuses; gradients
/// whose shapes do not fit, or two of whose elements overlap; a workspace that is too small. The
/// cost is that of ia3_backward, and entries modules features multiply-adds for each of the
/// inventory and the weights.
inline void routed_ia3_backward(const batch& rows, const routed_ia3& layer,
                                const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                const routed_ia3_state& state,
                                const routed_ia3_gradients& gradients, workspace scratch);

namespace ia3_details {

/// Checks an inventory (an input, or the output of a backward) for its own sake.
template <class Void>
void check_heads(argument_checks& checks, const char* argument,
                 const basic_tensor_ref<Void, 3>& inventory) {
    checks.expect(inventory.extent(0) >= 1, argument, "at least one head", "none");
}

inline void check_inventory(argument_checks& checks, const char* argument,
                            const const_tensor_ref<3>& inventory) {
    checks.input(argument, inventory);
    check_heads(checks, argument, inventory);
}

template <class Void>
index_t features_of(const basic_tensor_ref<Void, 3>& inventory) noexcept {
    return inventory.extent(0) * inventory.extent(2);
}

/// Mixing sees matrices of one row: the inventory is [heads, modules, 1, features / heads] to it,
/// and scales [entries, features] are [entries, heads, 1, features / heads].
/// @{
template <class Void>
basic_tensor_ref<Void, 4> rows_of_inventory(const basic_tensor_ref<Void, 3>& inventory) noexcept {
    return inventory.split(2, 1);
}
template <class Void>
basic_tensor_ref<Void, 4> rows_of_scales(const basic_tensor_ref<Void, 2>& scales,
                                         index_t heads) noexcept {
    return scales.split(1, heads).split(2, 1);
}
/// @}

inline void check_routed(argument_checks& checks, const batch& rows, const routed_ia3& layer,
                         const const_tensor_ref<2>& x, const routed_ia3_state& state) {
    checks.sums_type("state.scales", state.scales.type());
    checks.sums_are(state.scales.type());
    check_inventory(checks, "layer.inventory", layer.inventory);
    const index_t features = features_of(layer.inventory);
    checks.input("x", x, {rows.plan.rows(), features});
    checks.input("layer.weights", layer.weights,
                 {rows.plan.entries(), layer.inventory.extent(0), layer.inventory.extent(1)});
    checks.output("state.scales", state.scales, {rows.plan.entries(), features});
    checks.every_part(rows.executor);
}

inline argument_checks check_routed_forward(const batch& rows, const routed_ia3& layer,
                                            const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                                            const routed_ia3_state& state) {
    argument_checks checks("routed_ia3_forward");
    check_routed(checks, rows, layer, x, state);
    checks.output("y", y, x.extents());
    return checks;
}

} // namespace ia3_details

inline void mix_ia3_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                            const const_tensor_ref<3>& inventory, const tensor_ref<2>& scales) {
    argument_checks checks("mix_ia3_forward");
    ia3_details::check_inventory(checks, "inventory", inventory);
    checks.input("weights", weights, {any_extent, inventory.extent(0), inventory.extent(1)});
    checks.output("scales", scales, {weights.extent(0), ia3_details::features_of(inventory)});
    checks.raise();
    mixing_details::mix(executor, weights, ia3_details::rows_of_inventory(inventory),
                        ia3_details::rows_of_scales(scales, inventory.extent(0)));
}

inline void mix_ia3_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                             const const_tensor_ref<3>& inventory,
                             const const_tensor_ref<2>& d_scales,
                             const mix_ia3_gradients& gradients) {
    argument_checks checks("mix_ia3_backward");
    ia3_details::check_inventory(checks, "inventory", inventory);
    checks.input("weights", weights, {any_extent, inventory.extent(0), inventory.extent(1)});
    checks.input("d_scales", d_scales, {weights.extent(0), ia3_details::features_of(inventory)});
    checks.optional_output("gradients.inventory", gradients.inventory, inventory.extents());
    checks.optional_output("gradients.weights", gradients.weights, weights.extents());
    checks.raise();
    mixing_details::mix_back(
        executor, weights, ia3_details::rows_of_inventory(inventory),
        ia3_details::rows_of_scales(d_scales, inventory.extent(0)),
        {ia3_details::rows_of_inventory(gradients.inventory), gradients.weights});
}

inline void average_ia3_forward(executor_ref executor, const const_tensor_ref<3>& inventory,
                                const tensor_ref<1>& average) {
    argument_checks checks("average_ia3_forward");
    ia3_details::check_inventory(checks, "inventory", inventory);
    checks.output("average", average, {ia3_details::features_of(inventory)});
    checks.raise();
    average_forward(
        executor, ia3_details::rows_of_inventory(inventory),
        ia3_details::rows_of_scales(average.prepend_axis(), inventory.extent(0)).slice(0, 0));
}

inline void average_ia3_backward(executor_ref executor, const const_tensor_ref<1>& d_average,
                                 const tensor_ref<3>& d_inventory) {
    argument_checks checks("average_ia3_backward");
    checks.output("d_inventory", d_inventory, argument_checks::any_extents<3>());
    ia3_details::check_heads(checks, "d_inventory", d_inventory);
    checks.input("d_average", d_average, {ia3_details::features_of(d_inventory)});
    checks.raise();
    average_backward(
        executor,
        ia3_details::rows_of_scales(d_average.prepend_axis(), d_inventory.extent(0)).slice(0, 0),
        ia3_details::rows_of_inventory(d_inventory));
}

inline std::string why_not(const batch& rows, const routed_ia3& layer, const const_tensor_ref<2>& x,
                           const tensor_ref<2>& y, const routed_ia3_state& state) {
    return ia3_details::check_routed_forward(rows, layer, x, y, state).why();
}

inline void routed_ia3_forward(const batch& rows, const routed_ia3& layer,
                               const const_tensor_ref<2>& x, const tensor_ref<2>& y,
                               const routed_ia3_state& state) {
    ia3_details::check_routed_forward(rows, layer, x, y, state).raise();
    mixing_details::mix(rows.executor, layer.weights,
                        ia3_details::rows_of_inventory(layer.inventory),
                        ia3_details::rows_of_scales(state.scales, layer.inventory.extent(0)));
    ia3_details::forward(rows, state.scales, x, y);
}

inline void routed_ia3_backward(const batch& rows, const routed_ia3& layer,
                                const const_tensor_ref<2>& x, const const_tensor_ref<2>& d_y,
                                const routed_ia3_state& state,
                                const routed_ia3_gradients& gradients, workspace scratch) {
    argument_checks checks("routed_ia3_backward");
    ia3_details::check_routed(checks, rows, layer, x, state);
    checks.input("d_y", d_y, x.extents());
    checks.optional_output("gradients.x", gradients.x, x.extents());
    checks.optional_output("gradients.inventory", gradients.inventory, layer.inventory.extents());
    checks.optional_output("gradients.weights", gradients.weights, layer.weights.extents());
    const element_type sums = state.scales.type();
    if (checks.passed())
        checks.workspace_size(scratch, routed_ia3_backward_workspace_size(rows, layer, sums));
    checks.raise();

    tensor_ref<2> d_scales;
    if (!gradients.inventory.absent() || !gradients.weights.absent()) {
        d_scales = take_routed_ia3_state(scratch, rows, layer, sums).scales;
        if (d_scales.size() > 0)
            std::fill_n(static_cast<std::byte*>(d_scales.data()),
                        static_cast<std::size_t>(d_scales.size()) * size_of(sums), std::byte{0});
    }
    ia3_details::backward(rows, state.scales, x, d_y, {gradients.x, d_scales});
    if (!d_scales.absent())
        mixing_details::mix_back(
            rows.executor, layer.weights, ia3_details::rows_of_inventory(layer.inventory),
            ia3_details::rows_of_scales(const_tensor_ref<2>(d_scales), layer.inventory.extent(0)),
            {ia3_details::rows_of_inventory(gradients.inventory), gradients.weights});
}

} // namespace MHR_ISA
} // namespace mhr

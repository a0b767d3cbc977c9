#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora_halves.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/mixing/mix.hpp>

/// \file
/// Routed LoRA in two halves, each of which mixes its own matrix: what every rank of a
/// tensor-parallel host calls with the heads that it owns (adapters/lora_shard.hpp), summing over
/// the ranks in between:
///
///     routed_lora_project_forward    mixes a, state.hidden = x a             sum state.hidden
///     routed_lora_expand_forward     mixes b, y += scale hidden b
///     routed_lora_expand_backward    d_hidden, and the gradients of b        sum d_hidden
///     routed_lora_project_backward   d_x, and the gradients of a
///
/// With nothing in between it is routed_lora_forward and routed_lora_backward to the last bit (as
/// adapters/lora_halves.hpp is), but for d_weights, to which here b adds before a.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// What all halves take.
template <class M, class W, class A>
lora_shape check_half(const char* function, const batch_plan& plan,
                      const lora_inventory<M>& inventory, const tensor_view<W, 3>& weights,
                      const routed_lora_state<A>& state) {
    static_assert(std::is_same_v<A, accumulator_t<A, M, W>>,
                  "mhr: the state has the accumulator type of x, inventory and weights");
    check_inventory(function, inventory);
    const lora_shape shape = shape_of(inventory);
    require_input(function, "weights", weights, {plan.entries(), shape.heads, shape.modules});
    require_input(function, "state.mixed.a", state.mixed.a,
                  {plan.entries(), shape.in_features, shape.rank});
    require_input(function, "state.mixed.b", state.mixed.b,
                  {plan.entries(), shape.rank, shape.out_features});
    require_no_slots(function, "state.mixed.slot_of_entry", state.mixed);
    require_input(function, "state.hidden", state.hidden, {plan.rows(), shape.rank});
    return shape;
}

template <class M, class DM, class W, class DW>
void check_half_gradients(const char* function, const lora_inventory<M>& inventory,
                          const tensor_view<W, 3>& weights, const lora_inventory<DM>& d_inventory,
                          const tensor_view<DW, 3>& d_weights) {
    require_optional_output(function, "d_inventory.a", d_inventory.a, inventory.a.extents());
    require_optional_output(function, "d_inventory.b", d_inventory.b, inventory.b.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
}

} // namespace detail

/// Bytes of workspace that each of the two backwards below needs; `A` is the type of d_hidden.
template <class A>
std::size_t routed_lora_halves_workspace_size(const batch_plan& plan,
                                              const lora_shape& shape) noexcept {
    return detail::half_workspace_size<A>(plan, (std::max)(shape.in_features, shape.out_features),
                                          shape.rank);
}

/// The first half forward: state.mixed.a = the mixtures of inventory.a, and state.hidden[row] =
/// x[row] mixed.a[g], g the row's entry in the plan; zeros in rows of no task.
///
/// x [rows, in_features]; inventory; weights [entries, heads, modules]; state as
/// take_routed_lora_state takes it, of which mixed.b is left alone.
///
/// Needs an executor that runs every part. Errors: a shape, the state. Cost: entries modules rank
/// in_features multiply-adds to mix, and for R rows of a task R rank in_features.
template <class X, class M, class W, class A>
void routed_lora_project_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                                 lora_inventory<M> inventory, tensor_view<W, 3> weights,
                                 routed_lora_state<A> state) {
    static_assert(std::is_same_v<A, accumulator_t<X, M, W>>,
                  "mhr: the state has the accumulator type of x, inventory and weights");
    constexpr const char* function = "routed_lora_project_forward";
    const lora_shape shape = detail::check_half(function, plan, inventory, weights, state);
    require_input(function, "x", x, {plan.rows(), shape.in_features});
    require_output(function, "state.mixed.a", state.mixed.a, state.mixed.a.extents());
    require_output(function, "state.hidden", state.hidden, state.hidden.extents());
    require_every_part(function, executor);

    mix_forward(executor, weights, inventory.a, detail::blocks_of_a(state.mixed.a, shape.heads));
    lora_project_forward(executor, plan, x, state.mixed, state.hidden);
}

/// The backward of routed_lora_project_forward, and the last half of a backward:
/// lora_project_backward to x and to the mixed a, and mix_backward from that to inventory.a and the
/// weights.
///
/// d_hidden [rows, rank] comes from routed_lora_expand_backward; d_x as x; d_inventory, whose b is
/// left alone; d_weights as weights. Gradients accumulate, and each may be absent.
///
/// Needs an executor that runs every part; the workspace of `routed_lora_halves_workspace_size`.
/// Errors: a shape, the state, overlapping elements of a gradient, the workspace. Cost: for R rows
/// of a task 2 R rank in_features multiply-adds, and entries modules rank in_features for each of
/// d_inventory.a and d_weights.
template <class X, class M, class W, class A, class Sum, class DX = std::remove_const_t<X>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void routed_lora_project_backward(executor_ref executor, const batch_plan& plan,
                                  tensor_view<X, 2> x, lora_inventory<M> inventory,
                                  tensor_view<W, 3> weights, routed_lora_state<A> state,
                                  tensor_view<Sum, 2> d_hidden, tensor_view<DX, 2> d_x,
                                  lora_inventory<DM> d_inventory, tensor_view<DW, 3> d_weights,
                                  workspace scratch) {
    using Result = std::remove_const_t<Sum>;
    static_assert(std::is_same_v<Result, accumulator_t<X, A, Sum>>,
                  "mhr: d_hidden has the accumulator type of x, inventory, weights and d_y");
    constexpr const char* function = "routed_lora_project_backward";
    const lora_shape shape = detail::check_half(function, plan, inventory, weights, state);
    require_input(function, "x", x, {plan.rows(), shape.in_features});
    require_input(function, "d_hidden", d_hidden, {plan.rows(), shape.rank});
    require_optional_output(function, "d_x", d_x, x.extents());
    detail::check_half_gradients(function, inventory, weights, d_inventory, d_weights);
    require_every_part(function, executor);
    require_workspace(function, scratch, routed_lora_halves_workspace_size<Result>(plan, shape));

    const bool wanted = !d_inventory.a.absent() || !d_weights.absent();
    const auto sums = detail::sum_project_backward(
        executor, plan, x, state.mixed, d_hidden, d_x, wanted,
        detail::take_half_sums<Result>(scratch, plan, shape.in_features, shape.rank));
    if (wanted)
        mix_backward(executor, weights, inventory.a,
                     detail::blocks_of_a(sums.transpose(1, 2), shape.heads), d_inventory.a,
                     d_weights);
}

/// The second half forward: state.mixed.b = the mixtures of inventory.b, and y[row] += scale
/// state.hidden[row] mixed.b[g] for every row that has a task.
///
/// y [rows, out_features] accumulates; the others as in routed_lora_project_forward.
///
/// Needs an executor that runs every part. Errors: a shape, the state, overlapping elements of y.
/// Cost: entries modules rank out_features multiply-adds to mix, and for R rows of a task R rank
/// out_features.
template <class M, class W, class Y, class A>
void routed_lora_expand_forward(executor_ref executor, const batch_plan& plan,
                                lora_inventory<M> inventory, tensor_view<W, 3> weights,
                                double scale, tensor_view<Y, 2> y, routed_lora_state<A> state) {
    constexpr const char* function = "routed_lora_expand_forward";
    const lora_shape shape = detail::check_half(function, plan, inventory, weights, state);
    require_output(function, "y", y, {plan.rows(), shape.out_features});
    require_output(function, "state.mixed.b", state.mixed.b, state.mixed.b.extents());
    require_every_part(function, executor);

    mix_forward(executor, weights, inventory.b, detail::blocks_of_b(state.mixed.b, shape.heads));
    lora_expand_forward(executor, plan, state.hidden, state.mixed, scale, y);
}

/// The backward of routed_lora_expand_forward, and the first half of a backward:
/// lora_expand_backward to d_hidden and to the mixed b, and mix_backward from that to inventory.b
/// and the weights.
///
/// state as the forward left it; d_y [rows, out_features]; d_hidden [rows, rank], of the
/// accumulator type of x, inventory, weights and d_y, is overwritten (zeros in rows of no task);
/// d_inventory, whose a is left alone, and d_weights accumulate. d_hidden and each gradient may be
/// absent.
///
/// Needs an executor that runs every part; the workspace of `routed_lora_halves_workspace_size`.
/// Errors: a shape, the state, overlapping elements of an output, the workspace. Cost: for R rows
/// of a task 2 R rank out_features multiply-adds, and entries modules rank out_features for each of
/// d_inventory.b and d_weights.
template <class M, class W, class A, class D, class Sum = accumulator_t<A, D>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void routed_lora_expand_backward(executor_ref executor, const batch_plan& plan,
                                 lora_inventory<M> inventory, tensor_view<W, 3> weights,
                                 double scale, routed_lora_state<A> state, tensor_view<D, 2> d_y,
                                 tensor_view<Sum, 2> d_hidden, lora_inventory<DM> d_inventory,
                                 tensor_view<DW, 3> d_weights, workspace scratch) {
    static_assert(std::is_same_v<Sum, accumulator_t<A, D>>,
                  "mhr: d_hidden has the accumulator type of x, inventory, weights and d_y");
    constexpr const char* function = "routed_lora_expand_backward";
    const lora_shape shape = detail::check_half(function, plan, inventory, weights, state);
    require_input(function, "d_y", d_y, {plan.rows(), shape.out_features});
    require_optional_output(function, "d_hidden", d_hidden, {plan.rows(), shape.rank});
    detail::check_half_gradients(function, inventory, weights, d_inventory, d_weights);
    require_every_part(function, executor);
    require_workspace(function, scratch, routed_lora_halves_workspace_size<Sum>(plan, shape));

    const bool wanted = !d_inventory.b.absent() || !d_weights.absent();
    const auto sums = detail::sum_expand_backward(
        executor, plan, state.hidden, state.mixed, scale, d_y, d_hidden, wanted,
        detail::take_half_sums<Sum>(scratch, plan, shape.out_features, shape.rank));
    if (wanted)
        mix_backward(executor, weights, inventory.b, detail::blocks_of_b(sums, shape.heads),
                     d_inventory.b, d_weights);
}

} // namespace MHR_ISA
} // namespace mhr

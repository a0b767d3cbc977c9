#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <mhr/adapters/lora.hpp>
#include <mhr/mixing/average.hpp>
#include <mhr/mixing/mix.hpp>

/// \file
/// Routed LoRA: the modules of an inventory mixed once for each distinct task of a batch, then
/// applied to the rows of that task. One head is Poly, several are MHR.

namespace mhr {
inline namespace MHR_ISA {

/// The modules of one adapted layer: a [heads, modules, in_features / heads, rank] and
/// b [heads, modules, rank, out_features / heads], as PEFT stores them. Other memory orders are the
/// same view with other strides (mttl: a is [modules, heads, ..], b [modules, rank, heads, ..]).
template <class T>
struct lora_inventory {
    tensor_view<T, 4> a{}; ///< [heads, modules, in_features / heads, rank]
    tensor_view<T, 4> b{}; ///< [heads, modules, rank, out_features / heads]
};

/// The sizes of a routed layer.
struct lora_shape {
    index_t heads;        ///< blocks of the parameters, each with a choice of its own
    index_t modules;      ///< of the inventory
    index_t in_features;  ///< of x, all heads together
    index_t out_features; ///< of y, all heads together
    index_t rank;         ///< of each module
};

/// The sizes of an inventory, whose two views must fit together.
template <class T>
lora_shape shape_of(const lora_inventory<T>& inventory) noexcept {
    const auto& [a, b] = inventory;
    return {a.extent(0), a.extent(1), a.extent(0) * a.extent(2), b.extent(0) * b.extent(3),
            a.extent(3)};
}

/// What a forward keeps for its backward: the adapters mixed for each entry of the plan, and x a.
/// `A` is the accumulator type of x, inventory and weights.
template <class A>
struct routed_lora_state {
    lora_batch<A> mixed;      ///< a [entries, in_features, rank], b [entries, rank, out_features]
    tensor_view<A, 2> hidden; ///< [rows, rank]: x a of each row that has a task
};

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size).
/// Inference may use one state for all layers; training keeps one for each layer until its
/// backward.
template <class A>
routed_lora_state<A> take_routed_lora_state(workspace& memory, const batch_plan& plan,
                                            const lora_shape& shape) noexcept {
    // The columns of a are dense, as those of b's rows are: what the products read fastest.
    const auto a = memory.take_rows<A, 3>({plan.entries(), shape.rank, shape.in_features});
    const auto b = memory.take_rows<A, 3>({plan.entries(), shape.rank, shape.out_features});
    return {{a.transpose(1, 2), b}, memory.take<A, 2>({plan.rows(), shape.rank})};
}

/// Bytes that take_routed_lora_state takes.
template <class A>
std::size_t routed_lora_state_size(const batch_plan& plan, const lora_shape& shape) noexcept {
    workspace meter;
    (void)take_routed_lora_state<A>(meter, plan, shape);
    return meter.used();
}

namespace detail {

template <class M>
void check_inventory(const char* function, const lora_inventory<M>& inventory) {
    require_input(function, "inventory.a", inventory.a,
                  {any_extent, any_extent, any_extent, any_extent});
    require_that(
        inventory.a.extent(0) >= 1, function, "inventory.a", [] { return "at least one head"; },
        [] { return "none"; });
    require_input(
        function, "inventory.b", inventory.b,
        {inventory.a.extent(0), inventory.a.extent(1), inventory.a.extent(3), any_extent});
}

/// Matrices of a batch, seen block by block as mixing sees them: a as [entries, heads, in / heads,
/// rank], b as [entries, heads, rank, out / heads].
template <class T>
tensor_view<T, 4> blocks_of_a(const tensor_view<T, 3>& a, index_t heads) noexcept {
    return a.split(1, heads);
}
template <class T>
tensor_view<T, 4> blocks_of_b(const tensor_view<T, 3>& b, index_t heads) noexcept {
    return b.split(2, heads).transpose(1, 2);
}

} // namespace detail

/// Mixes an inventory into one adapter for each entry of `weights`; see mix_forward.
///
/// weights [entries, heads, modules]; inventory as above; mixed.a [entries, in_features, rank] and
/// mixed.b [entries, rank, out_features], overwritten.
///
/// One phase. Errors: a shape; overlapping elements of mixed.
/// Cost: entries modules rank (in + out) multiply-adds.
template <class W, class M, class Y>
void mix_lora_forward(executor_ref executor, tensor_view<W, 3> weights, lora_inventory<M> inventory,
                      lora_batch<Y> mixed) {
    constexpr const char* function = "mix_lora_forward";
    detail::check_inventory(function, inventory);
    const lora_shape shape = shape_of(inventory);
    require_input(function, "weights", weights, {any_extent, shape.heads, shape.modules});
    require_output(function, "mixed.a", mixed.a,
                   {weights.extent(0), shape.in_features, shape.rank});
    require_output(function, "mixed.b", mixed.b,
                   {weights.extent(0), shape.rank, shape.out_features});
    detail::require_no_slots(function, "mixed.slot_of_entry", mixed);
    mix_forward(executor, weights, inventory.a, detail::blocks_of_a(mixed.a, shape.heads));
    mix_forward(executor, weights, inventory.b, detail::blocks_of_b(mixed.b, shape.heads));
}

/// The backward of mix_lora_forward; see mix_backward. Gradients accumulate, and each may be
/// absent.
///
/// One phase. Errors: a shape; overlapping elements of a gradient.
/// Cost: entries modules rank (in + out) multiply-adds for each of d_inventory and d_weights.
template <class W, class M, class D, class DM = std::remove_const_t<M>,
          class DW = std::remove_const_t<W>>
void mix_lora_backward(executor_ref executor, tensor_view<W, 3> weights,
                       lora_inventory<M> inventory, lora_batch<D> d_mixed,
                       lora_inventory<DM> d_inventory, tensor_view<DW, 3> d_weights) {
    constexpr const char* function = "mix_lora_backward";
    detail::check_inventory(function, inventory);
    const lora_shape shape = shape_of(inventory);
    require_input(function, "weights", weights, {any_extent, shape.heads, shape.modules});
    require_input(function, "d_mixed.a", d_mixed.a,
                  {weights.extent(0), shape.in_features, shape.rank});
    require_input(function, "d_mixed.b", d_mixed.b,
                  {weights.extent(0), shape.rank, shape.out_features});
    detail::require_no_slots(function, "d_mixed.slot_of_entry", d_mixed);
    require_optional_output(function, "d_inventory.a", d_inventory.a, inventory.a.extents());
    require_optional_output(function, "d_inventory.b", d_inventory.b, inventory.b.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    mix_backward(executor, weights, inventory.a, detail::blocks_of_a(d_mixed.a, shape.heads),
                 d_inventory.a, d_weights);
    mix_backward(executor, weights, inventory.b, detail::blocks_of_b(d_mixed.b, shape.heads),
                 d_inventory.b, d_weights);
}

/// The average of an inventory as one plain adapter (MHR-mu: Caccia et al. 2023, arXiv 2211.03831);
/// equal to the mixture with weights 1 / modules to the last bit.
///
/// average.a [in_features, rank], average.b [rank, out_features], overwritten, rounded once to
/// their type.
///
/// One phase. Errors: a shape; overlapping elements of average.
/// Cost: modules rank (in + out) multiply-adds.
template <class M, class Y>
void average_lora_forward(executor_ref executor, lora_inventory<M> inventory, lora<Y> average) {
    constexpr const char* function = "average_lora_forward";
    detail::check_inventory(function, inventory);
    const lora_shape shape = shape_of(inventory);
    require_output(function, "average.a", average.a, {shape.in_features, shape.rank});
    require_output(function, "average.b", average.b, {shape.rank, shape.out_features});
    const auto batch = as_batch(average);
    average_forward(executor, inventory.a, detail::blocks_of_a(batch.a, shape.heads).slice(0, 0));
    average_forward(executor, inventory.b, detail::blocks_of_b(batch.b, shape.heads).slice(0, 0));
}

/// The backward of average_lora_forward: each module's gradient gets 1 / modules of the average's.
/// d_inventory accumulates.
///
/// One phase. Errors: a shape; overlapping elements of d_inventory.
/// Cost: modules rank (in + out) multiply-adds.
template <class D, class DM>
void average_lora_backward(executor_ref executor, lora<D> d_average,
                           lora_inventory<DM> d_inventory) {
    constexpr const char* function = "average_lora_backward";
    require_output(function, "d_inventory.a", d_inventory.a,
                   {any_extent, any_extent, any_extent, any_extent});
    require_output(
        function, "d_inventory.b", d_inventory.b,
        {d_inventory.a.extent(0), d_inventory.a.extent(1), d_inventory.a.extent(3), any_extent});
    require_that(
        d_inventory.a.extent(0) >= 1, function, "d_inventory.a", [] { return "at least one head"; },
        [] { return "none"; });
    const lora_shape shape = shape_of(d_inventory);
    require_input(function, "d_average.a", d_average.a, {shape.in_features, shape.rank});
    require_input(function, "d_average.b", d_average.b, {shape.rank, shape.out_features});
    const auto d = as_batch(d_average);
    average_backward(executor, detail::blocks_of_a(d.a, shape.heads).slice(0, 0), d_inventory.a);
    average_backward(executor, detail::blocks_of_b(d.b, shape.heads).slice(0, 0), d_inventory.b);
}

namespace detail {

template <class X, class M, class W>
lora_shape check_routed_lora(const char* function, const batch_plan& plan,
                             const tensor_view<X, 2>& x, const lora_inventory<M>& inventory,
                             const tensor_view<W, 3>& weights) {
    check_inventory(function, inventory);
    const lora_shape shape = shape_of(inventory);
    require_input(function, "x", x, {plan.rows(), shape.in_features});
    require_input(function, "weights", weights, {plan.entries(), shape.heads, shape.modules});
    return shape;
}

} // namespace detail

/// y[row] += scale (x[row] A[g]) B[g] for every row that has a task, g the row's entry in the plan,
/// where block k of A[g] and B[g] is the mixture of head k's modules with weights[g, k]
/// (Caccia et al. 2023, arXiv 2211.03831, section 3). The matrices are mixed first and multiplied
/// then, so the weights enter twice. Rows of no task keep their y.
///
/// x [rows, in_features]; weights [entries, heads, modules], from router_forward over plan.tasks();
/// y [rows, out_features] accumulates; state, overwritten, is what the backward wants.
///
/// Needs an executor that runs every part (hosts that hand out shares mix first and call
/// lora_forward); y must not overlap x. Errors: a shape, the state, overlapping elements of y.
/// Cost: entries modules rank (in + out) multiply-adds to mix, then that of lora_forward.
template <class X, class M, class W, class Y, class A>
void routed_lora_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                         lora_inventory<M> inventory, tensor_view<W, 3> weights, double scale,
                         tensor_view<Y, 2> y, routed_lora_state<A> state) {
    static_assert(std::is_same_v<A, accumulator_t<X, M, W>>,
                  "mhr: the state has the accumulator type of x, inventory and weights");
    constexpr const char* function = "routed_lora_forward";
    const lora_shape shape = detail::check_routed_lora(function, plan, x, inventory, weights);
    require_output(function, "y", y, {plan.rows(), shape.out_features});
    require_output(function, "state.mixed.a", state.mixed.a,
                   {plan.entries(), shape.in_features, shape.rank});
    require_output(function, "state.mixed.b", state.mixed.b,
                   {plan.entries(), shape.rank, shape.out_features});
    detail::require_no_slots(function, "state.mixed.slot_of_entry", state.mixed);
    require_output(function, "state.hidden", state.hidden, {plan.rows(), shape.rank});
    require_every_part(function, executor);

    mix_lora_forward(executor, weights, inventory, state.mixed);
    lora_forward(executor, plan, x, state.mixed, scale, y, state.hidden);
}

/// Bytes of workspace that routed_lora_backward needs; `A` is the accumulator type of x, inventory,
/// weights and d_y.
template <class A>
std::size_t routed_lora_backward_workspace_size(const batch_plan& plan,
                                                const lora_shape& shape) noexcept {
    return lora_backward_workspace_size<A>(plan, shape.in_features, shape.out_features, shape.rank);
}

/// The backward of routed_lora_forward, with its arguments and the state that it left:
/// lora_backward to x and to the mixed adapters, and mix_lora_backward from those to inventory and
/// weights.
///
/// d_y [rows, out_features]; d_x as x; d_inventory as inventory; d_weights as weights. All
/// gradients accumulate (several layers add to the d_weights of the router they share), and each
/// may be absent: MHR-z wants d_weights (and d_x) alone, a frozen adapter only d_x. What is wanted
/// besides changes no bit of a gradient.
///
/// Needs an executor that runs every part, and the workspace of
/// `routed_lora_backward_workspace_size`. Errors: a shape, overlapping elements of a gradient, the
/// workspace. Cost: that of lora_backward, and entries modules rank (in + out) multiply-adds for
/// each of d_inventory and d_weights.
template <class X, class M, class W, class A, class D, class DX = std::remove_const_t<X>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void routed_lora_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                          lora_inventory<M> inventory, tensor_view<W, 3> weights, double scale,
                          routed_lora_state<A> state, tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x,
                          lora_inventory<DM> d_inventory, tensor_view<DW, 3> d_weights,
                          workspace scratch) {
    using Sum = accumulator_t<X, M, W, D>;
    constexpr const char* function = "routed_lora_backward";
    const lora_shape shape = detail::check_routed_lora(function, plan, x, inventory, weights);
    require_input(function, "state.mixed.a", state.mixed.a,
                  {plan.entries(), shape.in_features, shape.rank});
    require_input(function, "state.mixed.b", state.mixed.b,
                  {plan.entries(), shape.rank, shape.out_features});
    detail::require_no_slots(function, "state.mixed.slot_of_entry", state.mixed);
    require_input(function, "state.hidden", state.hidden, {plan.rows(), shape.rank});
    require_input(function, "d_y", d_y, {plan.rows(), shape.out_features});
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_inventory.a", d_inventory.a, inventory.a.extents());
    require_optional_output(function, "d_inventory.b", d_inventory.b, inventory.b.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    require_every_part(function, executor);
    require_workspace(function, scratch, routed_lora_backward_workspace_size<Sum>(plan, shape));

    const bool mixed_a_wanted = !d_inventory.a.absent() || !d_weights.absent();
    const bool mixed_b_wanted = !d_inventory.b.absent() || !d_weights.absent();
    const auto sums = detail::sum_lora_backward(
        executor, plan, x, state.mixed, scale, state.hidden, d_y, d_x, mixed_a_wanted,
        mixed_b_wanted,
        detail::take_lora_backward_scratch<Sum>(scratch, plan, shape.in_features,
                                                shape.out_features, shape.rank));
    const lora_batch<Sum> d_mixed{sums.a.transpose(1, 2), sums.b};
    if (mixed_a_wanted)
        mix_backward(executor, weights, inventory.a, detail::blocks_of_a(d_mixed.a, shape.heads),
                     d_inventory.a, d_weights);
    if (mixed_b_wanted)
        mix_backward(executor, weights, inventory.b, detail::blocks_of_b(d_mixed.b, shape.heads),
                     d_inventory.b, d_weights);
}

} // namespace MHR_ISA
} // namespace mhr

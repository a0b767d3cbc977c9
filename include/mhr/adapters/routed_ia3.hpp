#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/ia3.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/mixing/average.hpp>
#include <mhr/mixing/mix.hpp>

/// \file
/// Routed (IA)3: the scale vectors of an inventory mixed once for each distinct task of a batch,
/// then applied to the rows of that task. One head is Poly, several are MHR.
///
/// An inventory is one view, modules [heads, modules, features / heads]. Other memory orders are
/// the same view with other strides (mttl's [modules, heads, ..]: `transpose(0, 1)`).

namespace mhr {
inline namespace MHR_ISA {

/// Takes the state of one layer from a workspace (or, from one without memory, tells its size): the
/// scales mixed for each entry of the plan, [entries, features]. `A` is the accumulator type of x,
/// modules and weights. Inference may use one state for all layers; training keeps one for each
/// layer until its backward.
template <class A>
tensor_view<A, 2> take_routed_ia3_state(workspace& memory, const batch_plan& plan,
                                        index_t features) noexcept {
    return memory.take<A, 2>({plan.entries(), features});
}

/// Bytes that take_routed_ia3_state takes.
template <class A>
std::size_t routed_ia3_state_size(const batch_plan& plan, index_t features) noexcept {
    workspace meter;
    (void)take_routed_ia3_state<A>(meter, plan, features);
    return meter.used();
}

namespace detail {

/// Checks modules (an input, or the output of an initialisation or backward) for their own sake,
/// and returns the features of the layer.
template <class M>
index_t check_ia3_modules(const char* function, const char* argument,
                          const tensor_view<M, 3>& modules) {
    require_input(function, argument, modules, {any_extent, any_extent, any_extent});
    require_that(
        modules.extent(0) >= 1, function, argument, [] { return "at least one head"; },
        [] { return "none"; });
    return modules.extent(0) * modules.extent(2);
}

/// As mixing sees them, with blocks of one row: modules [heads, modules, 1, features / heads], and
/// scales [entries, features] as [entries, heads, 1, features / heads].
template <class T>
tensor_view<T, 4> blocks_of_modules(const tensor_view<T, 3>& modules) noexcept {
    return modules.split(2, 1);
}
template <class T>
tensor_view<T, 4> blocks_of_scales(const tensor_view<T, 2>& scales, index_t heads) noexcept {
    return scales.split(1, heads).split(2, 1);
}

} // namespace detail

/// Sets every scale to 1, so that the adapter changes nothing at first, whatever the weights (their
/// sum being 1). modules [heads, modules, features / heads]. Errors: a shape; overlapping elements.
template <class T>
void initialise_ia3(tensor_view<T, 3> modules) {
    require_output("initialise_ia3", "modules", modules, {any_extent, any_extent, any_extent});
    for (index_t h = 0; h < modules.extent(0); ++h)
        for (index_t m = 0; m < modules.extent(1); ++m)
            for (index_t i = 0; i < modules.extent(2); ++i)
                modules(h, m, i) = store<T>(accumulator_t<T>(1));
}

/// Mixes an inventory into one vector of scales for each entry of `weights`; see mix_forward.
///
/// weights [entries, heads, modules]; modules [heads, modules, features / heads]; scales
/// [entries, features], overwritten.
///
/// One phase. Errors: a shape; overlapping elements of scales.
/// Cost: entries modules features multiply-adds.
template <class W, class M, class Y>
void mix_ia3_forward(executor_ref executor, tensor_view<W, 3> weights, tensor_view<M, 3> modules,
                     tensor_view<Y, 2> scales) {
    constexpr const char* function = "mix_ia3_forward";
    const index_t features = detail::check_ia3_modules(function, "modules", modules);
    require_input(function, "weights", weights, {any_extent, modules.extent(0), modules.extent(1)});
    require_output(function, "scales", scales, {weights.extent(0), features});
    mix_forward(executor, weights, detail::blocks_of_modules(modules),
                detail::blocks_of_scales(scales, modules.extent(0)));
}

/// The backward of mix_ia3_forward; see mix_backward. Gradients accumulate, and each may be absent.
///
/// One phase. Errors: a shape; overlapping elements of a gradient.
/// Cost: entries modules features multiply-adds for each gradient.
template <class W, class M, class D, class DM = std::remove_const_t<M>,
          class DW = std::remove_const_t<W>>
void mix_ia3_backward(executor_ref executor, tensor_view<W, 3> weights, tensor_view<M, 3> modules,
                      tensor_view<D, 2> d_scales, tensor_view<DM, 3> d_modules,
                      tensor_view<DW, 3> d_weights) {
    constexpr const char* function = "mix_ia3_backward";
    const index_t features = detail::check_ia3_modules(function, "modules", modules);
    require_input(function, "weights", weights, {any_extent, modules.extent(0), modules.extent(1)});
    require_input(function, "d_scales", d_scales, {weights.extent(0), features});
    require_optional_output(function, "d_modules", d_modules, modules.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    mix_backward(executor, weights, detail::blocks_of_modules(modules),
                 detail::blocks_of_scales(d_scales, modules.extent(0)),
                 detail::blocks_of_modules(d_modules), d_weights);
}

/// The average of an inventory as one vector of scales (MHR-mu: Caccia et al. 2023, arXiv
/// 2211.03831); equal to the mixture with weights 1 / modules to the last bit.
///
/// modules [heads, modules, features / heads]; average [features], overwritten.
///
/// One phase. Errors: a shape; overlapping elements of average.
/// Cost: modules features multiply-adds.
template <class M, class Y>
void average_ia3_forward(executor_ref executor, tensor_view<M, 3> modules,
                         tensor_view<Y, 1> average) {
    constexpr const char* function = "average_ia3_forward";
    const index_t features = detail::check_ia3_modules(function, "modules", modules);
    require_output(function, "average", average, {features});
    average_forward(
        executor, detail::blocks_of_modules(modules),
        detail::blocks_of_scales(average.prepend_axis(), modules.extent(0)).slice(0, 0));
}

/// The backward of average_ia3_forward: each module's gradient gets 1 / modules of the average's.
/// d_average [features]; d_modules [heads, modules, features / heads] accumulates.
///
/// One phase. Errors: a shape; overlapping elements of d_modules.
/// Cost: modules features multiply-adds.
template <class D, class DM>
void average_ia3_backward(executor_ref executor, tensor_view<D, 1> d_average,
                          tensor_view<DM, 3> d_modules) {
    constexpr const char* function = "average_ia3_backward";
    const index_t features = detail::check_ia3_modules(function, "d_modules", d_modules);
    require_output(function, "d_modules", d_modules, d_modules.extents());
    require_input(function, "d_average", d_average, {features});
    average_backward(
        executor,
        detail::blocks_of_scales(d_average.prepend_axis(), d_modules.extent(0)).slice(0, 0),
        detail::blocks_of_modules(d_modules));
}

namespace detail {

template <class X, class M, class W>
void check_routed_ia3(const char* function, const batch_plan& plan, const tensor_view<X, 2>& x,
                      const tensor_view<M, 3>& modules, const tensor_view<W, 3>& weights) {
    const index_t features = check_ia3_modules(function, "modules", modules);
    require_input(function, "x", x, {plan.rows(), features});
    require_input(function, "weights", weights,
                  {plan.entries(), modules.extent(0), modules.extent(1)});
}

} // namespace detail

/// y[row] = x[row] * s[g], feature by feature, for every row that has a task, g the row's entry in
/// the plan, where block k of s[g] is the mixture of head k's modules with weights[g, k] ((IA)3:
/// Liu et al. 2022, arXiv 2205.05638, section 3.3; heads: Caccia et al. 2023, arXiv 2211.03831,
/// section 3). Rows of no task: y[row] = x[row].
///
/// x and y [rows, features] as in ia3_forward (y may be x); modules [heads, modules,
/// features / heads]; weights [entries, heads, modules], from router_forward over plan.tasks();
/// state [entries, features], overwritten, is what the backward wants.
///
/// Needs an executor that runs every part (hosts that hand out shares mix first and call
/// ia3_forward). Errors: a shape, the state, overlapping elements of y.
/// Cost: entries modules features multiply-adds to mix, then that of ia3_forward.
template <class X, class M, class W, class Y, class A>
void routed_ia3_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                        tensor_view<M, 3> modules, tensor_view<W, 3> weights, tensor_view<Y, 2> y,
                        tensor_view<A, 2> state) {
    static_assert(std::is_same_v<A, accumulator_t<X, M, W>>,
                  "mhr: the state has the accumulator type of x, modules and weights");
    constexpr const char* function = "routed_ia3_forward";
    detail::check_routed_ia3(function, plan, x, modules, weights);
    require_output(function, "y", y, x.extents());
    require_output(function, "state", state, {plan.entries(), x.extent(1)});
    require_every_part(function, executor);

    mix_ia3_forward(executor, weights, modules, state);
    ia3_forward(executor, plan, x, state, y);
}

/// Bytes of workspace that routed_ia3_backward needs; `A` is the accumulator type of x, modules,
/// weights and d_y.
template <class A>
std::size_t routed_ia3_backward_workspace_size(const batch_plan& plan, index_t features) noexcept {
    workspace meter;
    (void)meter.take<A, 2>({plan.entries(), features});
    return meter.used();
}

/// The backward of routed_ia3_forward, with its arguments and the state that it left: ia3_backward
/// to x (see there about hosts that work in place) and to the mixed scales, and mix_ia3_backward
/// from those to modules and weights.
///
/// d_y [rows, features]; d_x as x; d_modules as modules; d_weights as weights. All gradients
/// accumulate (several layers add to the d_weights of the router they share), and each may be
/// absent: its work is skipped.
///
/// Needs an executor that runs every part, and the workspace of
/// `routed_ia3_backward_workspace_size`. Errors: a shape, overlapping elements of a gradient, the
/// workspace. Cost: that of ia3_backward, and entries modules features multiply-adds for each of
/// d_modules and d_weights.
template <class X, class M, class W, class A, class D, class DX = std::remove_const_t<X>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void routed_ia3_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                         tensor_view<M, 3> modules, tensor_view<W, 3> weights,
                         tensor_view<A, 2> state, tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x,
                         tensor_view<DM, 3> d_modules, tensor_view<DW, 3> d_weights,
                         workspace scratch) {
    using Sum = accumulator_t<X, M, W, D>;
    constexpr const char* function = "routed_ia3_backward";
    detail::check_routed_ia3(function, plan, x, modules, weights);
    const index_t features = x.extent(1);
    require_input(function, "state", state, {plan.entries(), features});
    require_input(function, "d_y", d_y, x.extents());
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_modules", d_modules, modules.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    require_every_part(function, executor);
    require_workspace(function, scratch, routed_ia3_backward_workspace_size<Sum>(plan, features));

    tensor_view<Sum, 2> d_scales;
    if (!d_modules.absent() || !d_weights.absent()) {
        d_scales = scratch.take<Sum, 2>({plan.entries(), features});
        std::fill_n(d_scales.data(), d_scales.size(), Sum(0));
    }
    ia3_backward(executor, plan, x, state, d_y, d_x, d_scales);
    if (!d_scales.absent())
        mix_ia3_backward(executor, weights, modules, d_scales, d_modules, d_weights);
}

} // namespace MHR_ISA
} // namespace mhr

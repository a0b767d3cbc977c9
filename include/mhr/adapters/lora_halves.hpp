#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

/// \file
/// LoRA in two halves, hidden = x a and y += scale hidden b, for hosts with something to do in
/// between: a tensor-parallel one sums the hidden of all ranks (adapters/routed_lora_halves.hpp
/// does the mixing as well). With nothing in between, the results are those of lora_forward and
/// lora_backward to the last bit; only where d_y is stored in 16 bits may the sums over rows in d_a
/// be rounded otherwise.
///
/// Each function looks at one matrix of the adapters alone, so that a and b may be cut differently;
/// both are passed as they are everywhere. Rows of no task get zeros in hidden and d_hidden, so
/// that a host may sum the whole of these.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

template <class A>
void clear_base_rows(executor_ref executor, const batch_plan& plan, tensor_view<A, 2> hidden) {
    const auto rows = plan.base_rows();
    executor.run(1, [&](index_t) noexcept {
        for (index_t i = 0; i < rows.extent(0); ++i)
            for (index_t k = 0; k < hidden.extent(1); ++k)
                hidden(rows(i), k) = A(0);
    });
}

/// What each entry's matrix adds up from, [spans, rank, features]: the scratch of a half.
template <class A>
tensor_view<A, 3> take_half_sums(workspace& memory, const batch_plan& plan, index_t features,
                                 index_t rank) noexcept {
    return memory.take_rows<A, 3>({static_cast<index_t>(plan.spans().size()), rank, features});
}
template <class A>
std::size_t half_workspace_size(const batch_plan& plan, index_t features, index_t rank) noexcept {
    workspace meter;
    (void)take_half_sums<A>(meter, plan, features, rank);
    return meter.used();
}

/// The passes of lora_expand_backward and lora_project_backward over the rows. Where they are
/// wanted, the sums are returned for each entry.
template <class A, class P, class D, class Sum>
tensor_view<Sum, 3>
sum_expand_backward(executor_ref executor, const batch_plan& plan, tensor_view<A, 2> hidden,
                    const lora_batch<P>& adapters, double scale, tensor_view<D, 2> d_y,
                    tensor_view<Sum, 2> d_hidden, bool wanted, tensor_view<Sum, 3> sums) {
    if (!d_hidden.absent()) clear_base_rows(executor, plan, d_hidden);
    for_rows_of_spans(executor, plan, rows_of_backward<D>(d_y.extent(1)),
                      2 * cost_of_rows(plan, plan.spans(), hidden.extent(1), d_y.extent(1)),
                      [&](row_set rows, index_t span, index_t entry, bool adding) noexcept {
                          expand_backward(
                              rows, d_y, hidden, adapters.b.slice(0, slot_of(adapters, entry)),
                              scale, d_hidden, wanted ? sums.slice(0, span) : tensor_view<Sum, 2>{},
                              adding, tensor_view<const D, 2>{});
                      });
    if (wanted) add_up_spans(executor, plan, sums);
    return sums.block(0, 0, plan.entries());
}

template <class X, class P, class H, class DX, class Sum>
tensor_view<Sum, 3> sum_project_backward(executor_ref executor, const batch_plan& plan,
                                         tensor_view<X, 2> x, const lora_batch<P>& adapters,
                                         tensor_view<H, 2> d_hidden, tensor_view<DX, 2> d_x,
                                         bool wanted, tensor_view<Sum, 3> sums) {
    // The steps of the other half, as lora_backward has them: sums are in the same order then.
    const index_t step = rows_of_backward<Sum>(adapters.b.extent(2));
    for_rows_of_spans(
        executor, plan, step, 2 * cost_of_rows(plan, plan.spans(), d_hidden.extent(1), x.extent(1)),
        [&](row_set rows, index_t span, index_t entry, bool adding) noexcept {
            project_backward(rows, x, d_hidden, adapters.a.slice(0, slot_of(adapters, entry)), d_x,
                             wanted ? sums.slice(0, span) : tensor_view<Sum, 2>{}, adding);
        });
    if (wanted) add_up_spans(executor, plan, sums);
    return sums.block(0, 0, plan.entries());
}

} // namespace detail

/// The first half forward: hidden[row] = x[row] a[g], g the row's entry in the plan; zeros in rows
/// of no task.
///
/// x [rows, in_features]; adapters as in lora_forward, of which b is not read; hidden [rows, rank],
/// of the accumulator type of x and the adapters, overwritten.
///
/// One phase. Errors: a shape; a slot that is not in the pool; overlapping elements of hidden.
/// Cost, for R rows of a task: R rank in_features multiply-adds.
template <class X, class P, class A>
void lora_project_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                          lora_batch<P> adapters, tensor_view<A, 2> hidden) {
    static_assert(std::is_same_v<A, accumulator_t<X, P>>,
                  "mhr: hidden has the accumulator type of x and the adapters");
    constexpr const char* function = "lora_project_forward";
    detail::check_lora(function, plan, x, adapters);
    require_output(function, "hidden", hidden, {plan.rows(), adapters.a.extent(2)});

    detail::clear_base_rows(executor, plan, hidden);
    const auto& blocks = plan.blocks();
    const index_t cost = detail::cost_of_rows(plan, blocks, hidden.extent(1), x.extent(1));
    executor.run(static_cast<index_t>(blocks.size()), cost, [&](index_t part) noexcept {
        const auto& block = blocks[static_cast<std::size_t>(part)];
        const index_t slot = detail::slot_of(adapters, block.entry);
        detail::project(detail::rows_of(plan, block), as_const(x),
                        as_const(adapters.a.slice(0, slot)), 1, hidden);
    });
}

/// Bytes of workspace that lora_project_backward needs; `A` is the type of d_hidden.
template <class A>
std::size_t lora_project_backward_workspace_size(const batch_plan& plan, index_t in_features,
                                                 index_t rank) noexcept {
    return detail::half_workspace_size<A>(plan, in_features, rank);
}

/// The backward of lora_project_forward, and the last half of a backward:
///     d_x[row] += d_hidden[row] a[g]^T
///     d_adapters.a[g] += sum over the rows of g of x[row]^T d_hidden[row]
///
/// d_hidden [rows, rank] comes from lora_expand_backward; d_adapters has one matrix for each entry
/// and no slots, and its b is left alone. Both gradients accumulate, and each may be absent.
///
/// Needs an executor that runs every part; the workspace of
/// `lora_project_backward_workspace_size`. Errors: a shape, a slot that is not in the pool, slots
/// of d_adapters, overlapping elements of a gradient, the workspace. Cost, for R rows of a task:
/// 2 R rank in_features multiply-adds.
template <class X, class P, class Sum, class DX = std::remove_const_t<X>,
          class DP = std::remove_const_t<P>>
void lora_project_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                           lora_batch<P> adapters, tensor_view<Sum, 2> d_hidden,
                           tensor_view<DX, 2> d_x, lora_batch<DP> d_adapters, workspace scratch) {
    using Result = std::remove_const_t<Sum>;
    static_assert(std::is_same_v<Result, accumulator_t<X, P, Sum>>,
                  "mhr: d_hidden is no narrower than the accumulator type of x and the adapters");
    constexpr const char* function = "lora_project_backward";
    detail::check_lora(function, plan, x, adapters);
    const index_t rank = adapters.a.extent(2);
    require_input(function, "d_hidden", d_hidden, {plan.rows(), rank});
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_adapters.a", d_adapters.a,
                            {plan.entries(), x.extent(1), rank});
    detail::require_no_slots(function, "d_adapters.slot_of_entry", d_adapters);
    require_every_part(function, executor);
    require_workspace(function, scratch,
                      lora_project_backward_workspace_size<Result>(plan, x.extent(1), rank));

    const bool wanted = !d_adapters.a.absent();
    const auto sums = detail::sum_project_backward(
        executor, plan, x, adapters, d_hidden, d_x, wanted,
        detail::take_half_sums<Result>(scratch, plan, x.extent(1), rank));
    if (wanted) detail::add_sums(executor, sums, d_adapters.a.transpose(1, 2));
}

/// The second half forward: y[row] += scale hidden[row] b[g] for every row that has a task.
///
/// hidden [rows, rank], of an accumulator type; adapters as in lora_forward, of which a is not
/// read; y [rows, out_features] accumulates.
///
/// One phase. Errors: a shape; a slot that is not in the pool; overlapping elements of y. Cost, for
/// R rows of a task: R rank out_features multiply-adds; y is read and written once.
template <class A, class P, class Y>
void lora_expand_forward(executor_ref executor, const batch_plan& plan, tensor_view<A, 2> hidden,
                         lora_batch<P> adapters, double scale, tensor_view<Y, 2> y) {
    constexpr const char* function = "lora_expand_forward";
    detail::check_adapters(function, plan, any_extent, adapters);
    require_input(function, "hidden", hidden, {plan.rows(), adapters.b.extent(1)});
    require_output(function, "y", y, {plan.rows(), adapters.b.extent(2)});

    const auto& blocks = plan.blocks();
    const index_t cost = detail::cost_of_rows(plan, blocks, hidden.extent(1), y.extent(1));
    executor.run(static_cast<index_t>(blocks.size()), cost, [&](index_t part) noexcept {
        const auto& block = blocks[static_cast<std::size_t>(part)];
        const index_t slot = detail::slot_of(adapters, block.entry);
        detail::expand(detail::rows_of(plan, block), as_const(hidden),
                       as_const(adapters.b.slice(0, slot)), scale, y);
    });
}

/// Bytes of workspace that lora_expand_backward needs; `A` is the type of d_hidden.
template <class A>
std::size_t lora_expand_backward_workspace_size(const batch_plan& plan, index_t out_features,
                                                index_t rank) noexcept {
    return detail::half_workspace_size<A>(plan, out_features, rank);
}

/// The backward of lora_expand_forward, and the first half of a backward:
///     d_hidden[row] = scale d_y[row] b[g]^T, and zeros in rows of no task
///     d_adapters.b[g] += scale sum over the rows of g of hidden[row]^T d_y[row]
///
/// hidden is what lora_expand_forward read; d_y [rows, out_features]; d_hidden [rows, rank], of the
/// accumulator type of hidden, adapters and d_y, is overwritten; d_adapters has one matrix for each
/// entry and no slots; its b accumulates, its a is left alone. d_hidden and d_adapters.b may be
/// absent.
///
/// Needs an executor that runs every part; the workspace of `lora_expand_backward_workspace_size`.
/// Errors: a shape, a slot that is not in the pool, slots of d_adapters, overlapping elements of an
/// output, the workspace. Cost, for R rows of a task: 2 R rank out_features multiply-adds.
template <class A, class P, class D, class Sum = accumulator_t<A, P, D>,
          class DP = std::remove_const_t<P>>
void lora_expand_backward(executor_ref executor, const batch_plan& plan, tensor_view<A, 2> hidden,
                          lora_batch<P> adapters, double scale, tensor_view<D, 2> d_y,
                          tensor_view<Sum, 2> d_hidden, lora_batch<DP> d_adapters,
                          workspace scratch) {
    static_assert(std::is_same_v<Sum, accumulator_t<A, P, D>>,
                  "mhr: d_hidden has the accumulator type of hidden, adapters and d_y");
    constexpr const char* function = "lora_expand_backward";
    detail::check_adapters(function, plan, any_extent, adapters);
    const index_t rank = adapters.b.extent(1);
    const index_t out_features = adapters.b.extent(2);
    require_input(function, "hidden", hidden, {plan.rows(), rank});
    require_input(function, "d_y", d_y, {plan.rows(), out_features});
    require_optional_output(function, "d_hidden", d_hidden, {plan.rows(), rank});
    require_optional_output(function, "d_adapters.b", d_adapters.b,
                            {plan.entries(), rank, out_features});
    detail::require_no_slots(function, "d_adapters.slot_of_entry", d_adapters);
    require_every_part(function, executor);
    require_workspace(function, scratch,
                      lora_expand_backward_workspace_size<Sum>(plan, out_features, rank));

    const bool wanted = !d_adapters.b.absent();
    const auto sums =
        detail::sum_expand_backward(executor, plan, hidden, adapters, scale, d_y, d_hidden, wanted,
                                    detail::take_half_sums<Sum>(scratch, plan, out_features, rank));
    if (wanted) detail::add_sums(executor, sums, d_adapters.b);
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/simd/skinny_products.hpp>

/// \file
/// LoRA with ready adapters, one for each distinct task of a batch, or a single one: what MHR-mu
/// fine-tunes, and what serves tasks that were mixed before. adapters/routed_lora.hpp does the
/// mixing as well.

namespace mhr {

/// One plain adapter: a [in_features, rank], b [rank, out_features].
template <class T>
struct lora {
    tensor_view<T, 2> a;
    tensor_view<T, 2> b;
};

/// One adapter for each entry of a batch plan: a [entries, in_features, rank],
/// b [entries, rank, out_features].
///
/// With `slots` [entries], the matrices are a pool, a [slots, in_features, rank] and
/// b [slots, rank, out_features], of which entry g uses number slots(g), and entries may share one:
/// an engine that keeps ready adapters copies none of them. Only inputs may have slots; what is
/// written has one matrix for each entry.
template <class T>
struct lora_batch {
    tensor_view<T, 3> a;
    tensor_view<T, 3> b;
    tensor_view<const index_t, 1> slots{};
};

/// A plain adapter as a batch of one: for plans made with `assign_single_task`. An adapter that was
/// averaged or mixed beforehand gives what routed LoRA gives, to the last bit, if it is stored in
/// routed LoRA's accumulator type; stored narrower, each of its elements was rounded once more.
template <class T>
lora_batch<T> as_batch(const lora<T>& adapter) noexcept {
    return {adapter.a.absent() ? tensor_view<T, 3>{} : adapter.a.prepend_axis(),
            adapter.b.absent() ? tensor_view<T, 3>{} : adapter.b.prepend_axis()};
}

namespace detail {

/// Features of which a backward part owns the gradient.
inline constexpr index_t features_per_part = 128;

inline row_set rows_of(const batch_plan& plan, const batch_plan::row_block& block) noexcept {
    return {plan.row_order().data() + block.first, block.count};
}
inline row_set rows_of(const batch_plan& plan, index_t entry) noexcept {
    const auto rows = plan.rows_of(entry);
    return {rows.data(), rows.extent(0)};
}

/// The matrix that an entry uses.
template <class T>
index_t slot_of(const lora_batch<T>& adapters, index_t entry) noexcept {
    return adapters.slots.absent() ? entry : adapters.slots(entry);
}

/// For batches that are written, and for gradients: entries that share a matrix would share a sum,
/// which must have one owner.
template <class T>
void require_no_slots(const char* function, const char* argument, const lora_batch<T>& batch) {
    require(
        batch.slots.absent(), function, argument, [] { return "none (a matrix for each entry)"; },
        [&] { return std::to_string(batch.slots.extent(0)); });
}

template <class X, class P>
void check_lora(const char* function, const batch_plan& plan, const tensor_view<X, 2>& x,
                const lora_batch<P>& adapters) {
    require_input(function, "x", x, {plan.rows(), any_extent});
    // Slots of no entries cannot be told from absent ones.
    const bool pool = !adapters.slots.absent() || plan.entries() == 0;
    require_input(function, "adapters.a", adapters.a,
                  {pool ? any_extent : plan.entries(), x.extent(1), any_extent});
    require_input(function, "adapters.b", adapters.b,
                  {adapters.a.extent(0), adapters.a.extent(2), any_extent});
    if (adapters.slots.absent()) return;
    require_input(function, "adapters.slots", adapters.slots, {plan.entries()});
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        require(
            adapters.slots(entry) >= 0 && adapters.slots(entry) < adapters.a.extent(0), function,
            "adapters.slots",
            [&] { return "numbers from 0 to " + std::to_string(adapters.a.extent(0) - 1); },
            [&] {
                return std::to_string(adapters.slots(entry)) + " at position " +
                       std::to_string(entry);
            });
}

/// Adds the sum of outer products over each entry's rows to that entry's matrix:
/// matrices[g] += factor * sum over rows of g of wide[row]^T narrow[row]. A part owns some features
/// of one entry, so that each sum has one owner, and an order that does not depend on the threads.
template <class X, class Z, class D>
void add_outer_products_of_entries(executor_ref executor, const batch_plan& plan,
                                   tensor_view<const X, 2> wide, tensor_view<const Z, 2> narrow,
                                   double factor, tensor_view<D, 3> matrices) {
    const index_t features = wide.extent(1);
    const index_t pieces = (features + features_per_part - 1) / features_per_part;
    executor.run(plan.entries() * pieces, [&](index_t part) noexcept {
        const index_t entry = part / pieces;
        const index_t first = part % pieces * features_per_part;
        const index_t count = std::min(features_per_part, features - first);
        add_outer_products<X, Z, D>(rows_of(plan, entry), wide.block(1, first, count), narrow,
                                    factor, matrices.slice(0, entry).block(0, first, count));
    });
}

} // namespace detail

/// y[row] += scale (x[row] a[g]) b[g] for every row that has a task, g the row's entry in the plan
/// (Hu et al. 2022, arXiv 2106.09685, section 4.1; scale is 1 / rank or alpha / rank). Rows of no
/// task keep their y.
///
/// x [rows, in_features]; adapters a [entries, in_features, rank], b [entries, rank, out_features],
/// or a pool with slots; y [rows, out_features] accumulates; hidden [rows, rank], of the
/// accumulator type of x and the adapters, receives x a (rows of no task are left alone): the
/// backward wants it.
///
/// One phase; y must not overlap x. Errors: a shape; a slot that is not in the pool; overlapping
/// elements of y or hidden.
/// Cost, for R rows of a task: R rank (in + out) multiply-adds; x is read, y read and written once.
template <class X, class P, class Y, class A>
void lora_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                  lora_batch<P> adapters, double scale, tensor_view<Y, 2> y,
                  tensor_view<A, 2> hidden) {
    static_assert(std::is_same_v<A, accumulator_t<X, P>>,
                  "mhr: hidden has the accumulator type of x and the adapters");
    constexpr const char* function = "lora_forward";
    detail::check_lora(function, plan, x, adapters);
    require_output(function, "y", y, {plan.rows(), adapters.b.extent(2)});
    require_output(function, "hidden", hidden, {plan.rows(), adapters.a.extent(2)});

    const auto& blocks = plan.blocks();
    executor.run(static_cast<index_t>(blocks.size()), [&](index_t part) noexcept {
        const auto& block = blocks[static_cast<std::size_t>(part)];
        const detail::row_set rows = detail::rows_of(plan, block);
        const index_t slot = detail::slot_of(adapters, block.entry);
        detail::project(rows, as_const(x), as_const(adapters.a.slice(0, slot)), 1, hidden);
        detail::expand(rows, as_const(hidden), as_const(adapters.b.slice(0, slot)), scale, y);
    });
}

/// Bytes of workspace that lora_backward needs for a plan and a rank; `A` is the accumulator type
/// of x, adapters and d_y.
template <class A>
std::size_t lora_backward_workspace_size(const batch_plan& plan, index_t rank) noexcept {
    workspace meter;
    (void)meter.take<A, 2>({plan.rows(), rank});
    return meter.used();
}

/// The backward of lora_forward, with its x, adapters, scale and hidden. With the rows' d_hidden =
/// scale d_y b^T:
///     d_x[row] += d_hidden[row] a[g]^T
///     d_adapters.a[g] += sum over the rows of g of x[row]^T d_hidden[row]
///     d_adapters.b[g] += scale sum over the rows of g of hidden[row]^T d_y[row]
///
/// Shapes as in the forward; d_y [rows, out_features]; d_adapters has one matrix for each entry and
/// no slots, whether adapters has or not. All gradients accumulate, and each may be absent: its
/// work is skipped. d_y is not passed on: the host's base layer has its own backward.
///
/// Needs an executor that runs every part; the workspace of `lora_backward_workspace_size`. Errors:
/// a shape, a slot that is not in the pool, slots of d_adapters, overlapping elements of a
/// gradient, the workspace. Cost, for R rows of a task: R rank (2 in + 2 out) multiply-adds.
template <class X, class P, class A, class D, class DX, class DP>
void lora_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                   lora_batch<P> adapters, double scale, tensor_view<A, 2> hidden,
                   tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x, lora_batch<DP> d_adapters,
                   workspace scratch) {
    using Sum = accumulator_t<X, P, D>;
    constexpr const char* function = "lora_backward";
    detail::check_lora(function, plan, x, adapters);
    const index_t rank = adapters.a.extent(2);
    require_input(function, "hidden", hidden, {plan.rows(), rank});
    require_input(function, "d_y", d_y, {plan.rows(), adapters.b.extent(2)});
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_adapters.a", d_adapters.a,
                            {plan.entries(), x.extent(1), rank});
    require_optional_output(function, "d_adapters.b", d_adapters.b,
                            {plan.entries(), rank, adapters.b.extent(2)});
    detail::require_no_slots(function, "d_adapters.slots", d_adapters);
    require_every_part(function, executor);
    require_workspace(function, scratch, lora_backward_workspace_size<Sum>(plan, rank));

    if (!d_x.absent() || !d_adapters.a.absent()) {
        const auto d_hidden = scratch.take<Sum, 2>({plan.rows(), rank});
        const auto& blocks = plan.blocks();
        executor.run(static_cast<index_t>(blocks.size()), [&](index_t part) noexcept {
            const auto& block = blocks[static_cast<std::size_t>(part)];
            const detail::row_set rows = detail::rows_of(plan, block);
            const index_t slot = detail::slot_of(adapters, block.entry);
            const auto a = as_const(adapters.a.slice(0, slot));
            const auto b = as_const(adapters.b.slice(0, slot));
            detail::project(rows, as_const(d_y), b.transpose(0, 1), scale, d_hidden);
            if (!d_x.absent()) detail::expand(rows, as_const(d_hidden), a.transpose(0, 1), 1, d_x);
        });
        if (!d_adapters.a.absent())
            detail::add_outer_products_of_entries(executor, plan, as_const(x), as_const(d_hidden),
                                                  1, d_adapters.a);
    }
    if (!d_adapters.b.absent())
        detail::add_outer_products_of_entries(executor, plan, as_const(d_y), as_const(hidden),
                                              scale, d_adapters.b.transpose(1, 2));
}

} // namespace mhr

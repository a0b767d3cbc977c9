#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

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
inline namespace MHR_ISA {

/// One plain adapter: a [in_features, rank], b [rank, out_features].
template <class T>
struct lora {
    tensor_view<T, 2> a{}; ///< [in_features, rank]
    tensor_view<T, 2> b{}; ///< [rank, out_features]
};

/// One adapter for each entry of a batch plan: a [entries, in_features, rank],
/// b [entries, rank, out_features].
///
/// With `slot_of_entry` [entries], the matrices are a pool, a [slots, in_features, rank] and
/// b [slots, rank, out_features], of which entry g uses number slot_of_entry(g), and entries may
/// share one: an engine that keeps ready adapters copies none of them. Only inputs may have slots;
/// what is written has one matrix for each entry.
template <class T>
struct lora_batch {
    tensor_view<T, 3> a{};                         ///< [entries or slots, in_features, rank]
    tensor_view<T, 3> b{};                         ///< [entries or slots, rank, out_features]
    tensor_view<const index_t, 1> slot_of_entry{}; ///< [entries]; absent: entry g uses matrix g
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

inline row_set rows_of(const batch_plan& plan, const batch_plan::row_block& block) noexcept {
    return {plan.row_order().data() + block.first, block.count};
}
inline row_set rows_of(const batch_plan& plan, index_t entry) noexcept {
    const auto rows = plan.rows_of(entry);
    return {rows.data(), rows.extent(0)};
}

/// What a piece of the plan costs on average, in multiply-adds; reading and writing an element of x
/// or y costs about four.
inline index_t cost_of_rows(const batch_plan& plan,
                            const std::vector<batch_plan::row_block>& pieces, index_t rank,
                            index_t features) noexcept {
    const index_t rows = plan.row_order().extent(0);
    return rows / (std::max)(static_cast<index_t>(pieces.size()), index_t(1)) * (rank + 4) *
           features;
}

/// The matrix that an entry uses.
template <class T>
index_t slot_of(const lora_batch<T>& adapters, index_t entry) noexcept {
    return adapters.slot_of_entry.absent() ? entry : adapters.slot_of_entry(entry);
}

/// For batches that are written, and for gradients: entries that share a matrix would share a sum,
/// which must have one owner.
template <class T>
void require_no_slots(const char* function, const char* argument, const lora_batch<T>& batch) {
    require_that(
        batch.slot_of_entry.absent(), function, argument,
        [] { return "none (a matrix for each entry)"; },
        [&] { return std::to_string(batch.slot_of_entry.extent(0)); });
}

template <class P>
void check_adapters(const char* function, const batch_plan& plan, index_t in_features,
                    const lora_batch<P>& adapters) {
    // Slots of no entries cannot be told from absent ones.
    const bool pool = !adapters.slot_of_entry.absent() || plan.entries() == 0;
    require_input(function, "adapters.a", adapters.a,
                  {pool ? any_extent : plan.entries(), in_features, any_extent});
    require_input(function, "adapters.b", adapters.b,
                  {adapters.a.extent(0), adapters.a.extent(2), any_extent});
    if (adapters.slot_of_entry.absent()) return;
    require_input(function, "adapters.slot_of_entry", adapters.slot_of_entry, {plan.entries()});
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        require_that(
            adapters.slot_of_entry(entry) >= 0 &&
                adapters.slot_of_entry(entry) < adapters.a.extent(0),
            function, "adapters.slot_of_entry",
            [&] { return "numbers from 0 to " + std::to_string(adapters.a.extent(0) - 1); },
            [&] {
                return std::to_string(adapters.slot_of_entry(entry)) + " at position " +
                       std::to_string(entry);
            });
}

template <class X, class P>
void check_lora(const char* function, const batch_plan& plan, const tensor_view<X, 2>& x,
                const lora_batch<P>& adapters) {
    require_input(function, "x", x, {plan.rows(), any_extent});
    check_adapters(function, plan, x.extent(1), adapters);
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
    const index_t cost =
        detail::cost_of_rows(plan, blocks, adapters.a.extent(2), x.extent(1) + y.extent(1));
    executor.run(static_cast<index_t>(blocks.size()), cost, [&](index_t part) noexcept {
        const auto& block = blocks[static_cast<std::size_t>(part)];
        const detail::row_set rows = detail::rows_of(plan, block);
        const index_t slot = detail::slot_of(adapters, block.entry);
        detail::project(rows, as_const(x), as_const(adapters.a.slice(0, slot)), 1, hidden);
        detail::expand(rows, as_const(hidden), as_const(adapters.b.slice(0, slot)), scale, y);
    });
}

namespace detail {

/// The sums of lora_backward: for each span of the plan, and later for each entry, d_a^T
/// [rank, in_features] and d_b [rank, out_features].
template <class A>
struct lora_backward_sums {
    tensor_view<A, 3> a, b;
};

template <class A>
struct lora_backward_scratch {
    tensor_view<A, 2> d_hidden;
    lora_backward_sums<A> sums;
};

template <class A>
lora_backward_scratch<A> take_lora_backward_scratch(workspace& memory, const batch_plan& plan,
                                                    index_t in_features, index_t out_features,
                                                    index_t rank) noexcept {
    const auto spans = static_cast<index_t>(plan.spans().size());
    const auto d_hidden = memory.take<A, 2>({plan.rows(), rank});
    const auto a = memory.take_rows<A, 3>({spans, rank, in_features});
    return {d_hidden, {a, memory.take_rows<A, 3>({spans, rank, out_features})}};
}

/// Rows that a backward takes through all its products before it goes on: their d_y stays in L2
/// from the first to the second.
template <class D>
index_t rows_of_backward(index_t features) noexcept {
    constexpr index_t bytes = index_t(1) << 19;
    const index_t fit = bytes / static_cast<index_t>(sizeof(D)) / (std::max)(features, index_t(1));
    return (std::min)(index_t(48), (std::max)(row_group, fit / row_group * row_group));
}

/// sums[g] = the sum over the spans of entry g, for every entry, in place.
template <class A>
void add_up_spans(executor_ref executor, const batch_plan& plan, tensor_view<A, 3> sums) {
    if (static_cast<index_t>(plan.spans().size()) == plan.entries()) return;
    constexpr index_t columns = 512;
    const index_t elements = sums.stride(0); // the ends of the rows included
    // A part owns some elements of all entries: the place of entry g is that of a span of g or of
    // an entry before it, which has been added up by then.
    const index_t cost = columns * static_cast<index_t>(plan.spans().size());
    executor.run((elements + columns - 1) / columns, cost, [&](index_t part) noexcept {
        const index_t first = part * columns;
        const index_t count = (std::min)(columns, elements - first);
        for (index_t entry = 0; entry < plan.entries(); ++entry) {
            A* const to = sums.slice(0, entry).data() + first;
            const index_t first_span = plan.first_span_of(entry);
            if (first_span != entry)
                std::copy_n(sums.slice(0, first_span).data() + first, count, to);
            for (index_t span = first_span + 1; span < plan.first_span_of(entry + 1); ++span) {
                const A* const from = sums.slice(0, span).data() + first;
                for (index_t i = 0; i < count; ++i)
                    to[i] += from[i];
            }
        }
    });
}

/// matrices[g] += sums[g] for every entry.
template <class A, class D>
void add_sums(executor_ref executor, tensor_view<A, 3> sums, tensor_view<D, 3> matrices) {
    using Sum = accumulator_t<A, D>;
    constexpr index_t rows = 16;
    constexpr index_t columns = 256;
    const index_t pieces = (matrices.extent(2) + columns - 1) / columns;
    executor.run(matrices.extent(0) * pieces, 4 * columns * matrices.extent(1),
                 [&](index_t part) noexcept {
                     const index_t first = part % pieces * columns;
                     const index_t width = (std::min)(columns, matrices.extent(2) - first);
                     const auto from = sums.slice(0, part / pieces).block(1, first, width);
                     const auto to = matrices.slice(0, part / pieces).block(1, first, width);
                     for_groups(to.extent(0), rows, [&](index_t k0, index_t height) {
                         Sum buffer[as_size(rows * columns)];
                         copy_in<default_arch>(as_const(to.block(0, k0, height)), buffer, columns);
                         for (index_t k = 0; k < height; ++k)
                             for (index_t i = 0; i < width; ++i)
                                 buffer[k * columns + i] += static_cast<Sum>(from(k0 + k, i));
                         copy_out<default_arch>(static_cast<const Sum*>(buffer), columns,
                                                to.block(0, k0, height));
                     });
                 });
}

/// What rows get back through y += scale hidden b: d_hidden = scale d_y b^T, and to `sums` is added
/// scale d_y^T hidden (sums = it, unless `adding`); each if it is not absent. `ahead`: see
/// add_outer_products.
template <class D, class A, class P, class Sum, class N>
void expand_backward(row_set rows, tensor_view<D, 2> d_y, tensor_view<A, 2> hidden,
                     tensor_view<P, 2> b, double scale, tensor_view<Sum, 2> d_hidden,
                     tensor_view<Sum, 2> sums, bool adding, tensor_view<N, 2> ahead) noexcept {
    if (!d_hidden.absent())
        project(rows, as_const(d_y), as_const(b.transpose(0, 1)), scale, d_hidden);
    if (!sums.absent())
        add_outer_products(rows, as_const(d_y), as_const(hidden), scale, sums, adding, ahead);
}

/// What rows get back through hidden = x a: d_x += d_hidden a^T, and to `sums` is added
/// x^T d_hidden, likewise.
template <class X, class H, class P, class DX, class Sum>
void project_backward(row_set rows, tensor_view<X, 2> x, tensor_view<H, 2> d_hidden,
                      tensor_view<P, 2> a, tensor_view<DX, 2> d_x, tensor_view<Sum, 2> sums,
                      bool adding) noexcept {
    if (!d_x.absent()) expand(rows, as_const(d_hidden), as_const(a.transpose(0, 1)), 1, d_x);
    if (!sums.absent()) add_outer_products(rows, as_const(x), as_const(d_hidden), 1, sums, adding);
}

/// Calls `f(rows, span, entry, adding)` for the rows of every span, `step` at a time: a span goes
/// through its rows once, and is adding from the second time on. `cost` is that of a span.
template <class F>
void for_rows_of_spans(executor_ref executor, const batch_plan& plan, index_t step, index_t cost,
                       F&& f) {
    const auto& spans = plan.spans();
    executor.run(static_cast<index_t>(spans.size()), cost, [&](index_t part) noexcept {
        const auto& span = spans[static_cast<std::size_t>(part)];
        const row_set all = rows_of(plan, span);
        for_groups(all.count, step, [&](index_t first, index_t count) {
            f(row_set{all.numbers + first, count}, part, span.entry, first != 0);
        });
    });
}

/// The passes of lora_backward over the rows: adds to d_x and returns, for each entry, the sums
/// that are wanted.
template <class X, class P, class A, class D, class DX, class Sum>
lora_backward_sums<Sum>
sum_lora_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                  const lora_batch<P>& adapters, double scale, tensor_view<A, 2> hidden,
                  tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x, bool a_wanted, bool b_wanted,
                  const lora_backward_scratch<Sum>& scratch) {
    const auto& sums = scratch.sums;
    const auto d_hidden = a_wanted || !d_x.absent() ? scratch.d_hidden : tensor_view<Sum, 2>{};
    const index_t cost =
        2 * cost_of_rows(plan, plan.spans(), hidden.extent(1), x.extent(1) + d_y.extent(1));
    for_rows_of_spans(executor, plan, rows_of_backward<D>(d_y.extent(1)), cost,
                      [&](row_set rows, index_t span, index_t entry, bool adding) noexcept {
                          const index_t slot = slot_of(adapters, entry);
                          const auto sums_if = [&](bool wanted,
                                                   const tensor_view<Sum, 3>& of_spans) {
                              return wanted ? of_spans.slice(0, span) : tensor_view<Sum, 2>{};
                          };
                          expand_backward(rows, d_y, hidden, adapters.b.slice(0, slot), scale,
                                          d_hidden, sums_if(b_wanted, sums.b), adding, d_x);
                          project_backward(rows, x, d_hidden, adapters.a.slice(0, slot), d_x,
                                           sums_if(a_wanted, sums.a), adding);
                      });
    if (a_wanted) add_up_spans(executor, plan, sums.a);
    if (b_wanted) add_up_spans(executor, plan, sums.b);
    return {sums.a.block(0, 0, plan.entries()), sums.b.block(0, 0, plan.entries())};
}

} // namespace detail

/// Bytes of workspace that lora_backward needs; `A` is the accumulator type of x, adapters and d_y.
template <class A>
std::size_t lora_backward_workspace_size(const batch_plan& plan, index_t in_features,
                                         index_t out_features, index_t rank) noexcept {
    workspace meter;
    (void)detail::take_lora_backward_scratch<A>(meter, plan, in_features, out_features, rank);
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
template <class X, class P, class A, class D, class DX = std::remove_const_t<X>,
          class DP = std::remove_const_t<P>>
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
    detail::require_no_slots(function, "d_adapters.slot_of_entry", d_adapters);
    require_every_part(function, executor);
    const index_t in_features = x.extent(1);
    const index_t out_features = d_y.extent(1);
    require_workspace(function, scratch,
                      lora_backward_workspace_size<Sum>(plan, in_features, out_features, rank));

    const bool a_wanted = !d_adapters.a.absent();
    const bool b_wanted = !d_adapters.b.absent();
    const auto sums = detail::sum_lora_backward(
        executor, plan, x, adapters, scale, hidden, d_y, d_x, a_wanted, b_wanted,
        detail::take_lora_backward_scratch<Sum>(scratch, plan, in_features, out_features, rank));
    if (a_wanted) detail::add_sums(executor, sums.a, d_adapters.a.transpose(1, 2));
    if (b_wanted) detail::add_sums(executor, sums.b, d_adapters.b);
}

} // namespace MHR_ISA
} // namespace mhr

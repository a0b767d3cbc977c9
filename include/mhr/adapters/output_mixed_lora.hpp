#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/simd/dense_rows.hpp>
#include <mhr/simd/skinny_products.hpp>
#include <mhr/simd/tiles.hpp>

/// \file
/// LoRA whose modules' *outputs* are mixed, rather than their parameters: what serving a library of
/// LoRAs means, and mttl's `merge_after_op`. The weights enter once here, twice in
/// adapters/routed_lora.hpp: a different function, equal to one LoRA of rank modules * rank.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Columns whose sums over all modules are kept on the stack.
inline constexpr index_t mixed_columns = 128;

/// wide[row] += scale * sum over modules of weights[m] narrow[row, m] matrices[m] for the rows of
/// one block: narrow [rows, modules, rank], matrices [modules, rank, n], wide [rows, n]. The sum
/// over all modules is kept on the stack, so that wide is rounded once.
template <class Z, class W, class M, class Y>
void expand_modules(row_set rows, tensor_view<const Z, 3> narrow, tensor_view<const W, 1> weights,
                    tensor_view<const M, 3> matrices, double scale,
                    tensor_view<Y, 2> wide) noexcept {
    using A = accumulator_t<Z, W, M, Y>;
    constexpr index_t height = batch_plan::rows_per_block;
    constexpr index_t columns = mixed_columns;
    index_t places[height]; // the rows of what is kept on the stack
    for (index_t r = 0; r < height; ++r)
        places[r] = r;
    const row_set local{places, rows.count};
    const index_t rank = matrices.extent(1);
    const index_t n = wide.extent(1);
    for (index_t j0 = 0; j0 < n; j0 += columns) {
        const index_t width = (std::min)(columns, n - j0);
        A sum[height * columns] = {};
        const tensor_view<A, 2> sums(sum, {height, width}, {columns, 1});
        for (index_t m = 0; m < matrices.extent(0); ++m) {
            const A weight = load<A>(weights(m));
            if (is_exactly(weight, 0)) continue;
            for (index_t k0 = 0; k0 < rank; k0 += rank_group) {
                const index_t depth = (std::min)(rank_group, rank - k0);
                A weighted[height * rank_group];
                const tensor_view<A, 2> tile(weighted, {height, depth}, {rank_group, 1});
                for (index_t r = 0; r < rows.count; ++r)
                    for (index_t k = 0; k < depth; ++k)
                        tile(r, k) = weight * load<A>(narrow(rows.numbers[r], m, k0 + k));
                expand(local, as_const(tile),
                       matrices.slice(0, m).block(0, k0, depth).block(1, j0, width), 1, sums);
            }
        }
        // As `expand` ends: rounded once where the architecture can.
        const tensor_view<Y, 2> target = wide.block(1, j0, width);
        dense_output_rows<default_arch, A, height> output;
        for_chunks<default_arch, A>(width, width, [&](index_t first, index_t count) {
            A* const* c = output.open(rows, target, first, count);
            const A one = 1;
            const A* const coefficients[] = {&one};
            for (index_t r = 0; r < rows.count; ++r) {
                const A* const v[] = {sum + r * columns + first};
                add_combinations<default_arch, true>(coefficients, v, 1,
                                                     padded<default_arch, A>(count),
                                                     static_cast<A>(scale), c + r, 1);
            }
            output.write(rows, target, first, count);
        });
    }
}

/// matrices[m, i, k] += scale * sum over entries g of weights[g, m] * sum over the rows of g of
/// wide[row, i] narrow[row, m, k]. A part owns some features of one module and adds the entries in
/// their order, so that each sum has one owner and is rounded once.
template <class X, class Z, class W, class D>
void add_outer_products_of_modules(executor_ref executor, const batch_plan& plan,
                                   tensor_view<const X, 2> wide, tensor_view<const Z, 3> narrow,
                                   tensor_view<const W, 2> weights, double scale,
                                   tensor_view<D, 3> matrices) {
    using A = accumulator_t<X, Z, W, D>;
    const index_t n = matrices.extent(1);
    const index_t rank = matrices.extent(2);
    const index_t pieces = (n + mixed_columns - 1) / mixed_columns;
    executor.run(matrices.extent(0) * pieces, [&](index_t part) noexcept {
        const index_t m = part / pieces;
        const index_t i0 = part % pieces * mixed_columns;
        const index_t width = (std::min)(mixed_columns, n - i0);
        for_groups(rank, rank_group, [&](index_t k0, index_t depth) {
            A sum[rank_group * mixed_columns];
            const tensor_view<A, 2> sums(sum, {depth, width}, {mixed_columns, 1});
            bool empty = true;
            for (index_t g = 0; g < plan.entries(); ++g) {
                const A weight = load<A>(weights(g, m));
                if (is_exactly(weight, 0)) continue;
                add_outer_products(rows_of(plan, g), wide.block(1, i0, width),
                                   narrow.slice(1, m).block(1, k0, depth),
                                   static_cast<double>(weight), sums, !empty);
                empty = false;
            }
            if (empty) return;
            for (index_t k = 0; k < depth; ++k)
                for (index_t i = 0; i < width; ++i) {
                    D& target = matrices(m, i0 + i, k0 + k);
                    target = store<D>(load<A>(target) + static_cast<A>(scale) * sums(k, i));
                }
        });
    });
}

template <class X, class M, class W>
lora_shape check_output_mixed_lora(const char* function, const batch_plan& plan,
                                   const tensor_view<X, 2>& x, const lora_inventory<M>& inventory,
                                   const tensor_view<W, 3>& weights) {
    require_input(function, "inventory.a", inventory.a,
                  {any_extent, any_extent, any_extent, any_extent});
    require_that(
        inventory.a.extent(0) == 1, function, "inventory.a",
        [] { return "one head (the output of a module cannot be mixed in blocks of its rows)"; },
        [&] { return std::to_string(inventory.a.extent(0)); });
    return check_routed_lora(function, plan, x, inventory, weights);
}

} // namespace detail

/// y[row] += scale sum over modules of weights[g, 0, m] (x[row] A[m]) B[m] for every row that has a
/// task, g the row's entry in the plan. Rows of no task keep their y.
///
/// x [rows, in_features]; inventory as for routed_lora_forward, of one head: a [1, modules,
/// in_features, rank], b [1, modules, rank, out_features]; weights [entries, 1, modules]; y [rows,
/// out_features] accumulates; hidden [rows, modules, rank], of the accumulator type of x, inventory
/// and weights, receives x A[m]: the backward wants it. A module of weight 0 is not read, and its
/// place in hidden left alone, as the rows of no task are: a large library costs what is used of
/// it.
///
/// One phase; y must not overlap x. Errors: several heads, a shape, overlapping elements of y or
/// hidden. Cost, for R pairs of a row and a module whose weight is not 0: R rank (in + out)
/// multiply-adds; y is read and written once.
template <class X, class M, class W, class Y, class A>
void output_mixed_lora_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                               lora_inventory<M> inventory, tensor_view<W, 3> weights, double scale,
                               tensor_view<Y, 2> y, tensor_view<A, 3> hidden) {
    static_assert(std::is_same_v<A, accumulator_t<X, M, W>>,
                  "mhr: hidden has the accumulator type of x, inventory and weights");
    constexpr const char* function = "output_mixed_lora_forward";
    const lora_shape shape = detail::check_output_mixed_lora(function, plan, x, inventory, weights);
    require_output(function, "y", y, {plan.rows(), shape.out_features});
    require_output(function, "hidden", hidden, {plan.rows(), shape.modules, shape.rank});

    const auto a = as_const(inventory.a.slice(0, 0));
    const auto b = as_const(inventory.b.slice(0, 0));
    const auto& blocks = plan.blocks();
    executor.run(static_cast<index_t>(blocks.size()), [&](index_t part) noexcept {
        const auto& block = blocks[static_cast<std::size_t>(part)];
        const detail::row_set rows = detail::rows_of(plan, block);
        const auto weights_of_entry = as_const(weights.slice(0, block.entry).slice(0, 0));
        for (index_t m = 0; m < shape.modules; ++m)
            if (!detail::is_exactly(load<A>(weights_of_entry(m)), 0))
                detail::project(rows, as_const(x), a.slice(0, m), 1, hidden.slice(1, m));
        detail::expand_modules(rows, as_const(hidden), weights_of_entry, b, scale, y);
    });
}

/// Bytes of workspace that output_mixed_lora_backward needs; `A` is the accumulator type of x,
/// inventory, weights and d_y.
template <class A>
std::size_t output_mixed_lora_backward_workspace_size(const batch_plan& plan,
                                                      const lora_shape& shape) noexcept {
    workspace meter;
    (void)meter.take<A, 3>({plan.rows(), shape.modules, shape.rank});
    (void)meter.take<A, 2>({plan.rows(), shape.rank});
    (void)meter.take<A, 2>({plan.rows(), shape.modules});
    return meter.used();
}

/// The backward of output_mixed_lora_forward, with its arguments and hidden. With
/// u[row, m] = d_y[row] B[m]^T:
///     d_x[row] += scale sum over modules of weights[g, 0, m] u[row, m] A[m]^T
///     d_inventory.a[0, m] += scale sum over entries g of weights[g, 0, m]
///                            sum over the rows of g of x[row]^T u[row, m]
///     d_inventory.b[0, m] += the same of hidden[row, m]^T d_y[row]
///     d_weights[g, 0, m] += scale sum over the rows of g of hidden[row, m] u[row, m]^T
///
/// d_y [rows, out_features]; d_x as x; d_inventory as inventory; d_weights as weights. All
/// gradients accumulate, and each may be absent: its work is skipped. A module of weight 0 gets no
/// gradient and gives none to d_x, but its weight has a gradient: for that alone it is read, and
/// its x A[m] computed here.
///
/// Needs an executor that runs every part, and the workspace of
/// `output_mixed_lora_backward_workspace_size`. Errors: several heads, a shape, overlapping
/// elements of a gradient, the workspace. Cost, for R pairs of a row and a module whose weight is
/// not 0: R rank (2 in + 2 out) multiply-adds; with d_weights, R' rank (in + out) more for the R'
/// pairs of weight 0.
template <class X, class M, class W, class A, class D, class DX = std::remove_const_t<X>,
          class DM = std::remove_const_t<M>, class DW = std::remove_const_t<W>>
void output_mixed_lora_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                                lora_inventory<M> inventory, tensor_view<W, 3> weights,
                                double scale, tensor_view<A, 3> hidden, tensor_view<D, 2> d_y,
                                tensor_view<DX, 2> d_x, lora_inventory<DM> d_inventory,
                                tensor_view<DW, 3> d_weights, workspace scratch) {
    using Sum = accumulator_t<X, M, W, D>;
    constexpr const char* function = "output_mixed_lora_backward";
    const lora_shape shape = detail::check_output_mixed_lora(function, plan, x, inventory, weights);
    require_input(function, "hidden", hidden, {plan.rows(), shape.modules, shape.rank});
    require_input(function, "d_y", d_y, {plan.rows(), shape.out_features});
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_inventory.a", d_inventory.a, inventory.a.extents());
    require_optional_output(function, "d_inventory.b", d_inventory.b, inventory.b.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    require_every_part(function, executor);
    require_workspace(function, scratch,
                      output_mixed_lora_backward_workspace_size<Sum>(plan, shape));

    const auto a = as_const(inventory.a.slice(0, 0));
    const auto b = as_const(inventory.b.slice(0, 0));
    const auto d_a = d_inventory.a.slice(0, 0);
    const auto d_b = d_inventory.b.slice(0, 0);
    const auto weights_of_modules = as_const(weights.slice(1, 0));
    if (!d_x.absent() || !d_a.absent() || !d_weights.absent()) {
        const auto u = scratch.take<Sum, 3>({plan.rows(), shape.modules, shape.rank});
        const auto missing = scratch.take<Sum, 2>({plan.rows(), shape.rank});
        const auto d_weights_of_rows = scratch.take<Sum, 2>({plan.rows(), shape.modules});
        const auto& blocks = plan.blocks();
        executor.run(static_cast<index_t>(blocks.size()), [&](index_t part) noexcept {
            const auto& block = blocks[static_cast<std::size_t>(part)];
            const detail::row_set rows = detail::rows_of(plan, block);
            const auto weights_of_entry = weights_of_modules.slice(0, block.entry);
            // d_weights of each row: what the forward left out is computed in `missing`.
            const auto add_up = [&](index_t m, const auto& hidden_of_module) {
                for (index_t r = 0; r < rows.count; ++r) {
                    const index_t row = rows.numbers[r];
                    Sum sum = 0;
                    for (index_t k = 0; k < shape.rank; ++k)
                        sum += load<Sum>(hidden_of_module(row, k)) * u(row, m, k);
                    d_weights_of_rows(row, m) = sum;
                }
            };
            for (index_t m = 0; m < shape.modules; ++m) {
                const bool used = !detail::is_exactly(load<Sum>(weights_of_entry(m)), 0);
                if (!used && d_weights.absent()) continue;
                detail::project(rows, as_const(d_y), b.slice(0, m).transpose(0, 1), 1,
                                u.slice(1, m));
                if (d_weights.absent()) continue;
                if (!used) detail::project(rows, as_const(x), a.slice(0, m), 1, missing);
                used ? add_up(m, hidden.slice(1, m)) : add_up(m, missing);
            }
            if (!d_x.absent())
                detail::expand_modules(rows, as_const(u), weights_of_entry, a.transpose(1, 2),
                                       scale, d_x);
        });
        if (!d_a.absent())
            detail::add_outer_products_of_modules(executor, plan, as_const(x), as_const(u),
                                                  weights_of_modules, scale, d_a);
        if (!d_weights.absent())
            executor.run(plan.entries(), [&](index_t entry) noexcept {
                const auto rows = plan.rows_of(entry);
                for (index_t m = 0; m < shape.modules; ++m) {
                    using Target = accumulator_t<Sum, DW>;
                    Target sum = 0;
                    for (index_t r = 0; r < rows.extent(0); ++r)
                        sum += load<Target>(d_weights_of_rows(rows(r), m));
                    DW& target = d_weights(entry, 0, m);
                    target = store<DW>(load<Target>(target) + static_cast<Target>(scale) * sum);
                }
            });
    }
    if (!d_b.absent())
        detail::add_outer_products_of_modules(executor, plan, as_const(d_y), as_const(hidden),
                                              weights_of_modules, scale, d_b.transpose(1, 2));
}

} // namespace MHR_ISA
} // namespace mhr

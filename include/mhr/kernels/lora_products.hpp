#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>
#include <mhr/kernels/simd/tiles.hpp>

/// \file
/// The three products of LoRA, each with one narrow dimension (the rank): tall times narrow
/// (shrink), narrow times wide (expand), and the sum of outer products over rows. They run on a
/// *set of rows* given by number, so that a batch needs no sorting in memory. The order of every
/// sum depends on the shapes alone: not on strides, element types, or on which rows are computed
/// together.
///
/// Dense rows are taken in chunks of which a tile's (24 KiB) stay in L1 while the other factor
/// passes by; others are copied, 1 KiB of each at a time, so that the copies share L1. A block of
/// rows and the adapter (24 rows of 16 KiB and 512 KiB, for the usual sizes) share L2.
///
/// Nothing is checked here: the entry points of lora/ have done that.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Rows that are computed together, and terms or results along the rank.
inline constexpr index_t row_group = 12;
inline constexpr index_t rank_group = 16;

/// hidden[row, k] = factor * sum over i of x[row, i] a[i, k] for the rows of the set, with
/// x [rows, n], a [n, rank] and hidden [rows, rank]. It is fastest where columns of `a` are dense.
template <class Arch, class A>
void shrink(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a, double factor,
            const tensor_view<A, 2>& hidden) noexcept {
    constexpr index_t width = lanes<A, Arch>;
    const const_tensor_ref<2> columns = a.transpose(0, 1);
    dense_rows<Arch, A, row_group> left;
    dense_rows<Arch, A, rank_group> right;
    const index_t chunk = chunk_columns_of<Arch, A>(x, columns);
    alignas(64) A sums[as_size(row_group * rank_group * width)];
    A totals[as_size(row_group * rank_group)];
    for_groups(columns.extent(0), rank_group, [&](index_t k0, index_t depth) {
        for_groups(rows.count, row_group, [&](index_t r0, index_t height) {
            const row_set group{rows.numbers + r0, height};
            if (x.extent(1) == 0) std::fill_n(sums, height * depth * width, A(0));
            for_chunks<Arch, A>(x.extent(1), chunk, [&](index_t first, index_t count) {
                const A* const* u = left.read(group, x, first, count);
                const A* const* v = right.read(k0, depth, columns, first, count);
                add_inner_products<Arch>(u, height, v, depth, padded<Arch, A>(count), first == 0,
                                         sums);
            });
            finish_inner_products<Arch>(height, depth, sums, totals);
            for (index_t r = 0; r < height; ++r)
                for (index_t k = 0; k < depth; ++k)
                    hidden(group.numbers[r], k0 + k) =
                        static_cast<A>(factor) * totals[r * depth + k];
        });
    });
}

/// y[row, j] += factor * sum over k of hidden[row, k] b[k, j] for the rows of the set, with
/// hidden [rows, rank], b [rank, n] and y [rows, n]. Each element of y is read and written once. It
/// is fastest where rows of `b` are dense.
template <class Arch, class A>
void expand(row_set rows, const tensor_view<const A, 2>& hidden, const const_tensor_ref<2>& b,
            double factor, const tensor_ref<2>& y) noexcept {
    dense_rows<Arch, A, row_group> left;
    dense_rows<Arch, A, rank_group> right;
    dense_output_rows<Arch, A, row_group> output;
    const index_t chunk = chunk_columns_of<Arch, A>(y, b);
    for_groups(rows.count, row_group, [&](index_t r0, index_t height) {
        const row_set group{rows.numbers + r0, height};
        for_chunks<Arch, A>(y.extent(1), chunk, [&](index_t first, index_t count) {
            A* const* c = output.open(group, y, first, count);
            for_groups(b.extent(0), rank_group, [&](index_t k0, index_t depth) {
                const A* const* coefficients = left.read_unpadded(group, hidden, k0, depth);
                const A* const* v = right.read(k0, depth, b, first, count);
                add_combinations<Arch>(coefficients, v, depth, padded<Arch, A>(count),
                                       combined<A>{c, static_cast<A>(factor), true}, height);
            });
            output.write(group, y, first, count);
        });
    });
}

/// sums[k, i] += factor * sum over the rows of the set of hidden[row, k] x[row, i], or = (of one
/// row at least) unless `accumulate`, with x [rows, n], hidden [rows, rank] and sums [rank, n].
///
/// `ahead` [rows, any] is what the same rows are needed of next: while the work goes through the
/// columns of x, those of ahead are fetched into L2. If it is absent, those of x itself are.
template <class Arch, class A>
void add_outer_products(row_set rows, const const_tensor_ref<2>& x,
                        const tensor_view<const A, 2>& hidden, double factor,
                        const tensor_view<A, 2>& sums, bool accumulate,
                        const const_tensor_ref<2>& ahead) noexcept {
    constexpr index_t many_rows = 4 * row_group;
    constexpr index_t columns_ahead = 128;
    dense_rows<Arch, A, many_rows> right;
    A coefficients[as_size(rank_group * many_rows)];
    const A* left[as_size(rank_group)];
    for (index_t k = 0; k < rank_group; ++k)
        left[k] = coefficients + k * many_rows;
    dense_output_rows<Arch, A, rank_group> output;
    const auto& fetched = ahead.absent() ? x : ahead;
    const index_t fetched_from = ahead.absent() ? columns_ahead : 0;
    const auto size_ahead = static_cast<index_t>(size_of(fetched.type()));
    for_groups(rows.count, many_rows, [&](index_t r0, index_t height) {
        const row_set group{rows.numbers + r0, height};
        for_groups(sums.extent(0), rank_group, [&](index_t k0, index_t depth) {
            index_t places[as_size(rank_group)];
            for (index_t k = 0; k < depth; ++k) {
                places[k] = k0 + k;
                for (index_t r = 0; r < height; ++r)
                    coefficients[k * many_rows + r] = hidden(group.numbers[r], k0 + k);
            }
            const row_set results{places, depth};
            for_chunks<Arch, A>(x.extent(1), chunk_columns<A>, [&](index_t first, index_t count) {
                const A* const* v = right.read(group, x, first, count);
                A* const* c = output.open(results, sums, first, count);
                std::uintptr_t next[as_size(many_rows)];
                for (index_t r = 0; r < height; ++r)
                    next[r] = address_of(fetched.address_of(group.numbers[r], 0)) +
                              static_cast<std::uintptr_t>((first + fetched_from) * size_ahead);
                const rows_ahead fetching{k0 == 0 ? next : nullptr, size_ahead};
                const index_t size = padded<Arch, A>(count);
                add_combinations<Arch>(
                    left, v, height, size,
                    combined<A>{c, static_cast<A>(factor), accumulate || r0 != 0}, depth, fetching);
                output.write(results, sums, first, count);
            });
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

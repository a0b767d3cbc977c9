#pragma once

#include <algorithm>
#include <cstdint>

#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/arch.hpp>
#include <mhr/simd/dense_rows.hpp>
#include <mhr/simd/tiles.hpp>

/// \file
/// The three products of LoRA, each with one narrow dimension (the rank): tall times narrow,
/// narrow times wide, and the sum of outer products over rows. They run on a *set of rows* given by
/// number, so that a batch needs no sorting in memory. The order of every sum depends on the shapes
/// alone: not on strides, storage types, or on which rows are computed together.
///
/// Blocking: dense rows are taken in stretches of which a tile's (24 KiB) stay in L1 while the
/// other factor passes by; others are copied, 1 KiB of each at a time, so that the copies share L1.
/// A block of rows and the adapter (24 rows of 16 KiB and 512 KiB, for the usual sizes) share L2.
///
/// Not checked: the entry points of adapters/ have done that.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// Rows that are computed together, and terms or results along the rank.
inline constexpr index_t row_group = 12;
inline constexpr index_t rank_group = 16;

/// narrow[row, k] = factor * sum over i of wide[row, i] matrix[i, k] for the rows of the set,
/// wide [rows, n], matrix [n, rank], narrow [rows, rank]. Fastest where columns of the matrix are
/// dense.
template <class Arch = default_arch, class X, class M, class Z>
void project(row_set rows, tensor_view<const X, 2> wide, tensor_view<const M, 2> matrix,
             double factor, tensor_view<Z, 2> narrow) noexcept {
    using A = accumulator_t<X, M, Z>;
    constexpr index_t width = lanes<A, Arch>;
    const tensor_view<const M, 2> columns = matrix.transpose(0, 1);
    dense_rows<Arch, A, row_group> left;
    dense_rows<Arch, A, rank_group> right;
    const index_t chunk = chunk_columns_of<Arch, A>(wide, columns);
    alignas(64) A sums[as_size(row_group * rank_group * width)];
    A totals[row_group * rank_group];
    for_groups(columns.extent(0), rank_group, [&](index_t k0, index_t depth) {
        for_groups(rows.count, row_group, [&](index_t r0, index_t height) {
            const row_set group{rows.numbers + r0, height};
            std::fill_n(sums, height * depth * width, A(0));
            for_chunks<Arch, A>(wide.extent(1), chunk, [&](index_t first, index_t count) {
                const A* const* u = left.read(group, wide, first, count);
                const A* const* v = right.read(k0, depth, columns, first, count);
                add_inner_products<Arch>(u, height, v, depth, padded<Arch, A>(count), sums);
            });
            finish_inner_products<Arch>(height, depth, sums, totals);
            for (index_t r = 0; r < height; ++r)
                for (index_t k = 0; k < depth; ++k)
                    narrow(group.numbers[r], k0 + k) =
                        store<Z>(static_cast<A>(factor) * totals[r * depth + k]);
        });
    });
}

/// wide[row, j] += factor * sum over k of narrow[row, k] matrix[k, j] for the rows of the set,
/// narrow [rows, rank], matrix [rank, n], wide [rows, n]. Each element is read and written once.
/// Fastest where rows of the matrix are dense.
template <class Arch = default_arch, class Z, class M, class Y>
void expand(row_set rows, tensor_view<const Z, 2> narrow, tensor_view<const M, 2> matrix,
            double factor, tensor_view<Y, 2> wide) noexcept {
    using A = accumulator_t<Z, M, Y>;
    dense_rows<Arch, A, row_group> left;
    dense_rows<Arch, A, rank_group> right;
    dense_output_rows<Arch, A, row_group> output;
    const index_t chunk = chunk_columns_of<Arch, A>(wide, matrix);
    for_groups(rows.count, row_group, [&](index_t r0, index_t height) {
        const row_set group{rows.numbers + r0, height};
        for_chunks<Arch, A>(wide.extent(1), chunk, [&](index_t first, index_t count) {
            A* const* c = output.open(group, wide, first, count);
            for_groups(matrix.extent(0), rank_group, [&](index_t k0, index_t depth) {
                const A* const* coefficients = left.read_unpadded(group, narrow, k0, depth);
                const A* const* v = right.read(k0, depth, matrix, first, count);
                add_combinations<Arch, true>(coefficients, v, depth, padded<Arch, A>(count),
                                             static_cast<A>(factor), c, height);
            });
            output.write(group, wide, first, count);
        });
    });
}

/// sums[k, i] += factor * sum over the rows of the set of narrow[row, k] wide[row, i], or = (of one
/// row at least) unless `accumulate`; wide [rows, n], narrow [rows, rank], sums [rank, n]. Each
/// element is rounded to its type once for every 48 rows: callers sum in the accumulator type.
///
/// `ahead` [rows, any] is what the same rows are needed of next: while the work goes through the
/// columns of wide, those of ahead are fetched into L2. The columns of wide itself, if ahead is
/// absent.
template <class Arch = default_arch, class X, class Z, class D, class N = const X>
void add_outer_products(row_set rows, tensor_view<const X, 2> wide, tensor_view<const Z, 2> narrow,
                        double factor, tensor_view<D, 2> sums, bool accumulate,
                        tensor_view<N, 2> ahead = {}) noexcept {
    using A = accumulator_t<X, Z, D>;
    constexpr index_t many_rows = 4 * row_group;
    constexpr index_t columns_ahead = 128;
    dense_rows<Arch, A, many_rows> right;
    A coefficients[rank_group * many_rows];
    const A* left[rank_group];
    for (index_t k = 0; k < rank_group; ++k)
        left[k] = coefficients + k * many_rows;
    dense_output_rows<Arch, A, rank_group> output;
    for_groups(rows.count, many_rows, [&](index_t r0, index_t height) {
        const row_set group{rows.numbers + r0, height};
        const auto address_ahead = [&](index_t r, index_t first) {
            const index_t row = group.numbers[r];
            return ahead.absent()
                       ? reinterpret_cast<std::uintptr_t>(&wide(row, 0)) +
                             static_cast<std::uintptr_t>(first + columns_ahead) * sizeof(X)
                       : reinterpret_cast<std::uintptr_t>(&ahead(row, 0)) +
                             static_cast<std::uintptr_t>(first) * sizeof(N);
        };
        const index_t size_ahead = static_cast<index_t>(ahead.absent() ? sizeof(X) : sizeof(N));
        for_groups(sums.extent(0), rank_group, [&](index_t k0, index_t depth) {
            index_t places[rank_group];
            for (index_t k = 0; k < depth; ++k) {
                places[k] = k0 + k;
                for (index_t r = 0; r < height; ++r)
                    coefficients[k * many_rows + r] = load<A>(narrow(group.numbers[r], k0 + k));
            }
            const row_set results{places, depth};
            for_chunks<Arch, A>(
                wide.extent(1), chunk_columns<A>, [&](index_t first, index_t count) {
                    const A* const* v = right.read(group, wide, first, count);
                    A* const* c = output.open(results, sums, first, count);
                    std::uintptr_t next[many_rows];
                    for (index_t r = 0; r < height; ++r)
                        next[r] = address_ahead(r, first);
                    specialise(accumulate || r0 != 0, [&](auto adding) {
                        add_combinations<Arch, decltype(adding)::value>(
                            left, v, height, padded<Arch, A>(count), static_cast<A>(factor), c,
                            depth, {k0 == 0 ? next : nullptr, size_ahead});
                    });
                    output.write(results, sums, first, count);
                });
        });
    });
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr

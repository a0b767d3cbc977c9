#pragma once

#include <algorithm>

#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The three products of LoRA, each with one narrow dimension (the rank): tall times narrow,
/// narrow times wide, and the sum of outer products over rows. They run on a *set of rows* given by
/// number, so that a batch needs no sorting in memory. Sums are kept in small tiles on the stack
/// that compilers turn into vector registers; the order of every sum depends on the
/// shapes, and on which strides are 1, alone.
///
/// Not checked: the entry points of adapters/ have done that.

namespace mhr::detail {

/// Numbers of rows of a matrix.
struct row_set {
    const index_t* numbers;
    index_t count;
};

/// Columns of the narrow dimension, and elements of the wide one, that are summed at a time.
inline constexpr index_t narrow_tile = 16;
inline constexpr index_t wide_tile = 64;

/// narrow[row, k] = factor * sum over i of wide[row, i] matrix[i, k] for the rows of the set,
/// wide [rows, n], matrix [n, rank], narrow [rows, rank].
template <class X, class M, class Z>
void project(row_set rows, tensor_view<const X, 2> wide, tensor_view<const M, 2> matrix,
             double factor, tensor_view<Z, 2> narrow) noexcept {
    using A = accumulator_t<X, M, Z>;
    const index_t n = wide.extent(1);
    const index_t rank = matrix.extent(1);
    // Two ways round, so that the inner loop always walks along memory: down a column of the matrix
    // when those are dense (an inner product in partial sums), else along its rows.
    const bool along_columns = matrix.stride(0) == 1 && matrix.stride(1) != 1;
    const bool dense = wide.stride(1) == 1 && (along_columns || matrix.stride(1) == 1);
    specialise(dense, [&](auto known) {
        constexpr bool Dense = decltype(known)::value;
        for (index_t r = 0; r < rows.count; ++r) {
            const index_t row = rows.numbers[r];
            const strided<const X, Dense> x{wide.slice(0, row).data(), wide.stride(1)};
            for (index_t k0 = 0; k0 < rank; k0 += narrow_tile) {
                const index_t width = std::min(narrow_tile, rank - k0);
                A sum[narrow_tile] = {};
                if (along_columns) {
                    for (index_t k = 0; k < width; ++k) {
                        const M* column = &matrix(0, k0 + k);
                        A lane_sum[narrow_tile] = {};
                        index_t i = 0;
                        for (; i + narrow_tile <= n; i += narrow_tile)
                            for (index_t lane = 0; lane < narrow_tile; ++lane)
                                lane_sum[lane] += load<A>(x[i + lane]) * load<A>(column[i + lane]);
                        for (; i < n; ++i)
                            lane_sum[i % narrow_tile] += load<A>(x[i]) * load<A>(column[i]);
                        for (index_t lane = 0; lane < narrow_tile; ++lane)
                            sum[k] += lane_sum[lane];
                    }
                } else {
                    const auto add_rows = [&](auto whole_tile) {
                        const index_t w = decltype(whole_tile)::value ? narrow_tile : width;
                        for (index_t i = 0; i < n; ++i) {
                            const A value = load<A>(x[i]);
                            const strided<const M, Dense> m{&matrix(i, k0), matrix.stride(1)};
                            for (index_t k = 0; k < w; ++k)
                                sum[k] += value * load<A>(m[k]);
                        }
                    };
                    specialise(width == narrow_tile, add_rows);
                }
                for (index_t k = 0; k < width; ++k)
                    narrow(row, k0 + k) = store<Z>(static_cast<A>(factor) * sum[k]);
            }
        }
    });
}

/// wide[row, j] += factor * sum over k of narrow[row, k] matrix[k, j] for the rows of the set,
/// narrow [rows, rank], matrix [rank, n], wide [rows, n]. Each element is read and written once.
template <class Z, class M, class Y>
void expand(row_set rows, tensor_view<const Z, 2> narrow, tensor_view<const M, 2> matrix,
            double factor, tensor_view<Y, 2> wide) noexcept {
    using A = accumulator_t<Z, M, Y>;
    constexpr index_t row_tile = 16;
    const index_t n = wide.extent(1);
    const index_t rank = matrix.extent(0);
    for (index_t r0 = 0; r0 < rows.count; r0 += row_tile) {
        const index_t height = std::min(row_tile, rows.count - r0);
        for (index_t j0 = 0; j0 < n; j0 += wide_tile) {
            const index_t width = std::min(wide_tile, n - j0);
            A sum[row_tile][wide_tile] = {};
            for (index_t k0 = 0; k0 < rank; k0 += narrow_tile) {
                const index_t depth = std::min(narrow_tile, rank - k0);
                // A copy of the matrix's tile, padded with zeros: dense whatever the strides, and
                // converted once for all rows.
                A tile[narrow_tile][wide_tile] = {};
                for (index_t j = 0; j < width; ++j)
                    for (index_t k = 0; k < depth; ++k)
                        tile[k][j] = load<A>(matrix(k0 + k, j0 + j));
                for (index_t r = 0; r < height; ++r)
                    for (index_t k = 0; k < depth; ++k) {
                        const A value = load<A>(narrow(rows.numbers[r0 + r], k0 + k));
                        for (index_t j = 0; j < wide_tile; ++j)
                            sum[r][j] += value * tile[k][j];
                    }
            }
            specialise(wide.stride(1) == 1, [&](auto dense) {
                for (index_t r = 0; r < height; ++r) {
                    const strided<Y, decltype(dense)::value> y{&wide(rows.numbers[r0 + r], j0),
                                                               wide.stride(1)};
                    for (index_t j = 0; j < width; ++j)
                        y[j] = store<Y>(load<A>(y[j]) + static_cast<A>(factor) * sum[r][j]);
                }
            });
        }
    }
}

/// matrix[i, k] += factor * sum over the rows of the set of wide[row, i] narrow[row, k],
/// wide [rows, n], narrow [rows, rank], matrix [n, rank]. Each element of the matrix is read and
/// written once, after the sum over all rows.
template <class X, class Z, class D>
void add_outer_products(row_set rows, tensor_view<const X, 2> wide, tensor_view<const Z, 2> narrow,
                        double factor, tensor_view<D, 2> matrix) noexcept {
    using A = accumulator_t<X, Z, D>;
    const index_t n = wide.extent(1);
    const index_t rank = narrow.extent(1);
    for (index_t i0 = 0; i0 < n; i0 += wide_tile) {
        const index_t width = std::min(wide_tile, n - i0);
        for (index_t k0 = 0; k0 < rank; k0 += narrow_tile) {
            const index_t depth = std::min(narrow_tile, rank - k0);
            A sum[narrow_tile][wide_tile] = {};
            for (index_t r = 0; r < rows.count; ++r) {
                const index_t row = rows.numbers[r];
                // A copy of the row's piece, padded with zeros: dense, and converted once.
                A values[wide_tile] = {};
                for (index_t i = 0; i < width; ++i)
                    values[i] = load<A>(wide(row, i0 + i));
                for (index_t k = 0; k < depth; ++k) {
                    const A value = load<A>(narrow(row, k0 + k));
                    for (index_t i = 0; i < wide_tile; ++i)
                        sum[k][i] += value * values[i];
                }
            }
            for (index_t i = 0; i < width; ++i)
                for (index_t k = 0; k < depth; ++k) {
                    D& target = matrix(i0 + i, k0 + k);
                    target = store<D>(load<A>(target) + static_cast<A>(factor) * sum[k][i]);
                }
        }
    }
}

} // namespace mhr::detail

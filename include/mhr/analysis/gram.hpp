#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Gram matrices, the inner products of some vectors with each other, and the cosines in them: what
/// analysis/gradient_alignment.hpp and analysis/task_similarity.hpp share.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Vectors of a tile, and elements of each that are taken at a time: two tiles of pieces fit L1,
/// and each piece is read from far memory once for all vectors of the other tile.
inline constexpr index_t gram_tile = 8;
inline constexpr index_t gram_chunk = 128;
/// Partial sums of an inner product, enough to fill vector registers.
inline constexpr index_t gram_lanes = 8;

/// Pieces of the vectors of a tile: dense and of one type, whatever the strides and the storage.
using gram_pieces = double[gram_tile][gram_chunk];

/// Copies the elements first .. first + count - 1 of a block [p, q], counted along its rows, and
/// zeros up to a whole number of lanes. Counting over the ends of rows keeps pieces long where rows
/// are short (a rank), and the order of the sums the same for every layout.
template <class G>
void gather(tensor_view<const G, 2> block, index_t first, index_t count, double* to) noexcept {
    const bool joined = block.stride(1) == 1 && block.stride(0) == block.extent(1);
    const index_t length = joined ? block.extent(0) * block.extent(1) : block.extent(1);
    specialise(block.stride(1) == 1, [&](auto dense) {
        index_t done = 0;
        for (index_t p = first / length, q = first % length; done < count; ++p, q = 0) {
            const strided<const G, decltype(dense)::value> from{&block(p, q), block.stride(1)};
            const index_t n = (std::min)(length - q, count - done);
            for (index_t i = 0; i < n; ++i)
                to[done + i] = load<double>(from[i]);
            done += n;
        }
    });
    for (index_t i = count; i % gram_lanes != 0; ++i)
        to[i] = 0;
}

/// The inner product of two pieces of whole lanes.
inline double inner_product(const double* x, const double* y, index_t count) noexcept {
    double sum[gram_lanes] = {};
    for (index_t i = 0; i < count; i += gram_lanes)
        for (index_t lane = 0; lane < gram_lanes; ++lane)
            sum[lane] += x[i + lane] * y[i + lane];
    double total = 0;
    for (double value : sum)
        total += value;
    return total;
}

/// The inner products of the vectors from `row` on with those from `column` on, a tile of each,
/// added to `gram` and mirrored; see add_gram.
template <class G, class F>
void add_gram_tile(tensor_view<const G, 4> vectors, index_t row, index_t column, F&& factor,
                   tensor_view<double, 2> gram) noexcept {
    const index_t rows = (std::min)(gram_tile, vectors.extent(0) - row);
    const index_t columns = (std::min)(gram_tile, vectors.extent(0) - column);
    const index_t size = vectors.extent(2) * vectors.extent(3);
    const bool diagonal = row == column;
    gram_pieces row_pieces;
    gram_pieces column_pieces;
    const gram_pieces& others = diagonal ? row_pieces : column_pieces;
    double total[gram_tile][gram_tile] = {};
    for (index_t h = 0; h < vectors.extent(1); ++h) {
        const auto blocks = vectors.slice(1, h);
        double factors[gram_tile][gram_tile];
        double sums[gram_tile][gram_tile] = {};
        for (index_t s = 0; s < rows; ++s)
            for (index_t t = diagonal ? s : 0; t < columns; ++t)
                factors[s][t] = factor(row + s, column + t, h);
        for (index_t first = 0; first < size; first += gram_chunk) {
            const index_t count = (std::min)(gram_chunk, size - first);
            for (index_t s = 0; s < rows; ++s)
                gather(blocks.slice(0, row + s), first, count, row_pieces[s]);
            for (index_t t = 0; t < columns && !diagonal; ++t)
                gather(blocks.slice(0, column + t), first, count, column_pieces[t]);
            for (index_t s = 0; s < rows; ++s)
                for (index_t t = diagonal ? s : 0; t < columns; ++t)
                    if (!is_exactly(factors[s][t], 0))
                        sums[s][t] += inner_product(row_pieces[s], others[t], count);
        }
        for (index_t s = 0; s < rows; ++s)
            for (index_t t = diagonal ? s : 0; t < columns; ++t)
                total[s][t] += factors[s][t] * sums[s][t];
    }
    for (index_t s = 0; s < rows; ++s)
        for (index_t t = diagonal ? s : 0; t < columns; ++t) {
            gram(row + s, column + t) += total[s][t];
            if (row + s != column + t) gram(column + t, row + s) += total[s][t];
        }
}

/// Calls `f(row, column)` for the first vectors of each pair of tiles on or above the diagonal. A
/// part is one pair: each element of a Gram matrix has one owner.
template <class F>
void for_gram_tiles(executor_ref executor, index_t vectors, F&& f) {
    const index_t tiles = (vectors + gram_tile - 1) / gram_tile;
    executor.run(tiles * (tiles + 1) / 2, [&](index_t part) noexcept {
        index_t row = 0;
        for (; part >= tiles - row; ++row)
            part -= tiles - row;
        f(row * gram_tile, (row + part) * gram_tile);
    });
}

/// gram[s, t] += sum over heads of factor(s, t, h) <vectors[s, h], vectors[t, h]>, vectors
/// [n, heads, p, q]; `factor` is symmetric, and a block whose factor is 0 adds nothing. Everything
/// is multiplied and summed in f64, where products of narrower types are exact. Not checked.
template <class G, class F>
void add_gram(executor_ref executor, tensor_view<const G, 4> vectors, F&& factor,
              tensor_view<double, 2> gram) {
    for_gram_tiles(executor, vectors.extent(0), [&](index_t row, index_t column) noexcept {
        add_gram_tile(vectors, row, column, factor, gram);
    });
}

/// The factor of plain inner products.
inline constexpr auto unit_factor = [](index_t, index_t, index_t) noexcept { return 1.0; };

/// Rows [n, length] or matrices [n, p, q] as vectors of one block.
template <class G>
tensor_view<const G, 4> as_blocks(const tensor_view<G, 2>& rows) noexcept {
    return as_const(rows.split(0, rows.extent(0)).split(1, 1));
}
template <class G>
tensor_view<const G, 4> as_blocks(const tensor_view<G, 3>& matrices) noexcept {
    return as_const(matrices.split(0, matrices.extent(0)));
}

/// The cosine in a Gram matrix. Two roots and two divisions: the product of the two squared norms
/// could overflow, or vanish, where the cosine does not.
inline double cosine(double product, double square, double other_square) noexcept {
    return product / std::sqrt(square) / std::sqrt(other_square);
}

/// Checks a Gram matrix that is read: square, and with a diagonal of squares.
template <class T>
void check_gram(const char* function, const tensor_view<T, 2>& gram) {
    require_input(function, "gram", gram, {any_extent, gram.extent(0)});
    for (index_t t = 0; t < gram.extent(0); ++t)
        require_that(
            !(load<double>(gram(t, t)) < 0), function, "gram",
            [] { return "a diagonal of squares, 0 and more"; },
            [&] {
                return std::to_string(load<double>(gram(t, t))) + " at position " +
                       std::to_string(t);
            });
}

} // namespace detail

/// cosines[s, t] = gram[s, t] / sqrt(gram[s, s] gram[t, t]): 1 on the diagonal, and 0 wherever a
/// vector of squared norm 0 takes part, on the diagonal too.
///
/// gram [n, n], of which the diagonal and what is above it are read; cosines [n, n], overwritten,
/// symmetric to the bit. They may be the same view, but must not overlap otherwise.
///
/// Errors: a shape; overlapping elements of cosines; a negative diagonal of gram.
template <class T>
void gram_cosines(tensor_view<T, 2> gram, tensor_view<double, 2> cosines) {
    constexpr const char* function = "gram_cosines";
    detail::check_gram(function, gram);
    require_output(function, "cosines", cosines, gram.extents());
    const index_t n = gram.extent(0);
    // The diagonal last: it is read until then.
    for (index_t s = 0; s < n; ++s)
        for (index_t t = s + 1; t < n; ++t) {
            const double square = load<double>(gram(s, s));
            const double other = load<double>(gram(t, t));
            const bool zero = detail::is_exactly(square, 0) || detail::is_exactly(other, 0);
            const double value = zero ? 0 : detail::cosine(load<double>(gram(s, t)), square, other);
            cosines(s, t) = value;
            cosines(t, s) = value;
        }
    for (index_t t = 0; t < n; ++t) {
        const double square = load<double>(gram(t, t));
        // A NaN stays one.
        cosines(t, t) = detail::is_exactly(square, 0) ? 0 : square / square;
    }
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// Gram matrices, the inner products of some vectors with each other, and the cosines in them: what
/// training/gradient_alignment.hpp and training/task_similarity.hpp share.

namespace mhr {
inline namespace MHR_ISA {

/// cosines[s, t] = gram[s, t] / sqrt(gram[s, s] gram[t, t]): 1 on the diagonal, and 0 wherever a
/// vector of squared norm 0 takes part, on the diagonal too.
///
/// gram [n, n], of which the diagonal and what is above it are read; cosines [n, n], overwritten,
/// symmetric to the bit. They may be the same memory, but must not overlap otherwise.
///
/// These are refused: a gram that is not square; cosines of other extents, or two of whose elements
/// overlap; a negative number on the diagonal of gram. The cost is n^2 / 2 roots.
inline void gram_cosines(const const_tensor_ref<2>& gram, const tensor_view<double, 2>& cosines);

namespace gram_details {

/// Vectors of a tile, and elements of each that are taken at a time: the chunks of two tiles fit
/// L1, and each chunk is read from far memory once for all vectors of the other tile.
inline constexpr index_t tile_vectors = 8;
inline constexpr index_t chunk_elements = 128;
/// Partial sums of an inner product, which are enough to fill vector registers.
inline constexpr index_t partial_sums = 8;

/// Chunks of the vectors of a tile: dense and of one type, whatever the strides and the types.
using tile_chunks =
    double[static_cast<std::size_t>(tile_vectors)][static_cast<std::size_t>(chunk_elements)];

/// Copies the elements first .. first + count - 1 of a block [p, q], counted along its rows, and
/// zeros up to a whole number of partial sums. Counting over the ends of rows keeps chunks long
/// where rows are short (a rank), and the order of the sums the same for every layout.
inline void gather(const const_tensor_ref<2>& block, index_t first, index_t count,
                   double* to) noexcept {
    const bool joined = block.stride(1) == 1 && block.stride(0) == block.extent(1);
    const index_t length = joined ? block.extent(0) * block.extent(1) : block.extent(1);
    index_t done = 0;
    for (index_t p = first / length, q = first % length; done < count; ++p, q = 0) {
        const index_t n = (std::min)(length - q, count - done);
        const const_tensor_ref<1> run({{n}, {block.stride(1)}}, block.address_of(p, q),
                                      block.type());
        kernels::read_elements(run, to + done);
        done += n;
    }
    for (index_t i = count; i % partial_sums != 0; ++i)
        to[i] = 0;
}

/// The inner product of two chunks of a whole number of partial sums.
inline double inner_product(const double* x, const double* y, index_t count) noexcept {
    double sum[static_cast<std::size_t>(partial_sums)] = {};
    for (index_t i = 0; i < count; i += partial_sums)
        for (index_t k = 0; k < partial_sums; ++k)
            sum[k] += x[i + k] * y[i + k];
    double total = 0;
    for (double value : sum)
        total += value;
    return total;
}

/// True for a number that is 0, of either sign.
inline bool is_zero(double number) noexcept {
    return std::fpclassify(number) == FP_ZERO;
}

/// The inner products of the vectors from `row` on with those from `column` on, a tile of each,
/// added to `gram` and mirrored; see add_gram.
template <class Factor>
void add_tile(const const_tensor_ref<4>& vectors, index_t row, index_t column, const Factor& factor,
              const tensor_view<double, 2>& gram) noexcept {
    constexpr auto size_of_tile = static_cast<std::size_t>(tile_vectors);
    const index_t rows = (std::min)(tile_vectors, vectors.extent(0) - row);
    const index_t columns = (std::min)(tile_vectors, vectors.extent(0) - column);
    const index_t size = vectors.extent(2) * vectors.extent(3);
    const bool diagonal = row == column;
    tile_chunks row_chunks;
    tile_chunks column_chunks;
    const tile_chunks& others = diagonal ? row_chunks : column_chunks;
    double total[size_of_tile][size_of_tile] = {};
    for (index_t h = 0; h < vectors.extent(1); ++h) {
        const auto blocks = vectors.slice(1, h);
        double factors[size_of_tile][size_of_tile];
        double sums[size_of_tile][size_of_tile] = {};
        for (index_t s = 0; s < rows; ++s)
            for (index_t t = diagonal ? s : 0; t < columns; ++t)
                factors[s][t] = factor(row + s, column + t, h);
        for (index_t first = 0; first < size; first += chunk_elements) {
            const index_t count = (std::min)(chunk_elements, size - first);
            for (index_t s = 0; s < rows; ++s)
                gather(blocks.slice(0, row + s), first, count, row_chunks[s]);
            for (index_t t = 0; t < columns && !diagonal; ++t)
                gather(blocks.slice(0, column + t), first, count, column_chunks[t]);
            for (index_t s = 0; s < rows; ++s)
                for (index_t t = diagonal ? s : 0; t < columns; ++t)
                    if (!is_zero(factors[s][t]))
                        sums[s][t] += inner_product(row_chunks[s], others[t], count);
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
template <class Function>
void for_tiles(executor_ref executor, index_t vectors, const Function& f) {
    const index_t tiles = (vectors + tile_vectors - 1) / tile_vectors;
    executor.run(tiles * (tiles + 1) / 2, [&](index_t part) noexcept {
        index_t row = 0;
        for (; part >= tiles - row; ++row)
            part -= tiles - row;
        f(row * tile_vectors, (row + part) * tile_vectors);
    });
}

/// gram[s, t] += sum over heads of factor(s, t, h) <vectors[s, h], vectors[t, h]>, with vectors
/// [n, heads, p, q]; `factor` is symmetric, and a block whose factor is 0 adds nothing. Everything
/// is multiplied and summed in f64, where products of narrower types are exact. Nothing is checked.
template <class Factor>
void add_gram(executor_ref executor, const const_tensor_ref<4>& vectors, const Factor& factor,
              const tensor_view<double, 2>& gram) {
    for_tiles(executor, vectors.extent(0), [&](index_t row, index_t column) noexcept {
        add_tile(vectors, row, column, factor, gram);
    });
}

/// The factor of plain inner products.
inline double unit_factor(index_t, index_t, index_t) noexcept {
    return 1;
}

/// Rows [n, length] or matrices [n, p, q] as vectors of one block.
/// @{
inline const_tensor_ref<4> rows_as_blocks(const const_tensor_ref<2>& rows) noexcept {
    return rows.split(0, rows.extent(0)).split(1, 1);
}
inline const_tensor_ref<4> matrices_as_blocks(const const_tensor_ref<3>& matrices) noexcept {
    return matrices.split(0, matrices.extent(0));
}
/// @}

/// The cosine in a Gram matrix. There are two roots and two divisions because the product of the
/// two squared norms could overflow, or vanish, where the cosine does not.
inline double cosine(double product, double square, double other_square) noexcept {
    return product / std::sqrt(square) / std::sqrt(other_square);
}

/// Checks a Gram matrix that is read: it is square, and has a diagonal of squares.
inline void check_gram(argument_checks& checks, const const_tensor_ref<2>& gram) {
    checks.input("gram", gram, {any_extent, gram.extent(0)});
    for (index_t t = 0; checks.passed() && t < gram.extent(0); ++t)
        checks.expect(!(read_element(gram, t, t) < 0), "gram",
                      "a diagonal of squares, which are 0 and more",
                      joined(read_element(gram, t, t), " at position ", t));
}

} // namespace gram_details

inline void gram_cosines(const const_tensor_ref<2>& gram, const tensor_view<double, 2>& cosines) {
    argument_checks checks("gram_cosines");
    gram_details::check_gram(checks, gram);
    checks.output("cosines", tensor_ref<2>(cosines), gram.extents());
    checks.raise();
    const index_t n = gram.extent(0);
    // The diagonal comes last: it is read until then.
    for (index_t s = 0; s < n; ++s)
        for (index_t t = s + 1; t < n; ++t) {
            const double square = read_element(gram, s, s);
            const double other = read_element(gram, t, t);
            const bool zero = gram_details::is_zero(square) || gram_details::is_zero(other);
            const double value =
                zero ? 0 : gram_details::cosine(read_element(gram, s, t), square, other);
            cosines(s, t) = value;
            cosines(t, s) = value;
        }
    for (index_t t = 0; t < n; ++t) {
        const double square = read_element(gram, t, t);
        // A NaN stays one.
        cosines(t, t) = gram_details::is_zero(square) ? 0 : square / square;
    }
}

} // namespace MHR_ISA
} // namespace mhr

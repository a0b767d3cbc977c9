#pragma once

#include <algorithm>
#include <cstdint>

#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/conversion.hpp>
#include <mhr/kernels/simd/transpose.hpp>

/// \file
/// The two innermost loops of every product here. Both work on rows that are given by pointers, so
/// that rows need not follow each other in memory, and walk along them in whole vectors:
///     inner products   sums[p][q] += u[p] . v[q]
///     combinations     c[p] += factor * sum over q of coefficients[p][q] v[q]
/// A tile of the results is kept in registers: of 32 registers 6 x 4 for both, of 16 registers
/// 3 x 4 sums, whose terms are all loaded, or 4 x 2 (6 x 2) columns, whose coefficients take one.
/// The order of each result's sum does not depend on the tile that it is in.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Calls `f(first, size)` for tiles that cover [0, count), each of the largest of the given
/// (descending) sizes that fits; the size is a constant. The last size is 1.
template <index_t... Sizes, class F>
void for_tiles(index_t count, F&& f) {
    index_t first = 0;
    const auto cover = [&](auto size) {
        for (; first + size <= count; first += size)
            f(first, size);
    };
    (cover(std::integral_constant<index_t, Sizes>{}), ...);
}

/// Rows of u in a tile of inner products: as long as they stay in L1, all tiles beside each other
/// take them from there.
template <class Arch>
inline constexpr index_t inner_product_rows = has_32_registers<Arch> ? 6 : 3;

/// One tile of sums[p][q] += u[p] . v[q]: sums of vectors, whose lanes are added up at the very
/// end. `count` is a multiple of the lanes; sums [P, Q, lanes] are dense, and begin with 0 if
/// `starts`. Meanwhile the row at the address `ahead`, which is wanted soon, is fetched, unless
/// that is 0.
template <class Arch, index_t P, index_t Q, class A>
void add_inner_products_tile(const A* const* u, const A* const* v, index_t count, bool starts,
                             A* sums, std::uintptr_t ahead) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    V sum[as_size(P)][as_size(Q)];
    const A* left[as_size(P)];
    const A* right[as_size(Q)];
    unroll<P>([&](auto p) { left[p] = u[p]; });
    unroll<Q>([&](auto q) { right[q] = v[q]; });
    if (starts)
        unroll<P>([&](auto p) { unroll<Q>([&](auto q) { sum[p][q] = V(A(0)); }); });
    else
        unroll<P>([&](auto p) {
            unroll<Q>([&](auto q) { sum[p][q] = V::load_aligned(sums + (p * Q + q) * width); });
        });
    for (index_t j = 0; j < count; j += width) {
        if (ahead != 0) prefetch<cache::l2>(ahead + static_cast<std::uintptr_t>(j) * sizeof(A));
        // The fewer vectors are held, the others pass by: of 16 registers, 12 sums leave 4.
        if constexpr (P < Q) {
            V a[as_size(P)];
            unroll<P>([&](auto p) { a[p] = V::load_unaligned(left[p] + j); });
            unroll<Q>([&](auto q) {
                V b = V::load_unaligned(right[q] + j);
                if constexpr (P > 1) keep_in_register(b);
                unroll<P>([&](auto p) { sum[p][q] = multiply_add(a[p], b, sum[p][q]); });
            });
        } else {
            V b[as_size(Q)];
            unroll<Q>([&](auto q) { b[q] = V::load_unaligned(right[q] + j); });
            unroll<P>([&](auto p) {
                V a = V::load_unaligned(left[p] + j);
                if constexpr (Q > 1) keep_in_register(a);
                unroll<Q>([&](auto q) { sum[p][q] = multiply_add(a, b[q], sum[p][q]); });
            });
        }
    }
    unroll<P>([&](auto p) {
        unroll<Q>([&](auto q) { sum[p][q].store_aligned(sums + (p * Q + q) * width); });
    });
}

/// Calls `f(p, height, q, width, before)` for the tiles of [u_rows, v_rows]; height and width are
/// constants, and `before` counts the elements of the tiles before.
template <class Arch, class F>
void for_inner_product_tiles(index_t u_rows, index_t v_rows, F&& f) {
    const auto row_of_tiles = [&](index_t p, auto height) {
        const auto tile = [&](index_t q, auto size) {
            f(p, height, q, size, p * v_rows + q * height);
        };
        // A single row has registers left, and needs more sums than four to hide the multiply-add's
        // latency.
        if constexpr (decltype(height)::value == 1)
            for_tiles<8, 4, 2, 1>(v_rows, tile);
        else
            for_tiles<4, 2, 1>(v_rows, tile);
    };
    if constexpr (has_32_registers<Arch>)
        for_tiles<6, 4, 2, 1>(u_rows, row_of_tiles);
    else
        for_tiles<3, 2, 1>(u_rows, row_of_tiles);
}

/// sums += u[p] . v[q] over `count` elements, a multiple of the lanes, or = that if it `starts`;
/// sums has u_rows v_rows vectors, aligned, in the order of tiles.
template <class Arch, class A>
void add_inner_products(const A* const* u, index_t u_rows, const A* const* v, index_t v_rows,
                        index_t count, bool starts, A* sums) noexcept {
    for_inner_product_tiles<Arch>(
        u_rows, v_rows, [&](index_t p, auto height, index_t q, auto size, index_t before) {
            // Each of the first tiles fetches one of the rows that the next tiles begin with.
            const index_t tile = q / size;
            const index_t next = p + height + tile;
            const bool fetches = tile < height && next < u_rows;
            add_inner_products_tile<Arch, height, size>(u + p, v + q, count, starts,
                                                        sums + before * lanes<A, Arch>,
                                                        fetches ? address_of(u[next]) : 0);
        });
}

/// totals[i] = the sum of the lanes of sums[i] (they may overlap: totals are behind what is read);
/// sums [count, lanes], aligned, readable up to the next multiple of `piece_lanes`.
template <class Arch, class A>
void add_up_lanes(const A* sums, index_t count, A* totals) noexcept {
    using V = vector<A, piece_arch<Arch>>;
    constexpr index_t width = lanes<A, Arch>;
    constexpr index_t n = piece_lanes<A, Arch>;
    for (index_t first = 0; first < count; first += n) {
        V rows[as_size(n)];
        unroll<n>([&](auto i) {
            const A* of_row = sums + (first + i) * width;
            rows[i] = V::load_aligned(of_row);
            unroll<width / n - 1>(
                [&](auto piece) { rows[i] += V::load_aligned(of_row + (piece + 1) * n); });
        });
        transpose_registers<Arch, A>(rows);
        V total = rows[0];
        unroll<n - 1>([&](auto i) { total += rows[i + 1]; });
        if (first + n <= count) {
            total.store_unaligned(totals + first);
        } else {
            A last[as_size(n)];
            total.store_unaligned(last);
            std::copy_n(last, count - first, totals + first);
        }
    }
}

/// totals[p, q] = the sums of add_inner_products with their lanes added up, [u_rows, v_rows];
/// `sums` is overwritten.
template <class Arch, class A>
void finish_inner_products(index_t u_rows, index_t v_rows, A* sums, A* totals) noexcept {
    add_up_lanes<Arch>(sums, u_rows * v_rows, sums);
    for_inner_product_tiles<Arch>(
        u_rows, v_rows, [&](index_t p0, auto height, index_t q0, auto size, index_t before) {
            for (index_t p = 0; p < height; ++p)
                for (index_t q = 0; q < size; ++q)
                    totals[(p0 + p) * v_rows + q0 + q] = sums[before + p * size + q];
        });
}

/// Rows that are wanted soon, as many as a combination has terms: while the term q is added, a line
/// of row q is fetched, at the columns that are computed; the next tiles of the same columns fetch
/// the next line, until all are. (Hardware does not foresee rows that are visited in pieces, nor
/// arrays whose turn comes later.)
struct rows_ahead {
    const std::uintptr_t* addresses = nullptr;
    index_t element_size = 0;
};

/// How far ahead rows that are converted on the way are fetched: the loads of less than a line that
/// this takes can go unnoticed by the hardware (a f16 inventory took 2.5 times as long).
inline constexpr std::uintptr_t converted_bytes_ahead = 2048;

/// Where combinations go: c[p] += factor * sum, or = that unless `accumulate`.
template <class A>
struct combined {
    A* const* rows;
    A factor;
    bool accumulate;

    /// The same from row p on.
    [[nodiscard]] combined from(index_t p) const noexcept { return {rows + p, factor, accumulate}; }
};

/// Tiles of c[p] += factor * sum over q of coefficients[p][q] v[q], of P rows and Width vectors,
/// one behind the other from column `first` as long as they fit in `count`. Returns where they end.
template <class Arch, index_t P, index_t Width, class A, class T>
index_t add_combinations_tiles(const A* const* coefficients, const T* const* v, index_t depth,
                               index_t first, index_t count, const combined<A>& c,
                               const rows_ahead& ahead, index_t line_ahead) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    constexpr index_t columns = Width * width;
    constexpr auto bytes = columns * static_cast<index_t>(sizeof(A));
    constexpr auto bytes_of_v = columns * static_cast<index_t>(sizeof(T));
    const A* coefficient[as_size(P)];
    A* to[as_size(P)];
    unroll<P>([&](auto p) {
        coefficient[p] = coefficients[p];
        to[p] = c.rows[p];
    });
    // Copies, which no store to a row can change.
    const V factor(c.factor);
    const bool accumulate = c.accumulate;
    const index_t skipped = line_ahead * cache_line;
    const std::uintptr_t* const addresses =
        skipped < columns * ahead.element_size ? ahead.addresses : nullptr;
    for (; first + columns <= count; first += columns) {
        // Rows of c are short, and hardware is late to foresee how they go on.
        if (accumulate)
            for (index_t p = 0; p < P; ++p)
                prefetch_lines<cache::l1, bytes>(address_of(to[p] + first) + 2 * bytes);
        V sum[as_size(P)][as_size(Width)];
        unroll<P>([&](auto p) { unroll<Width>([&](auto w) { sum[p][w] = V(A(0)); }); });
        const auto offset = static_cast<std::uintptr_t>(first * ahead.element_size + skipped);
        for (index_t q = 0; q < depth; ++q) {
            if (addresses != nullptr) prefetch<cache::l2>(addresses[q] + offset);
            const T* const row = v[q] + first;
            if constexpr (!std::is_same_v<A, T>)
                prefetch_lines<cache::l2, bytes_of_v>(address_of(row) + converted_bytes_ahead);
            V b[as_size(Width)];
            unroll<Width>([&](auto w) { b[w] = load_lanes<A, Arch>(row + w * width); });
            unroll<P>([&](auto p) {
                const V a(coefficient[p][q]);
                unroll<Width>([&](auto w) { sum[p][w] = multiply_add(a, b[w], sum[p][w]); });
            });
        }
        // Each way by itself: a choice in the innermost body would move the sums to memory.
        if (accumulate)
            unroll<P>([&](auto p) {
                A* const at = to[p] + first;
                unroll<Width>([&](auto w) {
                    multiply_add(factor, sum[p][w], V::load_unaligned(at + w * width))
                        .store_unaligned(at + w * width);
                });
            });
        else
            unroll<P>([&](auto p) {
                A* const at = to[p] + first;
                unroll<Width>(
                    [&](auto w) { (factor * sum[p][w]).store_unaligned(at + w * width); });
            });
    }
    return first;
}

/// Columns of which the sums of a single row are kept in L1 between the groups of its terms.
inline constexpr index_t single_row_columns = 1024;

/// A group of Q terms of a single row, from term `first`: sums[j] += sum over q of coefficients[q]
/// v[q][j], the first group from 0; the last one goes on to c[0][j] += factor sums[j].
template <class Arch, index_t Q, class A, class T>
void add_terms_of_single_row(const A* coefficients, const T* const* v, index_t column,
                             index_t count, bool is_first, bool is_last, A* sums,
                             const combined<A>& c, const std::uintptr_t* ahead,
                             index_t size_ahead) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    V a[as_size(Q)];
    const T* row[as_size(Q)];
    unroll<Q>([&](auto q) {
        a[q] = V(coefficients[q]);
        row[q] = v[q] + column;
    });
    A* const row_of_c = c.rows[0] + column;
    const V factor(c.factor);
    const bool accumulate = c.accumulate;
    for (index_t j = 0; j < count; j += width) {
        if (ahead != nullptr && j * size_ahead % cache_line == 0)
            for (index_t q = 0; q < Q; ++q)
                prefetch<cache::l2>(ahead[q] +
                                    static_cast<std::uintptr_t>((column + j) * size_ahead));
        V sum = is_first ? V(A(0)) : V::load_aligned(sums + j);
        unroll<Q>([&](auto q) { sum = multiply_add(a[q], load_lanes<A, Arch>(row[q] + j), sum); });
        A* const to = row_of_c + j;
        if (!is_last)
            sum.store_aligned(sums + j);
        else if (accumulate)
            multiply_add(factor, sum, V::load_unaligned(to)).store_unaligned(to);
        else
            (factor * sum).store_unaligned(to);
    }
}

/// add_combinations for a single row: a few long rows of v at a time, for there is nothing that a
/// tile could use again. Sums in the order of the tiles.
template <class Arch, class A, class T>
void add_single_combination(const A* coefficients, const T* const* v, index_t depth, index_t count,
                            const combined<A>& c, const rows_ahead& ahead) noexcept {
    if (depth == 0) {
        if (!c.accumulate) std::fill_n(c.rows[0], count, c.factor * A(0));
        return;
    }
    alignas(64) A sums[as_size(single_row_columns)];
    for (index_t first = 0; first < count; first += single_row_columns) {
        const index_t columns = (std::min)(single_row_columns, count - first);
        const auto terms = [&](index_t q, auto size) {
            add_terms_of_single_row<Arch, size>(
                coefficients + q, v + q, first, columns, q == 0, q + size == depth, sums, c,
                ahead.addresses == nullptr ? nullptr : ahead.addresses + q, ahead.element_size);
        };
        for_tiles<8, 4, 2, 1>(depth, terms);
    }
}

/// c[p] += factor * sum over q of coefficients[p][q] v[q], or =, over `count` elements, a multiple
/// of the lanes, for c_rows rows. Rows of v of bf16 or f16 are converted once for each row of
/// tiles.
template <class Arch, class A, class T>
void add_combinations(const A* const* coefficients, const T* const* v, index_t depth, index_t count,
                      const combined<A>& c, index_t c_rows, const rows_ahead& ahead = {}) noexcept {
    index_t line_ahead = 0;
    const auto rows = [&](index_t p, auto height) {
        const auto with_width = [&](index_t first, auto width) {
            return add_combinations_tiles<Arch, height, width>(coefficients + p, v, depth, first,
                                                               count, c.from(p), ahead, line_ahead);
        };
        if constexpr (decltype(height)::value == 1) {
            add_single_combination<Arch>(coefficients[p], v, depth, count, c.from(p),
                                         p == 0 ? ahead : rows_ahead{});
        } else {
            index_t first = 0;
            if constexpr (has_32_registers<Arch>)
                first = with_width(first, std::integral_constant<index_t, 4>{});
            first = with_width(first, std::integral_constant<index_t, 2>{});
            with_width(first, std::integral_constant<index_t, 1>{});
            ++line_ahead;
        }
    };
    // With 16 registers, taller tiles load less and take longer to begin and end: for deep sums.
    constexpr index_t deep = 32;
    if (has_32_registers<Arch> || (depth >= deep && c_rows > 8))
        for_tiles<6, 4, 2, 1>(c_rows, rows);
    else
        for_tiles<4, 2, 1>(c_rows, rows);
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

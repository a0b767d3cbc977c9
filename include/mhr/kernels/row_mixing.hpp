#pragma once

#include <algorithm>

#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>
#include <mhr/kernels/simd/tiles.hpp>
#include <mhr/kernels/simd/transpose.hpp>

/// \file
/// The products of LoRA where each row has weights of its own for the modules: no mixed adapter is
/// written, and each module is read once for a block of rows.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Rows and columns whose sums over all modules are kept on the stack.
/// @{
inline constexpr index_t row_mixing_rows = 48;
inline constexpr index_t row_mixing_columns = 128;
/// @}

/// Features of a module that are copied where they are not dense rows of whole vectors.
inline constexpr index_t features_of_module = 128;

/// sums[p] += sum over i in [0, count) of u[p][i] v[i], with rows of v `stride` apart: one vector
/// along the rank for each of P rows.
template <class Arch, index_t P, class A>
void add_along_rank_tile(const A* const* u, const A* v, index_t stride, index_t count,
                         A* sums) noexcept {
    using V = vector<A, Arch>;
    constexpr index_t width = lanes<A, Arch>;
    V sum[as_size(P)];
    const A* left[as_size(P)];
    unroll<P>([&](auto p) {
        sum[p] = V::load_aligned(sums + p * width);
        left[p] = u[p];
    });
    for (index_t i = 0; i < count; ++i) {
        const V b = V::load_unaligned(v + i * stride);
        unroll<P>([&](auto p) { sum[p] = multiply_add(V(left[p][i]), b, sum[p]); });
    }
    unroll<P>([&](auto p) { sum[p].store_aligned(sums + p * width); });
}

/// hidden[row, k] = sum over i of x[row, i] a[i, k] for the rows of the set, with x [rows, n],
/// a [n, rank] and hidden [rows, rank]: `shrink` with the terms of each sum one after the other,
/// for modules as they are stored. It is fastest where rows of `a` are dense whole vectors.
template <class Arch, class A>
void shrink_along_rank(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a,
                       const tensor_view<A, 2>& hidden) noexcept {
    constexpr index_t width = lanes<A, Arch>;
    constexpr index_t height = row_mixing_rows;
    constexpr index_t tile_rows = 12;
    dense_rows<Arch, A, tile_rows> left;
    alignas(64) A copy[as_size(features_of_module * width)];
    alignas(64) A sums[as_size(height * width)];
    for_groups(a.extent(1), width, [&](index_t k0, index_t depth) {
        const bool in_place = is_dense<A>(a) && depth == width;
        for_groups(rows.count, height, [&](index_t r0, index_t group_rows) {
            std::fill_n(sums, group_rows * width, A(0));
            for_groups(x.extent(1), features_of_module, [&](index_t first, index_t count) {
                const A* v = copy;
                if (in_place) {
                    v = static_cast<const A*>(a.address_of(first, k0));
                } else {
                    std::fill_n(copy, count * width, A(0));
                    copy_in<Arch>(a.block(0, first, count).block(1, k0, depth), copy, width);
                }
                const index_t stride = in_place ? a.stride(0) : width;
                for_groups(group_rows, tile_rows, [&](index_t t0, index_t many) {
                    const A* const* u =
                        left.read_unpadded({rows.numbers + r0 + t0, many}, x, first, count);
                    for_tiles<12, 8, 4, 2, 1>(many, [&](index_t p, auto size) {
                        add_along_rank_tile<Arch, size>(u + p, v, stride, count,
                                                        sums + (t0 + p) * width);
                    });
                });
            });
            for (index_t r = 0; r < group_rows; ++r)
                for (index_t k = 0; k < depth; ++k)
                    hidden(rows.numbers[r0 + r], k0 + k) = sums[r * width + k];
        });
    });
}

/// y[row] += factor * sum over modules of weights[row, m] hidden[row, m] matrices[m] for the rows
/// of the set, with hidden [rows, modules, rank], weights [rows, modules], matrices [modules, rank,
/// n] and y [rows, n]. (Where all modules share hidden, its modules have stride 0.) The sum over
/// the modules of a row begins with 0 and takes them in their order, and y is rounded once. A pair
/// of a row and a module of weight 0 is not computed, and a module of no row is not read.
template <class Arch, class A>
void expand_rows(row_set rows, const tensor_view<const A, 3>& hidden,
                 const const_tensor_ref<2>& weights, const const_tensor_ref<3>& matrices,
                 double factor, const tensor_ref<2>& y) noexcept {
    constexpr index_t height = row_mixing_rows;
    constexpr index_t columns = row_mixing_columns;
    constexpr index_t depth_of_tile = 16;
    dense_rows<Arch, A, depth_of_tile> right;
    dense_output_rows<Arch, A, 1> output;
    alignas(64) A sums[as_size(height * columns)];
    A weighted[as_size(height * depth_of_tile)];
    const A* left[as_size(height)];
    for (index_t r = 0; r < height; ++r)
        left[r] = weighted + r * depth_of_tile;

    // The rows of a group that use a module, and their weights.
    index_t places[as_size(height)];
    A weights_of_places[as_size(height)];
    A* to[as_size(height)];

    for_groups(rows.count, height, [&](index_t r0, index_t count_of_rows) {
        const index_t* const numbers = rows.numbers + r0;
        for_groups(y.extent(1), columns, [&](index_t j0, index_t width) {
            std::fill_n(sums, count_of_rows * columns, A(0));
            for (index_t m = 0; m < matrices.extent(0); ++m) {
                index_t used = 0;
                for (index_t r = 0; r < count_of_rows; ++r) {
                    const A weight =
                        read_number<A>(weights.type(), weights.address_of(numbers[r], m));
                    if (is_exactly(weight, 0)) continue;
                    places[used] = r;
                    weights_of_places[used++] = weight;
                }
                if (used == 0) continue;
                const auto matrix = matrices.slice(0, m);
                for_groups(matrix.extent(0), depth_of_tile, [&](index_t k0, index_t depth) {
                    for (index_t i = 0; i < used; ++i) {
                        const auto terms = hidden.slice(0, numbers[places[i]]).slice(0, m);
                        A* const to_weigh = weighted + i * depth_of_tile;
                        if (terms.stride(0) == 1) {
                            const A* const from = terms.data() + k0;
                            for (index_t k = 0; k < depth; ++k)
                                to_weigh[k] = weights_of_places[i] * from[k];
                        } else {
                            for (index_t k = 0; k < depth; ++k)
                                to_weigh[k] = weights_of_places[i] * terms(k0 + k);
                        }
                    }
                    for_chunks<Arch, A>(width, columns, [&](index_t first, index_t count) {
                        for (index_t i = 0; i < used; ++i)
                            to[i] = sums + places[i] * columns + first;
                        const A* const* v = right.read(k0, depth, matrix, j0 + first, count);
                        add_combinations<Arch>(left, v, depth, padded<Arch, A>(count),
                                               combined<A>{to, A(1), true}, used);
                    });
                });
            }
            // It ends as `expand` does: rounded once where the architecture can.
            const tensor_ref<2> target = y.block(1, j0, width);
            for_chunks<Arch, A>(width, columns, [&](index_t first, index_t count) {
                const A one = 1;
                const A* const coefficients[] = {&one};
                for (index_t r = 0; r < count_of_rows; ++r) {
                    const row_set row{numbers + r, 1};
                    A* const* c = output.open(row, target, first, count);
                    const A* const v[] = {sums + r * columns + first};
                    add_combinations<Arch>(coefficients, v, 1, padded<Arch, A>(count),
                                           combined<A>{c, static_cast<A>(factor), true}, 1);
                    output.write(row, target, first, count);
                }
            });
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

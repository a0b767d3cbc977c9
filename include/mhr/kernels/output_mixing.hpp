#pragma once

#include <algorithm>

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/lora_products.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>
#include <mhr/kernels/simd/tiles.hpp>

/// \file
/// The expand of LoRA whose modules' outputs are mixed.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Columns whose sums over all modules are kept on the stack.
inline constexpr index_t mixed_columns = 128;

/// y[row] += factor * sum over modules of weights[m] hidden[row, m] matrices[m] for the rows of the
/// set, with hidden [rows, modules, rank], matrices [modules, rank, n] and y [rows, n]. The sum
/// over all modules is kept on the stack, so that y is rounded once. A module of weight 0 is not
/// read.
template <class Arch, class A>
void expand_modules(row_set rows, const tensor_view<const A, 3>& hidden,
                    const const_tensor_ref<1>& weights, const const_tensor_ref<3>& matrices,
                    double factor, const tensor_ref<2>& y) noexcept {
    constexpr index_t height = 2 * row_group;
    constexpr index_t columns = mixed_columns;
    index_t places[as_size(height)]; // the rows of what is kept on the stack
    for (index_t r = 0; r < height; ++r)
        places[r] = r;
    const index_t rank = matrices.extent(1);
    for_groups(rows.count, height, [&](index_t r0, index_t count_of_rows) {
        const row_set group{rows.numbers + r0, count_of_rows};
        const row_set local{places, count_of_rows};
        for_groups(y.extent(1), columns, [&](index_t j0, index_t width) {
            alignas(64) A sum[as_size(height * columns)] = {};
            const tensor_view<A, 2> sums(sum, {height, width}, {columns, 1});
            for (index_t m = 0; m < matrices.extent(0); ++m) {
                A weight;
                read_run<Arch>(weights.type(), weights.address_of(m), 1, 1, &weight);
                if (is_exactly(weight, 0)) continue;
                for_groups(rank, rank_group, [&](index_t k0, index_t depth) {
                    A weighted[as_size(height * rank_group)];
                    const tensor_view<A, 2> tile(weighted, {height, depth}, {rank_group, 1});
                    for (index_t r = 0; r < group.count; ++r)
                        for (index_t k = 0; k < depth; ++k)
                            tile(r, k) = weight * hidden(group.numbers[r], m, k0 + k);
                    expand<Arch, A>(local, tile,
                                    matrices.slice(0, m).block(0, k0, depth).block(1, j0, width), 1,
                                    sums);
                });
            }
            // It ends as `expand` does: rounded once where the architecture can.
            const tensor_ref<2> target = y.block(1, j0, width);
            dense_output_rows<Arch, A, height> output;
            for_chunks<Arch, A>(width, width, [&](index_t first, index_t count) {
                A* const* c = output.open(group, target, first, count);
                const A one = 1;
                const A* const coefficients[] = {&one};
                for (index_t r = 0; r < group.count; ++r) {
                    const A* const v[] = {sum + r * columns + first};
                    add_combinations<Arch>(coefficients, v, 1, padded<Arch, A>(count),
                                           combined<A>{c + r, static_cast<A>(factor), true}, 1);
                }
                output.write(group, target, first, count);
            });
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/lora_products.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>

/// \file
/// The product of an adapter's matrices added to a base weight.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// Rows of a base weight that are changed together, and columns whose sums are kept on the stack.
inline constexpr index_t merged_rows = 24;
inline constexpr index_t merged_columns = 128;

/// weight[o, i] += factor sum over k of left[o, k] right[k, i], with left [out, rank], right
/// [rank, in] and weight [out, in], which is rounded once. Elements whose sum is 0 keep their bits:
/// -0 + 0 would be +0.
template <class Arch, class A>
void add_product(const const_tensor_ref<2>& left, const const_tensor_ref<2>& right, double factor,
                 const tensor_ref<2>& weight) noexcept {
    index_t places[as_size(merged_rows)]; // the rows of what is kept on the stack
    for (index_t r = 0; r < merged_rows; ++r)
        places[r] = r;
    const index_t rank = left.extent(1);
    for_groups(weight.extent(0), merged_rows, [&](index_t first, index_t count) {
        for_groups(weight.extent(1), merged_columns, [&](index_t j0, index_t width) {
            alignas(64) A sum[as_size(merged_rows * merged_columns)] = {};
            const tensor_view<A, 2> sums(sum, {count, width}, {merged_columns, 1});
            // A group of terms at a time, as `expand` takes them.
            for_groups(rank, rank_group, [&](index_t k0, index_t depth) {
                A terms[as_size(merged_rows * rank_group)];
                const tensor_view<A, 2> hidden(terms, {count, depth}, {rank_group, 1});
                copy_in<Arch>(left.block(0, first, count).block(1, k0, depth), terms, rank_group);
                expand<Arch, A>(row_set{places, count}, hidden,
                                right.block(0, k0, depth).block(1, j0, width), factor, sums);
            });
            for (index_t r = 0; r < count; ++r) {
                A row[as_size(merged_columns)];
                void* const at = weight.address_of(first + r, j0);
                read_run<Arch>(weight.type(), at, weight.stride(1), width, row);
                bool changed = false;
                for (index_t j = 0; j < width; ++j)
                    if (!is_exactly(sums(r, j), 0)) {
                        row[j] += sums(r, j);
                        changed = true;
                    }
                if (changed)
                    write_run<Arch>(static_cast<const A*>(row), width, weight.type(), at,
                                    weight.stride(1));
            }
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/dense_rows.hpp>
#include <mhr/kernels/simd/transpose.hpp>

/// \file
/// Adding finished sums to what a host keeps in a type and a layout of its own.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// matrix[i, j] += sums[i, j]: of the type of sums, and each element of the matrix is rounded once.
template <class Arch, class A>
void add_sums(const tensor_view<const A, 2>& sums, const tensor_ref<2>& matrix) noexcept {
    constexpr index_t rows = 16;
    constexpr index_t columns = 256;
    alignas(64) A buffer[as_size(rows * columns)];
    for_groups(matrix.extent(1), columns, [&](index_t first, index_t width) {
        const auto from = sums.block(1, first, width);
        const auto to = matrix.block(1, first, width);
        for_groups(to.extent(0), rows, [&](index_t k0, index_t height) {
            if (is_dense<A>(to)) {
                for (index_t k = 0; k < height; ++k) {
                    A* const row = static_cast<A*>(to.address_of(k0 + k, 0));
                    for (index_t i = 0; i < width; ++i)
                        row[i] += from(k0 + k, i);
                }
                return;
            }
            copy_in<Arch>(const_tensor_ref<2>(to.block(0, k0, height)), buffer, columns);
            for (index_t k = 0; k < height; ++k)
                for (index_t i = 0; i < width; ++i)
                    buffer[k * columns + i] += from(k0 + k, i);
            copy_out<Arch>(static_cast<const A*>(buffer), columns, to.block(0, k0, height));
        });
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

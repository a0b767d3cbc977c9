#pragma once

#include <algorithm>

#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/conversion.hpp>

/// \file
/// Matrices of any strides and element type, copied to and from dense rows of the type of sums. The
/// case that matters, rows of one being columns of the other, goes through registers.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// As many rows of 16 bytes as there are elements in 16 bytes.
template <class A, class Arch>
inline constexpr index_t piece_lanes = lanes<A, piece_arch<Arch>>;

/// Turns such rows into columns.
template <class Arch, class A>
void transpose_registers(vector<A, piece_arch<Arch>>* rows) noexcept {
    using V = vector<A, piece_arch<Arch>>;
    constexpr index_t n = piece_lanes<A, Arch>;
    // Zipping row i with row i + n/2, log2(n) times, is a perfect shuffle of the n x n elements.
    const auto shuffle = [&] {
        V zipped[as_size(n)];
        unroll<n / 2>([&](auto i) {
            zipped[2 * i] = xsimd::zip_lo(rows[i], rows[i + n / 2]);
            zipped[2 * i + 1] = xsimd::zip_hi(rows[i], rows[i + n / 2]);
        });
        unroll<n>([&](auto i) { rows[i] = zipped[i]; });
    };
    for (index_t stage = 1; stage < n; stage *= 2)
        shuffle();
}

/// to[j * to_stride + i] = from[i * from_stride + j] for i in [0, rows), j in [0, columns).
template <class Arch, class A>
void transpose(const A* from, index_t from_stride, index_t rows, index_t columns, A* to,
               index_t to_stride) noexcept {
    using V = vector<A, piece_arch<Arch>>;
    constexpr index_t n = piece_lanes<A, Arch>;
    const index_t whole_rows = rows / n * n;
    const index_t whole_columns = columns / n * n;
    for (index_t j = 0; j < whole_columns; j += n)
        for (index_t i = 0; i < whole_rows; i += n) {
            V piece[as_size(n)];
            unroll<n>(
                [&](auto k) { piece[k] = V::load_unaligned(from + (i + k) * from_stride + j); });
            transpose_registers<Arch, A>(piece);
            unroll<n>([&](auto k) { piece[k].store_unaligned(to + (j + k) * to_stride + i); });
        }
    for (index_t j = 0; j < columns; ++j)
        for (index_t i = j < whole_columns ? whole_rows : 0; i < rows; ++i)
            to[j * to_stride + i] = from[i * from_stride + j];
}

/// Elements of the buffers in which copies convert what they transpose.
inline constexpr index_t transpose_buffer = 512;

/// to[i * to_stride + j] = from(i, j).
template <class Arch, class A>
void copy_in(const const_tensor_ref<2>& from, A* to, index_t to_stride) noexcept {
    const index_t rows = from.extent(0);
    const index_t columns = from.extent(1);
    if (rows == 0 || columns == 0) return; // perhaps without memory
    if (to_stride == columns && from.is_contiguous()) {
        read_run<Arch>(from.type(), from.data(), 1, rows * columns, to); // not many short ones
    } else if (from.stride(0) != 1 || from.stride(1) == 1 || rows > transpose_buffer) {
        for (index_t i = 0; i < rows; ++i)
            read_run<Arch>(from.type(), from.address_of(i, 0), from.stride(1), columns,
                           to + i * to_stride);
    } else if (from.type() == element_type_of_v<A>) {
        transpose<Arch>(static_cast<const A*>(from.data()), from.stride(1), columns, rows, to,
                        to_stride);
    } else {
        A buffer[as_size(transpose_buffer)];
        const index_t step = transpose_buffer / (std::max)(rows, index_t(1));
        for (index_t first = 0; first < columns; first += step) {
            const index_t count = (std::min)(step, columns - first);
            for (index_t j = 0; j < count; ++j)
                read_run<Arch>(from.type(), from.address_of(0, first + j), 1, rows,
                               buffer + j * rows);
            transpose<Arch>(buffer, rows, count, rows, to + first, to_stride);
        }
    }
}

/// to(i, j) = from[i * from_stride + j], rounded.
template <class Arch, class A>
void copy_out(const A* from, index_t from_stride, const tensor_ref<2>& to) noexcept {
    const index_t rows = to.extent(0);
    const index_t columns = to.extent(1);
    if (rows == 0 || columns == 0) return;
    if (from_stride == columns && to.is_contiguous()) {
        write_run<Arch>(from, rows * columns, to.type(), to.data(), 1);
    } else if (to.stride(0) != 1 || to.stride(1) == 1 || rows > transpose_buffer) {
        for (index_t i = 0; i < rows; ++i)
            write_run<Arch>(from + i * from_stride, columns, to.type(), to.address_of(i, 0),
                            to.stride(1));
    } else if (to.type() == element_type_of_v<A>) {
        transpose<Arch>(from, from_stride, rows, columns, static_cast<A*>(to.data()), to.stride(1));
    } else {
        A buffer[as_size(transpose_buffer)];
        const index_t step = transpose_buffer / (std::max)(rows, index_t(1));
        for (index_t first = 0; first < columns; first += step) {
            const index_t count = (std::min)(step, columns - first);
            transpose<Arch>(from + first, from_stride, rows, count, buffer, rows);
            for (index_t j = 0; j < count; ++j)
                write_run<Arch>(static_cast<const A*>(buffer + j * rows), rows, to.type(),
                                to.address_of(0, first + j), 1);
        }
    }
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

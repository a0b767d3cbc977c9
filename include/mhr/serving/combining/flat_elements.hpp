#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// The elements of a matrix as one sequence, in row-major order whatever its strides: how matrices
/// are streamed where rows play no part. The work is cut into parts of it, whose number does not
/// depend on the host's threads.

namespace mhr {
inline namespace MHR_ISA {
namespace combining_details {

/// Parts of a matrix, and elements that are read at a time.
inline constexpr index_t parts = 64;
inline constexpr index_t chunk = 512;

/// The first element of a part; that of `parts` is the number of elements.
constexpr index_t first_of_part(index_t elements, index_t part) noexcept {
    return elements / parts * part + elements % parts * part / parts;
}

/// Calls `f(run, offset)` for the runs that make up the elements [first, first + count).
template <class Void, class Function>
void for_runs(const basic_tensor_ref<Void, 2>& matrix, index_t first, index_t count, Function&& f) {
    const bool joined = matrix.stride(1) == 1 && matrix.stride(0) == matrix.extent(1);
    const index_t length = joined ? matrix.extent(0) * matrix.extent(1) : matrix.extent(1);
    index_t done = 0;
    for (index_t row = first / length, column = first % length; done < count; ++row, column = 0) {
        const index_t n = (std::min)(length - column, count - done);
        f(basic_tensor_ref<Void, 1>({{n}, {matrix.stride(1)}}, matrix.address_of(row, column),
                                    matrix.type()),
          done);
        done += n;
    }
}

template <class A>
void read_flat(const const_tensor_ref<2>& matrix, index_t first, index_t count, A* to) noexcept {
    for_runs(matrix, first, count, [&](const const_tensor_ref<1>& run, index_t offset) {
        kernels::read_elements(run, to + offset);
    });
}

template <class A>
void write_flat(const A* from, const tensor_ref<2>& matrix, index_t first, index_t count) noexcept {
    for_runs(matrix, first, count, [&](const tensor_ref<1>& run, index_t offset) {
        kernels::write_elements(from + offset, run);
    });
}

/// What magnitude_key gives.
template <class A>
using key_of = std::conditional_t<std::is_same_v<A, float>, std::uint32_t, std::uint64_t>;

/// A number for |value| that is larger where that is: its bits but for the sign. NaN is largest.
/// @{
inline std::uint32_t magnitude_key(float value) noexcept {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7FFFFFFFU;
}
inline std::uint64_t magnitude_key(double value) noexcept {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x7FFFFFFFFFFFFFFFU;
}
/// @}

} // namespace combining_details
} // namespace MHR_ISA
} // namespace mhr

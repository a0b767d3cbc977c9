#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include <mhr/core/element_access.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// Copies of the elements that a file has, from addresses that need not be aligned.

namespace mhr {
inline namespace MHR_ISA {
namespace safetensors_details {

/// to[i] = from[i], bit by bit.
inline void copy_bits(const std::byte* from, const tensor_ref<1>& to) noexcept {
    auto* const first = static_cast<std::byte*>(to.data());
    const auto count = to.extent(0);
    with_element_class(to.type(), [&](auto zero) {
        constexpr std::size_t size = sizeof zero;
        if (count > 0 && to.stride(0) == 1)
            std::memcpy(first, from, static_cast<std::size_t>(count) * size);
        else
            for (index_t i = 0; i < count; ++i)
                std::memcpy(first + i * to.stride(0) * static_cast<index_t>(size),
                            from + static_cast<std::size_t>(i) * size, size);
    });
}

/// to[i] = from[i] by way of numbers of type A, which holds both types.
template <class A>
void convert_run(const const_tensor_ref<1>& from, const tensor_ref<1>& to) noexcept {
    constexpr index_t longest = 256;
    A numbers[static_cast<std::size_t>(longest)];
    for (index_t first = 0; first < to.extent(0); first += longest) {
        const index_t count = (std::min)(longest, to.extent(0) - first);
        kernels::read_elements(from.block(0, first, count), numbers);
        kernels::write_elements(numbers, to.block(0, first, count));
    }
}

/// The run of one row, or of all rows where they lie side by side.
inline void copy_run(const std::byte* from, element_type stored, const tensor_ref<1>& to) noexcept {
    if (stored == to.type()) return copy_bits(from, to);
    const const_tensor_ref<1> run(from, stored, to.extents());
    if (sums_of(stored, to.type()) == element_type::f64)
        convert_run<double>(run, to);
    else
        convert_run<float>(run, to);
}

/// Copies dense elements of a type, in row-major order of the indices of `to`.
template <std::size_t Rank>
void copy_elements(const std::byte* from, element_type stored,
                   const tensor_ref<Rank>& to) noexcept {
    if constexpr (Rank == 1) {
        copy_run(from, stored, to);
    } else if (to.is_contiguous()) {
        copy_run(from, stored, {to.data(), to.type(), {to.size()}});
    } else if (to.size() != 0) {
        const std::size_t bytes =
            static_cast<std::size_t>(to.size() / to.extent(0)) * size_of(stored);
        for (index_t i = 0; i < to.extent(0); ++i)
            copy_elements(from + static_cast<std::size_t>(i) * bytes, stored, to.slice(0, i));
    }
}

/// Copies integers in the same order, and returns the address after the last one that was copied.
template <class Integer, std::size_t Rank>
const std::byte* copy_integers(const std::byte* from,
                               const tensor_view<Integer, Rank>& to) noexcept {
    for (index_t i = 0; i < to.extent(0); ++i)
        if constexpr (Rank == 1) {
            std::memcpy(&to(i), from, sizeof(Integer));
            from += sizeof(Integer);
        } else {
            from = copy_integers(from, to.slice(0, i));
        }
    return from;
}

} // namespace safetensors_details
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/half_vectors.hpp>

/// \file
/// Runs of elements between their own type and the type of sums. The type is looked at once for a
/// run: callers convert whole chunks. Elements are read and written by copies of their bytes or by
/// vector instructions, never through a pointer to another type.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

/// to[i] = from[i * stride] for i in [0, count), exactly. `A` is float or double; elements of f64
/// are only read as double.
template <class Arch, class A>
void read_run(element_type type, const void* from, index_t stride, index_t count, A* to) noexcept;

/// to[i * stride] = from[i], rounded, for i in [0, count).
template <class Arch, class A>
void write_run(const A* from, index_t count, element_type type, void* to, index_t stride) noexcept;

/// The vectors of a 16-bit class.
/// @{
template <class T, class Arch>
struct vectors_of;
template <class Arch>
struct vectors_of<bf16, Arch> : bf16_vectors<Arch> {};
template <class Arch>
struct vectors_of<f16, Arch> : f16_vectors<Arch> {};
/// @}

/// True if elements of T are widened to sums of A where tiles load them, rather than copied before:
/// where that takes an instruction or two, of the type of sums f32.
template <class T, class A, class Arch>
inline constexpr bool widens_in_tiles =
    !MHR_ONLY_F32 && std::is_same_v<A, float> &&
    (std::is_same_v<T, bf16> || (std::is_same_v<T, f16> && has_f16_instructions<Arch>));

/// The vector of the elements that begin at `from`, in the type of sums.
template <class A, class Arch, class T>
vector<A, Arch> load_lanes(const T* from) noexcept {
    if constexpr (std::is_same_v<A, T>) {
        return vector<A, Arch>::load_unaligned(from);
    } else {
        static_assert(std::is_same_v<A, float>, "mhr: only f32 has vectors of narrower types");
        return vectors_of<T, Arch>::load(from);
    }
}

/// Calls `f` with a null pointer of the C++ type of an element type: a choice made known to the
/// compiler. Types that are wider than A are left out.
template <class A, class F>
void with_type(element_type type, F&& f) {
    switch (type) {
    case element_type::f32:
        return f(static_cast<float*>(nullptr));
    case element_type::bf16:
        return f(static_cast<bf16*>(nullptr));
    case element_type::f16:
        return f(static_cast<f16*>(nullptr));
    case element_type::f64:
        if constexpr (std::is_same_v<A, double>) f(static_cast<double*>(nullptr));
        return;
    }
}

/// One element, in the type of sums.
template <class A, class T>
A read_element(const std::byte* from) noexcept {
    T value;
    std::memcpy(&value, from, sizeof value);
    if constexpr (sizeof(T) == 2)
        return static_cast<A>(static_cast<float>(value));
    else
        return static_cast<A>(value);
}

/// Rounds a sum to an element.
template <class T, class A>
void write_element(A value, std::byte* to) noexcept {
    T rounded;
    if constexpr (sizeof(T) == 2)
        rounded = T(static_cast<float>(value));
    else
        rounded = static_cast<T>(value);
    std::memcpy(to, &rounded, sizeof rounded);
}

template <class T, class Arch>
void read_halves(const std::byte* from, index_t count, float* to) noexcept {
    constexpr index_t width = lanes<float, Arch>;
    index_t i = 0;
    for (; i + width <= count; i += width)
        vectors_of<T, Arch>::load(from + 2 * i).store_unaligned(to + i);
    if (i == count) return;
    const auto left = static_cast<std::size_t>(count - i);
    std::uint16_t bits[as_size(width)] = {};
    float values[as_size(width)];
    std::memcpy(bits, from + 2 * i, left * sizeof(T));
    vectors_of<T, Arch>::load(bits).store_unaligned(values);
    std::copy_n(values, left, to + i);
}

template <class T, class Arch>
void write_halves(const float* from, index_t count, std::byte* to) noexcept {
    using V = vector<float, Arch>;
    constexpr index_t width = lanes<float, Arch>;
    index_t i = 0;
    for (; i + width <= count; i += width)
        vectors_of<T, Arch>::store(V::load_unaligned(from + i), to + 2 * i);
    if (i == count) return;
    const auto left = static_cast<std::size_t>(count - i);
    std::uint16_t bits[as_size(width)];
    float values[as_size(width)] = {};
    std::copy_n(from + i, left, values);
    vectors_of<T, Arch>::store(V::load_unaligned(values), bits);
    std::memcpy(to + 2 * i, bits, left * sizeof(T));
}

template <class Arch, class A>
void read_run(element_type type, const void* from, index_t stride, index_t count, A* to) noexcept {
    assert(type != element_type::f64 || (std::is_same_v<A, double>));
    const auto* const bytes = static_cast<const std::byte*>(from);
    with_type<A>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        if constexpr (std::is_same_v<A, T>) {
            // An empty run may be without memory.
            if (stride == 1) {
                if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(A));
                return;
            }
        } else if constexpr (std::is_same_v<A, float> && sizeof(T) == 2) {
            if (stride == 1) return read_halves<T, Arch>(bytes, count, to);
        }
        const index_t step = stride * static_cast<index_t>(sizeof(T));
        for (index_t i = 0; i < count; ++i)
            to[i] = read_element<A, T>(bytes + i * step);
    });
}

template <class Arch, class A>
void write_run(const A* from, index_t count, element_type type, void* to, index_t stride) noexcept {
    assert(type != element_type::f64 || (std::is_same_v<A, double>));
    auto* const bytes = static_cast<std::byte*>(to);
    with_type<A>(type, [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        if constexpr (std::is_same_v<A, T>) {
            if (stride == 1) {
                if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(A));
                return;
            }
        } else if constexpr (std::is_same_v<A, float> && sizeof(T) == 2) {
            if (stride == 1) return write_halves<T, Arch>(from, count, bytes);
        }
        const index_t step = stride * static_cast<index_t>(sizeof(T));
        for (index_t i = 0; i < count; ++i)
            write_element<T>(from[i], bytes + i * step);
    });
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

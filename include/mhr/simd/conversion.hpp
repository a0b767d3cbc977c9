#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/arch.hpp>
#include <mhr/simd/half_vectors.hpp>

/// \file
/// Runs of elements between storage types and the type of sums. The two common 16-bit formats are
/// converted in vectors, whatever the host's class for them is called; every other type converts
/// itself.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// What the bits of a 16-bit class mean.
enum class format { other, bf16, f16 };

/// Told from the bits of 1 (a constant to an optimising compiler).
template <class T>
format format_of() noexcept {
    if constexpr (sizeof(T) == 2) {
        const T one(1.0F);
        std::uint16_t bits;
        std::memcpy(&bits, &one, sizeof bits);
        if (bits == 0x3F80) return format::bf16;
        if (bits == 0x3C00) return format::f16;
    }
    return format::other;
}

template <class Half, class Arch, class T>
void read_halves(const T* from, index_t count, float* to) noexcept {
    constexpr index_t width = lanes<float, Arch>;
    index_t i = 0;
    for (; i + width <= count; i += width)
        Half::load(from + i).store_unaligned(to + i);
    if (i == count) return;
    const auto left = static_cast<std::size_t>(count - i);
    std::uint16_t bits[as_size(width)] = {};
    float values[as_size(width)];
    std::memcpy(bits, from + i, left * sizeof(T));
    Half::load(bits).store_unaligned(values);
    std::copy_n(values, left, to + i);
}

template <class Half, class Arch, class T>
void write_halves(const float* from, index_t count, T* to) noexcept {
    using V = vector<float, Arch>;
    constexpr index_t width = lanes<float, Arch>;
    index_t i = 0;
    for (; i + width <= count; i += width)
        Half::store(V::load_unaligned(from + i), to + i);
    if (i == count) return;
    const auto left = static_cast<std::size_t>(count - i);
    std::uint16_t bits[as_size(width)];
    float values[as_size(width)] = {};
    std::copy_n(from + i, left, values);
    Half::store(V::load_unaligned(values), bits);
    std::memcpy(static_cast<void*>(to + i), bits, left * sizeof(T));
}

/// The vector of the elements that begin at `from`, in the type of sums; `Format` says what
/// elements of another type are.
template <class A, class Arch, format Format = format::other, class T>
vector<A, Arch> load_lanes(const T* from) noexcept {
    static_assert(std::is_same_v<A, T> || Format != format::other);
    if constexpr (Format == format::bf16)
        return bf16_vectors<Arch>::load(from);
    else if constexpr (Format == format::f16)
        return f16_vectors<Arch>::load(from);
    else
        return vector<A, Arch>::load_unaligned(from);
}

/// to[i] = from[i * stride] for i in [0, count).
template <class Arch = default_arch, class A, class T>
void read_run(const T* from, index_t stride, index_t count, A* to) noexcept {
    if (stride == 1) {
        if constexpr (std::is_same_v<A, T>) {
            std::copy_n(from, count, to);
            return;
        } else if constexpr (std::is_same_v<A, float> && sizeof(T) == 2) {
            switch (format_of<T>()) {
            case format::bf16:
                return read_halves<bf16_vectors<Arch>, Arch>(from, count, to);
            case format::f16:
                return read_halves<f16_vectors<Arch>, Arch>(from, count, to);
            case format::other:
                break;
            }
        }
    }
    for (index_t i = 0; i < count; ++i)
        to[i] = load<A>(from[i * stride]);
}

/// to[i * stride] = from[i], rounded, for i in [0, count).
template <class Arch = default_arch, class A, class T>
void write_run(const A* from, index_t count, T* to, index_t stride) noexcept {
    if (stride == 1) {
        if constexpr (std::is_same_v<A, T>) {
            std::copy_n(from, count, to);
            return;
        } else if constexpr (std::is_same_v<A, float> && sizeof(T) == 2) {
            switch (format_of<T>()) {
            case format::bf16:
                return write_halves<bf16_vectors<Arch>, Arch>(from, count, to);
            case format::f16:
                return write_halves<f16_vectors<Arch>, Arch>(from, count, to);
            case format::other:
                break;
            }
        }
    }
    for (index_t i = 0; i < count; ++i)
        to[i * stride] = store<T>(from[i]);
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/simd/one_lane.hpp>

#ifdef XSIMD_NO_SUPPORTED_ARCHITECTURE
// clang-format off
#error "mhr: xsimd finds no vector instructions with these flags. 32-bit x86 needs -msse2, 32-bit \
Arm -mfpu=neon. For processors without any, xsimd 14 and newer emulate them: \
-DXSIMD_WITH_EMULATED=1 '-DXSIMD_DEFAULT_ARCH=xsimd::emulated<128>'"
// clang-format on
#endif

/// \file
/// What the kernels ask of xsimd, and the only place that knows its versions: 8.1 and newer. The
/// architecture is a parameter of every kernel, so that kernels compiled for different ones never
/// share a symbol.

namespace mhr {
inline namespace MHR_ISA {

/// The best architecture that the compiler was told of: what kernels use unless asked otherwise.
using default_arch = xsimd::default_arch;

namespace kernels {

/// A number as the bound of an array, which is unsigned. (A template, since GCC calls a cast
/// useless where the types happen to be the same.)
template <class Number>
constexpr std::size_t as_size(Number number) noexcept {
    return static_cast<std::size_t>(number);
}

/// True if the architecture has vectors of A. (xsimd 8.1 has empty ones where it has none.)
template <class A, class Arch>
constexpr bool has_vectors() noexcept {
    if constexpr (xsimd::types::has_simd_register<A, Arch>::value)
        return sizeof(xsimd::types::simd_register<A, Arch>) >= sizeof(A);
    else
        return false;
}

/// A vector register, or one number where the architecture has no registers of such.
template <class A, class Arch>
using vector = std::conditional_t<has_vectors<A, Arch>(), xsimd::batch<A, Arch>, one_lane<A>>;

/// Elements of a vector.
template <class A, class Arch>
inline constexpr index_t lanes = static_cast<index_t>(vector<A, Arch>::size);

/// True if an architecture is `Base`, or adds instructions to it, and has vectors of so many bytes:
/// those of another length, which some versions derive from it, have other intrinsics.
template <class Base, class Arch, std::size_t Bytes>
inline constexpr bool extends = std::is_base_of_v<Base, Arch> &&
                                (vector<float, Arch>::size * sizeof(float) == Bytes);

template <class Arch>
inline constexpr bool is_sse2 = extends<xsimd::sse2, Arch, 16>;
template <class Arch>
inline constexpr bool is_avx = extends<xsimd::avx, Arch, 32>;
template <class Arch>
inline constexpr bool is_avx2 = extends<xsimd::avx2, Arch, 32>;
template <class Arch>
inline constexpr bool is_avx512 = extends<xsimd::avx512f, Arch, 64>;
template <class Arch>
inline constexpr bool is_neon = extends<xsimd::neon, Arch, 16>;

/// The architecture of vectors of 16 bytes: the pieces of longer ones, in which elements can change
/// places (the zips of longer vectors mean different things in different versions).
template <class Arch>
using piece_arch = std::conditional_t<is_avx<Arch> || is_avx512<Arch>, xsimd::sse2, Arch>;

/// True if there are 32 vector registers, else there are 16. (Other architectures of 64-bit Arm
/// than NEON are its scalable vectors.)
#if defined(XSIMD_WITH_NEON64) && XSIMD_WITH_NEON64
template <class Arch>
inline constexpr bool has_32_registers = true;
#else
template <class Arch>
inline constexpr bool has_32_registers = is_avx512<Arch>;
#endif

/// a b + c, rounded once where the architecture can. (xsimd 8.1 rounds twice for AVX-512, unless
/// the compiler mends it, which could differ from one loop to the next.)
template <class A, class Arch>
xsimd::batch<A, Arch> multiply_add(const xsimd::batch<A, Arch>& a, const xsimd::batch<A, Arch>& b,
                                   const xsimd::batch<A, Arch>& c) noexcept {
#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
    if constexpr (is_avx512<Arch> && std::is_same_v<A, float>)
        return _mm512_fmadd_ps(a, b, c);
    else if constexpr (is_avx512<Arch> && std::is_same_v<A, double>)
        return _mm512_fmadd_pd(a, b, c);
    else
#endif
        return xsimd::fma(a, b, c);
}

enum class cache { l1, l2 };

/// Asks for the cache line at an address, which need not be readable.
template <cache To>
[[gnu::always_inline]] inline void prefetch(std::uintptr_t address) noexcept {
#if defined(__GNUC__) || defined(__clang__)
    // A number, for the address may lie outside of the array.
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    __builtin_prefetch(reinterpret_cast<const void*>(address), 0, To == cache::l1 ? 3 : 2);
#else
    (void)address;
#endif
}

/// Keeps a vector that is used several times in a register: GCC would rather load it again for each
/// use, as an operand from memory.
template <class A, class Arch>
[[gnu::always_inline]] inline void keep_in_register(xsimd::batch<A, Arch>& v) noexcept {
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX512F__)
    if constexpr (is_avx512<Arch>) {
        typename xsimd::batch<A, Arch>::register_type bits = v;
        asm("" : "+v"(bits));
        v = xsimd::batch<A, Arch>(bits);
    }
#endif
    (void)v;
}
template <class A>
void keep_in_register(one_lane<A>&) noexcept {}

template <class F, std::size_t... Index>
[[gnu::always_inline]] inline void unroll(F& body, std::index_sequence<Index...>) {
    (body(std::integral_constant<index_t, static_cast<index_t>(Index)>{}), ...);
}
/// Calls `body(i)` for i in [0, N) with i a constant: arrays indexed by it become registers at
/// every level of optimisation. (Inlined early, or Clang leaves `body` out of line, and with it the
/// arrays in memory.)
template <index_t N, class F>
[[gnu::always_inline]] inline void unroll(F&& body) {
    unroll(body, std::make_index_sequence<static_cast<std::size_t>(N)>{});
}

/// Bytes of a cache line, about: other sizes cost some useless requests.
inline constexpr index_t cache_line = 64;

inline std::uintptr_t address_of(const void* pointer) noexcept {
    return reinterpret_cast<std::uintptr_t>(pointer);
}

/// Asks for all lines of `Bytes` bytes. Inlined early: compilers drop calls of functions that have
/// no effect, and fetching is none to them. (For the same reason no lambda may do it.)
template <cache To, index_t Bytes>
[[gnu::always_inline]] inline void prefetch_lines(std::uintptr_t address) noexcept {
    prefetch<To>(address);
    if constexpr (Bytes > cache_line)
        prefetch_lines<To, Bytes - cache_line>(address + static_cast<std::uintptr_t>(cache_line));
}

} // namespace kernels

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/simd/arch.hpp>

/// \file
/// Vectors of f32 from and to the bits of the two common 16-bit formats: by the instructions of the
/// architecture where it has them (xsimd does not offer these), else by integer arithmetic.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

template <class Arch>
using bits_vector = vector<std::int32_t, Arch>;

#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
/// GCC 12 warns of its own unmasked conversions, which begin with an undefined vector.
inline constexpr __mmask16 all_lanes = 0xFFFF;
#endif

template <class To, class From>
using bitwise_cast_of = decltype(xsimd::bitwise_cast<To>(std::declval<const From&>()));

/// The same bits as a vector of T. Versions of xsimd up to 10 are asked for a vector, later ones
/// for its elements. What comes back tells them apart: both forms are declared for either request.
template <class T, class U, class Arch>
xsimd::batch<T, Arch> vector_bits_as(const xsimd::batch<U, Arch>& v) noexcept {
    using result = xsimd::batch<T, Arch>;
    if constexpr (std::is_same_v<bitwise_cast_of<T, xsimd::batch<U, Arch>>, result>)
        return xsimd::bitwise_cast<T>(v);
    else
        return xsimd::bitwise_cast<result>(v);
}

/// 16-bit numbers, of whatever class, as 32-bit ones.
template <class Arch>
bits_vector<Arch> load_16(const void* from) noexcept {
#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
    if constexpr (is_avx512<Arch>)
        return _mm512_maskz_cvtepu16_epi32(all_lanes,
                                           _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#endif
#if defined(XSIMD_WITH_AVX2) && XSIMD_WITH_AVX2
    if constexpr (is_avx2<Arch>)
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#endif
#if defined(XSIMD_WITH_SSE2) && XSIMD_WITH_SSE2
    if constexpr (is_sse2<Arch>)
        return _mm_unpacklo_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(from)),
                                  _mm_setzero_si128());
#endif
    std::uint16_t numbers[as_size(lanes<float, Arch>)];
    std::memcpy(numbers, from, sizeof numbers);
#if defined(XSIMD_WITH_NEON) && XSIMD_WITH_NEON
    if constexpr (is_neon<Arch>) return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(numbers)));
#endif
    alignas(64) std::int32_t wide[as_size(lanes<float, Arch>)];
    unroll<lanes<float, Arch>>([&](auto i) { wide[i] = numbers[i]; });
    return bits_vector<Arch>::load_aligned(wide);
}

/// The inverse of load_16, for numbers that fit.
template <class Arch>
void store_16(const bits_vector<Arch>& bits, void* to) noexcept {
#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
    if constexpr (is_avx512<Arch>)
        return _mm256_storeu_si256(static_cast<__m256i*>(to),
                                   _mm512_maskz_cvtepi32_epi16(all_lanes, bits));
#endif
#if defined(XSIMD_WITH_AVX2) && XSIMD_WITH_AVX2
    if constexpr (is_avx2<Arch>) {
        // Packs within each half of the vector; the halves' first quarters then go together.
        const __m256i packed = _mm256_packus_epi32(bits, bits);
        return _mm_storeu_si128(
            static_cast<__m128i*>(to),
            _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, _MM_SHUFFLE(2, 0, 2, 0))));
    }
#endif
#if defined(XSIMD_WITH_SSE2) && XSIMD_WITH_SSE2
    if constexpr (is_sse2<Arch>) {
        // The pack of SSE2 saturates signed numbers: so they are made signed.
        const __m128i low = _mm_srai_epi32(_mm_slli_epi32(bits, 16), 16);
        return _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packs_epi32(low, low));
    }
#endif
    std::uint16_t numbers[as_size(lanes<float, Arch>)];
#if defined(XSIMD_WITH_NEON) && XSIMD_WITH_NEON
    if constexpr (is_neon<Arch>) {
        vst1_u16(numbers, vmovn_u32(vreinterpretq_u32_s32(bits)));
        std::memcpy(to, numbers, sizeof numbers);
        return;
    }
#endif
    alignas(64) std::int32_t wide[as_size(lanes<float, Arch>)];
    bits.store_aligned(wide);
    unroll<lanes<float, Arch>>([&](auto i) { numbers[i] = static_cast<std::uint16_t>(wide[i]); });
    std::memcpy(to, numbers, sizeof numbers);
}

template <class Arch>
struct bf16_vectors {
    static vector<float, Arch> load(const void* from) noexcept {
#if defined(XSIMD_WITH_AVX2) && XSIMD_WITH_AVX2
        if constexpr (is_avx2<Arch>) {
            // One shuffle rather than two steps: each half takes its bytes from a copy of all.
            const __m256i twice =
                _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
            const __m256i places =
                _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, //
                                 -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
            return _mm256_castsi256_ps(_mm256_shuffle_epi8(twice, places));
        }
#endif
        return vector_bits_as<float>(load_16<Arch>(from) << 16);
    }

    /// Rounds to the nearest, ties to even; NaN stays NaN.
    static void store(const vector<float, Arch>& values, void* to) noexcept {
        using Int = bits_vector<Arch>;
        const Int bits = vector_bits_as<std::int32_t>(values);
        const Int rounded = bits + Int(0x7FFF) + ((bits >> 16) & Int(1));
        const Int quiet = bits | Int(0x00400000);
        const auto is_nan = (bits & Int(0x7FFFFFFF)) > Int(0x7F800000);
        store_16<Arch>((xsimd::select(is_nan, quiet, rounded) >> 16) & Int(0xFFFF), to);
    }
};

/// True if the architecture has instructions that convert f16.
template <class Arch>
inline constexpr bool has_f16_instructions =
#if defined(__F16C__)
    is_avx<Arch> || is_avx512<Arch>;
#else
    is_avx512<Arch>;
#endif

template <class Arch>
struct f16_vectors {
    static vector<float, Arch> load(const void* from) noexcept {
#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
        if constexpr (is_avx512<Arch>)
            return _mm512_maskz_cvtph_ps(all_lanes,
                                         _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#endif
#if defined(__F16C__)
        if constexpr (is_avx<Arch>)
            return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#endif
        using Int = bits_vector<Arch>;
        const Int bits = load_16<Arch>(from);
        const Int sign = (bits & Int(0x8000)) << 16;
        const Int magnitude = (bits & Int(0x7FFF)) << 13;
        // The exponent's bias grows from 15 to 127; that of infinity and NaN from 31 to 255.
        const Int normal = magnitude + Int((127 - 15) << 23);
        const Int top = magnitude + Int((255 - 31) << 23);
        // A subnormal number is its fraction over 2^24: exact as the difference of two normal ones.
        const Int half_least((127 - 14) << 23);
        const Int subnormal = vector_bits_as<std::int32_t>(
            vector_bits_as<float>(magnitude + half_least) - vector_bits_as<float>(half_least));
        const Int finite = xsimd::select(magnitude < Int(1 << 23), subnormal, normal);
        return vector_bits_as<float>(sign | xsimd::select(magnitude < Int(31 << 23), finite, top));
    }

    /// Rounds to the nearest, ties to even; too large becomes infinite, NaN stays NaN.
    static void store(const vector<float, Arch>& values, void* to) noexcept {
#if defined(XSIMD_WITH_AVX512F) && XSIMD_WITH_AVX512F
        if constexpr (is_avx512<Arch>)
            return _mm256_storeu_si256(
                static_cast<__m256i*>(to),
                _mm512_maskz_cvtps_ph(all_lanes, values,
                                      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
#if defined(__F16C__)
        if constexpr (is_avx<Arch>)
            return _mm_storeu_si128(static_cast<__m128i*>(to),
                                    _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#endif
        using Int = bits_vector<Arch>;
        const Int bits = vector_bits_as<std::int32_t>(values);
        const Int sign = (bits >> 16) & Int(0x8000);
        const Int magnitude = bits & Int(0x7FFFFFFF);
        const Int normal =
            (magnitude - Int((127 - 15) << 23) + Int(0x0FFF) + ((magnitude >> 13) & Int(1))) >> 13;
        // Adding 1/2 aligns the fraction of a subnormal result with the last bits, and rounds it.
        const vector<float, Arch> half(0.5F);
        const Int subnormal =
            vector_bits_as<std::int32_t>(vector_bits_as<float>(magnitude) + half) -
            vector_bits_as<std::int32_t>(half);
        const Int finite = xsimd::select(magnitude < Int((127 - 14) << 23), subnormal, normal);
        const Int large = xsimd::select(magnitude > Int(0x7F800000), Int(0x7E00), Int(0x7C00));
        store_16<Arch>(sign | xsimd::select(magnitude < Int((127 + 16) << 23), finite, large), to);
    }
};

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

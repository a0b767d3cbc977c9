#pragma once

#include <type_traits>

#include <mhr/kernels/simd/arch.hpp>

/// \file
/// The architectures that kernels are tested for.

namespace mhr::test {

/// True if the architecture multiplies and adds with one rounding. Of others it is not known: a
/// compiler that was told of more may still contract the two.
template <class Arch>
inline constexpr bool fuses_multiply_add =
    std::is_base_of_v<xsimd::avx512f, Arch> || std::is_base_of_v<xsimd::fma3<xsimd::avx2>, Arch> ||
    std::is_base_of_v<xsimd::neon64, Arch>;

/// Calls `f(Arch{})` for the architectures that the compiler was told of, as far as they differ in
/// the length of vectors, the number of registers or the multiply-add.
template <class F>
void for_each_architecture(F&& f) {
    using chosen = xsimd::arch_list<xsimd::avx512bw, xsimd::fma3<xsimd::avx2>, xsimd::sse2
#ifdef XSIMD_WITH_AVX512VL
                                    ,
                                    // Shorter vectors with the newer instructions.
                                    xsimd::avx512vl_256, xsimd::avx512vl_128
#endif
                                    >;
    const auto run = [&](auto arch) {
        if constexpr (decltype(arch)::supported()) f(arch);
    };
    chosen::for_each(run);
    if constexpr (!chosen::template contains<default_arch>()) f(default_arch{});
}

/// One that has no vectors, as 32-bit Arm has none of f64.
struct without_vectors {
    static constexpr const char* name() noexcept { return "without vectors"; }
};

/// The same, and with `without_vectors`, where nothing of 16 bits is converted.
template <class F>
void for_each_architecture_and_none(F&& f) {
    for_each_architecture(f);
    f(without_vectors{});
}

} // namespace mhr::test

#pragma once

#include <type_traits>

#include <mhr/simd/arch.hpp>

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
    using chosen = xsimd::arch_list<xsimd::avx512bw, xsimd::fma3<xsimd::avx2>, xsimd::sse2>;
    const auto run = [&](auto arch) {
        if constexpr (decltype(arch)::supported()) f(arch);
    };
    chosen::for_each(run);
    if constexpr (!chosen::template contains<default_arch>()) f(default_arch{});
}

} // namespace mhr::test

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <mhr/core/argument_checks.hpp>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#endif

/// \file
/// The levels of x86-64 that the processor at hand runs, and the choice among functions that were
/// compiled for several of them. This is the half of `mhr_add_dispatched_library`
/// (cmake/mhr_dispatch.cmake) that works at run time. Nothing else of the library chooses at run
/// time.

namespace mhr {
inline namespace MHR_ISA {

namespace level_details {

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

/// Returns one word of the processor's answer to CPUID.
inline std::uint32_t cpuid_word(std::uint32_t leaf, char word) noexcept {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(leaf, 0, &a, &b, &c, &d) == 0) return 0;
    return word == 'b' ? b : c;
}

/// The registers that the operating system saves for each thread (XCR0), or none.
inline std::uint32_t saved_registers() noexcept {
    constexpr std::uint32_t can_ask = 1U << 27; // OSXSAVE
    if ((cpuid_word(1, 'c') & can_ask) == 0) return 0;
    std::uint32_t low = 0, high = 0;
    // Volatile, or else a compiler may ask before it knows that it can.
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/// The number of the highest level, 1 to 4, whose instructions all are there (System V psABI,
/// "Micro-architecture levels"). Asked of the processor itself: `__builtin_cpu_supports` does not
/// know each of them in every compiler.
inline int highest_level() noexcept {
    const auto has = [](std::uint32_t word, std::uint32_t bits) { return (word & bits) == bits; };
    const auto bits = [](auto... number) { return ((1U << number) | ...); };
    const std::uint32_t basic = cpuid_word(1, 'c'), newer = cpuid_word(7, 'b'),
                        extended = cpuid_word(0x80000001U, 'c'), saved = saved_registers();
    // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF
    if (!has(basic, bits(0, 9, 13, 19, 20, 23)) || !has(extended, bits(0))) return 1;
    // FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT; XMM and YMM registers
    if (!has(basic, bits(12, 22, 28, 29)) || !has(newer, bits(3, 5, 8)) ||
        !has(extended, bits(5)) || !has(saved, bits(1, 2)))
        return 2;
    // AVX512F, DQ, CD, BW, VL; mask and ZMM registers
    if (!has(newer, bits(16, 17, 28, 30, 31)) || !has(saved, bits(5, 6, 7))) return 3;
    return 4;
}

#else

inline int highest_level() noexcept {
    return 0;
}

#endif

} // namespace level_details

/// True if this processor and its operating system run what was compiled for a level: `x86-64`,
/// `x86-64-v2`, `x86-64-v3` or `x86-64-v4` (what `-march` calls them), or `default`, which stands
/// for the flags of the program itself.
inline bool runs_level(std::string_view level) noexcept {
    constexpr std::string_view names[] = {"default", "x86-64", "x86-64-v2", "x86-64-v3",
                                          "x86-64-v4"};
    const int highest = level_details::highest_level();
    for (int number = 0; number <= highest; ++number)
        if (level == names[number]) return true;
    return false;
}

/// A function as it was compiled for a level.
template <class F>
struct function_of_level {
    const char* level; ///< what `runs_level` knows
    F* function;       ///< compiled for it
};

/// Returns the function of a level, or nullptr if there is none or it does not run here.
template <class F, std::size_t N>
F* find_level(const function_of_level<F> (&functions)[N], std::string_view level) noexcept {
    for (const auto& [name, function] : functions)
        if (name == level && runs_level(name)) return function;
    return nullptr;
}

/// Returns the last of the functions, which are ordered by level, that runs here; or the function
/// of the level `wanted`, unless that is null or empty. Memory is allocated for an error's message
/// alone: the first call of a kernel chooses.
///
/// These are refused: a level that is not among the functions, or that does not run here; functions
/// none of which runs here. `mhr::compiled` calls this from kernels that must not throw: a wrong
/// MHR_LEVEL ends the program there, at the first call of a kernel, with the message of the error.
/// A host that takes the level from its users asks `runs_level` first.
template <class F, std::size_t N>
F* choose_level(const function_of_level<F> (&functions)[N], const char* wanted) {
    F* chosen = nullptr;
    const bool any = wanted == nullptr || *wanted == '\0';
    for (const auto& [name, function] : functions)
        if (runs_level(name) && (any || wanted == std::string_view(name))) chosen = function;
    argument_checks checks("choose_level");
    checks.expect(
        chosen != nullptr, "level",
        [&] {
            std::string levels;
            for (const auto& level : functions)
                levels += (levels.empty() ? "" : ", ") + std::string(level.level);
            return "one of " + levels + " that this processor runs";
        },
        [&] { return std::string(any ? "a processor that runs none" : wanted); });
    checks.raise();
    return chosen;
}

} // namespace MHR_ISA
} // namespace mhr

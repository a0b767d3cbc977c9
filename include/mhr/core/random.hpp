#pragma once

#include <cstddef>
#include <cstdint>

#include <mhr/core/element_access.hpp>
#include <mhr/core/tensor_ref.hpp>

/// \file
/// Uniform numbers from any standard random engine, the same with every standard library (the
/// engines are specified to the bit; the distributions of `<random>` are not, and are not used).

namespace mhr {
inline namespace MHR_ISA {

/// The next `count` <= 64 random bits of an engine. An engine whose range is no power of two has
/// the draws beyond the largest power of two rejected, so that all bits are fair.
template <class Engine>
std::uint64_t draw_bits(Engine& engine, int count) {
    static_assert((Engine::max)() > (Engine::min)(),
                  "mhr: the engine must have more than one value");
    constexpr auto least = static_cast<std::uint64_t>((Engine::min)());
    constexpr std::uint64_t range = static_cast<std::uint64_t>((Engine::max)()) - least;
    constexpr int bits = [] {
        // floor(log2(range + 1)), where range + 1 may be 2^64.
        int result = 0;
        for (std::uint64_t rest = range; rest > 0; rest >>= 1)
            ++result;
        return range == ~std::uint64_t{0} || ((range + 1) & range) == 0 ? result : result - 1;
    }();
    std::uint64_t drawn = 0;
    for (int missing = count; missing > 0;) {
        std::uint64_t value = static_cast<std::uint64_t>(engine()) - least;
        if (bits < 64 && value >> (bits % 64) != 0) continue;
        const int take = missing < bits ? missing : bits;
        value >>= (bits - take);
        drawn = take == 64 ? value : (drawn << take) | value;
        missing -= take;
    }
    return drawn;
}

/// A uniform number inside (0, 1), never 0 or 1: (k + 1/2) / 2^Bits, which is exact in A for up to
/// 23 bits (float) or 52 (double).
template <class A, int Bits, class Engine>
A draw_uniform(Engine& engine) {
    const std::uint64_t k = draw_bits(engine, Bits);
    return (static_cast<A>(k) + A(0.5)) / static_cast<A>(std::uint64_t{1} << Bits);
}

/// Fills a tensor with uniform numbers in (-bound, bound), drawn in f64 whatever its type, in
/// row-major order of its indices whatever the strides. Nothing is checked.
template <class Engine, std::size_t Rank>
void draw_symmetric(Engine& engine, double bound, const tensor_ref<Rank>& values) {
    for_each_element(values, [&](void* to) {
        write_number(values.type(), to, bound * (2 * draw_uniform<double, 52>(engine) - 1));
    });
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <mhr/core/checks.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Uniform noise from any standard random engine, the same with every standard library (the
/// engines are specified to the bit; the distributions of `<random>` are not, and are not used).

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// The next `count` <= 64 random bits of an engine. An engine whose range is no power of two has
/// the draws beyond the largest power of two rejected, so that all bits are fair.
template <class Engine>
std::uint64_t draw_bits(Engine& engine, int count) {
    static_assert((Engine::max)() > (Engine::min)(),
                  "mhr: the engine must have more than one value");
    constexpr std::uint64_t range =
        static_cast<std::uint64_t>((Engine::max)()) - static_cast<std::uint64_t>((Engine::min)());
    constexpr int bits = [] {
        // floor(log2(range + 1)), where range + 1 may be 2^64.
        int result = 0;
        for (std::uint64_t rest = range; rest > 0; rest >>= 1)
            ++result;
        return range == ~std::uint64_t{0} || ((range + 1) & range) == 0 ? result : result - 1;
    }();
    std::uint64_t drawn = 0;
    for (int missing = count; missing > 0;) {
        std::uint64_t value =
            static_cast<std::uint64_t>(engine()) - static_cast<std::uint64_t>((Engine::min)());
        if (bits < 64 && value >> (bits % 64) != 0) continue;
        const int take = missing < bits ? missing : bits;
        value >>= (bits - take);
        drawn = take == 64 ? value : (drawn << take) | value;
        missing -= take;
    }
    return drawn;
}

/// A uniform number inside (0, 1), never 0 or 1: (k + 1/2) / 2^n, exact in the type. A draw takes
/// n = 52 bits for f64, 23 for f32, and 7 for a 16-bit type (whose significand may be bf16's).
template <class A, int Bits, class Engine>
A draw_uniform(Engine& engine) {
    const std::uint64_t k = draw_bits(engine, Bits);
    return (static_cast<A>(k) + A(0.5)) / static_cast<A>(std::uint64_t{1} << Bits);
}

/// Calls `f` with each element, in row-major order of the indices whatever the strides.
template <class T, std::size_t Rank, class F>
void for_each_element(tensor_view<T, Rank> view, F&& f) {
    for (index_t i = 0; i < view.extent(0); ++i)
        if constexpr (Rank == 1)
            f(view(i));
        else
            for_each_element(view.slice(0, i), f);
}

/// Fills a view with uniform numbers in (-bound, bound).
template <class Engine, class T, std::size_t Rank>
void draw_symmetric(Engine& engine, double bound, tensor_view<T, Rank> values) {
    for_each_element(values, [&](T& value) {
        value = store<T>(bound * (2 * draw_uniform<double, 52>(engine) - 1));
    });
}

} // namespace detail

/// Fills a view with uniform numbers inside (0, 1), in row-major order of its indices whatever the
/// strides. `engine` is any uniform random bit generator, such as std::mt19937_64.
template <class Engine, class U, std::size_t Rank>
void draw_uniforms(Engine& engine, tensor_view<U, Rank> uniforms) {
    std::array<index_t, Rank> any;
    any.fill(any_extent);
    require_output("draw_uniforms", "uniforms", uniforms, any);
    using A = accumulator_t<U>;
    constexpr int bits = sizeof(U) == 2 ? 7 : sizeof(U) == 4 ? 23 : 52;
    detail::for_each_element(
        uniforms, [&](U& value) { value = store<U>(detail::draw_uniform<A, bits>(engine)); });
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <atomic>

#include <mhr/kernels/simd/arch.hpp>

// The peak that kernels are measured by: multiply-adds of f32 that stay in registers.

namespace mhr_bench {

using mhr::index_t;

// Enough sums to hide the latency of two units, and few enough for 16 registers.
inline constexpr index_t peak_sums = 12;

/// Multiply-adds of one round of `multiply_add_at_peak`.
inline constexpr index_t multiply_adds_of_round =
    64 * peak_sums * mhr::kernels::lanes<float, mhr::default_arch>;

/// Rounds of multiply-adds in independent sums.
inline void multiply_add_at_peak(index_t rounds) {
    using vector = mhr::kernels::vector<float, mhr::default_arch>;
    // Read when the program runs, lest the compiler know the results.
    static std::atomic<float> one{1.0F}, zero{0.0F};
    const vector factor(one.load());
    const vector addend(zero.load());
    vector sums[peak_sums];
    // All different, for equal sums a compiler computes but once.
    for (index_t i = 0; i < peak_sums; ++i)
        sums[i] = addend + vector(1.0F / static_cast<float>(i + 1));
    for (index_t i = 0; i < rounds * 64; ++i)
        mhr::kernels::unroll<peak_sums>(
            [&](auto sum) { sums[sum] = mhr::kernels::multiply_add(sums[sum], factor, addend); });
    // The results must seem to be wanted, lest the compiler leave the work out.
    vector total = sums[0];
    for (index_t i = 1; i < peak_sums; ++i)
        total += sums[i];
    float lanes[vector::size];
    total.store_unaligned(lanes);
    volatile float wanted = lanes[0];
    (void)wanted;
}

} // namespace mhr_bench

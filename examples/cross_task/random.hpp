#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <utility>

namespace cross_task {

/// Random numbers that are the same with every standard library: the sequence of
/// `std::mt19937_64` is fixed by the standard, that of the `std::` distributions is not.
class random_engine {
  public:
    explicit random_engine(std::uint64_t seed) : engine_(seed) {}

    /// Sixty-four random bits.
    std::uint64_t bits() { return engine_(); }

    /// The standard asks for this of a uniform random bit generator.
    using result_type = std::uint64_t;
    static constexpr result_type min() { return 0; }
    static constexpr result_type max() { return ~result_type{0}; }
    result_type operator()() { return bits(); }

    /// Uniform in [0, 1), a multiple of 2^-53.
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

    /// Uniform in [low, high).
    double uniform(double low, double high) { return low + (high - low) * uniform(); }

    /// Uniform in 0 .. count - 1.
    std::uint64_t integer(std::uint64_t count) {
        if (count == 0) throw std::invalid_argument("random_engine::integer: count must be > 0");
        // 2^64 mod count values are refused, so that every remainder is equally likely.
        const std::uint64_t refused = (std::uint64_t{0} - count) % count;
        std::uint64_t value = bits();
        while (value < refused)
            value = bits();
        return value % count;
    }

    /// Normal with mean 0 and variance 1 (Box-Muller; the second value of a pair is not kept, so
    /// that the state is the engine's alone).
    double normal() {
        constexpr double two_pi = 6.283185307179586476925286766559;
        const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
        return radius * std::cos(two_pi * uniform());
    }

    /// Puts `items` (a vector or array) in random order (Fisher-Yates).
    template <class Items>
    void shuffle(Items& items) {
        using std::swap;
        for (std::size_t left = items.size(); left > 1; --left) {
            swap(items[left - 1], items[static_cast<typename Items::size_type>(integer(left))]);
        }
    }

  private:
    std::mt19937_64 engine_;
};

/// A seed of its own for each purpose and number, from the seed of the run (splitmix64's
/// finaliser).
inline std::uint64_t derived_seed(std::uint64_t seed, std::uint64_t purpose, std::uint64_t number) {
    std::uint64_t z = seed * 0x9e3779b97f4a7c15U + purpose * 0xbf58476d1ce4e5b9U + number + 1;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
}

} // namespace cross_task

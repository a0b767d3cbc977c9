#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "support/scalar.hpp"
#include <mhr/core/tensor_view.hpp>

#include "support/positions.hpp"

/// \file
/// Random test data, the same with every standard library: std::mt19937_64 is specified to the bit,
/// the distributions of <random> are not.

namespace mhr::test {

class random_source {
  public:
    explicit random_source(std::uint64_t seed) : engine_(seed) {}

    /// Uniform in [low, high).
    double uniform(double low, double high) {
        return low + (high - low) * (static_cast<double>(engine_() >> 11) * 0x1p-53);
    }

    /// Uniform in 0 .. count - 1 (the bias of the remainder does not matter here).
    index_t integer(index_t count) {
        return static_cast<index_t>(engine_() % static_cast<std::uint64_t>(count));
    }

    /// Uniform among all patterns of 32 bits.
    std::uint32_t bits() { return static_cast<std::uint32_t>(engine_() & 0xFFFFFFFFU); }

    /// Fills a view with numbers in (-scale, scale), in order of positions whatever the strides.
    template <class T, std::size_t Rank>
    void fill(const tensor_view<T, Rank>& view, double scale = 1) {
        fill(view, -scale, scale);
    }
    template <class T, std::size_t Rank>
    void fill(const tensor_view<T, Rank>& view, double low, double high) {
        for_each_position(view.extents(), [&](const position<Rank>& at) {
            element(view, at) = store<T>(uniform(low, high));
        });
    }

    /// A random order of 0 .. count - 1 (Fisher-Yates).
    std::vector<index_t> permutation(index_t count) {
        std::vector<index_t> order;
        for (index_t i = 0; i < count; ++i) {
            order.push_back(i);
            std::swap(order.back(), order[static_cast<std::size_t>(integer(i + 1))]);
        }
        return order;
    }

  private:
    std::mt19937_64 engine_;
};

} // namespace mhr::test

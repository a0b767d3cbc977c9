#pragma once

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstddef>

#include <doctest/doctest.h>

#include "support/scalar.hpp"
#include <mhr/core/tensor_view.hpp>

#include "support/positions.hpp"
#include "support/precision.hpp"

/// \file
/// Whether first values are drawn from the distribution that they should be.

namespace mhr::test {

struct statistics {
    double mean = 0, variance = 0, largest = 0;
};

template <class T, std::size_t Rank>
statistics statistics_of(const tensor_view<T, Rank>& view) {
    statistics s;
    const auto count = static_cast<double>(view.size());
    for_each_position(view.extents(), [&](const position<Rank>& at) {
        const double value = load<double>(element(view, at));
        s.mean += value / count;
        s.variance += value * value / count;
        s.largest = std::max(s.largest, std::abs(value));
    });
    return s;
}

/// Uniform in +-bound: five standard deviations of each estimate (the seeds are fixed). `epsilon`
/// is that of the type that the numbers were rounded to.
template <class T, std::size_t Rank>
void check_uniform(const tensor_view<T, Rank>& view, double bound,
                   double epsilon = epsilon_of<T>()) {
    using ::raise; // what doctest calls a debugger with on ARM: mhr::raise is not meant
    const statistics s = statistics_of(view);
    const auto count = static_cast<double>(view.size());
    const double variance = bound * bound / 3;
    CHECK(s.largest <= bound * (1 + epsilon)); // rounded to the storage type
    CHECK(s.largest > bound * (1 - 10 / count - epsilon));
    CHECK(std::abs(s.mean) < 5 * std::sqrt(variance / count));
    CHECK(std::abs(s.variance - variance) < (5 * std::sqrt(4.0 / 5 / count) + epsilon) * variance);
}

} // namespace mhr::test

#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "support/scalar.hpp"
#include <mhr/core/element_type.hpp>

/// \file
/// This tells the precision of a scalar type.

namespace mhr::test {

/// The spacing of numbers just above 1: 2^-52 (f64), 2^-23 (f32), 2^-7 (bf16), 2^-10 (f16). Not
/// from numeric_limits::epsilon, which Eigen 3.4 has wrong for f16.
template <class T>
double epsilon_of() {
    using V = std::remove_const_t<T>;
    if constexpr (std::is_same_v<V, bf16>) return 0x1p-7;
    if constexpr (std::is_same_v<V, f16>) return 0x1p-10;
    return std::ldexp(1.0, 1 - std::numeric_limits<V>::digits);
}

/// The spacing of numbers next to 0.
template <class T>
double smallest_step_of() {
    using V = std::remove_const_t<T>;
    if constexpr (std::is_same_v<V, bf16>)
        return 0x1p-133;
    else if constexpr (std::is_same_v<V, f16>)
        return 0x1p-24;
    else
        return static_cast<double>(std::numeric_limits<V>::denorm_min());
}

/// The oracle's type for storage types: one precision above the accumulator of a kernel on them.
template <class... T>
using oracle_t =
    std::conditional_t<std::is_same_v<accumulator_t<T...>, float>, double, long double>;

} // namespace mhr::test

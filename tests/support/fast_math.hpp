#pragma once

#include <doctest/doctest.h>

/// \file
/// What is not promised of a program that is compiled with -ffast-math (README, Numerics), in one
/// place: tests ask here rather than the compiler.

namespace mhr::test {

#ifdef __FAST_MATH__
inline constexpr bool is_fast_math = true;
#else
inline constexpr bool is_fast_math = false;
#endif

/// For the cases that need what -ffast-math gives up, as in TEST_CASE("name" * needs_non_finite()):
/// they are skipped then.
/// @{
/// NaN and infinities, as inputs or results.
inline doctest::skip needs_non_finite() {
    return doctest::skip(is_fast_math);
}
/// Numbers below the normal ones, and the sign of 0.
inline doctest::skip needs_subnormals() {
    return doctest::skip(is_fast_math);
}
/// The same bits from different calls: of other sizes, layouts, or functions.
inline doctest::skip needs_same_bits() {
    return doctest::skip(is_fast_math);
}
/// @}

} // namespace mhr::test

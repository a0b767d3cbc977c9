#pragma once

#include <limits>
#include <vector>

#include <doctest/doctest.h>

/// \file
/// This tells what is not promised of a program that is compiled with -ffast-math
/// (core/element_type.hpp), in one place: tests ask here rather than the compiler.

namespace mhr::test {

#ifdef __FAST_MATH__
inline constexpr bool is_fast_math = true;
#else
inline constexpr bool is_fast_math = false;
#endif

/// For cases that need what -ffast-math gives up, as in TEST_CASE("name" * needs_non_finite()):
/// they are skipped then.
/// @{
/// NaN and infinities, as inputs or results.
inline doctest::skip needs_non_finite() {
    return doctest::skip(is_fast_math);
}
/// These tests want the same bits of one number computed twice, and results that are exact.
inline doctest::skip needs_same_bits() {
    return doctest::skip(is_fast_math);
}
/// Numbers below the normal ones.
inline doctest::skip needs_subnormals() {
    return doctest::skip(is_fast_math);
}
/// @}

/// A list of numbers and infinity, where there is one.
template <class A>
std::vector<A> and_infinity(std::vector<A> numbers) {
    if (!is_fast_math) numbers.push_back(std::numeric_limits<A>::infinity());
    return numbers;
}

/// A list of numbers and all that are not finite, where there are such.
template <class A>
std::vector<A> and_non_finite(std::vector<A> numbers) {
    if (!is_fast_math)
        for (A number : {std::numeric_limits<A>::infinity(), -std::numeric_limits<A>::infinity(),
                         std::numeric_limits<A>::quiet_NaN()})
            numbers.push_back(number);
    return numbers;
}

} // namespace mhr::test

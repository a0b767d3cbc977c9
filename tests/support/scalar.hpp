#pragma once

#include <type_traits>

/// \file
/// Scalar types of plain memory, as tests have it: what a number is summed in, and how it is read
/// and rounded.

namespace mhr::test {

/// The type in which values of type `T` are multiplied and summed: `float` for every 16-bit class,
/// and `T` itself otherwise.
template <class T, class = void>
struct accumulator {
    using type = T;
};
template <class T>
struct accumulator<T, std::enable_if_t<sizeof(T) == 2>> {
    static_assert(!std::is_integral_v<T>, "integers are not an element type");
    using type = float;
};

/// The widest of theirs, so that one f64 makes the sums f64.
template <class... T>
using accumulator_t = std::common_type_t<typename accumulator<std::remove_const_t<T>>::type...>;

/// Reads a stored value as `A`. Goes through the value's own accumulator, so that 16-bit types need
/// no more than a conversion to float.
template <class A, class T>
constexpr A load(const T& value) noexcept {
    return static_cast<A>(static_cast<accumulator_t<T>>(value));
}

/// Rounds a sum to the type `T`.
template <class T, class A>
constexpr T store(const A& value) noexcept {
    return static_cast<T>(static_cast<accumulator_t<T>>(value));
}

} // namespace mhr::test

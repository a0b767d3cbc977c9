#pragma once

#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// Scalar types: what a view may store, and in what precision it is summed.

namespace mhr {
inline namespace MHR_ISA {

/// The type in which values stored as `T` are multiplied and summed: `float` for every 16-bit type
/// (bf16, f16: the host's own class, such as Eigen::bfloat16, c10::Half or _Float16, that converts
/// to and from float), and `T` itself otherwise. Specialise it for an unusual storage type.
template <class T, class = void>
struct accumulator {
    using type = T; ///< of sums
};

/// Of 16-bit types.
template <class T>
struct accumulator<T, std::enable_if_t<sizeof(T) == 2>> {
    static_assert(!std::is_integral_v<T>, "mhr: integers are not a storage type");
    using type = float; ///< of sums
};

/// The accumulator of one or several storage types: the widest of theirs, so that one f64 argument
/// makes the sums f64.
template <class... T>
using accumulator_t = std::common_type_t<typename accumulator<std::remove_const_t<T>>::type...>;

/// Reads a stored value as `A`. Goes through the value's own accumulator, so that 16-bit types need
/// no more than a conversion to float.
template <class A, class T>
constexpr A load(const T& value) noexcept {
    return static_cast<A>(static_cast<accumulator_t<T>>(value));
}

/// Rounds a sum to the storage type `T`.
template <class T, class A>
constexpr T store(const A& value) noexcept {
    return static_cast<T>(static_cast<accumulator_t<T>>(value));
}

} // namespace MHR_ISA
} // namespace mhr

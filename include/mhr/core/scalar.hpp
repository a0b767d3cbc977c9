#pragma once

#include <functional>
#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// Scalar types: what a view may store, and in what precision it is summed.
///
/// Numbers that are not finite stay with what they belong to:
///   - in a row of x, y or d_y: with the results of that row, the gradients of its task's weights,
///     and those of the modules that its task uses;
///   - in a module: with the tasks that use it. A task whose weight of it is 0 does not read it,
///     but for the gradient of that weight, which then is not finite, and from which the router's
///     backward keeps the other logits;
///   - in a weight, or in a logit: with its task, and, of weights and their gradients, its head.
/// Rows of no task may hold anything, and so may memory for states, workspaces and results that are
/// overwritten.
///
/// Under -ffast-math all this is void (numbers have to be finite, and checks do not see those that
/// are not), as are bits that are the same for other sizes, layouts or functions, the sign of 0,
/// and numbers below the normal ones; any number of threads still gives the same bits.

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

namespace detail {

/// number == value, where it is meant exactly: compilers warn hosts of == between fractions, but
/// not in headers of the system.
template <class A>
constexpr bool is_exactly(const A& number, const std::common_type_t<A>& value) noexcept {
    return std::equal_to<A>{}(number, value);
}

} // namespace detail

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <functional>
#include <type_traits>

#include <mhr/config.hpp>
#include <mhr/core/element_type.hpp>

/// \file
/// The type of sums, which entry points know as data, as a type of the compiler; and comparisons of
/// sums that are meant exactly.

namespace mhr {
inline namespace MHR_ISA {

/// Calls `f` with a zero of the type of sums: of double for f64, else of float.
template <class Function>
void with_sums(element_type sums, Function&& f) {
#if !MHR_ONLY_F32
    if (sums == element_type::f64) return f(double(0));
#else
    (void)sums;
#endif
    f(float(0));
}

/// number == value, where it is meant exactly: compilers warn hosts of == between fractions, but
/// not in headers of the system.
template <class A>
constexpr bool is_exactly(const A& number, const std::common_type_t<A>& value) noexcept {
    return std::equal_to<A>{}(number, value);
}

} // namespace MHR_ISA
} // namespace mhr

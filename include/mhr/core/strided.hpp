#pragma once

#include <type_traits>

#include <mhr/core/tensor_view.hpp>

/// \file
/// One source for dense and for strided memory: inner loops are instantiated for both, and the
/// compiler vectorises the dense one.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

/// A strided run of elements; with `Dense`, of stride 1.
template <class T, bool Dense>
struct strided {
    T* data;
    index_t stride;
    T& operator[](index_t i) const noexcept { return data[Dense ? i : i * stride]; }
};

/// Calls `f` with `std::true_type` or `std::false_type`: a condition made known to the compiler.
template <class F>
void specialise(bool condition, F&& f) {
    if (condition)
        f(std::true_type{});
    else
        f(std::false_type{});
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <complex>
#include <cstddef>

#include <mhr/core/tensor_view.hpp>

#include "support/positions.hpp"
#include "support/tensor.hpp"

/// \file
/// Numerical derivatives of a function without arguments that reads the memory of `variable` and
/// returns one number. To check a backward, let it return sum(output * cotangent) with a *random*
/// cotangent: an all-ones one makes the true gradient of a normaliser vanish.

namespace mhr::test {

/// Small enough that the error, of the order of its square, is far below one rounding.
inline constexpr double complex_step = 1e-30;

/// Im f(v + i h) / h: exact to rounding, since nothing is subtracted. `f` returns
/// std::complex<double>, and must be analytic (no abs, no comparison of imaginary parts).
template <class F, std::size_t Rank>
tensor<double, Rank>
complex_step_gradient(F&& f, const tensor_view<std::complex<double>, Rank>& variable) {
    tensor<double, Rank> gradient(variable.extents());
    for_each_position(variable.extents(), [&](const position<Rank>& at) {
        std::complex<double>& v = element(variable, at);
        const std::complex<double> before = v;
        v += std::complex<double>(0, complex_step);
        element(gradient.view(), at) = f().imag() / complex_step;
        v = before;
    });
    return gradient;
}

/// The four-point stencil (8 (f(+h) - f(-h)) - (f(+2h) - f(-2h))) / 12h in f64, for kernels: with
/// values of about 1, the default step gives about 10 digits. `f` returns double.
template <class F, std::size_t Rank>
tensor<double, Rank> central_difference_gradient(F&& f, const tensor_view<double, Rank>& variable,
                                                 double step = 0x1p-10) {
    tensor<double, Rank> gradient(variable.extents());
    for_each_position(variable.extents(), [&](const position<Rank>& at) {
        double& v = element(variable, at);
        const double before = v;
        const auto difference = [&](double distance) {
            v = before + distance;
            const double above = f();
            v = before - distance;
            return above - f();
        };
        element(gradient.view(), at) = (8 * difference(step) - difference(2 * step)) / (12 * step);
        v = before;
    });
    return gradient;
}

/// sum(values * cotangent): the scalar function of an output.
template <class S, class T, class C, std::size_t Rank>
S contract(const tensor_view<T, Rank>& values, const tensor_view<C, Rank>& cotangent) {
    S sum = S(0);
    for_each_position(values.extents(), [&](const position<Rank>& at) {
        sum += static_cast<S>(element(values, at)) * static_cast<S>(element(cotangent, at));
    });
    return sum;
}

} // namespace mhr::test

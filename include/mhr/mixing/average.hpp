#pragma once

#include <mhr/mixing/mix.hpp>

/// \file
/// The average of an inventory (MHR-mu): mixing with the weight 1 / m for every module, so that it
/// equals uniform routing to the last bit.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Uniform weights as a view: one number, repeated by strides of 0.
template <class A>
tensor_view<const A, 3> uniform_weights(const A& weight, index_t heads, index_t modules) noexcept {
    return {&weight, {1, heads, modules}, {0, 0, 0}};
}

template <class A>
A uniform_weight(index_t modules) noexcept {
    return modules == 0 ? A(0) : A(1) / static_cast<A>(modules);
}

} // namespace detail

/// average[h, p, q] = 1 / m sum over modules of modules[h, m, p, q] (MHR-mu: Caccia et al. 2023,
/// arXiv 2211.03831, section 3).
///
/// modules [heads, modules, p, q]; average [heads, p, q], overwritten.
///
/// One phase. Errors: a shape; overlapping elements of average. Cost: h m p q multiply-adds.
template <class M, class Y>
void average_forward(executor_ref executor, tensor_view<M, 4> modules, tensor_view<Y, 3> average) {
    constexpr const char* function = "average_forward";
    require_input(function, "modules", modules, {any_extent, any_extent, any_extent, any_extent});
    require_output(function, "average", average,
                   {modules.extent(0), modules.extent(2), modules.extent(3)});
    const auto weight = detail::uniform_weight<accumulator_t<M, Y>>(modules.extent(1));
    mix_forward(executor, detail::uniform_weights(weight, modules.extent(0), modules.extent(1)),
                modules, average.prepend_axis());
}

/// The backward of average_forward: d_modules[h, m, p, q] += d_average[h, p, q] / m.
///
/// d_average [heads, p, q]; d_modules [heads, modules, p, q] accumulates.
///
/// One phase. Errors: a shape; overlapping elements of d_modules. Cost: h m p q multiply-adds.
template <class D, class DM>
void average_backward(executor_ref executor, tensor_view<D, 3> d_average,
                      tensor_view<DM, 4> d_modules) {
    constexpr const char* function = "average_backward";
    require_output(function, "d_modules", d_modules,
                   {any_extent, any_extent, any_extent, any_extent});
    require_input(function, "d_average", d_average,
                  {d_modules.extent(0), d_modules.extent(2), d_modules.extent(3)});
    using A = accumulator_t<D, DM>;
    const auto weight = detail::uniform_weight<A>(d_modules.extent(1));
    mix_backward(executor,
                 detail::uniform_weights(weight, d_modules.extent(0), d_modules.extent(1)),
                 as_const(d_modules), d_average.prepend_axis(), d_modules, tensor_view<A, 3>{});
}

} // namespace MHR_ISA
} // namespace mhr

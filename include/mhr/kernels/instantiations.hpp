#pragma once

#include <mhr/core/sums.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/kernels/lora_products.hpp>
#include <mhr/kernels/merging.hpp>
#include <mhr/kernels/mixing.hpp>
#include <mhr/kernels/rescaling.hpp>
#include <mhr/kernels/row_mixing.hpp>
#include <mhr/kernels/simd/arch.hpp>
#include <mhr/kernels/simd/conversion.hpp>
#include <mhr/kernels/sums.hpp>

/// \file
/// The functions of kernels.hpp, for the best architecture that the compiler was told of: the one
/// place where the type of sums, which is data above, becomes a template parameter.

namespace mhr {
inline namespace MHR_ISA {
namespace kernels {

inline const char* architecture() noexcept {
    return default_arch::name();
}

inline void shrink(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a,
                   double factor, const tensor_ref<2>& hidden) noexcept {
    with_sums(hidden.type(), [&](auto zero) {
        using A = decltype(zero);
        shrink<default_arch, A>(rows, x, a, factor, hidden.as<A>());
    });
}

inline void expand(row_set rows, const const_tensor_ref<2>& hidden, const const_tensor_ref<2>& b,
                   double factor, const tensor_ref<2>& y) noexcept {
    with_sums(hidden.type(), [&](auto zero) {
        using A = decltype(zero);
        expand<default_arch, A>(rows, hidden.as<A>(), b, factor, y);
    });
}

inline void add_outer_products(row_set rows, const const_tensor_ref<2>& x,
                               const const_tensor_ref<2>& hidden, double factor,
                               const tensor_ref<2>& sums, bool accumulate,
                               const const_tensor_ref<2>& ahead) noexcept {
    with_sums(sums.type(), [&](auto zero) {
        using A = decltype(zero);
        add_outer_products<default_arch, A>(rows, x, hidden.as<A>(), factor, sums.as<A>(),
                                            accumulate, ahead);
    });
}

inline void add_sums(const const_tensor_ref<2>& sums, const tensor_ref<2>& matrix) noexcept {
    with_sums(sums.type(), [&](auto zero) {
        using A = decltype(zero);
        add_sums<default_arch, A>(sums.as<A>(), matrix);
    });
}

inline void mix(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
                const tensor_ref<3>& mixed, element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        mix_matrices<default_arch, decltype(zero)>(weights, modules, mixed);
    });
}

inline void mix_backward(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
                         const const_tensor_ref<3>& d_mixed, const tensor_ref<3>& d_modules,
                         const tensor_ref<2>& d_weights, element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        mix_matrices_backward<default_arch, decltype(zero)>(weights, modules, d_mixed, d_modules,
                                                            d_weights);
    });
}

inline void shrink_along_rank(row_set rows, const const_tensor_ref<2>& x,
                              const const_tensor_ref<2>& a, const tensor_ref<2>& hidden) noexcept {
    with_sums(hidden.type(), [&](auto zero) {
        using A = decltype(zero);
        shrink_along_rank<default_arch, A>(rows, x, a, hidden.as<A>());
    });
}

inline void expand_rows(row_set rows, const const_tensor_ref<3>& hidden,
                        const const_tensor_ref<2>& weights, const const_tensor_ref<3>& matrices,
                        double factor, const tensor_ref<2>& y) noexcept {
    with_sums(hidden.type(), [&](auto zero) {
        using A = decltype(zero);
        expand_rows<default_arch, A>(rows, hidden.as<A>(), weights, matrices, factor, y);
    });
}

inline void rescale_rows(row_set rows, const const_tensor_ref<2>& from,
                         const const_tensor_ref<1>& scales, const tensor_ref<2>& to,
                         bool accumulate, element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        rescale_rows<default_arch, decltype(zero)>(rows, from, scales, to, accumulate);
    });
}

inline void add_products_of_rows(row_set rows, const const_tensor_ref<2>& x,
                                 const const_tensor_ref<2>& d_y, const tensor_ref<1>& totals,
                                 element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        add_products_of_rows<default_arch, decltype(zero)>(rows, x, d_y, totals);
    });
}

inline void add_product(const const_tensor_ref<2>& left, const const_tensor_ref<2>& right,
                        double factor, const tensor_ref<2>& weight, element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        add_product<default_arch, decltype(zero)>(left, right, factor, weight);
    });
}

inline void rescale_run(const tensor_ref<1>& elements, double factor, bool divide,
                        element_type sums) noexcept {
    with_sums(sums, [&](auto zero) {
        rescale_run<default_arch, decltype(zero)>(elements, factor, divide);
    });
}

inline void read_elements(const const_tensor_ref<1>& elements, float* to) noexcept {
    read_run<default_arch>(elements.type(), elements.data(), elements.stride(0), elements.extent(0),
                           to);
}
inline void read_elements(const const_tensor_ref<1>& elements, double* to) noexcept {
    read_run<default_arch>(elements.type(), elements.data(), elements.stride(0), elements.extent(0),
                           to);
}

inline void write_elements(const float* from, const tensor_ref<1>& elements) noexcept {
    write_run<default_arch>(from, elements.extent(0), elements.type(), elements.data(),
                            elements.stride(0));
}
inline void write_elements(const double* from, const tensor_ref<1>& elements) noexcept {
    write_run<default_arch>(from, elements.extent(0), elements.type(), elements.data(),
                            elements.stride(0));
}

} // namespace kernels
} // namespace MHR_ISA
} // namespace mhr

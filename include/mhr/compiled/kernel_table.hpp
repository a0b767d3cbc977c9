#pragma once

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/row_set.hpp>

/// \file
/// The kernels of one instruction set, as the library mhr::compiled chooses them when a program
/// starts. Only the sources beside this file include it.

namespace mhr {

/// The functions of kernels/kernels.hpp, which says what each does.
struct kernel_table {
    /// @{
    const char* (*architecture)() noexcept;
    void (*shrink)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<2>&, double,
                   const tensor_ref<2>&) noexcept;
    void (*expand)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<2>&, double,
                   const tensor_ref<2>&) noexcept;
    void (*add_outer_products)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<2>&,
                               double, const tensor_ref<2>&, bool,
                               const const_tensor_ref<2>&) noexcept;
    void (*add_sums)(const const_tensor_ref<2>&, const tensor_ref<2>&) noexcept;
    void (*mix)(const const_tensor_ref<2>&, const const_tensor_ref<3>&, const tensor_ref<3>&,
                element_type) noexcept;
    void (*mix_backward)(const const_tensor_ref<2>&, const const_tensor_ref<3>&,
                         const const_tensor_ref<3>&, const tensor_ref<3>&, const tensor_ref<2>&,
                         element_type) noexcept;
    void (*shrink_along_rank)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<2>&,
                              const tensor_ref<2>&) noexcept;
    void (*expand_rows)(row_set, const const_tensor_ref<3>&, const const_tensor_ref<2>&,
                        const const_tensor_ref<3>&, double, const tensor_ref<2>&) noexcept;
    void (*rescale_rows)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<1>&,
                         const tensor_ref<2>&, bool, element_type) noexcept;
    void (*add_products_of_rows)(row_set, const const_tensor_ref<2>&, const const_tensor_ref<2>&,
                                 const tensor_ref<1>&, element_type) noexcept;
    void (*add_product)(const const_tensor_ref<2>&, const const_tensor_ref<2>&, double,
                        const tensor_ref<2>&, element_type) noexcept;
    void (*rescale_run)(const tensor_ref<1>&, double, bool, element_type) noexcept;
    void (*read_f32)(const const_tensor_ref<1>&, float*) noexcept;
    void (*read_f64)(const const_tensor_ref<1>&, double*) noexcept;
    void (*write_f32)(const float*, const tensor_ref<1>&) noexcept;
    void (*write_f64)(const double*, const tensor_ref<1>&) noexcept;
    /// @}
};

} // namespace mhr

/// The kernels of the best instruction set that the processor has. Compiled once for each of them
/// under another name; `mhr_add_dispatched_library` makes the function of this name, which chooses.
const mhr::kernel_table& mhr_kernel_table();

#pragma once

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/kernels/row_set.hpp>

/// \file
/// What the folders above call of the kernels. Element types are data here; the type of sums is
/// that of `hidden` or `sums`, or is given as `sums`: f32 or f64. Nothing is checked: shapes fit,
/// and no argument is of f64 where sums are f32.
///
/// Header-only, these functions instantiate the kernels for the flags of the compiler. With
/// mhr::compiled (MHR_COMPILED of config.hpp) they are declared alone, and the library has them for
/// several instruction sets.

namespace mhr {
#if !MHR_COMPILED
inline namespace MHR_ISA {
#endif
namespace kernels {

/// The name that xsimd has for the instruction set of the kernels, such as `avx512bw`.
const char* architecture() noexcept;

/// hidden[row, k] = factor * sum over i of x[row, i] a[i, k] for the rows of the set, with
/// x [rows, n], a [n, rank] and hidden [rows, rank]. It is fastest where columns of `a` are dense.
void shrink(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a, double factor,
            const tensor_ref<2>& hidden) noexcept;

/// y[row, j] += factor * sum over k of hidden[row, k] b[k, j] for the rows of the set, with
/// hidden [rows, rank], b [rank, n] and y [rows, n]. It is fastest where rows of `b` are dense.
void expand(row_set rows, const const_tensor_ref<2>& hidden, const const_tensor_ref<2>& b,
            double factor, const tensor_ref<2>& y) noexcept;

/// sums[k, i] += factor * sum over the rows of the set of hidden[row, k] x[row, i], or = that
/// unless `accumulate`; `ahead` [rows, any], which may be absent, is what the same rows are needed
/// of next.
void add_outer_products(row_set rows, const const_tensor_ref<2>& x,
                        const const_tensor_ref<2>& hidden, double factor, const tensor_ref<2>& sums,
                        bool accumulate, const const_tensor_ref<2>& ahead) noexcept;

/// matrix[i, j] += sums[i, j].
void add_sums(const const_tensor_ref<2>& sums, const tensor_ref<2>& matrix) noexcept;

/// mixed[n, p, q] = sum over modules of weights[n, m] modules[m, p, q]. A module of weight 0 is not
/// read for that entry.
void mix(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
         const tensor_ref<3>& mixed, element_type sums) noexcept;

/// The backward of `mix`: d_modules[m, p, q] += sum over n of weights[n, m] d_mixed[n, p, q], and
/// d_weights[n, m] += sum over p, q of d_mixed[n, p, q] modules[m, p, q]. Either may be absent.
void mix_backward(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
                  const const_tensor_ref<3>& d_mixed, const tensor_ref<3>& d_modules,
                  const tensor_ref<2>& d_weights, element_type sums) noexcept;

/// `shrink` of factor 1 whose sums take their terms one after the other, lanes along the rank: the
/// same function rounded otherwise. It is fastest where rows of `a` are dense, as modules are.
void shrink_along_rank(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a,
                       const tensor_ref<2>& hidden) noexcept;

/// y[row] += factor * sum over modules of weights[row, m] hidden[row, m] matrices[m] for the rows
/// of the set, with hidden [rows, modules, rank], weights [rows, modules], matrices [modules, rank,
/// n] and y [rows, n]. A pair of a row and a module of weight 0 is not computed.
void expand_rows(row_set rows, const const_tensor_ref<3>& hidden,
                 const const_tensor_ref<2>& weights, const const_tensor_ref<3>& matrices,
                 double factor, const tensor_ref<2>& y) noexcept;

/// to[row, i] = from[row, i] scales[i] for the rows of the set, or with `accumulate` += that;
/// absent scales are 1. `to` may be `from`.
void rescale_rows(row_set rows, const const_tensor_ref<2>& from, const const_tensor_ref<1>& scales,
                  const tensor_ref<2>& to, bool accumulate, element_type sums) noexcept;

/// totals[i] += sum over the rows of the set of x[row, i] d_y[row, i].
void add_products_of_rows(row_set rows, const const_tensor_ref<2>& x,
                          const const_tensor_ref<2>& d_y, const tensor_ref<1>& totals,
                          element_type sums) noexcept;

/// weight[o, i] += factor sum over k of left[o, k] right[k, i]; elements whose sum is 0 keep their
/// bits.
void add_product(const const_tensor_ref<2>& left, const const_tensor_ref<2>& right, double factor,
                 const tensor_ref<2>& weight, element_type sums) noexcept;

/// elements[i] *= factor, or /= it.
void rescale_run(const tensor_ref<1>& elements, double factor, bool divide,
                 element_type sums) noexcept;

/// to[i] = elements[i], exactly; elements of f64 are only read as double.
/// @{
void read_elements(const const_tensor_ref<1>& elements, float* to) noexcept;
void read_elements(const const_tensor_ref<1>& elements, double* to) noexcept;
/// @}

/// elements[i] = from[i], rounded; elements of f64 are only written from double.
/// @{
void write_elements(const float* from, const tensor_ref<1>& elements) noexcept;
void write_elements(const double* from, const tensor_ref<1>& elements) noexcept;
/// @}

} // namespace kernels
#if !MHR_COMPILED
} // namespace MHR_ISA
#endif
} // namespace mhr

#if !MHR_COMPILED
#include <mhr/kernels/instantiations.hpp>
#endif

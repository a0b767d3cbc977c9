#define MHR_COMPILED 1

#include <mhr/compiled/kernel_table.hpp>
#include <mhr/kernels/kernels.hpp>

// The kernels that a program calls: each goes to the one that was compiled for its processor.

namespace mhr {
namespace kernels {

namespace {

const kernel_table& table() noexcept {
    static const kernel_table& chosen = mhr_kernel_table();
    return chosen;
}

} // namespace

const char* architecture() noexcept {
    return table().architecture();
}

void shrink(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a, double factor,
            const tensor_ref<2>& hidden) noexcept {
    table().shrink(rows, x, a, factor, hidden);
}

void expand(row_set rows, const const_tensor_ref<2>& hidden, const const_tensor_ref<2>& b,
            double factor, const tensor_ref<2>& y) noexcept {
    table().expand(rows, hidden, b, factor, y);
}

void add_outer_products(row_set rows, const const_tensor_ref<2>& x,
                        const const_tensor_ref<2>& hidden, double factor, const tensor_ref<2>& sums,
                        bool accumulate, const const_tensor_ref<2>& ahead) noexcept {
    table().add_outer_products(rows, x, hidden, factor, sums, accumulate, ahead);
}

void add_sums(const const_tensor_ref<2>& sums, const tensor_ref<2>& matrix) noexcept {
    table().add_sums(sums, matrix);
}

void mix(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
         const tensor_ref<3>& mixed, element_type sums) noexcept {
    table().mix(weights, modules, mixed, sums);
}

void mix_backward(const const_tensor_ref<2>& weights, const const_tensor_ref<3>& modules,
                  const const_tensor_ref<3>& d_mixed, const tensor_ref<3>& d_modules,
                  const tensor_ref<2>& d_weights, element_type sums) noexcept {
    table().mix_backward(weights, modules, d_mixed, d_modules, d_weights, sums);
}

void shrink_along_rank(row_set rows, const const_tensor_ref<2>& x, const const_tensor_ref<2>& a,
                       const tensor_ref<2>& hidden) noexcept {
    table().shrink_along_rank(rows, x, a, hidden);
}

void expand_rows(row_set rows, const const_tensor_ref<3>& hidden,
                 const const_tensor_ref<2>& weights, const const_tensor_ref<3>& matrices,
                 double factor, const tensor_ref<2>& y) noexcept {
    table().expand_rows(rows, hidden, weights, matrices, factor, y);
}

void rescale_rows(row_set rows, const const_tensor_ref<2>& from, const const_tensor_ref<1>& scales,
                  const tensor_ref<2>& to, bool accumulate, element_type sums) noexcept {
    table().rescale_rows(rows, from, scales, to, accumulate, sums);
}

void add_products_of_rows(row_set rows, const const_tensor_ref<2>& x,
                          const const_tensor_ref<2>& d_y, const tensor_ref<1>& totals,
                          element_type sums) noexcept {
    table().add_products_of_rows(rows, x, d_y, totals, sums);
}

void add_product(const const_tensor_ref<2>& left, const const_tensor_ref<2>& right, double factor,
                 const tensor_ref<2>& weight, element_type sums) noexcept {
    table().add_product(left, right, factor, weight, sums);
}

void rescale_run(const tensor_ref<1>& elements, double factor, bool divide,
                 element_type sums) noexcept {
    table().rescale_run(elements, factor, divide, sums);
}

void read_elements(const const_tensor_ref<1>& elements, float* to) noexcept {
    table().read_f32(elements, to);
}

void read_elements(const const_tensor_ref<1>& elements, double* to) noexcept {
    table().read_f64(elements, to);
}

void write_elements(const float* from, const tensor_ref<1>& elements) noexcept {
    table().write_f32(from, elements);
}

void write_elements(const double* from, const tensor_ref<1>& elements) noexcept {
    table().write_f64(from, elements);
}

} // namespace kernels
} // namespace mhr

#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of LoRA with one adapter per row: plain loops from the formulas, generic in the scalar
/// type. No checks.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// y[row, o] += scale sum over k of (sum over i of x[row, i] a[t, i, k]) b[t, k, o] with
/// t = adapter_of_row[row]; rows with a negative t keep their y.
template <class S>
void lora_forward(tensor_view<const index_t, 1> adapter_of_row, tensor_view<const S, 2> x,
                  tensor_view<const S, 3> a, tensor_view<const S, 3> b, S scale,
                  tensor_view<S, 2> y) {
    for (index_t row = 0; row < x.extent(0); ++row) {
        const index_t t = adapter_of_row(row);
        if (t < 0) continue;
        for (index_t o = 0; o < y.extent(1); ++o) {
            S sum = S(0);
            for (index_t k = 0; k < a.extent(2); ++k)
                for (index_t i = 0; i < x.extent(1); ++i)
                    sum += x(row, i) * a(t, i, k) * b(t, k, o);
            y(row, o) += scale * sum;
        }
    }
}

/// The four partial derivatives of sum(y d_y), each added to its gradient unless that is absent:
/// the derivative of every product of lora_forward by each of its factors.
template <class S>
void lora_backward(tensor_view<const index_t, 1> adapter_of_row, tensor_view<const S, 2> x,
                   tensor_view<const S, 3> a, tensor_view<const S, 3> b, S scale,
                   tensor_view<const S, 2> d_y, tensor_view<S, 2> d_x, tensor_view<S, 3> d_a,
                   tensor_view<S, 3> d_b) {
    for (index_t row = 0; row < x.extent(0); ++row) {
        const index_t t = adapter_of_row(row);
        if (t < 0) continue;
        for (index_t k = 0; k < a.extent(2); ++k)
            for (index_t i = 0; i < x.extent(1); ++i)
                for (index_t o = 0; o < d_y.extent(1); ++o) {
                    const S d = scale * d_y(row, o);
                    if (!d_x.absent()) d_x(row, i) += d * a(t, i, k) * b(t, k, o);
                    if (!d_a.absent()) d_a(t, i, k) += d * x(row, i) * b(t, k, o);
                    if (!d_b.absent()) d_b(t, k, o) += d * x(row, i) * a(t, i, k);
                }
    }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

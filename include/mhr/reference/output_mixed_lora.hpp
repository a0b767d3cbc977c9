#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of LoRA with mixed outputs: plain loops from the formulas, generic in the scalar type. No
/// checks.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// y[row, o] += scale sum over m, k of weights[t, m] (sum over i of x[row, i] a[m, i, k]) b[m, k,
/// o] with t = entry_of_row[row]; rows with a negative t keep their y.
template <class S>
void output_mixed_lora_forward(tensor_view<const index_t, 1> entry_of_row,
                               tensor_view<const S, 2> x, tensor_view<const S, 3> a,
                               tensor_view<const S, 3> b, tensor_view<const S, 2> weights, S scale,
                               tensor_view<S, 2> y) {
    for (index_t row = 0; row < x.extent(0); ++row) {
        const index_t t = entry_of_row(row);
        if (t < 0) continue;
        for (index_t o = 0; o < y.extent(1); ++o) {
            S sum = S(0);
            for (index_t m = 0; m < a.extent(0); ++m)
                for (index_t k = 0; k < a.extent(2); ++k)
                    for (index_t i = 0; i < x.extent(1); ++i)
                        sum += weights(t, m) * x(row, i) * a(m, i, k) * b(m, k, o);
            y(row, o) += scale * sum;
        }
    }
}

/// The partial derivatives of sum(y d_y), each added to its gradient unless that is absent: the
/// derivative of every product of output_mixed_lora_forward by each of its factors.
template <class S>
void output_mixed_lora_backward(tensor_view<const index_t, 1> entry_of_row,
                                tensor_view<const S, 2> x, tensor_view<const S, 3> a,
                                tensor_view<const S, 3> b, tensor_view<const S, 2> weights, S scale,
                                tensor_view<const S, 2> d_y, tensor_view<S, 2> d_x,
                                tensor_view<S, 3> d_a, tensor_view<S, 3> d_b,
                                tensor_view<S, 2> d_weights) {
    for (index_t row = 0; row < x.extent(0); ++row) {
        const index_t t = entry_of_row(row);
        if (t < 0) continue;
        for (index_t m = 0; m < a.extent(0); ++m)
            for (index_t k = 0; k < a.extent(2); ++k)
                for (index_t i = 0; i < x.extent(1); ++i)
                    for (index_t o = 0; o < d_y.extent(1); ++o) {
                        const S d = scale * d_y(row, o);
                        const S w = weights(t, m);
                        if (!d_x.absent()) d_x(row, i) += d * w * a(m, i, k) * b(m, k, o);
                        if (!d_a.absent()) d_a(m, i, k) += d * w * x(row, i) * b(m, k, o);
                        if (!d_b.absent()) d_b(m, k, o) += d * w * x(row, i) * a(m, i, k);
                        if (!d_weights.absent())
                            d_weights(t, m) += d * x(row, i) * a(m, i, k) * b(m, k, o);
                    }
    }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

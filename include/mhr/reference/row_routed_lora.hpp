#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of LoRA whose modules each row weighs for itself, parameters mixed: plain loops from the
/// formulas, generic in the scalar type. No checks. (With outputs mixed it is
/// reference/output_mixed_lora.hpp where each row is an entry.)

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// y_h[row, o] += scale sum over k of hidden[row, k] sum over m of weights[row, h, m] b[h, m, k, o]
/// with hidden[row, k] = sum over h, i of x_h[row, i] sum over m of weights[row, h, m] a[h, m, i,
/// k]; rows with a negative entry keep their y.
template <class S>
void row_routed_lora_forward(tensor_view<const index_t, 1> entry_of_row, tensor_view<const S, 2> x,
                             tensor_view<const S, 4> a, tensor_view<const S, 4> b,
                             tensor_view<const S, 3> weights, S scale, tensor_view<S, 2> y) {
    const index_t heads = a.extent(0), modules = a.extent(1), n = a.extent(2), out = b.extent(3);
    for (index_t row = 0; row < x.extent(0); ++row) {
        if (entry_of_row(row) < 0) continue;
        for (index_t k = 0; k < a.extent(3); ++k) {
            S hidden = S(0);
            for (index_t h = 0; h < heads; ++h)
                for (index_t m = 0; m < modules; ++m)
                    for (index_t i = 0; i < n; ++i)
                        hidden += x(row, h * n + i) * weights(row, h, m) * a(h, m, i, k);
            for (index_t h = 0; h < heads; ++h)
                for (index_t m = 0; m < modules; ++m)
                    for (index_t o = 0; o < out; ++o)
                        y(row, h * out + o) += scale * hidden * weights(row, h, m) * b(h, m, k, o);
        }
    }
}

/// The partial derivatives of sum(y d_y), each added to its gradient unless that is absent: the
/// derivative of every product of row_routed_lora_forward by each of its factors.
template <class S>
void row_routed_lora_backward(tensor_view<const index_t, 1> entry_of_row, tensor_view<const S, 2> x,
                              tensor_view<const S, 4> a, tensor_view<const S, 4> b,
                              tensor_view<const S, 3> weights, S scale, tensor_view<const S, 2> d_y,
                              tensor_view<S, 2> d_x, tensor_view<S, 4> d_a, tensor_view<S, 4> d_b,
                              tensor_view<S, 3> d_weights) {
    const index_t heads = a.extent(0), modules = a.extent(1), n = a.extent(2), out = b.extent(3);
    for (index_t row = 0; row < x.extent(0); ++row) {
        if (entry_of_row(row) < 0) continue;
        for (index_t k = 0; k < a.extent(3); ++k) {
            S hidden = S(0);
            S d_hidden = S(0);
            for (index_t h = 0; h < heads; ++h)
                for (index_t m = 0; m < modules; ++m) {
                    for (index_t i = 0; i < n; ++i)
                        hidden += x(row, h * n + i) * weights(row, h, m) * a(h, m, i, k);
                    for (index_t o = 0; o < out; ++o)
                        d_hidden +=
                            scale * d_y(row, h * out + o) * weights(row, h, m) * b(h, m, k, o);
                }
            for (index_t h = 0; h < heads; ++h)
                for (index_t m = 0; m < modules; ++m) {
                    const S w = weights(row, h, m);
                    for (index_t i = 0; i < n; ++i) {
                        const S of_x = x(row, h * n + i);
                        if (!d_x.absent()) d_x(row, h * n + i) += d_hidden * w * a(h, m, i, k);
                        if (!d_a.absent()) d_a(h, m, i, k) += d_hidden * w * of_x;
                        if (!d_weights.absent())
                            d_weights(row, h, m) += d_hidden * of_x * a(h, m, i, k);
                    }
                    for (index_t o = 0; o < out; ++o) {
                        const S d = scale * d_y(row, h * out + o) * hidden;
                        if (!d_b.absent()) d_b(h, m, k, o) += d * w;
                        if (!d_weights.absent()) d_weights(row, h, m) += d * b(h, m, k, o);
                    }
                }
        }
    }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

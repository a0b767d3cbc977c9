#pragma once

#include <cmath>
#include <complex>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of LoRA with one adapter per row, and of DoRA after it: plain loops from the formulas,
/// generic in the scalar type. No checks.

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

/// y[row, o] += scale bias[t, o] with t = adapter_of_row[row]; rows with a negative t keep their y.
template <class S>
void lora_bias_forward(tensor_view<const index_t, 1> adapter_of_row, tensor_view<const S, 2> bias,
                       S scale, tensor_view<S, 2> y) {
    for (index_t row = 0; row < y.extent(0); ++row)
        for (index_t o = 0; o < y.extent(1); ++o)
            if (adapter_of_row(row) >= 0) y(row, o) += scale * bias(adapter_of_row(row), o);
}

/// The partial derivatives of sum(y d_y) by the biases, which are added.
template <class S>
void lora_bias_backward(tensor_view<const index_t, 1> adapter_of_row, S scale,
                        tensor_view<const S, 2> d_y, tensor_view<S, 2> d_bias) {
    for (index_t row = 0; row < d_y.extent(0); ++row)
        for (index_t o = 0; o < d_y.extent(1); ++o)
            if (adapter_of_row(row) >= 0) d_bias(adapter_of_row(row), o) += scale * d_y(row, o);
}

/// quotient[o] = magnitude[o] / || base_weight[o] + scale sum over k of b[k, o] a[:, k] ||.
template <class S>
void dora_quotient(tensor_view<const S, 2> base_weight, tensor_view<const S, 2> a,
                   tensor_view<const S, 2> b, S scale, tensor_view<const S, 1> magnitude,
                   tensor_view<S, 1> quotient) {
    for (index_t o = 0; o < base_weight.extent(0); ++o) {
        S squares = S(0);
        for (index_t i = 0; i < base_weight.extent(1); ++i) {
            S value = base_weight(o, i);
            for (index_t k = 0; k < a.extent(1); ++k)
                value += scale * a(i, k) * b(k, o);
            squares += value * value;
        }
        using std::sqrt;
        quotient(o) = magnitude(o) / sqrt(squares);
    }
}

/// y[row, o] = adapted[row, o] quotient[t, o] with t = adapter_of_row[row]; rows with a negative t
/// have y = adapted.
template <class S>
void dora_forward(tensor_view<const index_t, 1> adapter_of_row, tensor_view<const S, 2> adapted,
                  tensor_view<const S, 2> quotient, tensor_view<S, 2> y) {
    for (index_t row = 0; row < y.extent(0); ++row)
        for (index_t o = 0; o < y.extent(1); ++o) {
            const index_t t = adapter_of_row(row);
            y(row, o) = t < 0 ? adapted(row, o) : adapted(row, o) * quotient(t, o);
        }
}

/// The partial derivatives of sum(y d_y) by adapted and by the magnitudes, of which each quotient
/// is the product with inverse_norm[t, o]; each is added.
template <class S>
void dora_backward(tensor_view<const index_t, 1> adapter_of_row, tensor_view<const S, 2> adapted,
                   tensor_view<const S, 2> quotient, tensor_view<const S, 2> inverse_norm,
                   tensor_view<const S, 2> d_y, tensor_view<S, 2> d_adapted,
                   tensor_view<S, 2> d_magnitude) {
    for (index_t row = 0; row < d_y.extent(0); ++row)
        for (index_t o = 0; o < d_y.extent(1); ++o) {
            const index_t t = adapter_of_row(row);
            d_adapted(row, o) += t < 0 ? d_y(row, o) : d_y(row, o) * quotient(t, o);
            if (t >= 0) d_magnitude(t, o) += d_y(row, o) * adapted(row, o) * inverse_norm(t, o);
        }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of (IA)3 with one vector of scales per row: plain loops from the formulas, generic in the
/// scalar type. No checks.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// y[row, i] = x[row, i] scales[t, i] with t = entry_of_row[row]; y[row] = x[row] where t is
/// negative.
template <class S>
void ia3_forward(tensor_view<const index_t, 1> entry_of_row, tensor_view<const S, 2> x,
                 tensor_view<const S, 2> scales, tensor_view<S, 2> y) {
    for (index_t row = 0; row < x.extent(0); ++row)
        for (index_t i = 0; i < x.extent(1); ++i) {
            const index_t t = entry_of_row(row);
            y(row, i) = t < 0 ? x(row, i) : x(row, i) * scales(t, i);
        }
}

/// The partial derivatives of sum(y d_y), each added to its gradient unless that is absent.
template <class S>
void ia3_backward(tensor_view<const index_t, 1> entry_of_row, tensor_view<const S, 2> x,
                  tensor_view<const S, 2> scales, tensor_view<const S, 2> d_y,
                  tensor_view<S, 2> d_x, tensor_view<S, 2> d_scales) {
    for (index_t row = 0; row < x.extent(0); ++row)
        for (index_t i = 0; i < x.extent(1); ++i) {
            const index_t t = entry_of_row(row);
            if (!d_x.absent()) d_x(row, i) += d_y(row, i) * (t < 0 ? S(1) : scales(t, i));
            if (!d_scales.absent() && t >= 0) d_scales(t, i) += x(row, i) * d_y(row, i);
        }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

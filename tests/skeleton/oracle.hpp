#pragma once

#include <mhr/core/tensor_view.hpp>

// Step 1 of a kernel: its oracle, plain loops from the formulas, generic in the scalar type, so
// that its gradients are checked by complex step. A kernel of the library has it in
// include/mhr/reference/.

namespace skeleton {

/// y[row, i] += gates[row] x[row, i].
template <class S>
void add_gated_rows(mhr::tensor_view<const S, 2> x, mhr::tensor_view<const S, 1> gates,
                    mhr::tensor_view<S, 2> y) {
    for (mhr::index_t row = 0; row < x.extent(0); ++row)
        for (mhr::index_t i = 0; i < x.extent(1); ++i)
            y(row, i) += gates(row) * x(row, i);
}

/// d_gates[row] += sum over i of x[row, i] d_y[row, i]: the partial derivatives of sum(y d_y).
template <class S>
void add_gate_gradients(mhr::tensor_view<const S, 2> x, mhr::tensor_view<const S, 2> d_y,
                        mhr::tensor_view<S, 1> d_gates) {
    for (mhr::index_t row = 0; row < x.extent(0); ++row)
        for (mhr::index_t i = 0; i < x.extent(1); ++i)
            d_gates(row) += x(row, i) * d_y(row, i);
}

} // namespace skeleton

#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of the mixing: plain loops from the formulas, generic in the scalar type. No checks.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// mixed[n, h, p, q] = sum over modules of weights[n, h, m] modules[h, m, p, q]
/// (MHR, Caccia et al. 2023, section 3).
template <class S>
void mix_forward(tensor_view<const S, 3> weights, tensor_view<const S, 4> modules,
                 tensor_view<S, 4> mixed) {
    for (index_t n = 0; n < mixed.extent(0); ++n)
        for (index_t h = 0; h < mixed.extent(1); ++h)
            for (index_t p = 0; p < mixed.extent(2); ++p)
                for (index_t q = 0; q < mixed.extent(3); ++q) {
                    S sum = S(0);
                    for (index_t m = 0; m < modules.extent(1); ++m)
                        sum += weights(n, h, m) * modules(h, m, p, q);
                    mixed(n, h, p, q) = sum;
                }
}

/// d_modules[h, m, p, q] += sum over n of weights[n, h, m] d_mixed[n, h, p, q] and
/// d_weights[n, h, m] += sum over p, q of d_mixed[n, h, p, q] modules[h, m, p, q].
/// Absent gradients are skipped.
template <class S>
void mix_backward(tensor_view<const S, 3> weights, tensor_view<const S, 4> modules,
                  tensor_view<const S, 4> d_mixed, tensor_view<S, 4> d_modules,
                  tensor_view<S, 3> d_weights) {
    for (index_t n = 0; n < d_mixed.extent(0); ++n)
        for (index_t h = 0; h < d_mixed.extent(1); ++h)
            for (index_t m = 0; m < modules.extent(1); ++m)
                for (index_t p = 0; p < d_mixed.extent(2); ++p)
                    for (index_t q = 0; q < d_mixed.extent(3); ++q) {
                        const S d = d_mixed(n, h, p, q);
                        if (!d_modules.absent()) d_modules(h, m, p, q) += weights(n, h, m) * d;
                        if (!d_weights.absent()) d_weights(n, h, m) += d * modules(h, m, p, q);
                    }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of the Gram matrices of gradients: plain loops from the formula, generic in the scalar
/// type. No checks.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// gram[s, t] += <g_s, g_t> with the gradient of each module, g_t[h, m, p, q] =
/// weights[t, h, m] d_mixed[t, h, p, q], multiplied out: nothing is factorised.
template <class S>
void routed_gradient_gram(tensor_view<const S, 3> weights, tensor_view<const S, 4> d_mixed,
                          tensor_view<S, 2> gram) {
    for (index_t s = 0; s < gram.extent(0); ++s)
        for (index_t t = 0; t < gram.extent(1); ++t) {
            S sum = S(0);
            for (index_t h = 0; h < weights.extent(1); ++h)
                for (index_t m = 0; m < weights.extent(2); ++m)
                    for (index_t p = 0; p < d_mixed.extent(2); ++p)
                        for (index_t q = 0; q < d_mixed.extent(3); ++q)
                            sum += (weights(s, h, m) * d_mixed(s, h, p, q)) *
                                   (weights(t, h, m) * d_mixed(t, h, p, q));
            gram(s, t) += sum;
        }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

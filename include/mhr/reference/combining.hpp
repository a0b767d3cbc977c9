#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Oracle of the combining of matrices: plain loops from the formulas, with a full sort where the
/// library selects. No checks, no speed.

namespace mhr {
inline namespace MHR_ISA {
namespace reference {

/// Keeps the int(density elements) of largest magnitude, of equal ones the first in row-major
/// order, and sets the others to 0.
template <class S>
void prune_by_magnitude(double density, tensor_view<S, 2> matrix) {
    if (density >= 1) return;
    const index_t columns = matrix.extent(1);
    std::vector<index_t> order(static_cast<std::size_t>(matrix.size()));
    std::iota(order.begin(), order.end(), index_t(0));
    const auto magnitude = [&](index_t i) {
        const auto value = matrix(i / columns, i % columns);
        return value < 0 ? -value : value;
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](index_t a, index_t b) { return magnitude(a) > magnitude(b); });
    const auto kept = static_cast<std::size_t>(density * static_cast<double>(order.size()));
    for (std::size_t i = kept; i < order.size(); ++i)
        matrix(order[i] / columns, order[i] % columns) = S(0);
}

/// x / density where the mask is not 0, else 0.
template <class S>
void prune_by_mask(double density, tensor_view<const std::uint8_t, 2> keep,
                   tensor_view<S, 2> matrix) {
    if (density >= 1) return;
    for (index_t i = 0; i < matrix.extent(0); ++i)
        for (index_t k = 0; k < matrix.extent(1); ++k)
            matrix(i, k) = keep(i, k) != 0 ? matrix(i, k) / S(density) : S(0);
}

/// Which sign is elected.
enum class election_kind { none, total, frequency };

/// The sum over i of factors[i] matrices[i, p, q]; with an election, of those of the elected sign,
/// divided by their number if there is one.
template <class S>
void combine_matrices(tensor_view<const S, 3> matrices, tensor_view<const S, 1> factors,
                      election_kind election, tensor_view<S, 2> result) {
    for (index_t p = 0; p < result.extent(0); ++p)
        for (index_t q = 0; q < result.extent(1); ++q) {
            S votes = S(0);
            for (index_t i = 0; i < matrices.extent(0); ++i) {
                const S x = matrices(i, p, q);
                votes += election == election_kind::total ? x : S(x > 0 ? 1 : x < 0 ? -1 : 0);
            }
            S sum = S(0);
            S agreeing = S(0);
            for (index_t i = 0; i < matrices.extent(0); ++i) {
                const S x = matrices(i, p, q);
                if (election != election_kind::none && !(votes < 0 ? x < 0 : x > 0)) continue;
                sum += factors(i) * x;
                agreeing += S(1);
            }
            result(p, q) = election != election_kind::none && agreeing > 1 ? sum / agreeing : sum;
        }
}

} // namespace reference
} // namespace MHR_ISA
} // namespace mhr

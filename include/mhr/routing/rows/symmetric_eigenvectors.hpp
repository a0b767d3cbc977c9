#pragma once

#include <cmath>

#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The eigenvectors of a small symmetric matrix, such as the Gram matrix of an adapter's rank.

namespace mhr {
inline namespace MHR_ISA {
namespace arrow_details {

/// Sweeps after which a matrix of any size is diagonal to the last bits, many times over.
inline constexpr int most_sweeps = 40;

/// The rotation that makes matrix(p, q) 0 (Golub and Van Loan, Matrix Computations, 4th edition,
/// algorithm 8.5.1), applied to the matrix and to the vectors.
inline void rotate(const tensor_view<double, 2>& matrix, const tensor_view<double, 2>& vectors,
                   index_t p, index_t q) noexcept {
    const double off = matrix(p, q);
    if (is_exactly(off, 0)) return;
    const double tau = (matrix(q, q) - matrix(p, p)) / (2 * off);
    const double root = std::sqrt(1 + tau * tau);
    const double t = tau >= 0 ? 1 / (tau + root) : -1 / (root - tau);
    const double c = 1 / std::sqrt(1 + t * t);
    const double s = t * c;
    const index_t n = matrix.extent(0);
    const auto turn = [c, s](double& u, double& v) {
        const double before = u;
        u = c * before - s * v;
        v = s * before + c * v;
    };
    for (index_t k = 0; k < n; ++k)
        turn(matrix(k, p), matrix(k, q));
    for (index_t k = 0; k < n; ++k)
        turn(matrix(p, k), matrix(q, k));
    for (index_t k = 0; k < n; ++k)
        turn(vectors(k, p), vectors(k, q));
    matrix(p, q) = matrix(q, p) = 0;
}

} // namespace arrow_details

/// Makes a symmetric matrix [n, n] diagonal, its eigenvalues in no order, and column k of `vectors`
/// [n, n] the eigenvector of length 1 that belongs to matrix(k, k): Jacobi's method, cyclic. The
/// result does not depend on anything but the matrix. Nothing is checked; the cost is about
/// 10 sweeps of 6 n^3 multiply-adds.
inline void diagonalise(const tensor_view<double, 2>& matrix,
                        const tensor_view<double, 2>& vectors) noexcept {
    const index_t n = matrix.extent(0);
    for (index_t i = 0; i < n; ++i)
        for (index_t k = 0; k < n; ++k)
            vectors(i, k) = i == k ? 1 : 0;
    for (int sweep = 0; sweep < arrow_details::most_sweeps; ++sweep) {
        double off = 0;
        double all = 0;
        for (index_t i = 0; i < n; ++i)
            for (index_t k = 0; k < n; ++k) {
                const double square = matrix(i, k) * matrix(i, k);
                all += square;
                if (i != k) off += square;
            }
        if (!(off > 1e-34 * all)) return;
        for (index_t p = 0; p < n; ++p)
            for (index_t q = p + 1; q < n; ++q)
                arrow_details::rotate(matrix, vectors, p, q);
    }
}

} // namespace MHR_ISA
} // namespace mhr

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include <mhr/routing/rows/symmetric_eigenvectors.hpp>

#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// The largest error of `vectors diagonal vectors^T` and of `vectors^T vectors`.
double error_of(const tensor<double, 2>& matrix) {
    const index_t n = matrix.extents()[0];
    tensor<double, 2> diagonal = matrix, vectors({n, n});
    diagonalise(diagonal.view(), vectors.view());
    double error = 0;
    for (index_t i = 0; i < n; ++i)
        for (index_t k = 0; k < n; ++k) {
            double sum = -matrix(i, k), product = i == k ? -1 : 0;
            for (index_t j = 0; j < n; ++j) {
                sum += vectors(i, j) * diagonal(j, j) * vectors(k, j);
                product += vectors(j, i) * vectors(j, k);
            }
            error = std::max({error, std::abs(sum), std::abs(product)});
            if (i != k) error = std::max(error, std::abs(diagonal(i, k)));
        }
    return error;
}

} // namespace

TEST_CASE("eigenvectors take a symmetric matrix apart") {
    for (index_t n : {0, 1, 2, 3, 8, 33, 64}) {
        CAPTURE(n);
        tensor<double, 2> matrix({n, n});
        random_source(1).fill(matrix.view());
        for (index_t i = 0; i < n; ++i)
            for (index_t k = 0; k < i; ++k)
                matrix(i, k) = matrix(k, i);
        CHECK(error_of(matrix) < 1e-13);
    }
}

TEST_CASE("equal eigenvalues, and those that are far apart") {
    tensor<double, 2> matrix({3, 3});
    for (index_t i = 0; i < 3; ++i)
        matrix(i, i) = 2;
    CHECK(error_of(matrix) == 0);
    matrix.values() = {1e-30, 1e-20, 0, 1e-20, 1, 0.5, 0, 0.5, -1};
    CHECK(error_of(matrix) < 1e-15);
    matrix.values() = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    CHECK(error_of(matrix) == 0);
}

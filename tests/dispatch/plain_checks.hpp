#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/error.hpp>

#include "dispatch/kernels.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/random_tensor.hpp"
#include "support/routed_oracle.hpp"
#include "support/tensor.hpp"

/// \file
/// What every compilation of dispatch/kernels.cpp has to do. Nothing here calls the library, but
/// for plans.

namespace mhr::test {

struct plain_sizes {
    index_t rows, tasks, heads, modules, in_block, out_block, rank;

    [[nodiscard]] index_t in() const { return heads * in_block; }
    [[nodiscard]] index_t out() const { return heads * out_block; }
};

/// Every size once 1, one head, one module, one task, more tasks than rows, ranks beyond the tiles.
inline constexpr plain_sizes plain_shapes[] = {
    {1, 1, 1, 1, 1, 1, 1},  {9, 2, 3, 4, 3, 5, 2},    {40, 1, 2, 3, 8, 11, 16},
    {5, 9, 1, 4, 17, 6, 3}, {20, 3, 4, 1, 16, 16, 4}, {7, 2, 5, 3, 1, 7, 17},
    {6, 2, 2, 2, 5, 1, 33}, {4, 2, 2, 2, 65, 70, 5},  {3, 1, 1, 2, 257, 3, 1},
};

/// The numbers of a layer; `y` and the gradients are added to.
template <class T>
struct plain_numbers {
    tensor<T, 2> x, d_y;
    tensor<T, 4> a, b;
    tensor<T, 3> weights;
    tensor<T, 2> y, d_x;
    tensor<T, 4> d_a, d_b;
    tensor<T, 3> d_weights;

    /// Calls `f` with every tensor.
    template <class F>
    void for_each(F&& f) {
        f(x), f(d_y), f(a), f(b), f(weights), f(y), f(d_x), f(d_a), f(d_b), f(d_weights);
    }

    /// Adds what the oracle computes.
    void expect(const batch_plan& plan, double scale) {
        const routed_oracle<T> oracle{entry_of_row(plan), static_cast<T>(scale), x, a, b, weights};
        oracle.forward(y);
        oracle.backward(d_y, d_x, d_a, d_b, d_weights);
    }
};

inline plain_numbers<float> random_numbers(const plain_sizes& s, index_t entries) {
    plain_numbers<float> n;
    n.x = n.d_x = tensor<float, 2>({s.rows, s.in()});
    n.y = n.d_y = tensor<float, 2>({s.rows, s.out()});
    n.a = n.d_a = tensor<float, 4>({s.heads, s.modules, s.in_block, s.rank});
    n.b = n.d_b = tensor<float, 4>({s.heads, s.modules, s.rank, s.out_block});
    n.weights = n.d_weights = tensor<float, 3>({entries, s.heads, s.modules});
    random_source random(1);
    n.for_each([&](auto& values) { random.fill(values.view()); });
    for (float& weight : n.weights.values())
        if (random.integer(5) == 0) weight = 0;
    return n;
}

/// These compute the same in f64, and the magnitudes.
/// @{
inline plain_numbers<double> wide(plain_numbers<float>& n) {
    const auto of = [](const auto& values) { return copy_as<double>(values.view()); };
    return {of(n.x), of(n.d_y), of(n.a),   of(n.b),   of(n.weights),
            of(n.y), of(n.d_x), of(n.d_a), of(n.d_b), of(n.d_weights)};
}
inline plain_numbers<double> magnitudes(plain_numbers<float>& n) {
    auto sizes = wide(n);
    sizes.for_each([](auto& values) {
        for (double& value : values.values())
            value = std::abs(value);
    });
    return sizes;
}
/// @}

/// The results are the oracle's, within the bound that holds for the library itself: n products
/// that are summed one after the other are within n / 2 epsilon of their magnitudes, and some more
/// for the products with intermediate results.
inline void check_against_oracle(const plain_kernels& kernels) {
    constexpr double scale = -0.75;
    for (const plain_sizes& s : plain_shapes) {
        CAPTURE(s.rank);
        const auto ids = random_tasks(s.rows, s.tasks);
        const std::vector<long> tasks(ids.begin(), ids.end());
        const batch_plan plan = plan_of(ids);
        auto got = random_numbers(s, plan.entries());
        auto want = wide(got), sizes = magnitudes(got);
        want.expect(plan, scale);
        sizes.expect(plan, std::abs(scale));

        const plain_layer layer{s.rows,
                                s.heads,
                                s.modules,
                                s.in(),
                                s.out(),
                                s.rank,
                                plan.entries(),
                                scale,
                                tasks.data(),
                                got.x.values().data(),
                                got.a.values().data(),
                                got.b.values().data(),
                                got.weights.values().data()};
        kernels.forward(layer, got.y.values().data());
        kernels.backward(layer, got.d_y.values().data(),
                         {got.d_x.values().data(), got.d_a.values().data(), got.d_b.values().data(),
                          got.d_weights.values().data()});
        const auto check = [](auto& result, auto& expected, auto& size, index_t n) {
            if (expected.values().empty()) return;
            CHECK(compare(result.view(), expected.view(), size.view(),
                          within<float>(static_cast<double>(n) / 2 + 4)));
        };
        const index_t m = s.modules;
        check(got.y, want.y, sizes.y, s.in() + s.rank + 2 * m);
        check(got.d_x, want.d_x, sizes.d_x, s.out() + s.rank + 2 * m);
        check(got.d_a, want.d_a, sizes.d_a, s.out() + s.rows + m);
        check(got.d_b, want.d_b, sizes.d_b, s.in() + s.rows + m);
        // Added to twice, for a and for b: one rounding more.
        check(got.d_weights, want.d_weights, sizes.d_weights,
              2 + s.in() + s.out() + s.rows + m + s.rank * (s.in_block + s.out_block));
    }
}

/// An error is caught here, though it may have been thrown by code for another instruction set.
inline void check_errors(const plain_kernels& kernels) {
    CHECK_THROWS_WITH_AS(kernels.fail(),
                         "batch_plan::assign_rows: task_of_row: expected ids from 0 to "
                         "9223372036854775807, or -1 for no task, got -7 at position 0",
                         error);
}

} // namespace mhr::test

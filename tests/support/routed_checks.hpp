#pragma once

#include <cmath>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/core/tensor_view.hpp>

#include "support/comparison.hpp"
#include "support/precision.hpp"
#include "support/routed_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

/// \file
/// What is checked of routed LoRA, whether one call computes a layer or several do: the storage
/// types and sizes, and the comparison with the oracle.

namespace mhr::test {

/// One type for all.
template <class T>
using routed_of = routed_storage<T, T, T, T>;

/// Activations and modules in 16 bits, weights and gradients in f32.
using of_16_bits =
    routed_storage<Eigen::half, Eigen::bfloat16, float, Eigen::half, float, float, float>;

/// Mixed types, too, as hosts have them: an adapter of higher precision than the activations, sums
/// of gradients in f32, an inventory kept small.
#define MHR_TEST_ROUTED_STORAGES                                                                   \
    routed_of<float>,                                                                              \
        routed_storage<Eigen::half, Eigen::bfloat16, float, Eigen::half, float, float, float>      \
        MHR_TEST_ALSO(routed_of<double>, routed_of<Eigen::bfloat16>, routed_of<Eigen::half>,       \
                      routed_storage<Eigen::bfloat16, float, float, Eigen::bfloat16>,              \
                      routed_storage<float, Eigen::half, double, float>,                           \
                      routed_storage<float, float, float, double>)

/// Every size once 1, one head, one module, one task, more tasks than rows, ranks beyond the tiles.
inline constexpr routed_sizes routed_shapes[] = {
    {1, 1, 1, 1, 1, 1, 1},  {9, 2, 3, 4, 3, 5, 2},    {40, 1, 2, 3, 8, 11, 16},
    {5, 9, 1, 4, 17, 6, 3}, {20, 3, 4, 1, 16, 16, 4}, {7, 2, 5, 3, 1, 7, 17},
    {6, 2, 2, 2, 5, 1, 33}, {4, 2, 2, 2, 65, 70, 5},  {3, 1, 1, 2, 257, 3, 1},
};

/// n products summed one after the other are within n/2 epsilon of their magnitudes; some more for
/// the products with intermediate results.
template <class A>
double sum_of(index_t n) {
    return (static_cast<double>(n) / 2 + 4) * epsilon_of<A>();
}

/// Compares with the oracle what `forward()` adds to y and `backward()` to the gradients.
template <class T, class Forward, class Backward>
void check_against_oracle(routed_problem<T>& p, Forward&& forward, Backward&& backward) {
    using S = typename T::S;
    const routed_sizes& s = p.s;
    const auto want = expect<S>(p);
    const auto size = expect_magnitudes<S>(p);
    const auto bound = [](double sum, double roundings = 1) {
        return error_bound{1, sum, roundings};
    };
    // The state of a forward, but not its y, which stays a random gradient.
    const auto d_y = copy_as<typename T::Y>(p.y.view());
    forward();
    transform(d_y.view(), p.y.view(), [](const auto& value) { return value; });
    backward();
    CHECK(compare(p.d_x.view(), want.d_x.view(), size.d_x.view(),
                  bound(sum_of<typename T::A>(s.out() + s.rank + 2 * s.modules))));
    CHECK(compare(p.d_a.view(), want.d_a.view(), size.d_a.view(),
                  bound(sum_of<typename T::A>(s.out() + s.rows + s.modules))));
    CHECK(compare(p.d_b.view(), want.d_b.view(), size.d_b.view(),
                  bound(sum_of<typename T::A>(s.in() + s.rows + s.modules))));
    if (p.plan.entries() > 0)
        // Added to twice, for a and for b: the first sum is stored, and may be larger.
        CHECK(compare(p.d_weights.view(), want.d_weights.view(), size.d_weights.view(),
                      bound(sum_of<typename T::A>(s.in() + s.out() + s.rows + s.modules +
                                                  s.rank * (s.in_block + s.out_block)) +
                            epsilon_of<typename T::DW>())));
    forward();
    CHECK(compare(p.y.view(), want.y.view(), size.y.view(),
                  bound(sum_of<typename T::A>(s.in() + s.rank + 2 * s.modules))));
    CHECK(p.intact());
}

template <class T>
void check_against_oracle(routed_problem<T>& p) {
    check_against_oracle(
        p, [&] { p.forward(); }, [&] { p.backward(); });
}

template <class T>
void check_same_gradients(routed_problem<T>& got, routed_problem<T>& want) {
    CHECK(compare_bitwise(got.d_x.view(), want.d_x.view()));
    CHECK(compare_bitwise(got.d_a.view(), want.d_a.view()));
    CHECK(compare_bitwise(got.d_b.view(), want.d_b.view()));
    CHECK(compare_bitwise(got.d_weights.view(), want.d_weights.view()));
}

/// Small whole numbers everywhere: every sum is exact, and so is the same in any order.
template <class T>
void make_whole(routed_problem<T>& p) {
    const auto round = [](const auto& view) {
        // + 0, so that no zero is negative.
        transform(view, view, [](auto value) { return std::round(4 * value) + 0; });
    };
    p.scale = 2;
    round(p.x.view());
    round(p.a.view());
    round(p.b.view());
    round(p.weights.view());
    round(p.y.view());
    round(p.d_x.view());
    round(p.d_a.view());
    round(p.d_b.view());
    round(p.d_weights.view());
}

} // namespace mhr::test

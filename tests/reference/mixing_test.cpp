#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/mixing.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

} // namespace

TEST_CASE("mixing and its gradients, by hand") {
    // One entry, two heads of two modules of 1 x 2 numbers.
    tensor<double, 4> modules({2, 2, 1, 2});
    modules.values() = {1, 2, 3, 4, 5, 6, 7, 8};
    tensor<double, 3> weights({1, 2, 2});
    weights.values() = {0.5, 0.25, -1, 2};
    tensor<double, 4> mixed({1, 2, 1, 2});
    mixed.values() = {99, 99, 99, 99}; // overwritten
    reference::mix_forward(weights.const_view(), modules.const_view(), mixed.view());
    // Head 0: 0.5 (1, 2) + 0.25 (3, 4); head 1: -(5, 6) + 2 (7, 8).
    CHECK(mixed.values() == std::vector<double>{1.25, 2, 9, 10});

    tensor<double, 4> d_mixed({1, 2, 1, 2});
    d_mixed.values() = {1, 10, 2, 20};
    tensor<double, 4> d_modules({2, 2, 1, 2});
    tensor<double, 3> d_weights({1, 2, 2});
    d_modules(0, 0, 0, 0) = 100;
    d_weights(0, 1, 1) = 1000;
    reference::mix_backward(weights.const_view(), modules.const_view(), d_mixed.const_view(),
                            d_modules.view(), d_weights.view());
    // Each module gets weight x d_mixed of its head.
    CHECK(d_modules.values() == std::vector<double>{100.5, 5, 0.25, 2.5, -2, -20, 4, 40});
    // (1, 10) with (1, 2) and (3, 4); (2, 20) with (5, 6) and (7, 8).
    CHECK(d_weights.values() == std::vector<double>{21, 43, 130, 1174});
}

TEST_CASE("absent gradients are skipped") {
    tensor<double, 4> modules({1, 1, 1, 1});
    tensor<double, 3> weights({1, 1, 1});
    tensor<double, 4> d_mixed({1, 1, 1, 1});
    modules.values() = {3};
    weights.values() = {5};
    d_mixed.values() = {7};
    tensor<double, 4> d_modules({1, 1, 1, 1});
    tensor<double, 3> d_weights({1, 1, 1});
    reference::mix_backward<double>(weights.view(), modules.view(), d_mixed.view(),
                                    d_modules.view(), {});
    reference::mix_backward<double>(weights.view(), modules.view(), d_mixed.view(), {},
                                    d_weights.view());
    CHECK(d_modules(0, 0, 0, 0) == 35);
    CHECK(d_weights(0, 0, 0) == 21);
}

TEST_CASE("gradients of mixing against complex step") {
    random_source random(17);
    tensor<double, 4> modules({2, 3, 5, 2});
    tensor<double, 3> weights({4, 2, 3});
    tensor<double, 4> d_mixed({4, 2, 5, 2});
    random.fill(modules.view());
    random.fill(weights.view());
    random.fill(d_mixed.view());

    tensor<double, 4> d_modules(modules.extents());
    tensor<double, 3> d_weights(weights.extents());
    reference::mix_backward(weights.const_view(), modules.const_view(), d_mixed.const_view(),
                            d_modules.view(), d_weights.view());
    tensor<double, 4> module_magnitudes(modules.extents());
    tensor<double, 3> weight_magnitudes(weights.extents());
    reference::mix_backward(magnitudes_as<double>(weights.view()).const_view(),
                            magnitudes_as<double>(modules.view()).const_view(),
                            magnitudes_as<double>(d_mixed.view()).const_view(),
                            module_magnitudes.view(), weight_magnitudes.view());

    auto v = copy_as<complex>(modules.view());
    auto w = copy_as<complex>(weights.view());
    tensor<complex, 4> mixed(d_mixed.extents());
    const auto f = [&] {
        reference::mix_forward(w.const_view(), v.const_view(), mixed.view());
        return contract<complex>(mixed.view(), d_mixed.view());
    };
    const auto step_v = complex_step_gradient(f, v.view());
    const auto step_w = complex_step_gradient(f, w.view());
    CHECK(compare(d_modules.view(), step_v.view(), module_magnitudes.view(), within<double>(4)));
    CHECK(compare(d_weights.view(), step_w.view(), weight_magnitudes.view(), within<double>(10)));

    // Planted: the heads exchanged.
    CHECK_FALSE(compare(d_weights.view().block(1, 0, 1), step_w.view().block(1, 1, 1),
                        weight_magnitudes.view().block(1, 0, 1), within<double>(10)));
}

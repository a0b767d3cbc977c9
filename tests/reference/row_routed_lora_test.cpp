#include <array>
#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/row_routed_lora.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("LoRA with weights of each row, by hand") {
    // Two heads, two modules of rank 1, one feature a head; the second row has no task.
    const std::array<index_t, 2> entry{0, -1};
    tensor<double, 2> x({2, 2}), y({2, 2});
    tensor<double, 4> a({2, 2, 1, 1}), b({2, 2, 1, 1});
    tensor<double, 3> weights({2, 2, 2});
    x.values() = {1, 2, 3, 4};
    a.values() = {1, 2, 3, 4};
    b.values() = {5, 6, 7, 8};
    weights.values() = {1, 0, 2, -1, 9, 9, 9, 9};
    y.values() = {10, 20, 30, 40};
    reference::row_routed_lora_forward(tensor_view<const index_t, 1>(entry.data(), {2}),
                                       x.const_view(), a.const_view(), b.const_view(),
                                       weights.const_view(), 0.5, y.view());
    // hidden = 1 (1 1) + 2 (2 3 - 4) = 5; y = 10 + .5 5 (5), 20 + .5 5 (2 7 - 8)
    CHECK(y.values() == std::vector<double>{22.5, 35, 30, 40});
}

TEST_CASE("gradients of LoRA with weights of each row against complex step") {
    using complex = std::complex<double>;
    const std::array<index_t, 4> entry{1, -1, 0, 1};
    const tensor_view<const index_t, 1> entry_of_row(entry.data(), {4});
    const double scale = 0.375;
    random_source random(31);
    tensor<double, 2> x({4, 6}), d_y({4, 4});
    tensor<double, 3> weights({4, 2, 3});
    tensor<double, 4> a({2, 3, 3, 2}), b({2, 3, 2, 2});
    random.fill(x.view());
    random.fill(d_y.view());
    random.fill(weights.view());
    random.fill(a.view());
    random.fill(b.view());
    weights(3, 1, 2) = 0; // whose gradient is not 0

    tensor<double, 2> d_x(x.extents());
    tensor<double, 3> d_weights(weights.extents());
    tensor<double, 4> d_a(a.extents()), d_b(b.extents());
    const auto backward = [&](const tensor_view<double, 2>& to_x,
                              const tensor_view<double, 4>& to_a,
                              const tensor_view<double, 4>& to_b,
                              const tensor_view<double, 3>& to_weights) {
        reference::row_routed_lora_backward<double>(entry_of_row, x.const_view(), a.const_view(),
                                                    b.const_view(), weights.const_view(), scale,
                                                    d_y.const_view(), to_x, to_a, to_b, to_weights);
    };
    backward({}, {}, {}, {});
    backward(d_x.view(), {}, {}, {});
    backward({}, d_a.view(), {}, {});
    backward({}, {}, d_b.view(), {});
    backward({}, {}, {}, d_weights.view());

    auto cx = copy_as<complex>(x.view());
    auto cw = copy_as<complex>(weights.view());
    auto ca = copy_as<complex>(a.view());
    auto cb = copy_as<complex>(b.view());
    const auto f = [&] {
        tensor<complex, 2> y({4, 4});
        reference::row_routed_lora_forward(entry_of_row, cx.const_view(), ca.const_view(),
                                           cb.const_view(), cw.const_view(), complex(scale),
                                           y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto check = [&](auto& got, auto& variable) {
        auto want = complex_step_gradient(f, variable.view());
        auto ones = want;
        for (double& value : ones.values())
            value = 1;
        CHECK(compare(got.view(), want.view(), ones.view(), within<double>(100)));
    };
    check(d_x, cx);
    check(d_a, ca);
    check(d_b, cb);
    check(d_weights, cw);
    CHECK(d_weights(3, 1, 2) != 0);
    CHECK(d_weights(1, 1, 2) == 0);
}

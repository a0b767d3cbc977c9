#include <array>
#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/lora.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

} // namespace

TEST_CASE("LoRA and its gradients, by hand") {
    const std::array<index_t, 2> adapter{0, -1};
    const tensor_view<const index_t, 1> adapter_of_row(adapter.data(), {2});
    tensor<double, 2> x({2, 2});
    tensor<double, 3> a({1, 2, 2});
    tensor<double, 3> b({1, 2, 1});
    tensor<double, 2> y({2, 1});
    x.values() = {1, 2, 3, 4};
    a.values() = {1, 0, 3, 1};
    b.values() = {2, 5};
    y.values() = {10, 20};
    reference::lora_forward(adapter_of_row, x.const_view(), a.const_view(), b.const_view(), 0.5,
                            y.view());
    // x a = (1 + 6, 2) = (7, 2); (7, 2) b = 14 + 10; 10 + 24 / 2. The second row has no adapter.
    CHECK(y.values() == std::vector<double>{22, 20});

    tensor<double, 2> d_y({2, 1});
    d_y.values() = {4, 1000};
    tensor<double, 2> d_x({2, 2});
    tensor<double, 3> d_a({1, 2, 2});
    tensor<double, 3> d_b({1, 2, 1});
    d_x.values() = {1, 1, 1, 1};
    d_a.values() = {1, 1, 1, 1};
    d_b.values() = {1, 1};
    reference::lora_backward(adapter_of_row, x.const_view(), a.const_view(), b.const_view(), 0.5,
                             d_y.const_view(), d_x.view(), d_a.view(), d_b.view());
    // d_hidden = 0.5 4 b^T = (4, 10): d_x = d_hidden a^T = (4, 12 + 10), d_a = x^T d_hidden,
    // d_b = hidden^T 0.5 4 = (14, 4), each added to 1.
    CHECK(d_x.values() == std::vector<double>{5, 23, 1, 1});
    CHECK(d_a.values() == std::vector<double>{5, 11, 9, 21});
    CHECK(d_b.values() == std::vector<double>{15, 5});
}

TEST_CASE("absent gradients are skipped") {
    const index_t adapter = 0;
    const tensor_view<const index_t, 1> adapter_of_row(&adapter, {1});
    const double three = 3;
    const double five = 5;
    const double seven = 7;
    const double one = 1;
    const tensor_view<const double, 2> x(&three, {1, 1});
    const tensor_view<const double, 3> a(&five, {1, 1, 1});
    const tensor_view<const double, 3> b(&seven, {1, 1, 1});
    const tensor_view<const double, 2> d_y(&one, {1, 1});
    double d_x = 0;
    double d_a = 0;
    double d_b = 0;
    reference::lora_backward<double>(adapter_of_row, x, a, b, 1, d_y, {}, {}, {});
    reference::lora_backward<double>(adapter_of_row, x, a, b, 1, d_y, {&d_x, {1, 1}}, {}, {});
    reference::lora_backward<double>(adapter_of_row, x, a, b, 1, d_y, {}, {&d_a, {1, 1, 1}}, {});
    reference::lora_backward<double>(adapter_of_row, x, a, b, 1, d_y, {}, {}, {&d_b, {1, 1, 1}});
    CHECK(d_x == 35);
    CHECK(d_a == 21);
    CHECK(d_b == 15);
}

TEST_CASE("gradients of LoRA against complex step") {
    const std::array<index_t, 6> adapter{1, -1, 0, 1, 1, 0};
    const tensor_view<const index_t, 1> adapter_of_row(adapter.data(), {6});
    const double scale = 0.375;
    random_source random(23);
    tensor<double, 2> x({6, 5});
    tensor<double, 3> a({2, 5, 3});
    tensor<double, 3> b({2, 3, 4});
    tensor<double, 2> d_y({6, 4});
    random.fill(x.view());
    random.fill(a.view());
    random.fill(b.view());
    random.fill(d_y.view());

    tensor<double, 2> d_x(x.extents());
    tensor<double, 3> d_a(a.extents());
    tensor<double, 3> d_b(b.extents());
    reference::lora_backward(adapter_of_row, x.const_view(), a.const_view(), b.const_view(), scale,
                             d_y.const_view(), d_x.view(), d_a.view(), d_b.view());
    tensor<double, 2> x_magnitudes(x.extents());
    tensor<double, 3> a_magnitudes(a.extents());
    tensor<double, 3> b_magnitudes(b.extents());
    reference::lora_backward(adapter_of_row, magnitudes_as<double>(x.view()).const_view(),
                             magnitudes_as<double>(a.view()).const_view(),
                             magnitudes_as<double>(b.view()).const_view(), scale,
                             magnitudes_as<double>(d_y.view()).const_view(), x_magnitudes.view(),
                             a_magnitudes.view(), b_magnitudes.view());

    auto cx = copy_as<complex>(x.view());
    auto ca = copy_as<complex>(a.view());
    auto cb = copy_as<complex>(b.view());
    const auto f = [&] {
        tensor<complex, 2> y({6, 4});
        reference::lora_forward(adapter_of_row, cx.const_view(), ca.const_view(), cb.const_view(),
                                complex(scale), y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto step_x = complex_step_gradient(f, cx.view());
    const auto step_a = complex_step_gradient(f, ca.view());
    const auto step_b = complex_step_gradient(f, cb.view());
    CHECK(compare(d_x.view(), step_x.view(), x_magnitudes.view(), within<double>(8)));
    CHECK(compare(d_a.view(), step_a.view(), a_magnitudes.view(), within<double>(8)));
    CHECK(compare(d_b.view(), step_b.view(), b_magnitudes.view(), within<double>(8)));

    // Planted: the scale dropped.
    for (double& value : d_b.values())
        value /= scale;
    CHECK_FALSE(compare(d_b.view(), step_b.view(), b_magnitudes.view(), within<double>(8)));
}

TEST_CASE("the quotient of DoRA, by hand") {
    tensor<double, 2> base_weight({1, 2}), a({2, 1}), b({1, 1});
    base_weight.values() = {1, 2};
    a.values() = {4, 4};
    b.values() = {2};
    tensor<double, 1> magnitude({1}), quotient({1});
    magnitude.values() = {10};
    // (1, 2) + 0.25 2 (4, 4) = (3, 4), whose norm is 5.
    reference::dora_quotient<double>(base_weight.const_view(), a.const_view(), b.const_view(), 0.25,
                                     magnitude.const_view(), quotient.view());
    CHECK(quotient(0) == 2);
}

TEST_CASE("gradients of DoRA against complex step") {
    const std::array<index_t, 6> adapter{1, -1, 0, 1, 1, 0};
    const tensor_view<const index_t, 1> adapter_of_row(adapter.data(), {6});
    random_source random(31);
    tensor<double, 2> base_weight({4, 5}), a({5, 3}), b({3, 4}), adapted({6, 4}), d_y({6, 4}),
        magnitudes({2, 4}), ones({2, 4}), quotients({2, 4}), inverse_norms({2, 4});
    for (auto* each : {&base_weight, &a, &b, &adapted, &d_y, &magnitudes})
        random.fill(each->view());
    for (double& one : ones.values())
        one = 1;
    // Both adapters have the same a and b, and a magnitude of their own.
    for (index_t t : {0, 1}) {
        reference::dora_quotient<double>(base_weight.const_view(), a.const_view(), b.const_view(),
                                         0.5, magnitudes.const_view().slice(0, t),
                                         quotients.view().slice(0, t));
        reference::dora_quotient<double>(base_weight.const_view(), a.const_view(), b.const_view(),
                                         0.5, ones.const_view().slice(0, t),
                                         inverse_norms.view().slice(0, t));
    }
    tensor<double, 2> d_adapted(adapted.extents()), d_magnitudes(magnitudes.extents());
    reference::dora_backward<double>(adapter_of_row, adapted.const_view(), quotients.const_view(),
                                     inverse_norms.const_view(), d_y.const_view(), d_adapted.view(),
                                     d_magnitudes.view());

    const auto cw = copy_as<complex>(base_weight.view()), ca = copy_as<complex>(a.view()),
               cb = copy_as<complex>(b.view());
    auto cadapted = copy_as<complex>(adapted.view());
    auto cmagnitudes = copy_as<complex>(magnitudes.view());
    const auto f = [&] {
        tensor<complex, 2> y({6, 4}), c({2, 4});
        for (index_t t : {0, 1})
            reference::dora_quotient<complex>(cw.const_view(), ca.const_view(), cb.const_view(),
                                              complex(0.5), cmagnitudes.const_view().slice(0, t),
                                              c.view().slice(0, t));
        reference::dora_forward<complex>(adapter_of_row, cadapted.const_view(), c.const_view(),
                                         y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto step_adapted = complex_step_gradient(f, cadapted.view());
    const auto step_magnitudes = complex_step_gradient(f, cmagnitudes.view());
    tensor<double, 2> sizes(adapted.extents()), magnitude_sizes(magnitudes.extents());
    for (double& size : sizes.values())
        size = 4;
    for (double& size : magnitude_sizes.values())
        size = 4;
    CHECK(compare(d_adapted.view(), step_adapted.view(), sizes.view(), within<double>(8)));
    CHECK(compare(d_magnitudes.view(), step_magnitudes.view(), magnitude_sizes.view(),
                  within<double>(8)));

    // Planted: the row of no task scaled.
    for (index_t o = 0; o < 4; ++o)
        d_adapted(1, o) *= quotients(0, o);
    CHECK_FALSE(compare(d_adapted.view(), step_adapted.view(), sizes.view(), within<double>(8)));
}

TEST_CASE("gradients of a bias on B against complex step") {
    const std::array<index_t, 6> adapter{1, -1, 0, 1, 1, 0};
    const tensor_view<const index_t, 1> adapter_of_row(adapter.data(), {6});
    random_source random(37);
    tensor<double, 2> bias({2, 4}), d_y({6, 4}), d_bias({2, 4}), sizes({2, 4});
    random.fill(bias.view());
    random.fill(d_y.view());
    for (double& size : sizes.values())
        size = 3;
    reference::lora_bias_backward<double>(adapter_of_row, 0.375, d_y.const_view(), d_bias.view());
    auto cb = copy_as<complex>(bias.view());
    const auto f = [&] {
        tensor<complex, 2> y({6, 4});
        reference::lora_bias_forward<complex>(adapter_of_row, cb.const_view(), complex(0.375),
                                              y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto step = complex_step_gradient(f, cb.view());
    CHECK(compare(d_bias.view(), step.view(), sizes.view(), within<double>(8)));
    // Planted: the scale dropped.
    for (double& value : d_bias.values())
        value /= 0.375;
    CHECK_FALSE(compare(d_bias.view(), step.view(), sizes.view(), within<double>(8)));
}

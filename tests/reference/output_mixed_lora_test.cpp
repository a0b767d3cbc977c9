#include <array>
#include <complex>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/output_mixed_lora.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

} // namespace

TEST_CASE("LoRA with mixed outputs and its gradients, by hand") {
    // Two modules of rank 1, two features to one; the second row has no task.
    const std::array<index_t, 2> entry{0, -1};
    const tensor_view<const index_t, 1> entry_of_row(entry.data(), {2});
    tensor<double, 2> x({2, 2}), weights({1, 2}), y({2, 1});
    tensor<double, 3> a({2, 2, 1}), b({2, 1, 1});
    x.values() = {1, 2, 3, 4};
    a.values() = {1, 3, 2, -1};
    b.values() = {2, 5};
    weights.values() = {0.5, 3};
    y.values() = {10, 20};
    // The second module gives x a = 0 for the first row: take a(1, 1, 0) = 1, so that x a = (7, 4).
    a(1, 1, 0) = 1;
    reference::output_mixed_lora_forward(entry_of_row, x.const_view(), a.const_view(),
                                         b.const_view(), weights.const_view(), 0.5, y.view());
    // 10 + 0.5 (0.5 7 2 + 3 4 5)
    CHECK(y.values() == std::vector<double>{43.5, 20});

    tensor<double, 2> d_y({2, 1}), d_x({2, 2}), d_weights({1, 2});
    tensor<double, 3> d_a({2, 2, 1}), d_b({2, 1, 1});
    d_y.values() = {4, 1000};
    d_x.values() = {1, 1, 1, 1};
    d_a.values() = {1, 1, 1, 1};
    d_b.values() = {1, 1};
    d_weights.values() = {1, 1};
    reference::output_mixed_lora_backward(
        entry_of_row, x.const_view(), a.const_view(), b.const_view(), weights.const_view(), 0.5,
        d_y.const_view(), d_x.view(), d_a.view(), d_b.view(), d_weights.view());
    // scale d_y = 2; d_hidden = 2 (0.5 2, 3 5) = (2, 30): d_x = 2 (1, 3) + 30 (2, 1).
    CHECK(d_x.values() == std::vector<double>{63, 37, 1, 1});
    CHECK(d_a.values() == std::vector<double>{3, 5, 31, 61});
    CHECK(d_b.values() == std::vector<double>{8, 25});        // 2 (0.5 7, 3 4)
    CHECK(d_weights.values() == std::vector<double>{29, 41}); // 2 (7 2, 4 5)
}

TEST_CASE("absent gradients of LoRA with mixed outputs are skipped") {
    const index_t entry = 0;
    const tensor_view<const index_t, 1> entry_of_row(&entry, {1});
    const std::array<double, 5> values{3, 5, 7, 2, 1};
    const tensor_view<const double, 2> x(&values[0], {1, 1}), w(&values[3], {1, 1}),
        d_y(&values[4], {1, 1});
    const tensor_view<const double, 3> a(&values[1], {1, 1, 1}), b(&values[2], {1, 1, 1});
    std::array<double, 4> d{};
    const auto call = [&](const tensor_view<double, 2>& d_x, const tensor_view<double, 3>& d_a,
                          const tensor_view<double, 3>& d_b, const tensor_view<double, 2>& d_w) {
        reference::output_mixed_lora_backward<double>(entry_of_row, x, a, b, w, 1, d_y, d_x, d_a,
                                                      d_b, d_w);
    };
    call({}, {}, {}, {});
    call({&d[0], {1, 1}}, {}, {}, {});
    call({}, {&d[1], {1, 1, 1}}, {}, {});
    call({}, {}, {&d[2], {1, 1, 1}}, {});
    call({}, {}, {}, {&d[3], {1, 1}});
    CHECK(d == std::array<double, 4>{70, 42, 30, 105});
}

TEST_CASE("gradients of LoRA with mixed outputs against complex step") {
    const std::array<index_t, 6> entry{1, -1, 0, 1, 1, 0};
    const tensor_view<const index_t, 1> entry_of_row(entry.data(), {6});
    const double scale = 0.375;
    random_source random(31);
    tensor<double, 2> x({6, 5}), weights({2, 3}), d_y({6, 4});
    tensor<double, 3> a({3, 5, 2}), b({3, 2, 4});
    random.fill(x.view());
    random.fill(weights.view());
    random.fill(a.view());
    random.fill(b.view());
    random.fill(d_y.view());
    weights(1, 2) = 0; // whose gradient is not 0

    struct gradients {
        tensor<double, 2> x{{6, 5}}, weights{{2, 3}};
        tensor<double, 3> a{{3, 5, 2}}, b{{3, 2, 4}};
    };
    const auto backward = [&](const auto& x_, const auto& a_, const auto& b_, const auto& w_,
                              const auto& d_y_) {
        gradients d;
        reference::output_mixed_lora_backward(
            entry_of_row, x_.const_view(), a_.const_view(), b_.const_view(), w_.const_view(), scale,
            d_y_.const_view(), d.x.view(), d.a.view(), d.b.view(), d.weights.view());
        return d;
    };
    gradients d = backward(x, a, b, weights, d_y);
    gradients size =
        backward(magnitudes_as<double>(x.view()), magnitudes_as<double>(a.view()),
                 magnitudes_as<double>(b.view()), magnitudes_as<double>(weights.view()),
                 magnitudes_as<double>(d_y.view()));

    auto cx = copy_as<complex>(x.view());
    auto ca = copy_as<complex>(a.view());
    auto cb = copy_as<complex>(b.view());
    auto cw = copy_as<complex>(weights.view());
    const auto f = [&] {
        tensor<complex, 2> y({6, 4});
        reference::output_mixed_lora_forward(entry_of_row, cx.const_view(), ca.const_view(),
                                             cb.const_view(), cw.const_view(), complex(scale),
                                             y.view());
        return contract<complex>(y.view(), d_y.view());
    };
    const auto step_x = complex_step_gradient(f, cx.view());
    const auto step_a = complex_step_gradient(f, ca.view());
    const auto step_b = complex_step_gradient(f, cb.view());
    const auto step_w = complex_step_gradient(f, cw.view());
    const auto bound = within<double>(20);
    CHECK(compare(d.x.view(), step_x.view(), size.x.view(), bound));
    CHECK(compare(d.a.view(), step_a.view(), size.a.view(), bound));
    CHECK(compare(d.b.view(), step_b.view(), size.b.view(), bound));
    CHECK(compare(d.weights.view(), step_w.view(), size.weights.view(), bound));
    CHECK(d.weights(1, 2) != 0);

    // Planted: no gradient where the weight is 0.
    d.weights(1, 2) = 0;
    CHECK_FALSE(compare(d.weights.view(), step_w.view(), size.weights.view(), bound));
}

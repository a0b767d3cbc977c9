#include <array>
#include <cmath>
#include <complex>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/routing.hpp>

#include "support/comparison.hpp"
#include "support/gradient_check.hpp"
#include "support/random_tensor.hpp"
#include "support/routing_magnitudes.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using complex = std::complex<double>;

const double ln3 = std::log(3.0);

// A table of one task and head.
tensor<double, 3> row(std::vector<double> values) {
    tensor<double, 3> result({1, 1, static_cast<index_t>(values.size())});
    result.values() = std::move(values);
    return result;
}

const index_t first_task = 0;
const tensor_view<const index_t, 1> only_task(&first_task, {1});

// The weights that belong to the logits of one task and head.
tensor<double, 3> weights_of(const tensor<double, 3>& logits, const tensor<double, 3>& u,
                             double temperature, double epsilon) {
    tensor<double, 3> weights(logits.extents());
    reference::router_forward(logits.const_view(), only_task, u.const_view(), temperature, epsilon,
                              weights.view());
    return weights;
}

} // namespace

TEST_CASE("sigmoid, by hand") {
    CHECK(reference::sigmoid(0.0) == 0.5);
    CHECK(reference::sigmoid(ln3) == doctest::Approx(0.75).epsilon(1e-15));  // 1 / (1 + 1/3)
    CHECK(reference::sigmoid(-ln3) == doctest::Approx(0.25).epsilon(1e-15)); // 1 / (1 + 3)
    CHECK(reference::sigmoid(1e4) == 1);
    CHECK(reference::sigmoid(-1e4) == 0);
    CHECK(reference::sigmoid(-700.0) == doctest::Approx(std::exp(-700.0)).epsilon(1e-12));
    CHECK(reference::sigmoid(complex(0)) == complex(0.5));
    CHECK(reference::sigmoid(complex(-1e4)) == complex(0));
}

TEST_CASE("weights, by hand") {
    // The gates are 1/2 and 3/4, their sum is 5/4.
    const auto plain = row({0, ln3});
    const tensor<double, 3> no_noise;
    CHECK(compare(weights_of(plain, no_noise, 1, 0).view(), row({0.4, 0.6}).view(),
                  within<double>(4)));
    // An epsilon of 3/4 makes the sum 2. (And without noise the temperature plays no part.)
    CHECK(compare(weights_of(plain, no_noise, 9, 0.75).view(), row({0.25, 0.375}).view(),
                  within<double>(4)));

    // u = 3/4 adds log 3 to a logit: gates 3/4 and sigmoid(0) = 1/2.
    CHECK(compare(weights_of(row({0, ln3}), row({0.75, 0.25}), 1, 0).view(), row({0.6, 0.4}).view(),
                  within<double>(4)));
    // Temperature 1/2 doubles the argument: sigmoid(2 log 3) = 9/10, sigmoid(0) = 1/2.
    CHECK(compare(weights_of(row({ln3, 0}), row({0.5, 0.5}), 0.5, 0).view(),
                  row({9.0 / 14, 5.0 / 14}).view(), within<double>(4)));
}

TEST_CASE("entries take the logits of their task, heads and noise their own") {
    tensor<double, 3> logits({2, 2, 2});
    logits.values() = {0, ln3, ln3, 0, 0, 0, -ln3, ln3};
    const std::array<index_t, 3> tasks{1, 0, 1};
    tensor<double, 3> u({3, 2, 2});
    u.values().assign(12, 0.5); // adds nothing
    u(2, 0, 0) = 0.75;          // but here: gates 3/4 and 1/2
    tensor<double, 3> weights({3, 2, 2});
    tensor<double, 3> want({3, 2, 2});
    want.values() = {0.5, 0.5, 0.25, 0.75, 0.4, 0.6, 0.6, 0.4, 0.6, 0.4, 0.25, 0.75};
    reference::router_forward(logits.const_view(), tensor_view<const index_t, 1>(tasks.data(), {3}),
                              u.const_view(), 1.0, 0.0, weights.view());
    CHECK(compare(weights.view(), want.view(), within<double>(4)));
}

TEST_CASE("gradient of logits, by hand") {
    // Gates s = (1/2, 3/4), sum 5/4, d_weights = (1, 0):
    //     d_s = (1 / (5/4) - (1/2) / (25/16), -(1/2) / (25/16)) = (0.48, -0.32)
    //     d_logits = d_s s (1 - s) = (0.48 / 4, -0.32 3/16) = (0.12, -0.06), and what was there.
    const auto logits = row({0, ln3});
    const auto d_weights = row({1, 0});
    auto d_logits = row({1, 2});
    const tensor_view<const double, 3> no_noise;
    reference::router_backward(logits.const_view(), only_task, no_noise, 1.0, 0.0,
                               d_weights.const_view(), d_logits.view());
    CHECK(compare(d_logits.view(), row({1.12, 1.94}).view(), within<double>(4)));

    // With u = 1/2 and temperature 1/2, logits (0, log(3) / 2) have the same gates: slopes double.
    const auto u = row({0.5, 0.5});
    const auto half = row({0, ln3 / 2});
    d_logits = row({0, 0});
    reference::router_backward(half.const_view(), only_task, u.const_view(), 0.5, 0.0,
                               d_weights.const_view(), d_logits.view());
    CHECK(compare(d_logits.view(), row({0.24, -0.12}).view(), within<double>(8)));
}

TEST_CASE("gradient of logits against complex step, at every scale") {
    // Task 2 repeats, task 1 is absent.
    const std::array<index_t, 4> task_list{2, 0, 3, 2};
    const tensor_view<const index_t, 1> tasks(task_list.data(), {4});
    const double epsilon = 1e-12;
    random_source random(11);
    for (double temperature : {1.0, 0.3, 4.0})
        for (bool noise : {false, true})
            for (int power = -10; power <= 5; power += 3) {
                CAPTURE(temperature);
                CAPTURE(noise);
                CAPTURE(power);
                tensor<double, 3> logits({4, 3, 5});
                tensor<double, 3> u(noise ? std::array<index_t, 3>{4, 3, 5}
                                          : std::array<index_t, 3>{});
                tensor<double, 3> d_weights({4, 3, 5});
                random.fill(logits.view(), std::ldexp(1.0, power));
                random.fill(u.view(), 0.01, 0.99);
                random.fill(d_weights.view());
                const auto noise_view = noise ? u.const_view() : tensor_view<const double, 3>{};

                tensor<double, 3> d_logits({4, 3, 5});
                reference::router_backward(logits.const_view(), tasks, noise_view, temperature,
                                           epsilon, d_weights.const_view(), d_logits.view());

                auto z = copy_as<complex>(logits.view());
                const auto complex_u = copy_as<complex>(noise_view);
                tensor<complex, 3> weights({4, 3, 5});
                const auto step = complex_step_gradient(
                    [&] {
                        reference::router_forward(
                            z.const_view(), tasks,
                            noise ? complex_u.const_view() : tensor_view<const complex, 3>{},
                            complex(temperature), complex(epsilon), weights.view());
                        return contract<complex>(weights.view(), d_weights.view());
                    },
                    z.view());
                const auto magnitudes =
                    logit_gradient_magnitudes(logits.const_view(), tasks, noise_view, temperature,
                                              epsilon, d_weights.const_view());
                const auto result =
                    compare(d_logits.view(), step.view(), magnitudes.view(), within<double>(8));
                CHECK(result);
                CHECK(contract<double>(magnitudes.view(), magnitudes.view()) > 0);

                // Planted: wrong in the ninth digit.
                for (double& value : d_logits.values())
                    value *= 1 + 1e-9;
                CHECK_FALSE(
                    compare(d_logits.view(), step.view(), magnitudes.view(), within<double>(8)));
                for (index_t h = 0; h < 3; ++h)
                    for (index_t m = 0; m < 5; ++m)
                        CHECK(d_logits(1, h, m) == 0);
            }
}

#include "examples/cross_task/adam.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>

using namespace cross_task;

TEST_CASE("adam: follows the published update, step by step") {
    adam_options options;
    options.weight_decay = 0.1F;
    adam optimiser(2, options);
    std::array<float, 2> parameters{1.0F, -2.0F};
    std::array<double, 2> expected{1.0, -2.0};
    std::array<double, 2> mean{};
    std::array<double, 2> square{};
    const double rate = 0.01;
    for (int step = 1; step <= 20; ++step) {
        const std::array<float, 2> gradients{0.3F * static_cast<float>(step),
                                             std::sin(static_cast<float>(step))};
        optimiser.step(parameters.data(), gradients.data(), rate);
        for (std::size_t i = 0; i < 2; ++i) {
            const double g = static_cast<double>(gradients[i]);
            mean[i] = 0.9 * mean[i] + 0.1 * g;
            square[i] = 0.999 * square[i] + 0.001 * g * g;
            const double m = mean[i] / (1.0 - std::pow(0.9, step));
            const double v = square[i] / (1.0 - std::pow(0.999, step));
            expected[i] -= rate * 0.1 * expected[i];
            expected[i] -= rate * m / (std::sqrt(v) + 1e-8);
            CHECK(static_cast<double>(parameters[i]) == doctest::Approx(expected[i]).epsilon(1e-5));
        }
    }
}

TEST_CASE("adam: finds the minimum of a parabola") {
    adam optimiser(1);
    float parameter = 5.0F;
    const int steps = 500;
    for (int step = 0; step < steps; ++step) {
        const float gradient = 2.0F * (parameter - 1.5F);
        optimiser.step(&parameter, &gradient, 0.1 * linear_schedule(step, steps));
    }
    CHECK(parameter == doctest::Approx(1.5F).epsilon(0.01));
}

TEST_CASE("linear schedule: rises to 1, falls towards 0, never reaches either side of (0, 1]") {
    CHECK(linear_schedule(0, 100, 0.1) == doctest::Approx(0.1));
    CHECK(linear_schedule(9, 100, 0.1) == doctest::Approx(1.0));
    for (int step = 10; step < 100; ++step) {
        CHECK(linear_schedule(step, 100, 0.1) < linear_schedule(step - 1, 100, 0.1));
        CHECK(linear_schedule(step, 100, 0.1) > 0.0);
    }
    CHECK(linear_schedule(0, 1) == doctest::Approx(1.0));
    CHECK(linear_schedule(0, 10, 0.0) == doctest::Approx(1.0));
    CHECK(linear_schedule(9, 10, 1.0) == doctest::Approx(1.0));
}

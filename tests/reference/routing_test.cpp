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

reference::routing_options<double> with_epsilon(double epsilon) {
    reference::routing_options<double> options;
    options.epsilon = epsilon;
    return options;
}

// The weights that belong to the logits of one task and head.
tensor<double, 3> weights_of(const tensor<double, 3>& logits,
                             const reference::routing_options<double>& options) {
    tensor<double, 3> weights(logits.extents());
    reference::router_forward(logits.const_view(), only_task, options, weights.view());
    return weights;
}
// And what `d_weights` adds to logits' gradients of 0.
tensor<double, 3> d_logits_of(const tensor<double, 3>& logits,
                              const reference::routing_options<double>& options,
                              const tensor<double, 3>& d_weights) {
    tensor<double, 3> d_logits(logits.extents());
    reference::router_backward(logits.const_view(), only_task, options, d_weights.const_view(),
                               d_logits.view());
    return d_logits;
}
comparison agree(const tensor<double, 3>& got, const std::vector<double>& want,
                 double roundings = 8) {
    return compare(got.view(), row(want).view(), within<double>(roundings));
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

TEST_CASE("weights of the sum, by hand") {
    // The gates are 1/2 and 3/4, their sum is 5/4.
    const auto plain = row({0, ln3});
    auto options = with_epsilon(0);
    CHECK(agree(weights_of(plain, options), {0.4, 0.6}));
    options.temperature = 9; // plays no part without uniforms
    CHECK(agree(weights_of(plain, options), {0.4, 0.6}));
    // An epsilon of 3/4 makes the sum 2.
    CHECK(agree(weights_of(plain, with_epsilon(0.75)), {0.25, 0.375}));

    // u = 3/4 adds log 3 to a logit: gates 3/4 and sigmoid(0) = 1/2.
    options = with_epsilon(0);
    const auto u = row({0.75, 0.25});
    options.uniforms = u.view();
    CHECK(agree(weights_of(plain, options), {0.6, 0.4}));
    // Temperature 1/2 doubles the argument: sigmoid(2 log 3) = 9/10, sigmoid(0) = 1/2.
    const auto half = row({0.5, 0.5});
    options.uniforms = half.view();
    options.temperature = 0.5;
    CHECK(agree(weights_of(row({ln3, 0}), options), {9.0 / 14, 5.0 / 14}));
}

TEST_CASE("gates, by hand") {
    // Without normalisation: one head and four modules have the factor 1/2.
    auto options = with_epsilon(0);
    options.normaliser = reference::normaliser_kind::average_correction;
    const auto logits = row({0, ln3, -ln3, 2 * ln3});
    CHECK(agree(weights_of(logits, options), {0.25, 0.375, 0.125, 0.45}));

    options.gate = reference::gate_kind::straight_through; // half to even: 0 for a logit of 0
    CHECK(agree(weights_of(logits, options), {0, 0.5, 0, 0.5}));
    options.gate = reference::gate_kind::identity;
    CHECK(agree(weights_of(logits, options), {0, ln3 / 2, -ln3 / 2, ln3}));

    options.gate = reference::gate_kind::sigmoid;
    const auto noise = row({2, -2, 2, 0});
    options.noise = noise.view();
    options.noise_scale = ln3 / 2; // logits of log 3, 0, 0, 2 log 3
    CHECK(agree(weights_of(logits, options), {0.375, 0.25, 0.25, 0.45}));

    const auto keep = row({1, 0, 1, 1});
    options.keep = keep.view();
    options.drop_probability = 0.5;
    CHECK(agree(weights_of(logits, options), {0.75, 0, 0.5, 0.9}));
    options.shared_module = true;
    CHECK(agree(weights_of(logits, options), {0.75, 0, 0.5, 0.5}));
    // Their gradients: slopes 2 3/16, 0, 2 1/4 and 0, times d_weights, times 1/2.
    CHECK(agree(d_logits_of(logits, options, row({8, 8, 8, 8})), {1.5, 0, 2, 0}));
    options.gate = reference::gate_kind::straight_through; // the same slopes
    CHECK(agree(d_logits_of(logits, options, row({8, 8, 8, 8})), {1.5, 0, 2, 0}));
    options.gate = reference::gate_kind::identity;
    CHECK(agree(d_logits_of(logits, options, row({8, 8, 8, 8})), {8, 0, 8, 0}));
}

TEST_CASE("normalisers, by hand") {
    reference::routing_options<double> options;
    options.gate = reference::gate_kind::identity;

    options.normaliser = reference::normaliser_kind::l2;
    CHECK(agree(weights_of(row({3, -4, 0}), options), {0.6, -0.8, 0}));
    // d_weights = (1, 0, 1): d = (1 - 0.6 0.6, 0 + 0.8 0.6, 1) / 5
    CHECK(agree(d_logits_of(row({3, -4, 0}), options, row({1, 0, 1})), {0.128, 0.096, 0.2}));
    CHECK(agree(weights_of(row({0, 0, 0}), options), {0, 0, 0}));
    CHECK(agree(weights_of(row({1e-13, 0, 0}), options), {0.1, 0, 0}));
    CHECK(agree(d_logits_of(row({1e-13, 0, 0}), options, row({1, 2, 3})), {1e12, 2e12, 3e12}));

    options.normaliser = reference::normaliser_kind::softmax;
    CHECK(agree(weights_of(row({0, ln3, ln3}), options), {1.0 / 7, 3.0 / 7, 3.0 / 7}));
    // d_weights = (7, 0, 0): d = w (d_weights - 1)
    CHECK(agree(d_logits_of(row({0, ln3, ln3}), options, row({7, 0, 0})),
                {6.0 / 7, -3.0 / 7, -3.0 / 7}));
    options.kept = 2;
    CHECK(agree(weights_of(row({0, ln3, ln3}), options), {0, 0.5, 0.5}));
    CHECK(agree(d_logits_of(row({0, ln3, ln3}), options, row({7, 4, 0})), {0, 1, -1}));
    CHECK(agree(weights_of(row({ln3, 0, ln3, ln3, 0}), options), {0.5, 0, 0.5, 0, 0})); // a tie
    options.kept = 1;
    CHECK(agree(weights_of(row({0, ln3, ln3}), options), {0, 1, 0}));
    CHECK(agree(d_logits_of(row({0, ln3, ln3}), options, row({7, 4, 0})), {0, 0, 0}));

    // Annealed: half of it and half of 1/4.
    options.annealing = 0.5;
    CHECK(agree(weights_of(row({0, ln3, 0, 0}), options), {0.125, 0.625, 0.125, 0.125}));
    options.kept = 2;
    CHECK(agree(d_logits_of(row({0, ln3, ln3}), options, row({7, 4, 0})), {0, 0.5, -0.5}));
}

TEST_CASE("heads that are off and detached, by hand") {
    reference::routing_options<double> options;
    options.gate = reference::gate_kind::straight_through;
    const auto off = row({0, -ln3}); // slopes 1/4 and 3/16
    const auto on = row({0, ln3});
    const auto d_weights = row({4, 16});
    CHECK(agree(weights_of(off, options), {0, 0}));
    CHECK(agree(d_logits_of(off, options, d_weights), {1e12, 3e12}));
    const auto of_on = d_logits_of(on, options, d_weights);
    CHECK(of_on(0, 0, 0) == doctest::Approx(-3));
    options.detached_when_off = true;
    CHECK(agree(weights_of(off, options), {0, 0}));
    CHECK(agree(d_logits_of(off, options, d_weights), {0, 0}));
    CHECK(d_logits_of(on, options, d_weights).values() == of_on.values());
    // Lengths of logits.
    options.gate = reference::gate_kind::identity;
    options.normaliser = reference::normaliser_kind::l2;
    CHECK(agree(d_logits_of(row({0, 0}), options, d_weights), {0, 0}));
    CHECK(agree(d_logits_of(row({0, 1e-13}), options, d_weights), {4e12, 16e12}));
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
    auto options = with_epsilon(0);
    options.uniforms = u.view();
    reference::router_forward(logits.const_view(), tensor_view<const index_t, 1>(tasks.data(), {3}),
                              options, weights.view());
    CHECK(compare(weights.view(), want.view(), within<double>(4)));
}

TEST_CASE("gradient of logits, by hand") {
    // Gates s = (1/2, 3/4), sum 5/4, d_weights = (1, 0):
    //     d_s = (1 / (5/4) - (1/2) / (25/16), -(1/2) / (25/16)) = (0.48, -0.32)
    //     d_logits = d_s s (1 - s) = (0.48 / 4, -0.32 3/16) = (0.12, -0.06), and what was there.
    const auto logits = row({0, ln3});
    const auto d_weights = row({1, 0});
    auto d_logits = row({1, 2});
    auto options = with_epsilon(0);
    reference::router_backward(logits.const_view(), only_task, options, d_weights.const_view(),
                               d_logits.view());
    CHECK(compare(d_logits.view(), row({1.12, 1.94}).view(), within<double>(4)));

    // With u = 1/2 and temperature 1/2, logits (0, log(3) / 2) have the same gates: slopes double.
    const auto u = row({0.5, 0.5});
    const auto half = row({0, ln3 / 2});
    d_logits = row({0, 0});
    options.uniforms = u.view();
    options.temperature = 0.5;
    reference::router_backward(half.const_view(), only_task, options, d_weights.const_view(),
                               d_logits.view());
    CHECK(compare(d_logits.view(), row({0.24, -0.12}).view(), within<double>(8)));
}

namespace {

// One of everything that options can say, in either type.
template <class S>
struct noisy_inputs {
    tensor<S, 3> noise, uniforms, keep;
};

template <class S>
noisy_inputs<S> make_inputs(const std::array<index_t, 3>& extents) {
    random_source random(12);
    noisy_inputs<S> inputs{tensor<S, 3>(extents), tensor<S, 3>(extents), tensor<S, 3>(extents)};
    for (S& value : inputs.noise.values())
        value = random.uniform(-1, 1);
    for (S& value : inputs.uniforms.values())
        value = random.uniform(0.01, 0.99);
    for (S& value : inputs.keep.values())
        value = static_cast<double>(random.integer(4) > 0);
    return inputs;
}

struct choice {
    reference::gate_kind gate;
    bool noise, uniforms, dropout, shared;
    reference::normaliser_kind normaliser;
    index_t kept;
    double temperature, annealing;
    bool detached = false;
};

template <class S>
reference::routing_options<S> options_of(const choice& c, const noisy_inputs<S>& inputs) {
    reference::routing_options<S> options;
    options.gate = c.gate;
    if (c.noise) options.noise = inputs.noise.view();
    options.noise_scale = 0.7;
    if (c.uniforms) options.uniforms = inputs.uniforms.view();
    options.temperature = c.temperature;
    if (c.dropout) options.keep = inputs.keep.view();
    options.drop_probability = 0.25;
    options.shared_module = c.shared;
    options.normaliser = c.normaliser;
    options.kept = c.kept;
    options.annealing = c.annealing;
    options.detached_when_off = c.detached;
    return options;
}

std::vector<choice> all_choices() {
    using reference::gate_kind;
    using reference::normaliser_kind;
    constexpr index_t all = 5;
    std::vector<choice> choices;
    for (double annealing : {1.0, 0.3})
        for (bool noise : {false, true}) {
            for (gate_kind gate : {gate_kind::sigmoid, gate_kind::straight_through})
                for (auto normaliser : {normaliser_kind::sum, normaliser_kind::average_correction})
                    for (bool wrapped : {false, true})
                        for (double temperature : {1.0, 0.3, 4.0})
                            choices.push_back({gate, noise && wrapped, noise, wrapped, wrapped,
                                               normaliser, all, temperature, annealing});
            const auto add_of_logits = [&](normaliser_kind normaliser, index_t kept) {
                choices.push_back({gate_kind::identity, noise, false, false, false, normaliser,
                                   kept, 1, annealing});
            };
            choices.push_back({gate_kind::straight_through, noise, false, false, false,
                               normaliser_kind::sum, all, 1, annealing, true});
            add_of_logits(normaliser_kind::l2, all);
            for (index_t kept : {all, index_t{3}, index_t{1}})
                add_of_logits(normaliser_kind::softmax, kept);
        }
    return choices;
}

} // namespace

TEST_CASE("gradient of logits against complex step, at every scale") {
    // Task 2 repeats, task 1 is absent.
    const std::array<index_t, 4> task_list{2, 0, 3, 2};
    const tensor_view<const index_t, 1> tasks(task_list.data(), {4});
    const auto inputs = make_inputs<double>({4, 3, 5});
    const auto complex_inputs = make_inputs<complex>({4, 3, 5});
    random_source random(11);
    for (const choice& c : all_choices())
        for (int power = -10; power <= 5; power += 3) {
            CAPTURE(static_cast<int>(c.gate));
            CAPTURE(static_cast<int>(c.normaliser));
            CAPTURE(c.kept);
            CAPTURE(c.noise);
            CAPTURE(c.uniforms);
            CAPTURE(c.temperature);
            CAPTURE(c.annealing);
            CAPTURE(c.detached);
            CAPTURE(power);
            tensor<double, 3> logits({4, 3, 5});
            tensor<double, 3> d_weights({4, 3, 5});
            random.fill(logits.view(), std::ldexp(1.0, power));
            random.fill(d_weights.view());
            const auto options = options_of(c, inputs);
            const auto complex_options = options_of(c, complex_inputs);

            tensor<double, 3> d_logits({4, 3, 5});
            reference::router_backward(logits.const_view(), tasks, options, d_weights.const_view(),
                                       d_logits.view());

            // Straight-through gates carry the derivative of the sigmoid; which modules the softmax
            // keeps is decided by real parts, that do not move.
            auto z = copy_as<complex>(logits.view());
            tensor<complex, 3> weights({4, 3, 5});
            const auto step = complex_step_gradient(
                [&] {
                    reference::router_forward(z.const_view(), tasks, complex_options,
                                              weights.view());
                    return contract<complex>(weights.view(), d_weights.view());
                },
                z.view());
            const auto magnitudes = logit_gradient_magnitudes(logits.const_view(), tasks, options,
                                                              d_weights.const_view());
            const auto check = [&] {
                return compare(d_logits.view(), step.view(), magnitudes.view(), within<double>(10));
            };
            CHECK(check());
            CHECK(contract<double>(magnitudes.view(), magnitudes.view()) > 0);
            for (index_t h = 0; h < 3; ++h)
                for (index_t m = 0; m < 5; ++m)
                    CHECK(d_logits(1, h, m) == 0);

            // Planted: wrong in the ninth digit. (The only one that is kept has a gradient of 0.)
            if (c.normaliser == reference::normaliser_kind::softmax && c.kept == 1) continue;
            for (double& value : d_logits.values())
                value *= 1 + 1e-9;
            CHECK_FALSE(check());
        }
}

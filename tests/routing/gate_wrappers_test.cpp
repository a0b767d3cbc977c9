#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/router.hpp>

#include "support/bad_arguments.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/part_checks.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr std::array<index_t, 3> extents{2, 3, 4};

template <class F>
void for_each_gate(F&& f) {
    for_each_position(extents, [&](const position<3>& at) {
        f(gate_position{at[0], at[1], at[2], extents[2]});
    });
}

const double infinity = std::numeric_limits<double>::infinity();
const double quiet_nan = std::numeric_limits<double>::quiet_NaN();

} // namespace

TEST_CASE("noise of any element type is added to the logit, each weight its own, in every layout") {
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            guarded_tensor<3> noise(type, extents, order);
            noise.fill(random_source(61), -3, 3);
            const noisy_gate logits{identity_gate{}, noise.const_ref(), 0.5};
            const noisy_gate gates{sigmoid_gate{}, noise.const_ref(), -2};
            for_each_gate([&](const gate_position& at) {
                const double draw = element(noise.const_ref(), {at.entry, at.head, at.module});
                CHECK(logits.value(0.25, at) == 0.25 + 0.5 * draw);
                CHECK(logits.slope(0.25, at) == 1);
                CHECK(gates.value(0.25, at) == sigmoid_gate{}.value(0.25 - 2 * draw, at));
                CHECK(gates.slope(0.25, at) == sigmoid_gate{}.slope(0.25 - 2 * draw, at));
                CHECK(gates.value(0.25F, at) ==
                      sigmoid_gate{}.value(0.25F - 2 * static_cast<float>(draw), at));
            });
        }
}

TEST_CASE("noise has a scale of 1 if none is given; 0 switches it off") {
    guarded_buffer<float, 3> noise(extents);
    noise.fill(3);
    const gate_position at{1, 2, 3, 4};
    CHECK((noisy_gate{identity_gate{}, noise.const_view()}).value(1.0, at) == 4);
    CHECK((noisy_gate{identity_gate{}, noise.const_view(), 0}).value(1.0, at) == 1);
}

TEST_CASE_TEMPLATE("dropout scales what is kept and silences the rest, for masks of any type" *
                       needs_same_bits(),
                   K, bool, std::uint8_t, int, std::int64_t, float, double) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<K, 3> keep(extents, order);
        random_source random(67);
        for_each_position(extents, [&](const position<3>& at) {
            element(keep.view(), at) = static_cast<K>(random.integer(2));
        });
        const dropout_gate gate{sigmoid_gate{}, keep.const_view(), 0.75};
        index_t dropped = 0;
        for_each_gate([&](const gate_position& at) {
            const bool kept = !is_exactly(keep(at.entry, at.head, at.module), 0);
            dropped += kept ? 0 : 1;
            CHECK(gate.value(1.5, at) == (kept ? 4 * sigmoid_gate{}.value(1.5, at) : 0));
            CHECK(gate.slope(1.5, at) == (kept ? 4 * sigmoid_gate{}.slope(1.5, at) : 0));
        });
        CHECK(dropped > 0);
        CHECK(dropped < 24);
    }
}

TEST_CASE("any number but 0 keeps, and the mask is no factor") {
    guarded_buffer<std::uint8_t, 3> keep(extents);
    keep.fill(255);
    const dropout_gate gate{identity_gate{}, keep.const_view(), 0};
    CHECK(gate.value(2.0, gate_position{0, 0, 0, 4}) == 2);
    CHECK(gate.slope(2.0, gate_position{0, 0, 0, 4}) == 1);
    keep.fill(0);
    // A dropped logit may be anything.
    CHECK(gate.value(quiet_nan, gate_position{0, 0, 0, 4}) == 0);
    CHECK(gate.slope(infinity, gate_position{0, 0, 0, 4}) == 0);
}

TEST_CASE("dropout of everything: weights and gradients of 0") {
    guarded_buffer<bool, 3> keep({1, 2, 3});
    guarded_buffer<float, 3> logits({1, 2, 3}), weights({1, 2, 3}), d_weights({1, 2, 3}),
        d_logits({1, 2, 3});
    keep.fill(false);
    logits.fill(1);
    d_weights.fill(2);
    d_logits.fill(5);
    const int task = 0;
    const tensor_view<const int, 1> tasks(&task, {1});
    const routing_rule rule{dropout_gate{sigmoid_gate{}, keep.const_view(), 0.5}};
    router_forward(serial_executor{}, logits.const_view(), tasks, rule, weights.view());
    router_backward(serial_executor{}, logits.const_view(), tasks, rule, d_weights.const_view(),
                    d_logits.view());
    for_each_position(weights.view().extents(), [&](const position<3>& at) {
        CHECK(element(weights.view(), at) == 0);
        CHECK(element(d_logits.view(), at) == 5);
    });
    // One that is kept has all the weight.
    keep(0, 1, 2) = true;
    router_forward(serial_executor{}, logits.const_view(), tasks, rule, weights.view());
    CHECK(weights(0, 1, 2) == 1);
    CHECK(weights(0, 1, 1) == 0);
    CHECK(weights(0, 0, 2) == 0);
}

TEST_CASE("the shared module is on, without gradient; the others keep their gates") {
    const shared_module_gate gate{sigmoid_gate{}};
    for_each_gate([&](const gate_position& at) {
        const bool shared = at.module == 3;
        CHECK(gate.value(-0.5, at) == (shared ? 1 : sigmoid_gate{}.value(-0.5, at)));
        CHECK(gate.slope(-0.5, at) == (shared ? 0 : sigmoid_gate{}.slope(-0.5, at)));
        if (shared) {
            CHECK(gate.value(quiet_nan, at) == 1);
            CHECK(gate.slope(quiet_nan, at) == 0);
        }
    });
    // The number of modules decides which one that is.
    CHECK(gate.value(-0.5, gate_position{0, 0, 0, 1}) == 1);
    CHECK(gate.value(-0.5, gate_position{0, 0, 3, 5}) < 1);
}

TEST_CASE("the shared module has weight for every task and its logits learn nothing") {
    guarded_buffer<double, 3> logits({3, 2, 4}), weights({3, 2, 4}), d_weights({3, 2, 4}),
        d_logits({3, 2, 4});
    random_source random(71);
    random.fill(logits.view(), 6);
    random.fill(d_weights.view(), 6);
    d_logits.fill(0);
    const std::array<int, 3> ids{2, 0, 2};
    const tensor_view<const int, 1> tasks(ids.data(), {3});
    const routing_rule rule{shared_module_gate{straight_through_gate{}}};
    router_forward(serial_executor{}, logits.const_view(), tasks, rule, weights.view());
    router_backward(serial_executor{}, logits.const_view(), tasks, rule, d_weights.const_view(),
                    d_logits.view());
    for (index_t n = 0; n < 3; ++n)
        for (index_t h = 0; h < 2; ++h) {
            CHECK(weights(n, h, 3) > 0.24); // at most four are on
            CHECK(d_logits(n, h, 3) == 0);
            CHECK(is_exactly(d_logits(n, h, 0), 0) == (n == 1));
        }
}

TEST_CASE("wrappers compose in either order") {
    guarded_buffer<bool, 3> keep(extents);
    guarded_buffer<float, 3> noise(extents), uniforms(extents);
    keep.fill(false);
    random_source random(73);
    random.fill(noise.view(), 2);
    random.fill(uniforms.view(), 0.1, 0.9);
    const gumbel_sigmoid_gate relaxed{uniforms.const_view(), 0.5};
    const noisy_gate noisy{relaxed, noise.const_view(), 0.5};
    const shared_module_gate shared_last{dropout_gate{noisy, keep.const_view(), 0.5}};
    const dropout_gate dropped_last{shared_module_gate{noisy}, keep.const_view(), 0.5};
    const gate_position last{1, 2, 3, 4};
    const gate_position other{1, 2, 1, 4};
    CHECK(shared_last.value(0.5, last) == 1); // not dropped
    CHECK(dropped_last.value(0.5, last) == 0);
    CHECK(shared_last.value(0.5, other) == 0);
    keep.fill(true);
    CHECK(dropped_last.value(0.5, last) == 2);
    for (const gate_position& at : {other, gate_position{0, 1, 2, 4}}) {
        const double logit = 0.5 + 0.5 * static_cast<double>(noise(at.entry, at.head, at.module));
        CHECK(shared_last.value(0.5, at) == 2 * relaxed.value(logit, at));
        CHECK(shared_last.slope(0.5, at) == 2 * relaxed.slope(logit, at));
        CHECK(dropped_last.value(0.5, at) == 2 * relaxed.value(logit, at));
    }
    CHECK_NOTHROW(check_part(shared_last, 2, 3, 4));
    CHECK_NOTHROW(check_part(dropped_last, 2, 3, 4));
}

TEST_CASE("every wrapper checks its own arguments and those of the gate inside") {
    guarded_buffer<float, 3> good(extents), uniforms(extents);
    guarded_buffer<bool, 3> keep(extents);
    const auto check = [](const auto& gate) { check_part(gate, 2, 3, 4); };
    for (const auto& wrong : bad_as_input(good.view())) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses("f", "gate.noise", [&] { check(noisy_gate{sigmoid_gate{}, view, 1}); }));
        // Inside each of the three.
        const gumbel_sigmoid_gate inner{view, 1};
        CHECK(refuses("f", "gate.uniforms", [&] { check(noisy_gate{inner, good.view(), 1}); }));
        CHECK(refuses("f", "gate.uniforms", [&] { check(dropout_gate{inner, keep.view(), 0.5}); }));
        CHECK(refuses("f", "gate.uniforms", [&] { check(shared_module_gate{inner}); }));
    }
    for (const auto& wrong : bad_as_input(keep.view())) {
        CAPTURE(wrong.what);
        const auto view = wrong.view;
        CHECK(refuses("f", "gate.keep", [&] { check(dropout_gate{sigmoid_gate{}, view, 0.5}); }));
    }
    for (double bad : and_non_finite<double>({-0.1, 1.0, 1.5})) {
        CAPTURE(bad);
        CHECK(refuses("f", "gate.probability", [&] {
            check(dropout_gate{sigmoid_gate{}, keep.view(), bad});
        }));
    }
    for (double fine : {0.0, -0.0, 0.5, 1 - 1e-16})
        CHECK_NOTHROW(check(dropout_gate{sigmoid_gate{}, keep.view(), fine}));
    for (double bad : and_non_finite<double>({1e39, -1e39})) { // these are infinite in f32
        CAPTURE(bad);
        CHECK(refuses("f", "gate.scale", [&] {
            check(noisy_gate{sigmoid_gate{}, good.view(), bad});
        }));
    }
    for (double fine : {0.0, -3.0, 1e38})
        CHECK_NOTHROW(check(noisy_gate{sigmoid_gate{}, good.view(), fine}));
    // One draw, or one mask, for all entries.
    CHECK_NOTHROW(check(noisy_gate{
        sigmoid_gate{}, tensor_view<float, 3>(good.view().data(), extents, {0, 4, 1}), 1}));
    CHECK_NOTHROW(check(dropout_gate{
        sigmoid_gate{}, tensor_view<bool, 3>(keep.view().data(), extents, {0, 0, 1}), 0.5}));
}

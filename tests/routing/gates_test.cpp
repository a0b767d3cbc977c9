#include <array>
#include <cmath>
#include <complex>
#include <limits>
#include <string>
#include <type_traits>

#include <doctest/doctest.h>

#include <mhr/reference/routing.hpp>
#include <mhr/routing/gates.hpp>

#include "support/comparison.hpp"
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

constexpr gate_position origin{0, 0, 0, 1};

// Value and slope of a gate at one logit, and one uniform.
template <class A>
struct sample {
    A value;
    A slope;
};

template <class A>
sample<A> sigmoid_at(A logit) {
    return {sigmoid_gate{}.value(logit, origin), sigmoid_gate{}.slope(logit, origin)};
}

template <class U, class A>
sample<A> gumbel_at(A logit, U uniform, double temperature) {
    const gumbel_sigmoid_gate gate{{&uniform, {1, 1, 1}}, temperature};
    return {gate.value(logit, origin), gate.slope(logit, origin)};
}

template <class A>
bool is_sound(const sample<A>& s) {
    return s.value >= 0 && s.value <= 1 && s.slope >= 0 && std::isfinite(s.slope);
}

// Compares one number; `sum_roundings` in units of eps(A) |want|.
template <class A, class S>
comparison compare_number(A got, S want, double sum_roundings) {
    return compare(tensor_view<const A, 1>(&got, {1}), tensor_view<const S, 1>(&want, {1}),
                   within<A>(sum_roundings));
}

} // namespace

TEST_CASE_TEMPLATE("sigmoid and its slope keep their relative precision on both sides", A,
                   MHR_TEST_ACCUMULATORS) {
    using S = oracle_t<A>;
    random_source random(31);
    const double limit = std::is_same_v<A, float> ? 85 : 700; // where results become denormal
    for (int i = 0; i < 2000; ++i) {
        const double scale = std::ldexp(limit, -(i % 20));
        const A logit = static_cast<A>(random.uniform(-scale, scale));
        CAPTURE(logit);
        const S s = reference::sigmoid(static_cast<S>(logit));
        const S complement = reference::sigmoid(-static_cast<S>(logit));
        const auto got = sigmoid_at(logit);
        CHECK(compare_number(got.value, s, 3));
        CHECK(compare_number(got.slope, S(s * complement), 5));
    }
}

TEST_CASE("the slopes are the derivatives of the values") {
    using complex = std::complex<double>;
    random_source random(37);
    for (int i = 0; i < 200; ++i) {
        const double logit = random.uniform(-20, 20);
        const double u = random.uniform(0.01, 0.99);
        const double temperature = random.uniform(0.1, 3);
        CAPTURE(logit);
        CAPTURE(u);
        CAPTURE(temperature);
        const complex moved(logit, 1e-30);
        CHECK(compare_number(sigmoid_at(logit).slope, reference::sigmoid(moved).imag() / 1e-30, 8));
        const complex noise = std::log(u) - std::log1p(-u);
        const complex argument = (moved + noise) / temperature;
        // The argument is rounded: that moves the result by as many roundings as it is large.
        CHECK(compare_number(gumbel_at(logit, u, temperature).slope,
                             reference::sigmoid(argument).imag() / 1e-30,
                             8 + 2 * (std::abs(logit) + std::abs(noise)) / temperature));
    }
}

TEST_CASE_TEMPLATE("large logits saturate, without NaN or infinity" * needs_same_bits(), A,
                   MHR_TEST_ACCUMULATORS) {
    for (A logit : and_infinity<A>({A(1e4), A(1e10), A(1e30), std::numeric_limits<A>::max()})) {
        CAPTURE(logit);
        CHECK(sigmoid_at(logit).value == 1);
        CHECK(sigmoid_at(-logit).value == 0);
        CHECK(sigmoid_at(logit).slope == 0);
        CHECK(sigmoid_at(-logit).slope == 0);
        for (double u : {0.0, 1e-300, 0.25, 1.0})
            for (double temperature : {1e-3, 1.0, 10.0}) {
                CAPTURE(u);
                CAPTURE(temperature);
                const auto up = gumbel_at(logit, u, temperature);
                const auto down = gumbel_at(-logit, u, temperature);
                CHECK(up.value == 1);
                CHECK(down.value == 0);
                CHECK(up.slope == 0);
                CHECK(down.slope == 0);
            }
    }
    CHECK(sigmoid_at(A(0)).value == A(0.5));
    CHECK(sigmoid_at(A(-0.0)).value == A(0.5));
    CHECK(sigmoid_at(A(0)).slope == A(0.25));
    // No cancellation of 1 - s: the slope is there where s is rounded to 1.
    const A beyond = std::is_same_v<A, float> ? A(20) : A(40);
    CHECK(sigmoid_at(beyond).value == 1);
    CHECK(sigmoid_at(beyond).slope > 0);
    CHECK(sigmoid_at(beyond).slope == sigmoid_at(-beyond).slope);
}

TEST_CASE_TEMPLATE("gumbel-sigmoid agrees with the formula", A, MHR_TEST_ACCUMULATORS) {
    using S = oracle_t<A>;
    random_source random(41);
    for (int i = 0; i < 2000; ++i) {
        const A logit = static_cast<A>(std::ldexp(random.uniform(-1, 1), i % 4));
        const A u = static_cast<A>(random.uniform(0.001, 0.999));
        const double temperature = std::ldexp(random.uniform(0.5, 1), i % 3 - 1);
        CAPTURE(logit);
        CAPTURE(u);
        CAPTURE(temperature);
        const auto su = static_cast<S>(u);
        const auto st = static_cast<S>(static_cast<A>(temperature));
        reference::routing_options<S> options;
        options.uniforms = {&su, {1, 1, 1}};
        const S no_noise = 0; // as if it were absent, which GCC cannot tell from null
        options.noise = {&no_noise, {1, 1, 1}};
        options.temperature = st;
        const S argument = reference::gate_argument(options, static_cast<S>(logit), 0, 0, 0);
        const S s = reference::sigmoid(argument);
        const double terms =
            static_cast<double>((std::abs(static_cast<S>(logit)) + std::abs(std::log(su)) +
                                 std::abs(std::log(1 - su))) /
                                st);
        const auto got = gumbel_at(logit, u, temperature);
        CHECK(compare_number(got.value, s, 3 + 3 * terms));
        CHECK(compare_number(got.slope, S(s * reference::sigmoid(-argument) / st), 6 + 3 * terms));
    }
}

TEST_CASE_TEMPLATE("uniforms are moved off 0 and 1 by the epsilon, not further" * needs_same_bits(),
                   A, MHR_TEST_ACCUMULATORS) {
    constexpr A epsilon = std::numeric_limits<A>::epsilon();
    for (double temperature : {0.5, 1.0, 7.0}) {
        CHECK(is_sound(gumbel_at(A(0), A(0), temperature)));
        CHECK(gumbel_at(A(0), A(0), temperature).value ==
              gumbel_at(A(0), epsilon, temperature).value);
        CHECK(gumbel_at(A(0), epsilon, temperature).value <
              gumbel_at(A(0), 2 * epsilon, temperature).value);
        CHECK(gumbel_at(A(0), A(1), temperature).value ==
              gumbel_at(A(0), 1 - epsilon, temperature).value);
        CHECK(gumbel_at(A(3), A(0), temperature).slope ==
              gumbel_at(A(3), epsilon, temperature).slope);
    }
    // A logit of 0 with temperature 1 gives back u.
    CHECK(compare_number(gumbel_at(A(0), A(0), 1).value, static_cast<double>(epsilon),
                         4 - 4 * std::log(epsilon_of<A>())));
    CHECK(compare_number(gumbel_at(A(0), A(0.3), 1).value, static_cast<double>(A(0.3)), 8));
    CHECK(gumbel_at(A(0), A(0.5), 1).value == A(0.5));
    // In 1 - u the same distance is left.
    CHECK(gumbel_at(A(0), A(1), 1).value < 1);
    CHECK(gumbel_at(A(0), A(1), 1).slope > 0);
}

TEST_CASE("uniforms of every element type are read as they are" * needs_same_bits()) {
    for (element_type type : all_element_types)
        for (float u : {0.F, 0.125F, 0.6640625F, 1.F}) { // the same number in all four types
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(u);
            guarded_tensor<3> uniforms(type, {1, 1, 1});
            uniforms.fill(static_cast<double>(u));
            const gumbel_sigmoid_gate gate{uniforms, 0.7};
            CHECK(gate.value(1.5, origin) == gumbel_at(1.5, static_cast<double>(u), 0.7).value);
            CHECK(gate.slope(1.5F, origin) == gumbel_at(1.5F, u, 0.7).slope);
        }
}

TEST_CASE("the temperature divides, in value and slope") {
    // logit + log u - log(1 - u) = 2 - 0; T -> 0 is a step, T -> infinity makes all equal.
    CHECK(gumbel_at(2.0, 0.5, 2).value == sigmoid_at(1.0).value);
    CHECK(gumbel_at(2.0, 0.5, 2).slope == sigmoid_at(1.0).slope / 2);
    CHECK(gumbel_at(2.0, 0.5, 0.5).value == sigmoid_at(4.0).value);
    CHECK(gumbel_at(2.0, 0.5, 0.5).slope == sigmoid_at(4.0).slope * 2);
    CHECK(gumbel_at(2.0, 0.5, 1e-4).value == 1);
    CHECK(gumbel_at(-2.0, 0.5, 1e-4).value == 0);
    CHECK(gumbel_at(2.0, 0.5, 1e12).value == doctest::Approx(0.5).epsilon(1e-11));
}

TEST_CASE("each weight takes its own uniform, in every layout" * needs_same_bits()) {
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<float, 3> uniforms({2, 3, 4}, order);
        random_source(1).fill(uniforms.view(), 0.1, 0.9);
        const gumbel_sigmoid_gate gate{uniforms.const_view(), 0.5};
        for_each_position(std::array<index_t, 3>{2, 3, 4}, [&](const position<3>& where) {
            const auto [n, h, m] = where;
            const gate_position at{n, h, m, 4};
            CHECK(gate.value(0.25F, at) == gumbel_at(0.25F, uniforms(n, h, m), 0.5).value);
            CHECK(gate.slope(0.25F, at) == gumbel_at(0.25F, uniforms(n, h, m), 0.5).slope);
        });
    }
}

TEST_CASE("a gate refuses uniforms of another shape and temperatures that are none") {
    guarded_buffer<float, 3> uniforms({2, 3, 4});
    const auto check = [&](const tensor_view<float, 3>& u, double temperature) {
        check_part(gumbel_sigmoid_gate{u, temperature}, 2, 3, 4);
    };
    CHECK_NOTHROW(check(uniforms.view(), 0.5));
    CHECK_NOTHROW(check_part(gumbel_sigmoid_gate{uniforms.view()}, 2, 3, 4));
    CHECK_NOTHROW(check({uniforms.view().data(), {2, 3, 4}, {0, 0, 0}}, 1)); // one draw for all
    for (std::size_t axis = 0; axis < 3; ++axis)
        CHECK(refuses("f", "gate.uniforms", [&] { check(uniforms.view().block(axis, 0, 1), 1); }));
    CHECK(refuses("f", "gate.uniforms", [&] { check({}, 1); }));
    CHECK(refuses("f", "gate.uniforms", [&] { check({nullptr, {2, 3, 4}}, 1); }));

    for (double bad : and_non_finite<double>({0.0, -0.0, -1.0})) {
        CAPTURE(bad);
        CHECK(refuses("f", "gate.temperature", [&] { check(uniforms.view(), bad); }));
    }
    CHECK_NOTHROW(check_part(sigmoid_gate{}, 2, 3, 4));
}

TEST_CASE("a temperature that is 0 in f32 is refused, or gives numbers all the same") {
    // 0 / 0 where the argument is 0, unless it is looked after.
    const float u = 0.5F;
    const gumbel_sigmoid_gate gate{{&u, {1, 1, 1}}, 1e-60};
    bool refused = false;
    try {
        check_part(gate, 1, 1, 1);
    } catch (const error&) {
        refused = true;
    }
    CHECK((refused || is_sound(gumbel_at(0.F, u, 1e-60))));
}

TEST_CASE_TEMPLATE("straight-through: the rounded sigmoid with the slope of the sigmoid", A,
                   MHR_TEST_ACCUMULATORS) {
    const straight_through_gate gate;
    constexpr A epsilon = std::numeric_limits<A>::epsilon();
    random_source random(59);
    for (int i = 0; i < 500; ++i) {
        const A logit = static_cast<A>(std::ldexp(random.uniform(-1, 1), i % 8));
        CAPTURE(logit);
        if (std::abs(logit) < 8 * epsilon) continue;
        CHECK(gate.value(logit, origin) == (logit > 0 ? 1 : 0));
        CHECK(gate.slope(logit, origin) == sigmoid_at(logit).slope);
    }
    // Half to even: a sigmoid of 1/2, or one that rounds to it, is off.
    for (A off : {A(0), A(-0.0), epsilon / 4, epsilon / 16, A(1e-30),
                  std::numeric_limits<A>::denorm_min(), -epsilon, -epsilon / 4, A(-1e-30)}) {
        CAPTURE(off);
        CHECK(gate.value(off, origin) == 0);
        CHECK_FALSE(std::signbit(gate.value(off, origin)));
        CHECK(gate.slope(off, origin) == A(0.25));
    }
    for (A on : and_infinity<A>({8 * epsilon, A(1e-3), A(40), A(1e30)})) {
        CAPTURE(on);
        CHECK(gate.value(on, origin) == 1);
        CHECK(gate.value(-on, origin) == 0);
        CHECK(gate.slope(on, origin) == gate.slope(-on, origin));
        CHECK(std::isfinite(gate.slope(on, origin)));
    }
    CHECK((is_fast_math || std::isnan(gate.value(std::numeric_limits<A>::quiet_NaN(), origin))));
    CHECK_NOTHROW(check_part(gate, 2, 3, 4));
}

TEST_CASE_TEMPLATE("the identity gives the logit, with slope 1", A, MHR_TEST_ACCUMULATORS) {
    const identity_gate gate;
    for (A logit : and_infinity<A>({A(0), A(-3.25), A(1e30)})) {
        CHECK(gate.value(logit, origin) == logit);
        CHECK(gate.slope(logit, origin) == 1);
    }
    CHECK((is_fast_math || std::isnan(gate.value(std::numeric_limits<A>::quiet_NaN(), origin))));
    CHECK_NOTHROW(check_part(gate, 2, 3, 4));
}

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/training/routing_statistics.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

using wide = long double;

wide log2_times(wide p) {
    return p > 0 ? p * std::log2(p) : 0;
}

/// From the formulas, one precision higher.
struct expected_statistics {
    wide active = 0, discreteness = 0, efficiency = 0;
};
expected_statistics expect(const tensor<wide, 3>& logits) {
    const auto [tasks, heads, modules] = logits.extents();
    const auto gate = [&](index_t t, index_t h, index_t m) {
        return 1 / (1 + std::exp(-logits(t, h, m)));
    };
    expected_statistics e;
    wide total = 0;
    for (index_t t = 0; t < tasks; ++t)
        for (index_t h = 0; h < heads; ++h)
            for (index_t m = 0; m < modules; ++m) {
                const wide p = gate(t, h, m);
                const wide shut = 1 / (1 + std::exp(logits(t, h, m)));
                // log(1 + ..) has digits where p is next to 1.
                const wide bits = std::log1p(std::exp(-logits(t, h, m))) / std::log(2.0L);
                const wide bits_shut = std::log1p(std::exp(logits(t, h, m))) / std::log(2.0L);
                e.active += std::floor(p + 0.5L);
                e.discreteness += p * bits + shut * bits_shut;
                total += p;
            }
    for (index_t h = 0; h < heads; ++h)
        for (index_t m = 0; m < modules; ++m) {
            wide use = 0;
            for (index_t t = 0; t < tasks; ++t)
                use += gate(t, h, m);
            e.efficiency -= log2_times(use / total);
        }
    const auto count = static_cast<wide>(tasks * heads * modules);
    return {e.active / count, e.discreteness / count,
            e.efficiency / std::log2(static_cast<wide>(heads * modules))};
}

bool near(double got, wide want, double tolerance = 1e-14) {
    return std::abs(got - want) <= tolerance * std::abs(want) + 1e-300L;
}

/// All entries alike.
routing_statistics of_equal(double logit, index_t tasks = 2, index_t heads = 3,
                            index_t modules = 4) {
    return routing_statistics_of(
        tensor_view<const double, 3>(&logit, {tasks, heads, modules}, {0, 0, 0}));
}

tensor<double, 3> table(const std::array<index_t, 3>& extents, const std::vector<double>& values) {
    tensor<double, 3> result(extents);
    result.values() = values;
    return result;
}

} // namespace

TEST_CASE("statistics agree with the formulas, for every type and layout") {
    random_source random(1);
    for (element_type type : all_element_types)
        for (const std::array<index_t, 3>& extents :
             {std::array<index_t, 3>{1, 1, 2}, {1, 2, 1}, {5, 3, 7}, {40, 1, 8}, {2, 32, 8}})
            for (double scale : {0.01, 2.0, 30.0})
                for (layout order : all_layouts) {
                    CAPTURE(std::string(name_of(type)));
                    CAPTURE(to_text(extents));
                    CAPTURE(scale);
                    CAPTURE(name_of(order));
                    guarded_tensor<3> logits(type, extents, order);
                    logits.fill(random, -scale, scale);
                    const auto want = expect(values_as<wide>(logits.const_ref()));
                    const routing_statistics got = routing_statistics_of(logits.const_ref());
                    CHECK(near(got.active_share, want.active));
                    CHECK(near(got.discreteness, want.discreteness));
                    // The shares are next to 1, and their logarithms are 0 but for rounding.
                    CHECK(std::abs(got.efficiency - want.efficiency) < 1e-14L);
                }
}

TEST_CASE("statistics of known tables") {
    // Undecided: p = 1/2 counts as active.
    CHECK(of_equal(0).active_share == 1);
    CHECK(of_equal(0).discreteness == 1);
    CHECK(of_equal(0).efficiency == doctest::Approx(1).epsilon(1e-15));
    CHECK(of_equal(-1e-300).active_share == 0);
    // p = 3/4: 2 - 3/4 log2(3) bits.
    CHECK(of_equal(std::log(3.0)).discreteness ==
          doctest::Approx(2 - 0.75 * std::log2(3.0)).epsilon(1e-15));
    // Each task has a module of its own, or all have the same.
    const auto own = routing_statistics_of(table({2, 1, 2}, {99, -99, -99, 99}).view());
    CHECK(own.active_share == 0.5);
    CHECK(own.efficiency == doctest::Approx(1).epsilon(1e-15));
    const auto same = routing_statistics_of(table({2, 1, 2}, {99, -99, 99, -99}).view());
    CHECK(same.active_share == 0.5);
    CHECK(same.efficiency < 1e-15);
    // Uses 1/4, 1/4, 1/2 and 0 of four: 1.5 bits of 2.
    const auto uneven =
        routing_statistics_of(table({2, 2, 2}, {infinity, -infinity, infinity, -infinity, //
                                                -infinity, infinity, infinity, -infinity})
                                  .view());
    CHECK(uneven.efficiency == doctest::Approx(0.75).epsilon(1e-15));
    CHECK(uneven.active_share == 0.5);
    CHECK(uneven.discreteness == 0);
}

TEST_CASE("one module of one head is used evenly") {
    CHECK(of_equal(1.5, 3, 1, 1).efficiency == 1);
    CHECK(of_equal(-infinity, 3, 1, 1).efficiency == 1);
}

TEST_CASE("statistics of extreme logits are numbers") {
    for (double logit : {800.0, 1e30, infinity}) {
        CAPTURE(logit);
        const auto open = of_equal(logit);
        CHECK(open.active_share == 1);
        CHECK(open.discreteness == 0);
        CHECK(open.efficiency == doctest::Approx(1).epsilon(1e-15));
        const auto shut = of_equal(-logit);
        CHECK(shut.active_share == 0);
        CHECK(shut.discreteness == 0);
        CHECK(shut.efficiency == 0);
    }
    // Far beyond where 1 - p is 0: about |l| e^-|l| / log 2.
    CHECK(near(of_equal(100).discreteness, 101 * std::exp(-100.0L) / std::log(2.0L)));
    CHECK(of_equal(100).discreteness == of_equal(-100).discreteness);
    CHECK(of_equal(-700).efficiency == doctest::Approx(1).epsilon(1e-12));
}

TEST_CASE("statistics of nothing, or of NaN, are NaN") {
    for (const std::array<index_t, 3>& extents :
         {std::array<index_t, 3>{0, 1, 1}, {3, 0, 2}, {3, 2, 0}}) {
        const auto none = routing_statistics_of(tensor<double, 3>(extents).view());
        CHECK(std::isnan(none.active_share));
        CHECK(std::isnan(none.discreteness));
        CHECK(std::isnan(none.efficiency));
    }
    const auto spoilt = routing_statistics_of(table({1, 1, 2}, {0, not_a_number}).view());
    CHECK(std::isnan(spoilt.active_share));
    CHECK(std::isnan(spoilt.discreteness));
    CHECK(std::isnan(spoilt.efficiency));
}

TEST_CASE("statistics do not depend on the order of tasks, heads and modules") {
    tensor<double, 3> logits({6, 4, 5});
    random_source random(3);
    random.fill(logits.view(), 4);
    const auto want = routing_statistics_of(logits.view());
    const auto check = [&](const tensor_view<double, 3>& view) {
        const auto got = routing_statistics_of(view);
        CHECK(got.active_share == want.active_share);
        CHECK(near(got.discreteness, want.discreteness));
        CHECK(near(got.efficiency, want.efficiency));
    };
    check(logits.view().transpose(1, 2));
    const auto last = &logits(5, 3, 4);
    check({last, {6, 4, 5}, {-20, -5, -1}});
    // Twice the tasks, the other half alike.
    check(tensor_view<double, 3>(logits.values().data(), {6, 4, 5}));
    tensor<double, 3> twice({12, 4, 5});
    for_each_position(twice.extents(), [&](const position<3>& at) {
        element(twice.view(), at) = logits(at[0] % 6, at[1], at[2]);
    });
    check(twice.view());
}

TEST_CASE("the entropy of known weights") {
    const auto entropy_of = [](const std::vector<double>& weights) {
        tensor<double, 2> entropy({1, 1});
        routing_entropy(table({1, 1, static_cast<index_t>(weights.size())}, weights).view(),
                        entropy.view());
        return entropy(0, 0);
    };
    CHECK(entropy_of({1, 0, 0}) == 0);
    CHECK(entropy_of({0, 0.3, 0}) == 0);
    CHECK(entropy_of({0.25, 0.25, 0.25, 0.25}) == 2);
    CHECK(entropy_of({1, 1}) == 1);
    CHECK(entropy_of({4, 2, 1, 1}) == doctest::Approx(1.75).epsilon(1e-15));
    CHECK(entropy_of({0, 0, 0}) == 0);
    CHECK(entropy_of({}) == 0);
    // Sums that overflow, and shares that vanish beside 1.
    CHECK(entropy_of({1e308, 1e308, 1e308, 1e308}) == 2);
    CHECK(entropy_of({1e-310, 1e-310}) == 1);
    CHECK(entropy_of({1, 1e-300}) == doctest::Approx(1e-300 * std::log2(1e300)).epsilon(1e-6));
}

TEST_CASE("the entropy of weights agrees with the formula, for every type and layout") {
    const std::array<index_t, 3> extents{5, 3, 7};
    for (element_type type : all_element_types)
        for (element_type of_entropy : all_element_types)
            for (layout order : all_layouts) {
                CAPTURE(std::string(name_of(type)));
                CAPTURE(std::string(name_of(of_entropy)));
                CAPTURE(name_of(order));
                guarded_tensor<3> weights(type, extents, order);
                guarded_tensor<2> entropy(of_entropy, {5, 3}, order);
                weights.fill(random_source(2), 0, 3);
                set_element(weights.ref(), {0, 0, 0}, 0);
                const auto values = values_as<wide>(weights.const_ref());
                tensor<wide, 2> want({5, 3});
                for (index_t t = 0; t < 5; ++t)
                    for (index_t h = 0; h < 3; ++h) {
                        wide sum = 0;
                        for (index_t m = 0; m < 7; ++m)
                            sum += values(t, h, m);
                        for (index_t m = 0; m < 7; ++m)
                            want(t, h) -= log2_times(values(t, h, m) / sum);
                    }
                routing_entropy(weights.const_ref(), entropy.ref());
                // A 16-bit result is rounded to f32 and then to its type.
                const element_type sums = sums_of(of_entropy, of_entropy);
                CHECK(compare(entropy.const_ref(), want.view(), within(sums, 4)));
                CHECK(entropy.intact());
            }
}

TEST_CASE("routing statistics are made without allocation") {
    tensor<float, 3> logits({4, 2, 3});
    tensor<float, 2> entropy({4, 2});
    CHECK(allocations_of([&] {
              (void)routing_statistics_of(logits.view());
              routing_entropy(logits.view(), entropy.view());
          }) == 0);
}

TEST_CASE("bad input of the routing statistics") {
    guarded_tensor<3> weights(element_type::f32, {2, 3, 4});
    guarded_tensor<2> entropy(element_type::f32, {2, 3});
    weights.fill(0.25);
    for (const auto& bad : bad_as_input(weights.const_ref(), {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses("routing_statistics_of", "logits",
                      [&] { (void)routing_statistics_of(bad.ref); }));
        CHECK(refuses(
            "routing_entropy", "weights", [&] { routing_entropy(bad.ref, entropy.ref()); },
            entropy));
    }
    for (const auto& bad : bad_as_output(entropy.ref())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "routing_entropy", "entropy", [&] { routing_entropy(weights.ref(), bad.ref); },
            entropy));
    }
    for (double bad : {-1e-30, -infinity, infinity, not_a_number}) {
        CAPTURE(bad);
        set_element(weights.ref(), {1, 2, 3}, bad);
        CHECK(refuses(
            "routing_entropy", "weights", [&] { routing_entropy(weights.ref(), entropy.ref()); },
            entropy));
    }
    // There is nothing to do.
    float* const none = nullptr;
    routing_entropy({none, {0, 3, 4}}, {none, {0, 3}});
}

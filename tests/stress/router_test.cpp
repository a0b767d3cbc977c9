// The router at the ends: logits of +-1e30, temperatures down to 1e-3, and numbers that are not
// finite, which stay with their task and head.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/router.hpp>

#include "support/comparison.hpp"
#include "support/fast_math.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
#include "support/routing_problem.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

template <class View>
bool all_finite(const View& view) {
    bool result = true;
    for_each_position(view.extents(), [&](const auto& at) {
        // Not isfinite: -ffast-math believes that everything is.
        result = result && std::abs(element(view, at)) <= std::numeric_limits<float>::max();
    });
    return result;
}

/// Checks that all heads of all entries but one have the same bits, and so have the logits of all
/// tasks but one.
void check_others(f32_problem& got, f32_problem& want, index_t entry, index_t head) {
    for (index_t n = 0; n < got.entries(); ++n)
        for (index_t h = 0; h < got.logits.view().extent(1); ++h) {
            if (n == entry && h == head) continue;
            CAPTURE(n);
            CAPTURE(h);
            const auto head_of = [&](const auto& view, index_t first) {
                return view.slice(0, first).slice(0, h);
            };
            CHECK(compare_bitwise(head_of(got.weights.view(), n), head_of(want.weights.view(), n)));
            const index_t task = got.task_list[static_cast<std::size_t>(n)];
            CHECK(compare_bitwise(head_of(got.d_logits.view(), task),
                                  head_of(want.d_logits.view(), task)));
        }
}

void run(f32_problem& p) {
    p.forward();
    p.backward();
}

} // namespace

TEST_CASE("logits up to +-1e30 give finite weights and gradients under every rule") {
    constexpr float values[] = {1e30F, -1e30F, 0.F, 3e3F, -3e3F, 1.F, -1e30F, 1e-30F, -1e-30F};
    for (const rule_choice& rule : all_rules({1, 0.3}))
        for (int trial = 0; trial < 20; ++trial) {
            CAPTURE(rule.name());
            f32_problem p({1, 3, 0, 4}, 2, 6, rule, layout::row_major);
            random_source random(static_cast<std::uint64_t>(trial));
            for_each_position(p.logits.view().extents(), [&](const position<3>& at) {
                element(p.logits.view(), at) = values[random.integer(9)];
            });
            const bool gated =
                rule.gate != gate_choice::identity && rule.gate != gate_choice::noisy;
            run(p);
            REQUIRE(all_finite(p.weights.view()));
            REQUIRE(all_finite(p.d_logits.view()));
            if (rule.normaliser == reference::normaliser_kind::average_correction) continue;
            for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
                const float weight = element(p.weights.view(), at);
                REQUIRE(std::abs(weight) <= 1.0001F);
                if (gated) REQUIRE(weight >= 0);
            });
        }
}

TEST_CASE_TEMPLATE("temperatures down to 1e-3 agree with the oracle", A, double, float) {
    using S = oracle_t<A>;
    constexpr index_t entries = 20;
    constexpr index_t modules = 7;
    for (double temperature : {1.0, 0.1, 1e-2, 1e-3})
        for (double scale : {0.02, 1.0, 10.0}) {
            CAPTURE(temperature);
            CAPTURE(scale);
            tensor<A, 3> logits({entries, 2, modules}), uniforms(logits.extents());
            tensor<A, 3> weights(logits.extents()), d_weights(logits.extents());
            tensor<A, 3> d_logits(logits.extents());
            random_source random(31);
            random.fill(logits.view(), scale);
            random.fill(uniforms.view(), 0.01, 0.99);
            random.fill(d_weights.view());
            std::vector<index_t> tasks;
            for (index_t n = 0; n < entries; ++n)
                tasks.push_back(n);
            const tensor_view<const index_t, 1> ids(tasks.data(), {entries});
            const routing_rule rule{gumbel_sigmoid_gate{uniforms.view(), temperature}};
            router_forward({}, logits.view(), ids, rule, weights.view());
            router_backward({}, logits.view(), ids, rule, d_weights.view(), d_logits.view());
            const auto wide_logits = copy_as<S>(logits.view());
            const auto wide_uniforms = copy_as<S>(uniforms.view());
            const auto wide_d = copy_as<S>(d_weights.view());
            reference::routing_options<S> options;
            options.uniforms = wide_uniforms.view();
            options.temperature = static_cast<S>(temperature);
            tensor<S, 3> want(weights.extents()), d_want(weights.extents());
            reference::router_forward(wide_logits.const_view(), ids, options, want.view());
            reference::router_backward(wide_logits.const_view(), ids, options, wide_d.const_view(),
                                       d_want.view());
            // A rounding of the argument, of up to 15, is multiplied by 1 / temperature; so are
            // gradients, of which each is at most 2 / temperature.
            const double steep = 15 / temperature;
            tensor<S, 3> size(weights.extents()), d_size(weights.extents());
            std::fill(size.values().begin(), size.values().end(), S(1));
            std::fill(d_size.values().begin(), d_size.values().end(), S(2 / temperature));
            CHECK(compare(weights.view(), want.view(), size.view(),
                          within(element_type_of_v<A>, 4 * steep + 32)));
            CHECK(compare(d_logits.view(), d_want.view(), d_size.view(),
                          within(element_type_of_v<A>, 4 * steep + 32)));
        }
}

TEST_CASE("the least temperatures and the largest logits give finite numbers") {
    constexpr float values[] = {1e30F, -1e30F, 0.F, 1.F, -1.F};
    for (float temperature : {1e-3F, 1e-6F, std::numeric_limits<float>::min()}) {
        CAPTURE(temperature);
        tensor<float, 3> logits({5, 1, 5}), uniforms({5, 1, 5}), weights({5, 1, 5});
        tensor<float, 3> d_weights({5, 1, 5}), d_logits({5, 1, 5});
        random_source random(2);
        random.fill(uniforms.view(), 0, 1);
        random.fill(d_weights.view());
        for_each_position<3>({5, 1, 5}, [&](const position<3>& at) {
            element(logits.view(), at) = values[random.integer(5)];
        });
        const index_t tasks[] = {0, 1, 2, 3, 4};
        const tensor_view<const index_t, 1> ids(tasks, {5});
        const routing_rule rule{gumbel_sigmoid_gate{uniforms.view(), temperature}};
        router_forward({}, logits.view(), ids, rule, weights.view());
        router_backward({}, logits.view(), ids, rule, d_weights.view(), d_logits.view());
        CHECK(all_finite(weights.view()));
        CHECK(all_finite(d_logits.view()));
    }
}

TEST_CASE("logits that are not finite stay with their task and head, under every rule" *
          needs_non_finite()) {
    for (const rule_choice& rule : all_rules({1, 0.3}))
        for (float poison : {not_a_number, infinity, -infinity}) {
            CAPTURE(rule.name());
            CAPTURE(poison);
            f32_problem want({1, 3, 0}, 2, 5, rule, layout::row_major);
            f32_problem got({1, 3, 0}, 2, 5, rule, layout::row_major);
            got.logits(3, 1, 2) = poison;
            run(want);
            run(got);
            check_others(got, want, 1, 1);
        }
}

TEST_CASE("gradients of weights that are not finite stay with their task and head, under every "
          "rule" *
          needs_non_finite()) {
    for (const rule_choice& rule : all_rules({1, 0.3}))
        for (float poison : {not_a_number, infinity, -infinity}) {
            CAPTURE(rule.name());
            f32_problem want({1, 3, 0}, 2, 5, rule, layout::row_major);
            f32_problem got({1, 3, 0}, 2, 5, rule, layout::row_major);
            got.d_weights(1, 1, 2) = poison;
            run(want);
            run(got);
            check_others(got, want, 1, 1);
        }
}

TEST_CASE("what a weight of 0 would do is not asked: its gradient spoils no other logit" *
          needs_non_finite()) {
    // Logits whose weight is 0, and whether their own gradient is, too.
    struct off {
        rule_choice rule;
        float logit;
        bool is_saturated;
    };
    using reference::normaliser_kind;
    for (const off& c :
         {off{{gate_choice::sigmoid}, -1e30F, true}, off{{gate_choice::gumbel}, -1e30F, true},
          off{{gate_choice::gumbel, normaliser_kind::sum, 0.3}, -1e30F, true},
          off{{gate_choice::noisy_sigmoid}, -1e30F, true},
          off{{gate_choice::straight_through}, -3, false},
          off{{gate_choice::sigmoid, normaliser_kind::average_correction}, -1e30F, true},
          off{{gate_choice::identity, normaliser_kind::l2}, 0, false},
          off{{gate_choice::identity, normaliser_kind::softmax}, -1e30F, true},
          off{{gate_choice::identity, normaliser_kind::softmax, 1, 3}, -9, true}})
        for (float poison : {not_a_number, infinity}) {
            CAPTURE(c.rule.name());
            f32_problem want({1, 3, 0}, 2, 5, c.rule, layout::row_major);
            f32_problem got({1, 3, 0}, 2, 5, c.rule, layout::row_major);
            for (f32_problem* p : {&want, &got})
                p->logits(3, 1, 2) = c.logit;
            got.d_weights(1, 1, 2) = poison;
            run(want);
            run(got);
            if (is_exactly(c.rule.annealing, 1)) REQUIRE(got.weights(1, 1, 2) == 0);
            check_others(got, want, 1, 1);
            for (index_t m = 0; m < 5; ++m)
                if (m != 2 || c.is_saturated)
                    CHECK(got.d_logits(3, 1, m) == want.d_logits(3, 1, m));
        }
}

TEST_CASE("a module that is not finite does not reach tasks that switch it off: not even their "
          "logits" *
          needs_non_finite()) {
    // Task 0 uses module 2, task 1 does not; a whole step.
    const layer_sizes s{20, 2, 2, 4, 5, 7, 3};
    std::vector<std::int64_t> task_of_row;
    for (index_t row = 0; row < s.rows; ++row)
        task_of_row.push_back(row % 2);
    layer_problem want(s, plan_of(task_of_row)), got(s, plan_of(task_of_row));
    for_each_position(got.a.extents(), [&](const position<4>& at) {
        if (at[1] == 2) set_element(got.a.ref(), at, at[2] % 2 == 0 ? not_a_number : infinity);
    });
    tensor<float, 3> logits({2, s.heads, s.modules});
    random_source(3).fill(logits.view());
    for (index_t h = 0; h < s.heads; ++h)
        logits(1, h, 2) = -1e30F;
    const auto step = [&](layer_problem& p) {
        const routing_rule rule{sigmoid_gate{}};
        router_forward({}, logits.view(), p.plan.tasks(), rule, p.weights);
        p.d_weights.fill(0);
        p.run();
        tensor<float, 3> d_logits(logits.extents());
        router_backward({}, logits.view(), p.plan.tasks(), rule, p.d_weights, d_logits.view());
        return d_logits;
    };
    const auto d_want = step(want);
    const auto d_got = step(got);
    CHECK(compare_bitwise(d_got.view().slice(0, 1), d_want.view().slice(0, 1)));
    CHECK(std::isnan(d_got(0, 0, 0)));
    for (index_t row = 1; row < s.rows; row += 2)
        CHECK(compare_bitwise(got.d_x.ref().slice(0, row), want.d_x.ref().slice(0, row)));
}

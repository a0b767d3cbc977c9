// The router with every gate, normaliser and annealing.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/fixed_routers.hpp>
#include <mhr/routing/router.hpp>

#include "support/allocation_counter.hpp"
#include "support/comparison.hpp"
#include "support/fast_math.hpp"
#include "support/gradient_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/routing_problem.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using reference::normaliser_kind;

const std::vector<index_t> repeated_tasks{0, 4, 0, 2, 4, 0, 2};

bool is_one_of(gate_choice gate, std::initializer_list<gate_choice> gates) {
    return std::find(gates.begin(), gates.end(), gate) != gates.end();
}

bool has_shared_module(const rule_choice& rule) {
    return is_one_of(rule.gate, {gate_choice::shared, gate_choice::shared_straight_through,
                                 gate_choice::shared_dropout_gumbel});
}

// Numbers that are of order 1, in f64.
comparison nearly(const tensor_view<const double, 3>& got, const tensor_view<const double, 3>& want,
                  double roundings, double extra = 0) {
    tensor<double, 3> ones(want.extents());
    std::fill(ones.values().begin(), ones.values().end(), 1.0);
    return compare(got, want, ones.view(), {1, roundings * epsilon_of<double>() + extra, 1});
}

} // namespace

TEST_CASE("every rule agrees with the oracle") {
    [[maybe_unused]] constexpr auto f32 = element_type::f32, f64 = element_type::f64,
                                    bf16 = element_type::bf16, f16 = element_type::f16;
    const std::vector<std::vector<index_t>> task_lists{{3}, repeated_tasks, {}};
    struct sizes {
        index_t heads, modules;
    };
    for (const routing_types& types :
         {routing_types{f32, f32, f32},
          routing_types{f32, bf16, bf16} MHR_TEST_ALSO(
              routing_types{f64, f64, f64}, routing_types{bf16, f32, f32},
              routing_types{f16, f16, f16}, routing_types{f32, f32, f64})})
        for (const rule_choice& rule : all_rules({1, 0.3, 0})) {
            CAPTURE(types.name());
            CAPTURE(rule.name());
            double worst_forward = 0;
            double worst_backward = 0;
            for (layout order : all_layouts)
                for (const auto& tasks : task_lists)
                    for (const sizes& s : {sizes{1, 1}, {3, 7}, {5, 2}, {2, 37}}) {
                        CAPTURE(name_of(order));
                        CAPTURE(tasks.size());
                        CAPTURE(s.heads);
                        CAPTURE(s.modules);
                        routing_problem p(types, tasks, s.heads, s.modules, rule, order);
                        const tensor<double, 3> before = values_as<double>(p.d_logits.ref());
                        p.forward();
                        p.backward();
                        const comparison backward = p.check_backward(before);
                        CHECK(backward);
                        worst_backward = std::max(worst_backward, backward.worst_ratio);
                        if (!tasks.empty()) {
                            const comparison forward = p.check_forward();
                            CHECK(forward);
                            worst_forward = std::max(worst_forward, forward.worst_ratio);
                        }
                        CHECK(p.weights.intact());
                        CHECK(p.d_logits.intact());
                    }
            // Bounds that are far too wide would hide bugs. (One module that is kept has a weight
            // of 1; gates of 0 and 1 have few roundings; and without annealing nothing is left of
            // the logits.)
            const bool rounds = rule.annealing > 0 && rule.kept > 1;
            if (rounds && !is_one_of(rule.gate, {gate_choice::straight_through,
                                                 gate_choice::shared_straight_through}))
                CHECK(worst_forward > 0.01);
            if (rounds) CHECK(worst_backward > 0.002);
        }
}

TEST_CASE("the comparison reports planted bugs under every rule") {
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        if (rule.kept == 1) continue; // weights of 0 and 1, without gradient
        CAPTURE(rule.name());
        f32_problem p({3, 0, 3}, 2, 5, rule, layout::row_major);
        const auto before = copy_as<double>(p.d_logits.view());
        p.forward();
        p.backward();
        REQUIRE(p.check_forward());
        REQUIRE(p.check_backward(before));
        float* largest = nullptr; // of the elements that may be wrong
        for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
            float& w = element(p.weights.view(), at);
            if (largest == nullptr || std::abs(w) > std::abs(*largest)) largest = &w;
        });
        *largest *= 1 + 0x1p-15F;
        CHECK_FALSE(p.check_forward());
        // Another annealing; a gradient that is added twice.
        p.rule.annealing = 0.5 * rule.annealing;
        p.forward();
        p.rule.annealing = rule.annealing;
        CHECK_FALSE(p.check_forward());
        f32_problem q({3, 0, 3}, 2, 5, rule, layout::row_major);
        q.backward();
        REQUIRE(q.check_backward(before));
        q.backward();
        CHECK_FALSE(q.check_backward(before));
    }
}

TEST_CASE("the gradient of every rule is that of the kernel, by finite differences") {
    for (const rule_choice& rule : all_rules({1, 0.3, 0}))
        for (int power : {-3, 0, 2}) {
            // Their gradient is not that of their values, by design.
            if (is_one_of(rule.gate,
                          {gate_choice::straight_through, gate_choice::shared_straight_through}))
                continue;
            // Differences of logits of 1/8 would reach from one order of modules to another.
            if (rule.normaliser == normaliser_kind::softmax && rule.kept < 5 && power < 0) continue;
            CAPTURE(rule.name());
            CAPTURE(power);
            f64_problem p({2, 0, 4, 2}, 3, 5, rule, layout::row_major, std::ldexp(1.0, power));
            p.d_logits.fill(0);
            p.backward();
            // L2 of short rows is steep: its derivatives grow as their number of logits.
            const double step =
                rule.normaliser == normaliser_kind::l2 && power < 0 ? 0x1p-13 : 0x1p-10;
            const auto differences = central_difference_gradient(
                [&] {
                    p.forward();
                    return contract<double>(p.weights.view(), p.d_weights.view());
                },
                p.logits.view(), step);
            const auto agree = [&] {
                return nearly(p.d_logits.view(), differences.view(), 0, 3e-9);
            };
            CHECK(agree());
            p.d_logits(2, 1, 3) += 3e-8;
            CHECK_FALSE(agree());
        }
}

TEST_CASE("no rule depends on executor, shares or layout, to the last bit, nor allocates") {
    const std::vector<index_t> tasks{0, 4, 0, 2, 4, 0, 2, 1, 1, 3};
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        CAPTURE(rule.name());
        f32_problem want(tasks, 7, 5, rule, layout::row_major);
        CHECK(allocations_of([&] {
                  want.forward();
                  want.backward();
              }) == 0);
        const auto check = [&](f32_problem& got) {
            CHECK(compare_bitwise(got.weights.view(), want.weights.view()));
            CHECK(compare_bitwise(got.d_logits.view(), want.d_logits.view()));
            CHECK(got.weights.intact());
            CHECK(got.d_logits.intact());
        };
        for_each_executor([&](const executor_ref& executor, const std::string& name) {
            CAPTURE(name);
            f32_problem got(tasks, 7, 5, rule, layout::padded);
            got.forward(executor);
            got.backward(executor);
            check(got);
        });
        for (index_t nth : {1, 3, 20}) {
            CAPTURE(nth);
            f32_problem got(tasks, 7, 5, rule, layout::padded);
            for_each_share(nth, [&](const executor_ref& executor) { got.forward(executor); });
            for_each_share(nth, [&](const executor_ref& executor) { got.backward(executor); });
            check(got);
        }
        for (layout order : all_layouts) {
            CAPTURE(name_of(order));
            f32_problem got(tasks, 7, 5, rule, order);
            got.forward();
            got.backward();
            check(got);
        }
    }
}

TEST_CASE("weights sum to 1 for every annealing, with the normalisers that see to it") {
    for (const rule_choice& rule : all_rules({1, 0.7, 0.3, 1e-3, 0})) {
        if (rule.normaliser != normaliser_kind::sum && rule.normaliser != normaliser_kind::softmax)
            continue;
        if (rule.detached_when_off) continue; // those that are off have weights of 0
        CAPTURE(rule.name());
        f64_problem p({0, 1, 2, 3, 4}, 4, 9, rule, layout::row_major);
        p.forward();
        for (index_t n = 0; n < 5; ++n)
            for (index_t h = 0; h < 4; ++h) {
                double sum = 0;
                for (index_t m = 0; m < 9; ++m) {
                    CHECK(p.weights(n, h, m) >= 0);
                    sum += p.weights(n, h, m);
                }
                CHECK(std::abs(sum - 1) < 3e-12); // the epsilon of the sum
            }
    }
}

TEST_CASE("annealed to 0, the routing is that of the average, and nothing is learnt") {
    for (const rule_choice& rule : all_rules({0})) {
        CAPTURE(rule.name());
        f32_problem p(repeated_tasks, 3, 7, rule, layout::padded);
        guarded_buffer<float, 3> average({7, 3, 7});
        average_router_forward(serial_executor{}, average.view());
        const auto before = copy_as<float>(p.d_logits.view());
        p.forward();
        p.backward();
        CHECK(compare_bitwise(p.weights.view(), average.view()));
        CHECK(compare_bitwise(p.d_logits.view(), tensor<float, 3>(before).view()));
    }
}

TEST_CASE("annealing goes between the weights and the average, and scales the gradient") {
    for (const rule_choice& rule : all_rules({1})) {
        CAPTURE(rule.name());
        f64_problem p(repeated_tasks, 3, 7, rule, layout::row_major);
        f64_problem annealed(repeated_tasks, 3, 7, rule, layout::row_major);
        annealed.rule.annealing = 0.25;
        for (f64_problem* q : {&p, &annealed}) {
            q->d_logits.fill(0);
            q->forward();
            q->backward();
        }
        tensor<double, 3> want(p.weights.view().extents());
        transform(p.weights.view(), want.view(), [](double w) { return w / 4 + 0.75 / 7; });
        CHECK(nearly(annealed.weights.view(), want.view(), 8));
        tensor<double, 3> d_want(p.d_logits.view().extents());
        // A power of 2: only the order of roundings could differ, and it does not.
        transform(p.d_logits.view(), d_want.view(), [](double d) { return d / 4; });
        CHECK(compare_bitwise(annealed.d_logits.view(), d_want.view()));
    }
}

TEST_CASE("modules in another order: the same weights and gradients in that order") {
    random_source random(53);
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        CAPTURE(rule.name());
        const index_t modules = 9;
        f64_problem p({4, 0, 4}, 2, modules, rule, layout::row_major);
        f64_problem q({4, 0, 4}, 2, modules, rule, layout::row_major);
        std::vector<index_t> order = random.permutation(modules);
        // The shared module is the last one in both.
        if (has_shared_module(rule))
            std::swap(*std::find(order.begin(), order.end(), modules - 1), order.back());
        const auto permute = [&](const auto& from, const auto& to) {
            for_each_position(to.extents(), [&](const position<3>& at) {
                element(to, at) =
                    element(from, {at[0], at[1], order[static_cast<std::size_t>(at[2])]});
            });
        };
        permute(p.logits.view(), q.logits.view());
        permute(p.uniforms.view(), q.uniforms.view());
        permute(p.noise.view(), q.noise.view());
        permute(p.keep.view(), q.keep.view());
        permute(p.d_weights.view(), q.d_weights.view());
        for (f64_problem* problem : {&p, &q}) {
            problem->d_logits.fill(0);
            problem->forward();
            problem->backward();
        }
        tensor<double, 3> weights(p.weights.view().extents());
        tensor<double, 3> d_logits(p.d_logits.view().extents());
        permute(p.weights.view(), weights.view());
        permute(p.d_logits.view(), d_logits.view());
        CHECK(nearly(q.weights.view(), weights.view(), 50));
        CHECK(nearly(q.d_logits.view(), d_logits.view(), 200));
    }
}

TEST_CASE("heads are routed independently; heads that are equal are Poly, repeated") {
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        // It looks at the number of heads.
        if (rule.normaliser == normaliser_kind::average_correction) continue;
        CAPTURE(rule.name());
        f32_problem many({4, 0, 4}, 3, 5, rule, layout::row_major);
        f32_problem one({4, 0, 4}, 1, 5, rule, layout::row_major);
        const auto repeat = [](auto& from, auto& to) {
            for_each_position(to.view().extents(), [&](const position<3>& at) {
                element(to.view(), at) = from(at[0], 0, at[2]);
            });
        };
        repeat(one.logits, many.logits);
        repeat(one.uniforms, many.uniforms);
        repeat(one.noise, many.noise);
        repeat(one.keep, many.keep);
        repeat(one.d_weights, many.d_weights);
        repeat(one.d_logits, many.d_logits);
        for (f32_problem* p : {&many, &one}) {
            p->forward();
            p->backward();
        }
        for (index_t h = 0; h < 3; ++h) {
            CHECK(compare_bitwise(many.weights.view().block(1, h, 1), one.weights.view()));
            CHECK(compare_bitwise(many.d_logits.view().block(1, h, 1), one.d_logits.view()));
        }
        // A head that differs has its own weights, and the others keep theirs.
        for (index_t m = 0; m < 5; ++m)
            many.logits(4, 1, m) = static_cast<float>(m * m % 5) - 1.5F;
        many.forward();
        CHECK_FALSE(compare_bitwise(many.weights.view().block(1, 1, 1), one.weights.view()));
        CHECK(compare_bitwise(many.weights.view().block(1, 2, 1), one.weights.view()));
    }
}

TEST_CASE("repeated tasks accumulate under every rule, absent ones are neither read nor touched") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        CAPTURE(rule.name());
        f32_problem p({1, 3, 1}, 2, 5, rule, layout::padded);
        f32_problem first({1, 3, 1}, 2, 5, rule, layout::padded);
        for (index_t task : {0, 2, 4})
            for (index_t h = 0; h < 2; ++h)
                for (index_t m = 0; m < 5; ++m) {
                    p.logits(task, h, m) = nan;
                    p.d_logits(task, h, m) = 7;
                }
        // Entry by entry: the gates of an entry are those of its own noise.
        for (index_t n = 0; n < 3; ++n) {
            f32_problem alone({1, 3, 1}, 2, 5, rule, layout::padded);
            for (index_t other = 0; other < 3; ++other)
                for (index_t h = 0; h < 2; ++h)
                    for (index_t m = 0; m < 5; ++m)
                        if (other != n) alone.d_weights(other, h, m) = 0;
            for_each_position(alone.d_logits.view().extents(), [&](const position<3>& at) {
                element(alone.d_logits.view(), at) = element(first.d_logits.view(), at);
            });
            alone.backward();
            for_each_position(alone.d_logits.view().extents(), [&](const position<3>& at) {
                element(first.d_logits.view(), at) = element(alone.d_logits.view(), at);
            });
        }
        p.forward();
        p.backward();
        for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
            CHECK(std::isfinite(element(p.weights.view(), at)));
        });
        for (index_t task : {1, 3})
            CHECK(compare_bitwise(p.d_logits.view().slice(0, task),
                                  first.d_logits.view().slice(0, task)));
        for (index_t task : {0, 2, 4})
            for (index_t h = 0; h < 2; ++h)
                for (index_t m = 0; m < 5; ++m)
                    CHECK(p.d_logits(task, h, m) == 7);
    }
}

TEST_CASE("a logit that is not a number shows in its head's weights, and in no other" *
          needs_non_finite()) {
    for (const rule_choice& rule : all_rules({1, 0.3})) {
        if (has_shared_module(rule)) continue; // may be the one
        if (rule.gate == gate_choice::dropout) continue;
        CAPTURE(rule.name());
        f32_problem p({1, 3, 0}, 2, 5, rule, layout::row_major);
        p.logits(3, 1, 2) = std::numeric_limits<float>::quiet_NaN();
        p.forward();
        bool shows = false;
        for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
            const bool is_finite = std::isfinite(element(p.weights.view(), at));
            if (at[0] == 1 && at[1] == 1)
                shows = shows || !is_finite;
            else
                CHECK(is_finite);
        });
        CHECK(shows);
    }
}

TEST_CASE("no modules, no heads, no tasks: nothing to do, under every rule") {
    for (const rule_choice& rule : all_rules({1, 0.3, 0})) {
        CAPTURE(rule.name());
        for (const auto& [heads, modules] : {std::array<index_t, 2>{0, 4}, {3, 0}, {0, 0}}) {
            f32_problem p(repeated_tasks, heads, modules, rule, layout::row_major);
            p.forward();
            p.backward();
            CHECK(p.weights.intact());
            CHECK(p.d_logits.intact());
        }
        f32_problem p({}, 2, 3, rule, layout::row_major);
        const snapshot before = p.d_logits.take_snapshot();
        p.forward();
        p.backward();
        CHECK(p.d_logits.unchanged_since(before));
    }
}

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/router.hpp>

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

// Batches that repeat tasks, leave some out, and are longer than the table.
const std::vector<std::vector<index_t>> task_lists{
    {3}, {4, 0, 2}, {1, 1, 1}, {0, 4, 0, 2, 4, 0, 2}, {}};

struct sizes {
    index_t heads, modules;
};

} // namespace

TEST_CASE("weights and gradients agree with the oracle") {
    constexpr auto f32 = element_type::f32, f64 = element_type::f64, bf16 = element_type::bf16,
                   f16 = element_type::f16;
    for (const routing_types& types :
         {routing_types{f64, f64, f64}, routing_types{f32, f32, f32}, routing_types{bf16, f32, f32},
          routing_types{f32, bf16, bf16}, routing_types{f16, f16, f16},
          routing_types{f16, f32, bf16}, routing_types{f32, f32, f64}, routing_types{f32, f64, f32},
          routing_types{bf16, f16, f64}}) {
        CAPTURE(types.name());
        double worst_forward = 0;
        double worst_backward = 0;
        for (layout order : all_layouts)
            for (const auto& tasks : task_lists)
                // Heads of more modules than are converted at once, too.
                for (const sizes& s : {sizes{1, 1}, {1, 8}, {3, 7}, {16, 1}, {2, 37}, {1, 70}})
                    for (const rule_choice& rule : {plain, gumbel}) {
                        CAPTURE(name_of(order));
                        CAPTURE(tasks.size());
                        CAPTURE(s.heads);
                        CAPTURE(s.modules);
                        CAPTURE(rule.name());
                        routing_problem p(types, tasks, s.heads, s.modules, rule, order);
                        const tensor<double, 3> before = values_as<double>(p.d_logits.ref());
                        p.forward(serial_executor{});
                        p.backward(serial_executor{});
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
        // Bounds that are far too wide would hide bugs.
        CHECK(worst_forward > 0.02);
        CHECK(worst_backward > 0.01);
    }
}

TEST_CASE("elements of any type are read as what they hold, and rounded once") {
    // Numbers that every type holds give the weights of f32 and f64, rounded.
    for (element_type logits : all_element_types)
        for (element_type weights : all_element_types) {
            CAPTURE(std::string(mhr::name_of(logits)));
            CAPTURE(std::string(mhr::name_of(weights)));
            const routing_types types{logits, element_type::f32, weights};
            routing_problem got(types, {4, 0, 4}, 2, 5, plain, layout::padded);
            routing_problem want({types.sums(), element_type::f32, types.sums()}, {4, 0, 4}, 2, 5,
                                 plain, layout::row_major);
            for (routing_problem* p : {&got, &want}) {
                for_each_position(p->logits.extents(), [&](const position<3>& at) {
                    const index_t number = (7 * at[0] + 5 * at[1] + 3 * at[2]) % 17;
                    set_element(p->logits.ref(), at, static_cast<double>(number - 8) / 4);
                });
                p->forward();
            }
            guarded_tensor<3> rounded(weights, want.weights.extents());
            for_each_position(rounded.extents(), [&](const position<3>& at) {
                set_element(rounded.ref(), at, element(want.weights.ref(), at));
            });
            CHECK(compare_bitwise(got.weights.ref(), rounded.ref()));
        }
}

TEST_CASE("one tensor of f64 makes the sums f64") {
    // The gradients of these two modules differ by less than a rounding of f32.
    const std::array<double, 2> wide{1, 1 + 0x1p-30};
    const std::array<float, 2> logits{1, 1};
    std::array<float, 2> d_logits{0, 0};
    const int task = 0;
    const tensor_view<const int, 1> tasks(&task, {1});
    router_backward({}, {logits.data(), {1, 1, 2}}, tasks, routing_rule{identity_gate{}},
                    {wide.data(), {1, 1, 2}}, {d_logits.data(), {1, 1, 2}});
    CHECK(d_logits[0] * 0x1p32F == doctest::Approx(-1).epsilon(0.01));
    CHECK(d_logits[1] * 0x1p32F == doctest::Approx(1).epsilon(0.01));
    // The numbers of f32 are equal, and give nothing.
    const std::array<float, 2> narrow{1, 1};
    std::array<double, 2> d_wide{0, 0};
    const std::array<double, 2> wide_logits{1, 1 + 0x1p-30};
    router_backward({}, {wide_logits.data(), {1, 1, 2}}, tasks, routing_rule{identity_gate{}},
                    {narrow.data(), {1, 1, 2}}, {d_wide.data(), {1, 1, 2}});
    CHECK(std::abs(d_wide[0] - d_wide[1]) < 1e-15);
    CHECK(std::abs(d_wide[0]) < 1e-12); // but for the normaliser's epsilon
}

TEST_CASE("the comparison reports planted bugs") {
    f32_problem p({3, 0, 3}, 2, 5, gumbel, layout::row_major);
    const auto before = copy_as<double>(p.d_logits.view());
    p.forward(serial_executor{});
    p.backward(serial_executor{});
    REQUIRE(p.check_forward());
    REQUIRE(p.check_backward(before));

    const float weight = p.weights(1, 1, 2);
    p.weights(1, 1, 2) = weight * (1 + 0x1p-16F);
    CHECK_FALSE(p.check_forward());
    p.weights(1, 1, 2) = -weight;
    CHECK_FALSE(p.check_forward());
    p.weights(1, 1, 2) = std::numeric_limits<float>::quiet_NaN();
    CHECK((is_fast_math || !p.check_forward()));
    p.weights(1, 1, 2) = weight;
    REQUIRE(p.check_forward());

    // An entry counted twice; a gradient that overwrites; a gate without its noise.
    router_backward(
        serial_executor{}, p.logits.const_view(), p.tasks().block(0, 2, 1),
        routing_rule{gumbel_sigmoid_gate{p.uniforms.const_view().block(0, 2, 1), p.temperature}},
        p.d_weights.const_view().block(0, 2, 1), p.d_logits.view());
    CHECK_FALSE(p.check_backward(before));
    f32_problem q({3, 0, 3}, 2, 5, gumbel, layout::row_major);
    q.d_logits.fill(0);
    q.backward(serial_executor{});
    CHECK_FALSE(q.check_backward(before));
    q.rule = plain;
    q.forward(serial_executor{});
    q.rule = gumbel;
    CHECK_FALSE(q.check_forward());
}

TEST_CASE("the gradient is that of the kernel, by finite differences") {
    for (const rule_choice& rule : {plain, gumbel})
        for (int power : {-3, 0, 3}) {
            CAPTURE(rule.name());
            CAPTURE(power);
            f64_problem p({2, 0, 4, 2}, 3, 5, rule, layout::row_major, std::ldexp(1.0, power));
            p.d_logits.fill(0);
            p.backward(serial_executor{});
            const auto differences = central_difference_gradient(
                [&] {
                    p.forward(serial_executor{});
                    return contract<double>(p.weights.view(), p.d_weights.view());
                },
                p.logits.view());
            tensor<double, 3> ones(differences.extents());
            std::fill(ones.values().begin(), ones.values().end(), 1.0);
            const auto agree = [&] {
                return compare(p.d_logits.view(), differences.view(), ones.view(), {1, 1e-9, 1});
            };
            CHECK(agree());
            p.d_logits(2, 1, 3) += 1e-8;
            CHECK_FALSE(agree());
        }
}

TEST_CASE("the result does not depend on executor, threads or shares, to the last bit") {
    const std::vector<index_t> tasks{0, 4, 0, 2, 4, 0, 2, 1, 1, 3};
    f32_problem want(tasks, 7, 5, gumbel, layout::row_major);
    want.forward(serial_executor{});
    want.backward(serial_executor{});
    const auto check = [&](f32_problem& got) {
        CHECK(compare_bitwise(got.weights.view(), want.weights.view()));
        CHECK(compare_bitwise(got.d_logits.view(), want.d_logits.view()));
        CHECK(got.weights.intact());
        CHECK(got.d_logits.intact());
    };
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        f32_problem got(tasks, 7, 5, gumbel, layout::padded);
        got.forward(executor);
        got.backward(executor);
        check(got);
    });
    for (index_t nth : {1, 2, 3, 20}) {
        CAPTURE(nth);
        f32_problem got(tasks, 7, 5, gumbel, layout::padded);
        for_each_share(nth, [&](const executor_ref& executor) { got.forward(executor); });
        for_each_share(nth, [&](const executor_ref& executor) { got.backward(executor); });
        check(got);
    }
}

TEST_CASE("the layout does not change the result") {
    const std::vector<index_t> tasks{0, 4, 0, 2};
    f32_problem want(tasks, 3, 5, gumbel, layout::row_major);
    want.forward(serial_executor{});
    want.backward(serial_executor{});
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        f32_problem got(tasks, 3, 5, gumbel, order);
        got.forward(serial_executor{});
        got.backward(serial_executor{});
        CHECK(compare_bitwise(got.weights.view(), want.weights.view()));
        CHECK(compare_bitwise(got.d_logits.view(), want.d_logits.view()));
    }
}

TEST_CASE("inputs may repeat one element by strides of 0") {
    const float logit = 0.5F;
    const float d_weight = 2;
    const float u = 0.3F;
    const int task = 1;
    const std::array<index_t, 3> none{0, 0, 0};
    const tensor_view<const float, 3> logits(&logit, {2, 2, 4}, none);
    const tensor_view<const int, 1> tasks(&task, {3}, {0});
    const routing_rule rule{
        gumbel_sigmoid_gate{tensor_view<const float, 3>(&u, {3, 2, 4}, none), 1}};
    guarded_buffer<float, 3> weights({3, 2, 4});
    guarded_buffer<float, 3> d_logits({2, 2, 4});
    d_logits.fill(0);
    router_forward(serial_executor{}, logits, tasks, rule, weights.view());
    router_backward(serial_executor{}, logits, tasks, rule,
                    tensor_view<const float, 3>(&d_weight, {3, 2, 4}, none), d_logits.view());
    for_each_position(std::array<index_t, 3>{3, 2, 4},
                      [&](const position<3>& at) { CHECK(element(weights.view(), at) == 0.25F); });
    // An all-equal cotangent: the normaliser lets nothing through, but for its epsilon.
    for_each_position(std::array<index_t, 3>{2, 2, 4}, [&](const position<3>& at) {
        CHECK(std::abs(element(d_logits.view(), at)) < 1e-6F);
    });
}

TEST_CASE("weights of a head are positive and sum to 1; equal logits give equal weights") {
    f32_problem p({0, 1, 2, 3, 4}, 4, 9, gumbel, layout::row_major, 30);
    p.forward(serial_executor{});
    for (index_t n = 0; n < 5; ++n)
        for (index_t h = 0; h < 4; ++h) {
            double sum = 0;
            for (index_t m = 0; m < 9; ++m) {
                CHECK(p.weights(n, h, m) >= 0);
                sum += static_cast<double>(p.weights(n, h, m));
            }
            CHECK(std::abs(sum - 1) < 12 * epsilon_of<float>());
        }
    for (float logit : {-3.F, 0.F, 0.1F, 12.F}) {
        f32_problem uniform({2}, 3, 7, plain, layout::row_major);
        uniform.logits.fill(logit);
        uniform.forward(serial_executor{});
        const float weight = uniform.weights(0, 0, 0);
        CHECK(std::abs(weight - 1.F / 7) < 2 * std::numeric_limits<float>::epsilon());
        for_each_position(std::array<index_t, 3>{1, 3, 7}, [&](const position<3>& at) {
            CHECK(element(uniform.weights.view(), at) == weight);
        });
    }
}

TEST_CASE_TEMPLATE("extreme logits give weights, not NaN", T, double, float) {
    constexpr T large = std::numeric_limits<T>::max();
    guarded_buffer<T, 3> logits({1, 1, 4});
    guarded_buffer<T, 3> weights({1, 1, 4});
    guarded_buffer<T, 3> d_weights({1, 1, 4});
    guarded_buffer<T, 3> d_logits({1, 1, 4});
    guarded_buffer<T, 3> uniforms({1, 1, 4});
    random_source random(47);
    random.fill(d_weights.view());
    const index_t task = 0;
    const tensor_view<const index_t, 1> tasks(&task, {1});

    struct extreme {
        std::array<T, 4> logits;
        std::array<T, 4> weights;
    };
    std::vector<extreme> cases;
    for (T z : and_infinity<T>({T(1e4), T(1e10), T(1e30), large})) {
        cases.push_back({{z, -z, z, -z}, {T(0.5), 0, T(0.5), 0}});
        cases.push_back({{z, z, z, z}, {T(0.25), T(0.25), T(0.25), T(0.25)}});
        cases.push_back({{-z, -z, -z, -z}, {0, 0, 0, 0}}); // nothing is switched on
        cases.push_back({{z, -z, -z, -z}, {1, 0, 0, 0}});
    }
    for (const extreme& c : cases)
        for (T u : {T(0), T(0.25), T(1)}) {
            CAPTURE(c.logits[0]);
            CAPTURE(c.logits[1]);
            CAPTURE(u);
            uniforms.fill(u);
            std::copy(c.logits.begin(), c.logits.end(), logits.view().data());
            const tensor_view<const T, 3> want(c.weights.data(), {1, 1, 4});
            const auto check = [&](const auto& rule) {
                d_logits.fill(0);
                router_forward(serial_executor{}, logits.const_view(), tasks, rule, weights.view());
                router_backward(serial_executor{}, logits.const_view(), tasks, rule,
                                d_weights.const_view(), d_logits.view());
                // The weights are as far from 1 / (modules that are on) as the normaliser's epsilon
                // makes them.
                CHECK(compare(weights.view(), want, {4, std::max(epsilon_of<T>(), 1e-12), 0}));
                for (index_t m = 0; m < 4; ++m)
                    CHECK(d_logits(0, 0, m) == 0); // saturated
            };
            check(routing_rule{sigmoid_gate{}});
            check(routing_rule{gumbel_sigmoid_gate{uniforms.const_view(), 0.5}});
        }
}

TEST_CASE("uniforms of exactly 0 and 1 give weights and gradients, not NaN") {
    f32_problem p({0, 1, 2}, 2, 6, gumbel, layout::row_major);
    for (index_t m = 0; m < 6; ++m) {
        p.uniforms(0, 0, m) = 0;
        p.uniforms(0, 1, m) = 1;
        p.uniforms(1, 0, m) = m % 2 == 0 ? 0.F : 1.F;
    }
    p.forward(serial_executor{});
    p.backward(serial_executor{});
    for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
        CHECK(element(p.weights.view(), at) >= 0);
        CHECK(element(p.weights.view(), at) <= 1);
    });
    for_each_position(p.d_logits.view().extents(), [&](const position<3>& at) {
        CHECK(std::isfinite(element(p.d_logits.view(), at)));
    });
    // Moved equally, modules with logits that are equal stay so.
    p.logits.fill(0.5F);
    p.forward(serial_executor{});
    CHECK(compare_bitwise(p.weights.view().slice(0, 0).slice(0, 0).block(0, 1, 5),
                          p.weights.view().slice(0, 0).slice(0, 0).block(0, 0, 5)));
}

TEST_CASE("repeated tasks accumulate, as that many calls would") {
    const std::vector<index_t> tasks{2, 2, 0, 2};
    f32_problem together(tasks, 3, 5, gumbel, layout::row_major);
    together.backward(serial_executor{});
    f32_problem apart(tasks, 3, 5, gumbel, layout::row_major);
    for (index_t n = 0; n < 4; ++n)
        router_backward(serial_executor{}, apart.logits.const_view(), apart.tasks().block(0, n, 1),
                        routing_rule{gumbel_sigmoid_gate{apart.uniforms.const_view().block(0, n, 1),
                                                         f32_problem::temperature}},
                        apart.d_weights.const_view().block(0, n, 1), apart.d_logits.view());
    CHECK(compare_bitwise(together.d_logits.view(), apart.d_logits.view()));
}

TEST_CASE("tasks that are absent from the batch are not touched, to the byte") {
    f32_problem p({1, 3, 1}, 2, 5, plain, layout::padded);
    p.d_logits(0, 1, 2) = -0.0F; // adding 0 would make it +0
    p.d_logits.view()(2, 0, 0) = std::numeric_limits<float>::quiet_NaN();
    p.logits(4, 0, 0) = std::numeric_limits<float>::quiet_NaN(); // nor read
    const auto rows_of_absent = [&] {
        std::vector<float> rows;
        for (index_t task : {0, 2, 4})
            for (index_t h = 0; h < 2; ++h)
                for (index_t m = 0; m < 5; ++m)
                    rows.push_back(p.d_logits(task, h, m));
        return rows;
    };
    const std::vector<float> want = rows_of_absent();
    const float present = p.d_logits(1, 0, 0);
    p.forward(serial_executor{});
    p.backward(serial_executor{});
    const std::vector<float> got = rows_of_absent();
    CHECK(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0);
    CHECK(p.d_logits(1, 0, 0) != present);
    for_each_position(p.weights.view().extents(), [&](const position<3>& at) {
        CHECK(std::isfinite(element(p.weights.view(), at)));
    });
}

TEST_CASE("a logit at which the gate is flat keeps its gradient, whatever that of its weight is" *
          needs_non_finite()) {
    // Shut gates, of value and slope 0: the others of the head do not notice either.
    f32_problem p({2}, 1, 3, plain, layout::row_major), want({2}, 1, 3, plain, layout::row_major);
    for (f32_problem* one : {&p, &want}) {
        one->logits(2, 0, 1) = -1e30F;
        one->d_weights(0, 0, 1) = 0;
        one->d_logits.fill(0.5F);
    }
    want.backward(serial_executor{});
    p.d_weights(0, 0, 1) = std::numeric_limits<float>::quiet_NaN();
    p.backward(serial_executor{});
    CHECK(compare_bitwise(p.d_logits.view(), want.d_logits.view()));
    CHECK(p.d_logits(2, 0, 1) == 0.5F);
    CHECK(p.d_logits(2, 0, 0) != 0.5F);
}

TEST_CASE("entries may come in any order, and an entry alone is as in the batch") {
    const std::vector<index_t> tasks{4, 0, 2, 1};
    f32_problem want(tasks, 3, 5, plain, layout::row_major);
    want.forward(serial_executor{});
    f32_problem reversed({1, 2, 0, 4}, 3, 5, plain, layout::row_major);
    reversed.forward(serial_executor{});
    for (index_t n = 0; n < 4; ++n) {
        CHECK(compare_bitwise(reversed.weights.view().slice(0, 3 - n),
                              want.weights.view().slice(0, n)));
        f32_problem alone({tasks[static_cast<std::size_t>(n)]}, 3, 5, plain, layout::row_major);
        alone.forward(serial_executor{});
        CHECK(compare_bitwise(alone.weights.view().slice(0, 0), want.weights.view().slice(0, n)));
    }
    // Distinct tasks in another order: each gets the same gradient.
    want.backward(serial_executor{});
    for (index_t n = 0; n < 4; ++n)
        for (index_t h = 0; h < 3; ++h)
            for (index_t m = 0; m < 5; ++m)
                reversed.d_weights(3 - n, h, m) = want.d_weights(n, h, m);
    f32_problem fresh(tasks, 3, 5, plain, layout::row_major);
    router_backward(serial_executor{}, fresh.logits.const_view(), reversed.tasks(),
                    routing_rule{sigmoid_gate{}}, reversed.d_weights.const_view(),
                    fresh.d_logits.view());
    CHECK(compare_bitwise(fresh.d_logits.view(), want.d_logits.view()));
}

TEST_CASE("heads are routed independently, each as a router of one head") {
    f32_problem many({4, 0, 4}, 3, 5, gumbel, layout::row_major);
    const auto before = copy_as<float>(many.d_logits.view());
    many.forward(serial_executor{});
    many.backward(serial_executor{});
    for (index_t h = 0; h < 3; ++h) {
        guarded_buffer<float, 3> weights({3, 1, 5});
        tensor<float, 3> d_logits = before;
        const auto logits = many.logits.const_view().block(1, h, 1);
        const routing_rule rule{gumbel_sigmoid_gate{many.uniforms.const_view().block(1, h, 1),
                                                    f32_problem::temperature}};
        router_forward(serial_executor{}, logits, many.tasks(), rule, weights.view());
        router_backward(serial_executor{}, logits, many.tasks(), rule,
                        many.d_weights.const_view().block(1, h, 1), d_logits.view().block(1, h, 1));
        CHECK(compare_bitwise(weights.view(), many.weights.view().block(1, h, 1)));
        CHECK(compare_bitwise(d_logits.view().block(1, h, 1), many.d_logits.view().block(1, h, 1)));
    }
}

TEST_CASE_TEMPLATE("task ids may be of any integer type", Id, signed char, std::uint8_t, int,
                   std::uint32_t, std::int64_t, std::uint64_t) {
    const std::array<Id, 3> ids{4, 0, 4};
    f32_problem want({4, 0, 4}, 2, 3, plain, layout::row_major);
    f32_problem got({4, 0, 4}, 2, 3, plain, layout::row_major);
    want.forward(serial_executor{});
    router_forward(serial_executor{}, got.logits.const_view(),
                   tensor_view<const Id, 1>(ids.data(), {3}), routing_rule{sigmoid_gate{}},
                   got.weights.view());
    CHECK(compare_bitwise(got.weights.view(), want.weights.view()));
    // Backwards, too.
    router_forward(serial_executor{}, got.logits.const_view(),
                   tensor_view<const Id, 1>(ids.data() + 2, {3}, {-1}),
                   routing_rule{sigmoid_gate{}}, got.weights.view());
    CHECK(compare_bitwise(got.weights.view(), want.weights.view()));
}

TEST_CASE("empty batches, tables, heads and modules are no error") {
    const auto run = [](std::array<index_t, 3> table, index_t entries) {
        const index_t task = 0;
        const tensor_view<const index_t, 1> tasks(entries == 0 ? nullptr : &task, {entries}, {0});
        const tensor_view<float, 3> weights(nullptr, {entries, table[1], table[2]});
        const tensor_view<float, 3> logits(nullptr, table);
        router_forward(serial_executor{}, logits, tasks, routing_rule{sigmoid_gate{}}, weights);
        router_backward(serial_executor{}, logits, tasks, routing_rule{sigmoid_gate{}}, weights,
                        logits);
    };
    CHECK_NOTHROW(run({0, 0, 0}, 0));
    CHECK_NOTHROW(run({0, 3, 4}, 0));
    CHECK_NOTHROW(run({2, 0, 4}, 2));
    CHECK_NOTHROW(run({2, 3, 0}, 2));

    f32_problem p({}, 2, 3, gumbel, layout::row_major);
    const snapshot before = p.d_logits.take_snapshot();
    p.forward(serial_executor{});
    p.backward(serial_executor{});
    CHECK(p.d_logits.unchanged_since(before));
}

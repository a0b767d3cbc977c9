#include <array>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include <mhr/routing/fixed_routers.hpp>
#include <mhr/routing/gate_wrappers.hpp>
#include <mhr/routing/router.hpp>

#include "support/bad_arguments.hpp"
#include "support/bad_views.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_buffer.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// Good arguments of both functions; each test spoils one of them.
struct call {
    tensor_view<float, 3> logits, uniforms, weights, d_weights, d_logits;
    tensor_view<const std::int64_t, 1> tasks;
    double temperature = 1;

    void forward() const {
        router_forward(serial_executor{}, logits, tasks,
                       routing_rule{gumbel_sigmoid_gate{uniforms, temperature}}, weights);
    }
    void backward() const {
        router_backward(serial_executor{}, logits, tasks,
                        routing_rule{gumbel_sigmoid_gate{uniforms, temperature}}, d_weights,
                        d_logits);
    }
};

struct fixture {
    guarded_buffer<float, 3> logits{{5, 2, 4}};
    guarded_buffer<float, 3> d_logits{{5, 2, 4}};
    guarded_buffer<float, 3> uniforms{{3, 2, 4}};
    guarded_buffer<float, 3> weights{{3, 2, 4}};
    guarded_buffer<float, 3> d_weights{{3, 2, 4}};
    std::array<std::int64_t, 3> ids{3, 0, 3};
    call good{logits.view(),    uniforms.view(), weights.view(),
              d_weights.view(), d_logits.view(), {ids.data(), {3}}};

    fixture() {
        logits.fill(0);
        d_logits.fill(0);
        uniforms.fill(0.5F);
        d_weights.fill(1);
    }

    void forward_refuses(const char* argument, const call& bad) {
        CHECK(refuses(
            "router_forward", argument, [&] { bad.forward(); }, weights, d_logits));
    }
    void backward_refuses(const char* argument, const call& bad) {
        CHECK(refuses(
            "router_backward", argument, [&] { bad.backward(); }, weights, d_logits));
    }
    void both_refuse(const char* argument, const call& bad) {
        forward_refuses(argument, bad);
        backward_refuses(argument, bad);
    }
};

} // namespace

TEST_CASE_FIXTURE(fixture, "good arguments are not refused") {
    CHECK_NOTHROW(good.forward());
    CHECK_NOTHROW(good.backward());
}

TEST_CASE_FIXTURE(fixture, "bad inputs of the router are refused by name, outputs untouched") {
    call bad = good;
    for (const auto& view : bad_inputs(good.logits)) {
        bad.logits = view;
        both_refuse("logits", bad);
    }
    bad = good;
    for (const auto& list : {bad_inputs(good.uniforms), wrong_extents(good.uniforms)})
        for (const auto& view : list) {
            bad.uniforms = view;
            both_refuse("gate.uniforms", bad);
        }
    bad = good;
    for (const auto& list : {bad_inputs(good.d_weights), wrong_extents(good.d_weights)})
        for (const auto& view : list) {
            bad.d_weights = view;
            backward_refuses("d_weights", bad);
        }
    bad = good;
    for (double temperature : and_non_finite<double>({0.0, -1.0})) {
        bad.temperature = temperature;
        both_refuse("gate.temperature", bad);
    }
}

TEST_CASE_FIXTURE(fixture, "bad outputs of the router are refused by name, untouched") {
    call bad = good;
    for (const auto& list :
         {bad_inputs(good.weights), wrong_extents(good.weights), overlapping(good.weights)})
        for (const auto& view : list) {
            bad.weights = view;
            forward_refuses("weights", bad);
        }
    bad = good;
    for (const auto& list :
         {bad_inputs(good.d_logits), wrong_extents(good.d_logits), overlapping(good.d_logits)})
        for (const auto& view : list) {
            bad.d_logits = view;
            backward_refuses("d_logits", bad);
        }
}

TEST_CASE_FIXTURE(fixture, "tasks that the table does not have are refused") {
    for (std::int64_t id :
         {std::int64_t{-1}, std::int64_t{5}, std::numeric_limits<std::int64_t>::max(),
          std::numeric_limits<std::int64_t>::min()})
        for (std::size_t position = 0; position < 3; ++position) {
            ids = {3, 0, 3};
            ids[position] = id;
            both_refuse("tasks", good);
        }
    ids = {3, 0, 5};
    CHECK_THROWS_WITH(good.forward(),
                      "router_forward: tasks: expected ids from 0 to 4, got 5 at position 2");

    call bad = good;
    for (const auto& view : bad_inputs(good.tasks)) {
        bad.tasks = view;
        both_refuse("tasks", bad);
    }
    // A table without tasks has none to give.
    ids = {0, 0, 0};
    bad = good;
    bad.logits = {logits.view().data(), {0, 2, 4}};
    bad.d_logits = {d_logits.view().data(), {0, 2, 4}};
    both_refuse("tasks", bad);
}

TEST_CASE("-1 in an unsigned type is refused, also where the table has a task of that number") {
    // 300 tasks of the same logit.
    const float logit = 0;
    const tensor_view<const float, 3> table(&logit, {300, 1, 1}, {0, 0, 0});
    guarded_buffer<float, 3> weights({1, 1, 1}), d_table({300, 1, 1}), one_hot({1, 1, 300});
    const routing_rule rule{sigmoid_gate{}};
    const serial_executor executor;
    std::uint8_t id = 0;
    const tensor_view<const std::uint8_t, 1> tasks(&id, {1});
    const auto check = [&](const char* function, auto&& call) {
        id = 254;
        CHECK_NOTHROW(call());
        id = 255;
        CHECK(refuses(function, "tasks", call, weights, d_table, one_hot));
    };
    check("router_forward", [&] { router_forward(executor, table, tasks, rule, weights.view()); });
    check("router_backward", [&] {
        router_backward(executor, table, tasks, rule, weights.const_view(), d_table.view());
    });
    check("given_router_forward",
          [&] { given_router_forward(executor, table, tasks, weights.view()); });
    check("given_router_backward",
          [&] { given_router_backward(executor, tasks, weights.const_view(), d_table.view()); });
    check("private_router_forward",
          [&] { private_router_forward(executor, tasks, one_hot.view()); });
    CHECK_THROWS_WITH(router_forward(executor, table, tasks, rule, weights.view()),
                      "router_forward: tasks: expected ids from 0 to 254, got 255 at position 0");
}

TEST_CASE_FIXTURE(fixture, "unsigned ids beyond the signed range are refused") {
    const std::array<std::uint64_t, 3> wrong{0, std::uint64_t{1} << 63, 0};
    CHECK(refuses(
        "router_forward", "tasks",
        [&] {
            router_forward(serial_executor{}, good.logits,
                           tensor_view<const std::uint64_t, 1>(wrong.data(), {3}),
                           routing_rule{sigmoid_gate{}}, good.weights);
        },
        weights));
}

namespace {

// Both functions with any rule on the good arguments.
template <class Gate, class Normaliser>
void both_refuse_rule(fixture& f, const char* argument,
                      const routing_rule<Gate, Normaliser>& rule) {
    CHECK(refuses(
        "router_forward", argument,
        [&] {
            router_forward(serial_executor{}, f.good.logits, f.good.tasks, rule, f.good.weights);
        },
        f.weights, f.d_logits));
    CHECK(refuses(
        "router_backward", argument,
        [&] {
            router_backward(serial_executor{}, f.good.logits, f.good.tasks, rule, f.good.d_weights,
                            f.good.d_logits);
        },
        f.weights, f.d_logits));
}

} // namespace

TEST_CASE_FIXTURE(fixture, "annealing outside of 0 to 1 is refused") {
    for (double bad : and_non_finite<double>({-1e-9, 1 + 1e-9})) {
        CAPTURE(bad);
        both_refuse_rule(*this, "rule.annealing",
                         routing_rule{sigmoid_gate{}, sum_normaliser{}, bad});
        both_refuse_rule(*this, "rule.annealing",
                         routing_rule{identity_gate{}, softmax_normaliser{2}, bad});
    }
    for (double fine : {0.0, -0.0, 1e-300, 1.0})
        CHECK_NOTHROW(router_forward(serial_executor{}, good.logits, good.tasks,
                                     routing_rule{sigmoid_gate{}, sum_normaliser{}, fine},
                                     good.weights));
}

TEST_CASE_FIXTURE(fixture, "numbers of modules to keep below 1 are refused") {
    for (index_t bad : {index_t{0}, index_t{-1}, std::numeric_limits<index_t>::min()})
        both_refuse_rule(*this, "normaliser.kept",
                         routing_rule{identity_gate{}, softmax_normaliser{bad}});
}

TEST_CASE_FIXTURE(fixture, "the arguments of gates are refused through all wrappers") {
    guarded_buffer<bool, 3> keep({3, 2, 4});
    keep.fill(true);
    const noisy_gate noisy{sigmoid_gate{}, good.uniforms, 1};
    for (const auto& wrong : bad_as_input(good.uniforms)) {
        CAPTURE(wrong.what);
        const auto bad = wrong.view;
        both_refuse_rule(*this, "gate.noise", routing_rule{noisy_gate{sigmoid_gate{}, bad, 1}});
        both_refuse_rule(*this, "gate.uniforms",
                         routing_rule{shared_module_gate{
                             dropout_gate{gumbel_sigmoid_gate{bad, 1}, keep.const_view(), 0.5}}});
    }
    for (const auto& wrong : bad_as_input(keep.view())) {
        CAPTURE(wrong.what);
        const auto bad = wrong.view;
        both_refuse_rule(*this, "gate.keep",
                         routing_rule{shared_module_gate{dropout_gate{noisy, bad, 0.5}},
                                      average_correction_normaliser{}});
    }
    for (double bad : and_non_finite<double>({-1e-9, 1.0})) {
        CAPTURE(bad);
        both_refuse_rule(
            *this, "gate.probability",
            routing_rule{shared_module_gate{dropout_gate{noisy, keep.const_view(), bad}}});
    }
    for (double bad : and_non_finite<double>({1e39})) {
        CAPTURE(bad);
        both_refuse_rule(
            *this, "gate.scale",
            routing_rule{noisy_gate{identity_gate{}, good.uniforms, bad}, softmax_normaliser{2}});
    }
}

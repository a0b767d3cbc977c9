#include <array>
#include <cstdint>
#include <limits>

#include <doctest/doctest.h>

#include <mhr/routing/router.hpp>

#include "support/bad_views.hpp"
#include "support/error_check.hpp"
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
        router_forward(serial_executor{}, logits, tasks, gumbel_sigmoid_gate{uniforms, temperature},
                       weights);
    }
    void backward() const {
        router_backward(serial_executor{}, logits, tasks,
                        gumbel_sigmoid_gate{uniforms, temperature}, d_weights, d_logits);
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
    for (double temperature : {0.0, -1.0, std::numeric_limits<double>::infinity(),
                               std::numeric_limits<double>::quiet_NaN()}) {
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

TEST_CASE_FIXTURE(fixture, "unsigned ids beyond the signed range are refused") {
    const std::array<std::uint64_t, 3> wrong{0, std::uint64_t{1} << 63, 0};
    CHECK(refuses(
        "router_forward", "tasks",
        [&] {
            router_forward(serial_executor{}, good.logits,
                           tensor_view<const std::uint64_t, 1>(wrong.data(), {3}), sigmoid_gate{},
                           good.weights);
        },
        weights));
}

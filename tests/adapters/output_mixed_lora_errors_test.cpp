// Bad input of every argument of adapters/output_mixed_lora.hpp: refused by name, before anything
// is written.

#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/output_mixed_lora.hpp>

#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr lora_shape shape{1, 4, 5, 7, 3};
constexpr index_t rows = 21;
const std::set<std::size_t> all_axes{0, 1, 2, 3};

/// Every argument, as it should be.
struct arguments {
    tensor_view<float, 2> x, y, d_y, d_x;
    tensor_view<float, 4> a, b, d_a, d_b;
    tensor_view<float, 3> weights, d_weights, hidden;
    workspace scratch;
};

/// Good arguments and the memory behind them, all of it guarded.
struct fixture {
    batch_plan plan = random_plan(rows, 3);
    guarded_buffer<float, 2> x{{rows, shape.in_features}}, y{{rows, shape.out_features}},
        d_y{{rows, shape.out_features}}, d_x{{rows, shape.in_features}};
    guarded_buffer<float, 4> a{{1, shape.modules, shape.in_features, shape.rank}},
        d_a{{1, shape.modules, shape.in_features, shape.rank}},
        b{{1, shape.modules, shape.rank, shape.out_features}},
        d_b{{1, shape.modules, shape.rank, shape.out_features}};
    guarded_buffer<float, 3> weights{{plan.entries(), 1, shape.modules}},
        d_weights{{plan.entries(), 1, shape.modules}}, hidden{{rows, shape.modules, shape.rank}};
    std::vector<std::byte> memory =
        std::vector<std::byte>(output_mixed_lora_backward_workspace_size<float>(plan, shape));

    arguments good() {
        return {x.view(),       y.view(),         d_y.view(),    d_x.view(),
                a.view(),       b.view(),         d_a.view(),    d_b.view(),
                weights.view(), d_weights.view(), hidden.view(), {memory.data(), memory.size()}};
    }
    template <class F>
    error_outcome refused(const char* function, const char* argument, F&& f, const arguments& bad) {
        return refuses(
            function, argument, [&] { f(bad); }, y, d_x, d_a, d_b, d_weights, hidden);
    }
    /// All that can be wrong with one argument.
    template <class F, class View>
    void check_input(const char* function, const char* argument, F&& f, View arguments::*member,
                     const std::set<std::size_t>& free_axes = {}) {
        check(function, argument, f, member, bad_as_input(good().*member, free_axes));
    }
    template <class F, class View>
    void check_output(const char* function, const char* argument, F&& f, View arguments::*member) {
        check(function, argument, f, member, bad_as_output(good().*member));
    }

  private:
    template <class F, class View, class List>
    void check(const char* function, const char* argument, F&& f, View arguments::*member,
               const List& list) {
        for (const auto& spoilt : list) {
            arguments bad = good();
            CAPTURE(spoilt.what);
            bad.*member = spoilt.view;
            CHECK(refused(function, argument, f, bad));
        }
    }
};

/// An inventory of two heads: the same memory, half of the modules in each.
arguments with_two_heads(arguments all) {
    const auto halves = [](const tensor_view<float, 4>& view) {
        return view.slice(0, 0).split(0, 2);
    };
    all.a = halves(all.a);
    all.b = halves(all.b);
    all.d_a = halves(all.d_a);
    all.d_b = halves(all.d_b);
    all.weights = all.weights.slice(1, 0).split(1, 2);
    all.d_weights = all.d_weights.slice(1, 0).split(1, 2);
    return all;
}

} // namespace

TEST_CASE("bad input of output_mixed_lora_forward") {
    constexpr const char* function = "output_mixed_lora_forward";
    fixture f;
    const auto call = [&](const arguments& all) {
        output_mixed_lora_forward(serial_executor{}, f.plan, all.x,
                                  lora_inventory<float>{all.a, all.b}, all.weights, 1, all.y,
                                  all.hidden);
    };
    f.check_input(function, "x", call, &arguments::x);
    // Another number of modules or another rank is b's fault.
    f.check_input(function, "inventory.a", call, &arguments::a, {1, 2, 3});
    f.check_input(function, "inventory.b", call, &arguments::b, {3});
    f.check_input(function, "weights", call, &arguments::weights);
    f.check_output(function, "y", call, &arguments::y);
    f.check_output(function, "hidden", call, &arguments::hidden);
    const auto outcome = f.refused(function, "inventory.a", call, with_two_heads(f.good()));
    CHECK(outcome);
    CHECK(outcome.message.find("expected one head") != std::string::npos);
    CHECK(outcome.message.find("got 2") != std::string::npos);
    f.weights.fill(0.25F);
    call(f.good()); // which is not refused
}

TEST_CASE("bad input of output_mixed_lora_backward") {
    constexpr const char* function = "output_mixed_lora_backward";
    fixture f;
    const auto call_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            output_mixed_lora_backward(executor, f.plan, all.x, lora_inventory<float>{all.a, all.b},
                                       all.weights, 1, all.hidden, all.d_y, all.d_x,
                                       lora_inventory<float>{all.d_a, all.d_b}, all.d_weights,
                                       all.scratch);
        };
    };
    const serial_executor serial;
    const share_executor share{0, 1};
    const auto call = call_on(serial);
    f.check_input(function, "x", call, &arguments::x);
    f.check_input(function, "inventory.a", call, &arguments::a, {1, 2, 3});
    f.check_input(function, "inventory.b", call, &arguments::b, {3});
    f.check_input(function, "weights", call, &arguments::weights);
    f.check_input(function, "hidden", call, &arguments::hidden);
    f.check_input(function, "d_y", call, &arguments::d_y);
    f.check_output(function, "d_x", call, &arguments::d_x);
    f.check_output(function, "d_inventory.a", call, &arguments::d_a);
    f.check_output(function, "d_inventory.b", call, &arguments::d_b);
    f.check_output(function, "d_weights", call, &arguments::d_weights);
    CHECK(f.refused(function, "inventory.a", call, with_two_heads(f.good())));
    CHECK(f.refused(function, "executor", call_on(share), f.good()));
    arguments bad = f.good();
    bad.scratch = {f.memory.data(), f.memory.size() - 1};
    CHECK(f.refused(function, "workspace", call, bad));
    call(f.good());
}

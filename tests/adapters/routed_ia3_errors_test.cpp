// Bad input of every argument of adapters/routed_ia3.hpp: refused by name, before anything is
// written.

#include <cstddef>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/routed_ia3.hpp>

#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr index_t rows = 21, heads = 2, count = 4, features = 10;
const std::set<std::size_t> all_axes{0, 1, 2};
const serial_executor serial;
const share_executor share{0, 1};

/// Every argument, as it should be.
struct arguments {
    tensor_view<float, 2> x, y, d_y, d_x, state, d_scales;
    tensor_view<float, 3> modules, weights, d_modules, d_weights;
    tensor_view<float, 1> average;
    workspace scratch;
};

/// Good arguments and the memory behind them, all of it guarded.
struct fixture {
    batch_plan plan = random_plan(rows, 3);
    guarded_buffer<float, 2> x{{rows, features}}, y{{rows, features}}, d_y{{rows, features}},
        d_x{{rows, features}}, state{{plan.entries(), features}},
        d_scales{{plan.entries(), features}};
    guarded_buffer<float, 3> modules{{heads, count, features / heads}},
        d_modules{{heads, count, features / heads}}, weights{{plan.entries(), heads, count}},
        d_weights{{plan.entries(), heads, count}};
    guarded_buffer<float, 1> average{{features}};
    std::vector<std::byte> memory =
        std::vector<std::byte>(routed_ia3_backward_workspace_size<float>(plan, features));

    arguments good() {
        return {x.view(),         y.view(),         d_y.view(),     d_x.view(),
                state.view(),     d_scales.view(),  modules.view(), weights.view(),
                d_modules.view(), d_weights.view(), average.view(), {memory.data(), memory.size()}};
    }
    template <class F>
    error_outcome refused(const char* function, const char* argument, F&& f, const arguments& bad) {
        return refuses(
            function, argument, [&] { f(bad); }, y, d_x, state, modules, d_modules, d_weights,
            average);
    }
    /// All that can be wrong with one argument.
    template <class F, class View>
    void check_input(const char* function, const char* argument, F&& f, View arguments::*member,
                     const std::set<std::size_t>& free_axes = {}) {
        check(function, argument, f, member, bad_as_input(good().*member, free_axes));
    }
    template <class F, class View>
    void check_output(const char* function, const char* argument, F&& f, View arguments::*member,
                      const std::set<std::size_t>& free_axes = {}) {
        check(function, argument, f, member, bad_as_output(good().*member, free_axes));
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

} // namespace

TEST_CASE("bad input of routed_ia3_forward") {
    constexpr const char* function = "routed_ia3_forward";
    fixture f;
    const auto call_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_ia3_forward(executor, f.plan, all.x, all.modules, all.weights, all.y, all.state);
        };
    };
    const auto call = call_on(serial);
    f.check_input(function, "x", call, &arguments::x);
    f.check_input(function, "modules", call, &arguments::modules, all_axes);
    f.check_input(function, "weights", call, &arguments::weights);
    f.check_output(function, "y", call, &arguments::y);
    f.check_output(function, "state", call, &arguments::state);
    CHECK(f.refused(function, "executor", call_on(share), f.good()));
    call(f.good()); // which is not refused

    // Another number of features, of modules; no heads.
    arguments bad = f.good();
    bad.modules = bad.modules.block(2, 0, features / heads - 1);
    CHECK(f.refused(function, "x", call, bad));
    bad = f.good();
    bad.modules = bad.modules.block(1, 0, count - 1);
    CHECK(f.refused(function, "weights", call, bad));
    bad = f.good();
    bad.modules = bad.modules.block(0, 0, 0);
    CHECK(f.refused(function, "modules", call, bad));
}

TEST_CASE("bad input of routed_ia3_backward") {
    constexpr const char* function = "routed_ia3_backward";
    fixture f;
    const auto call_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_ia3_backward(executor, f.plan, all.x, all.modules, all.weights, all.state,
                                all.d_y, all.d_x, all.d_modules, all.d_weights, all.scratch);
        };
    };
    const auto call = call_on(serial);
    f.check_input(function, "x", call, &arguments::x);
    f.check_input(function, "modules", call, &arguments::modules, all_axes);
    f.check_input(function, "weights", call, &arguments::weights);
    f.check_input(function, "state", call, &arguments::state);
    f.check_input(function, "d_y", call, &arguments::d_y);
    f.check_output(function, "d_x", call, &arguments::d_x);
    f.check_output(function, "d_modules", call, &arguments::d_modules);
    f.check_output(function, "d_weights", call, &arguments::d_weights);
    CHECK(f.refused(function, "executor", call_on(share), f.good()));
    arguments bad = f.good();
    bad.scratch = {f.memory.data(), f.memory.size() - 1};
    CHECK(f.refused(function, "workspace", call, bad));
    call(f.good());
}

TEST_CASE("bad input of mix_ia3_forward and mix_ia3_backward") {
    fixture f;
    const auto forward = [](const arguments& all) {
        mix_ia3_forward(serial, all.weights, all.modules, all.state);
    };
    f.check_input("mix_ia3_forward", "modules", forward, &arguments::modules, all_axes);
    f.check_input("mix_ia3_forward", "weights", forward, &arguments::weights, {0});
    f.check_output("mix_ia3_forward", "scales", forward, &arguments::state);
    forward(f.good());

    const auto backward = [](const arguments& all) {
        mix_ia3_backward(serial, all.weights, all.modules, all.d_scales, all.d_modules,
                         all.d_weights);
    };
    constexpr const char* back = "mix_ia3_backward";
    f.check_input(back, "modules", backward, &arguments::modules, all_axes);
    f.check_input(back, "weights", backward, &arguments::weights, {0});
    f.check_input(back, "d_scales", backward, &arguments::d_scales);
    f.check_output(back, "d_modules", backward, &arguments::d_modules);
    f.check_output(back, "d_weights", backward, &arguments::d_weights);
    backward(f.good());
}

TEST_CASE("bad input of average_ia3_forward, average_ia3_backward and initialise_ia3") {
    fixture f;
    const auto forward = [](const arguments& all) {
        average_ia3_forward(serial, all.modules, all.average);
    };
    f.check_input("average_ia3_forward", "modules", forward, &arguments::modules, all_axes);
    f.check_output("average_ia3_forward", "average", forward, &arguments::average);
    forward(f.good());

    const auto backward = [](const arguments& all) {
        average_ia3_backward(serial, all.average, all.d_modules);
    };
    f.check_output("average_ia3_backward", "d_modules", backward, &arguments::d_modules, all_axes);
    f.check_input("average_ia3_backward", "d_average", backward, &arguments::average);
    backward(f.good());

    const auto initialise = [](const arguments& all) { initialise_ia3(all.modules); };
    f.check_output("initialise_ia3", "modules", initialise, &arguments::modules, all_axes);
}

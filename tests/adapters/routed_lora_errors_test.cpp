// Bad input of every argument of adapters/routed_lora.hpp and routed_lora_halves.hpp: refused by
// name, before anything is written.

#include <cstddef>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/adapters/routed_lora_halves.hpp>

#include "support/bad_arguments.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/routed_problem.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using problem = routed_problem<routed_storage<float, float, float, float>>;
constexpr routed_sizes sizes{21, 3, 2, 4, 5, 7, 3};
const serial_executor serial;
const share_executor share{0, 1};

/// Every argument of every function, as it should be.
struct arguments {
    tensor_view<float, 2> x, y, d_y, d_x, d_hidden;
    lora_inventory<float> inventory, d_inventory;
    tensor_view<float, 3> weights, d_weights;
    routed_lora_state<float> state;
    lora_batch<float> d_mixed;
    lora<float> average;
    workspace scratch;
};

/// Good arguments and the memory behind them. What must stay untouched is guarded.
struct fixture {
    problem p{sizes};
    guarded_buffer<float, 2> d_y{{sizes.rows, sizes.out()}};
    guarded_buffer<float, 2> d_hidden{{sizes.rows, sizes.rank}};
    guarded_buffer<float, 3> mixed_a{{p.plan.entries(), sizes.in(), sizes.rank}};
    guarded_buffer<float, 3> mixed_b{{p.plan.entries(), sizes.rank, sizes.out()}};
    guarded_buffer<float, 2> hidden{{sizes.rows, sizes.rank}};
    guarded_buffer<float, 2> average_a{{sizes.in(), sizes.rank}};
    guarded_buffer<float, 2> average_b{{sizes.rank, sizes.out()}};

    arguments good() {
        return {p.x.view(),
                p.y.view(),
                d_y.view(),
                p.d_x.view(),
                d_hidden.view(),
                p.inventory(),
                p.d_inventory(),
                p.weights.view(),
                p.d_weights.view(),
                {{mixed_a.view(), mixed_b.view()}, hidden.view()},
                {mixed_a.view(), mixed_b.view()},
                {average_a.view(), average_b.view()},
                p.scratch()};
    }

    /// The call of `f(arguments)` is refused.
    template <class F>
    error_outcome refused(const char* function, const char* argument, F&& f, const arguments& bad) {
        return refuses(
            function, argument, [&] { f(bad); }, p.y, p.d_x, p.d_a, p.d_b, p.d_weights, d_hidden,
            mixed_a, mixed_b, hidden, average_a, average_b);
    }

    /// All that can be wrong with one input; `view` picks it from the arguments.
    template <class F, class View>
    void check_input(const char* function, const char* argument, F&& f, View&& view,
                     const std::set<std::size_t>& free_axes = {}) {
        arguments bad = good();
        for (const auto& spoilt : bad_as_input(view(bad), free_axes)) {
            CAPTURE(argument);
            CAPTURE(spoilt.what);
            view(bad) = spoilt.view;
            CHECK(refused(function, argument, f, bad));
        }
    }
    template <class F, class View>
    void check_output(const char* function, const char* argument, F&& f, View&& view,
                      const std::set<std::size_t>& free_axes = {}) {
        arguments bad = good();
        for (const auto& spoilt : bad_as_output(view(bad), free_axes)) {
            CAPTURE(argument);
            CAPTURE(spoilt.what);
            view(bad) = spoilt.view;
            CHECK(refused(function, argument, f, bad));
        }
    }
};

// Which argument: references, so that the same function reads and replaces it.
auto& x(arguments& all) {
    return all.x;
}
auto& y(arguments& all) {
    return all.y;
}
auto& d_y(arguments& all) {
    return all.d_y;
}
auto& d_x(arguments& all) {
    return all.d_x;
}
auto& d_hidden(arguments& all) {
    return all.d_hidden;
}
auto& a(arguments& all) {
    return all.inventory.a;
}
auto& b(arguments& all) {
    return all.inventory.b;
}
auto& d_a(arguments& all) {
    return all.d_inventory.a;
}
auto& d_b(arguments& all) {
    return all.d_inventory.b;
}
auto& weights(arguments& all) {
    return all.weights;
}
auto& d_weights(arguments& all) {
    return all.d_weights;
}
auto& state_a(arguments& all) {
    return all.state.mixed.a;
}
auto& state_b(arguments& all) {
    return all.state.mixed.b;
}
auto& state_hidden(arguments& all) {
    return all.state.hidden;
}
auto& d_mixed_a(arguments& all) {
    return all.d_mixed.a;
}
auto& d_mixed_b(arguments& all) {
    return all.d_mixed.b;
}
auto& average_a(arguments& all) {
    return all.average.a;
}
auto& average_b(arguments& all) {
    return all.average.b;
}

const std::set<std::size_t> all_axes{0, 1, 2, 3};
const std::set<std::size_t> last_axis{3};

/// What every function that mixes reads.
template <class F>
void check_inventory_and_weights(fixture& f, const char* function, F&& call) {
    f.check_input(function, "inventory.a", call, a, all_axes);
    f.check_input(function, "inventory.b", call, b, last_axis);
    f.check_input(function, "weights", call, weights);
}

/// What every backward of a layer takes, `size` bytes of workspace among it; `on_share` calls it
/// with an executor that does not run every part.
template <class F, class G>
void check_backward(fixture& f, const char* function, F&& call, G&& on_share, std::size_t size) {
    check_inventory_and_weights(f, function, call);
    f.check_input(function, "state.mixed.a", call, state_a);
    f.check_input(function, "state.mixed.b", call, state_b);
    f.check_input(function, "state.hidden", call, state_hidden);
    f.check_output(function, "d_inventory.a", call, d_a);
    f.check_output(function, "d_inventory.b", call, d_b);
    f.check_output(function, "d_weights", call, d_weights);
    CHECK(f.refused(function, "executor", on_share, f.good()));
    arguments bad = f.good();
    bad.scratch = {f.p.scratch_memory.data(), size - 1};
    CHECK(f.refused(function, "workspace", call, bad));
    bad.scratch = {};
    CHECK(f.refused(function, "workspace", call, bad));
}

} // namespace

TEST_CASE("bad input of routed_lora_forward") {
    constexpr const char* function = "routed_lora_forward";
    fixture f;
    const auto call_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_forward(executor, f.p.plan, all.x, all.inventory, all.weights, 1, all.y,
                                all.state);
        };
    };
    const auto call = call_on(serial);
    f.check_input(function, "x", call, x);
    check_inventory_and_weights(f, function, call);
    f.check_output(function, "y", call, y);
    f.check_output(function, "state.mixed.a", call, state_a);
    f.check_output(function, "state.mixed.b", call, state_b);
    f.check_output(function, "state.hidden", call, state_hidden);
    CHECK(f.refused(function, "executor", call_on(share), f.good()));
    call(f.good()); // which is not refused
}

TEST_CASE("bad input of routed_lora_backward") {
    constexpr const char* function = "routed_lora_backward";
    fixture f;
    const auto call_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_backward(executor, f.p.plan, all.x, all.inventory, all.weights, 1,
                                 all.state, all.d_y, all.d_x, all.d_inventory, all.d_weights,
                                 all.scratch);
        };
    };
    const auto call = call_on(serial);
    check_backward(f, function, call, call_on(share), f.p.scratch_memory.size());
    f.check_input(function, "x", call, x);
    f.check_input(function, "d_y", call, d_y);
    f.check_output(function, "d_x", call, d_x);
    call(f.good());
}

TEST_CASE("bad input of the halves forward") {
    fixture f;
    const auto first_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_project_forward(executor, f.p.plan, all.x, all.inventory, all.weights,
                                        all.state);
        };
    };
    const auto second_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_expand_forward(executor, f.p.plan, all.inventory, all.weights, 1, all.y,
                                       all.state);
        };
    };
    constexpr const char* project = "routed_lora_project_forward";
    const auto first = first_on(serial);
    check_inventory_and_weights(f, project, first);
    f.check_input(project, "x", first, x);
    f.check_output(project, "state.mixed.a", first, state_a);
    f.check_input(project, "state.mixed.b", first, state_b);
    f.check_output(project, "state.hidden", first, state_hidden);
    CHECK(f.refused(project, "executor", first_on(share), f.good()));

    constexpr const char* expand = "routed_lora_expand_forward";
    const auto second = second_on(serial);
    check_inventory_and_weights(f, expand, second);
    f.check_output(expand, "y", second, y);
    f.check_input(expand, "state.mixed.a", second, state_a);
    f.check_output(expand, "state.mixed.b", second, state_b);
    f.check_input(expand, "state.hidden", second, state_hidden);
    CHECK(f.refused(expand, "executor", second_on(share), f.good()));
    first(f.good()); // which is not refused
    second(f.good());
}

TEST_CASE("bad input of the halves backward") {
    fixture f;
    const auto first_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_expand_backward(executor, f.p.plan, all.inventory, all.weights, 1,
                                        all.state, all.d_y, all.d_hidden, all.d_inventory,
                                        all.d_weights, all.scratch);
        };
    };
    const auto second_on = [&](executor_ref executor) {
        return [&f, executor](const arguments& all) {
            routed_lora_project_backward(executor, f.p.plan, all.x, all.inventory, all.weights,
                                         all.state, all.d_hidden, all.d_x, all.d_inventory,
                                         all.d_weights, all.scratch);
        };
    };
    const std::size_t size = routed_lora_halves_workspace_size<float>(f.p.plan, f.p.shape());
    REQUIRE(size <= f.p.scratch_memory.size());
    const auto first = first_on(serial);
    const auto second = second_on(serial);
    constexpr const char* expand = "routed_lora_expand_backward";
    check_backward(f, expand, first, first_on(share), size);
    f.check_input(expand, "d_y", first, d_y);
    f.check_output(expand, "d_hidden", first, d_hidden);
    constexpr const char* project = "routed_lora_project_backward";
    check_backward(f, project, second, second_on(share), size);
    f.check_input(project, "x", second, x);
    f.check_input(project, "d_hidden", second, d_hidden);
    f.check_output(project, "d_x", second, d_x);
    first(f.good());
    second(f.good());
}

TEST_CASE("bad input of mix_lora_forward and mix_lora_backward") {
    fixture f;
    const auto forward = [](const arguments& all) {
        mix_lora_forward(serial_executor{}, all.weights, all.inventory, all.state.mixed);
    };
    constexpr const char* name = "mix_lora_forward";
    f.check_input(name, "inventory.a", forward, a, all_axes);
    f.check_input(name, "inventory.b", forward, b, last_axis);
    f.check_input(name, "weights", forward, weights, {0});
    f.check_output(name, "mixed.a", forward, state_a);
    f.check_output(name, "mixed.b", forward, state_b);
    forward(f.good());

    const auto backward = [](const arguments& all) {
        mix_lora_backward(serial_executor{}, all.weights, all.inventory, all.d_mixed,
                          all.d_inventory, all.d_weights);
    };
    constexpr const char* back = "mix_lora_backward";
    f.check_input(back, "inventory.a", backward, a, all_axes);
    f.check_input(back, "inventory.b", backward, b, last_axis);
    f.check_input(back, "weights", backward, weights, {0});
    f.check_input(back, "d_mixed.a", backward, d_mixed_a);
    f.check_input(back, "d_mixed.b", backward, d_mixed_b);
    f.check_output(back, "d_inventory.a", backward, d_a);
    f.check_output(back, "d_inventory.b", backward, d_b);
    f.check_output(back, "d_weights", backward, d_weights);
    backward(f.good());
}

TEST_CASE("bad input of average_lora_forward and average_lora_backward") {
    fixture f;
    const auto forward = [](const arguments& all) {
        average_lora_forward(serial_executor{}, all.inventory, all.average);
    };
    constexpr const char* name = "average_lora_forward";
    f.check_input(name, "inventory.a", forward, a, all_axes);
    f.check_input(name, "inventory.b", forward, b, last_axis);
    f.check_output(name, "average.a", forward, average_a);
    f.check_output(name, "average.b", forward, average_b);
    forward(f.good());

    const auto backward = [](const arguments& all) {
        average_lora_backward(serial_executor{}, all.average, all.d_inventory);
    };
    constexpr const char* back = "average_lora_backward";
    f.check_output(back, "d_inventory.a", backward, d_a, all_axes);
    f.check_output(back, "d_inventory.b", backward, d_b, last_axis);
    f.check_input(back, "d_average.a", backward, average_a);
    f.check_input(back, "d_average.b", backward, average_b);
    backward(f.good());
}

TEST_CASE("a plan of another batch is refused") {
    fixture f;
    batch_plan other;
    other.assign_single_task(sizes.rows - 1);
    const arguments all = f.good();
    CHECK(f.refused(
        "routed_lora_forward", "x",
        [&](const arguments& good) {
            routed_lora_forward(serial_executor{}, other, good.x, good.inventory, good.weights, 1,
                                good.y, good.state);
        },
        all));
    other.assign_single_task(sizes.rows);
    CHECK(f.refused(
        "routed_lora_forward", "weights",
        [&](const arguments& good) {
            routed_lora_forward(serial_executor{}, other, good.x, good.inventory, good.weights, 1,
                                good.y, good.state);
        },
        all));
}

TEST_CASE("slots are refused where there is one matrix for each entry") {
    fixture f;
    const std::vector<index_t> in_order{0, 1, 2};
    REQUIRE(f.p.plan.entries() == 3);
    arguments bad = f.good();
    bad.state.mixed.slot_of_entry = {in_order.data(), {3}};
    bad.d_mixed.slot_of_entry = {in_order.data(), {3}};
    const auto refused = [&](const char* function, const char* argument, auto&& call) {
        return f.refused(function, argument, call, bad);
    };
    CHECK(refused("routed_lora_forward", "state.mixed.slot_of_entry", [&](const arguments& all) {
        routed_lora_forward(serial, f.p.plan, all.x, all.inventory, all.weights, 1, all.y,
                            all.state);
    }));
    CHECK(refused("routed_lora_backward", "state.mixed.slot_of_entry", [&](const arguments& all) {
        routed_lora_backward(serial, f.p.plan, all.x, all.inventory, all.weights, 1, all.state,
                             all.d_y, all.d_x, all.d_inventory, all.d_weights, all.scratch);
    }));
    CHECK(refused("routed_lora_project_forward", "state.mixed.slot_of_entry",
                  [&](const arguments& all) {
                      routed_lora_project_forward(serial, f.p.plan, all.x, all.inventory,
                                                  all.weights, all.state);
                  }));
    CHECK(refused("mix_lora_forward", "mixed.slot_of_entry", [](const arguments& all) {
        mix_lora_forward(serial_executor{}, all.weights, all.inventory, all.state.mixed);
    }));
    CHECK(refused("mix_lora_backward", "d_mixed.slot_of_entry", [](const arguments& all) {
        mix_lora_backward(serial_executor{}, all.weights, all.inventory, all.d_mixed,
                          all.d_inventory, all.d_weights);
    }));
}

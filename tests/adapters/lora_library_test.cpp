#include <array>
#include <cmath>
#include <cstddef>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/adapters/lora_library.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/routing/router.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/precision.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

constexpr index_t in = 12, out = 18, common_rank = 5;
const std::vector<index_t> ranks{2, 5, 1, 3};
constexpr index_t modules = 4;

/// Adapters of different ranks, and room for all of them in one pool.
template <class P, class M>
struct library {
    std::deque<guarded_buffer<P, 2>> a, b;
    std::vector<lora<const P>> adapters;
    std::vector<double> scales{0.5, -2, 4, 1};
    guarded_buffer<M, 3> pool_a, pool_b;

    explicit library(layout of_adapters = layout::row_major, layout of_pool = layout::row_major)
        : pool_a({modules, in, common_rank}, of_pool),
          pool_b({modules, common_rank, out}, of_pool) {
        random_source random(6);
        for (index_t rank : ranks) {
            random.fill(a.emplace_back(std::array<index_t, 2>{in, rank}, of_adapters).view());
            random.fill(b.emplace_back(std::array<index_t, 2>{rank, out}, of_adapters).view());
            adapters.push_back({a.back().view(), b.back().view()});
        }
    }
    tensor_view<const lora<const P>, 1> view() { return {adapters.data(), {modules}}; }
    tensor_view<const double, 1> scales_view() { return {scales.data(), {modules}}; }
    lora_batch<M> pool() { return {pool_a.view(), pool_b.view()}; }
    lora_batch<const M> const_pool() { return {pool_a.view(), pool_b.view()}; }
    void gather(executor_ref executor = serial) {
        gather_lora_library(executor, view(), scales_view(), pool());
    }
};

template <class T>
comparison positive_zeros(const tensor_view<T, 2>& view) {
    return compare_bitwise(as_const(view), tensor<T, 2>(view.extents()).const_view());
}

constexpr index_t rows = 19;

/// A batch of one task, and what it gives from zeros.
template <class T>
struct layer {
    batch_plan plan;
    tensor<T, 2> x{{rows, in}};

    layer() {
        plan.assign_single_task(rows);
        random_source(7).fill(x.view());
    }
    template <class P>
    tensor<T, 2> through(const lora_batch<P>& adapter, double scale) {
        tensor<T, 2> y({rows, out}), hidden({rows, adapter.a.extent(2)});
        lora_forward(serial, plan, x.view(), adapter, scale, y.view(), hidden.view());
        return y;
    }
    template <class M>
    tensor<T, 2> routed(const lora_inventory<M>& inventory, const tensor<T, 3>& weights) {
        tensor<T, 2> y({rows, out});
        std::vector<std::byte> memory(routed_lora_state_size<T>(plan, shape_of(inventory)));
        workspace all(memory.data(), memory.size());
        routed_lora_forward(serial, plan, x.view(), inventory, weights.view(), 1, y.view(),
                            take_routed_lora_state<T>(all, plan, shape_of(inventory)));
        return y;
    }
};

} // namespace

TEST_CASE_TEMPLATE("a gathered library holds scaled copies, padded with zeros", T, float,
                   Eigen::half MHR_TEST_ALSO(double, Eigen::bfloat16)) {
    const auto check = [](auto other, layout of_adapters, layout of_pool, bool scaled) {
        using M = decltype(other);
        using A = accumulator_t<T, M>;
        CAPTURE(name_of<M>());
        CAPTURE(name_of(of_adapters));
        CAPTURE(name_of(of_pool));
        CAPTURE(scaled);
        library<T, M> all(of_adapters, of_pool);
        if (scaled)
            all.gather();
        else
            gather_lora_library(serial, all.view(), {}, all.pool());
        for (index_t i = 0; i < modules; ++i) {
            const auto at = static_cast<std::size_t>(i);
            const index_t rank = ranks[at];
            const double scale = scaled ? all.scales[at] : 1;
            tensor<M, 2> a({in, rank}), b({rank, out});
            transform(all.a[at].view(), a.view(),
                      [](const T& value) { return store<M>(load<A>(value)); });
            transform(all.b[at].view(), b.view(), [&](const T& value) {
                return store<M>(static_cast<A>(scale) * load<A>(value));
            });
            const auto in_pool_a = all.pool_a.view().slice(0, i);
            const auto in_pool_b = all.pool_b.view().slice(0, i);
            CHECK(compare_bitwise(in_pool_a.block(1, 0, rank), a.view()));
            CHECK(compare_bitwise(in_pool_b.block(0, 0, rank), b.view()));
            const index_t padding = common_rank - rank;
            if (padding == 0) continue;
            CHECK(positive_zeros(in_pool_a.block(1, rank, padding)));
            CHECK(positive_zeros(in_pool_b.block(0, rank, padding)));
        }
        CHECK(all.pool_a.intact());
        CHECK(all.pool_b.intact());
    };
    for (layout of_adapters : all_layouts)
        for (layout of_pool : all_layouts)
            for (bool scaled : {false, true}) {
                check(T(), of_adapters, of_pool, scaled);
                check(float(), of_adapters, of_pool, scaled);
            }
    check(Eigen::bfloat16(), layout::row_major, layout::row_major, true);
}

TEST_CASE("factors that are not exact are rounded once") {
    library<float, Eigen::bfloat16> all;
    all.scales = {0.1, 1.0 / 3, -7.7, 1};
    all.gather();
    for (index_t i = 0; i < modules; ++i) {
        const auto at = static_cast<std::size_t>(i);
        auto want = copy_as<double>(all.b[at].view());
        for (double& value : want.values())
            value *= all.scales[at];
        CHECK(compare(all.pool_b.view().slice(0, i).block(0, 0, ranks[at]), want.view(),
                      within<float>(1, 0.5)));
    }
}

TEST_CASE_TEMPLATE("padding does not change what an adapter computes, to the last bit", T, double,
                   float) {
    library<T, T> all;
    all.gather();
    layer<T> host;
    for (index_t i = 0; i < modules; ++i) {
        CAPTURE(i);
        const auto at = static_cast<std::size_t>(i);
        // Scales are powers of two here: exact in b as on the product.
        const auto want = host.through(as_batch(all.adapters[at]), all.scales[at]);
        const lora_batch<const T> padded{all.pool_a.view(), all.pool_b.view(), {&i, {1}}};
        CHECK(compare_bitwise(host.through(padded, 1).view(), want.view()));
    }
}

TEST_CASE_TEMPLATE("weights of one adapter alone give that adapter, to the last bit", T, double,
                   float) {
    library<T, T> all;
    all.gather();
    layer<T> host;
    for (index_t heads : {1, 2, 3, 6})
        for (index_t i = 0; i < modules; ++i) {
            CAPTURE(heads);
            CAPTURE(i);
            const auto at = static_cast<std::size_t>(i);
            tensor<T, 3> weights({1, heads, modules});
            for (index_t h = 0; h < heads; ++h)
                weights(0, h, i) = 1;
            const auto want = host.through(as_batch(all.adapters[at]), all.scales[at]);
            const auto got = host.routed(as_inventory(all.const_pool(), heads), weights);
            CHECK(compare_bitwise(got.view(), want.view()));
        }
}

TEST_CASE("a pool as an inventory is the same memory, with any number of heads") {
    for (layout order : all_layouts)
        for (index_t heads : {1, 2, 3, 6}) {
            CAPTURE(name_of(order));
            CAPTURE(heads);
            library<float, float> all(layout::row_major, order);
            const lora_inventory<float> inventory = as_inventory(all.pool(), heads);
            REQUIRE(inventory.a.extents() ==
                    std::array<index_t, 4>{heads, modules, in / heads, common_rank});
            REQUIRE(inventory.b.extents() ==
                    std::array<index_t, 4>{heads, modules, common_rank, out / heads});
            std::size_t elsewhere = 0;
            for_each_position(inventory.a.extents(), [&](const position<4>& at) {
                elsewhere += &element(inventory.a, at) !=
                             &all.pool_a(at[1], at[0] * (in / heads) + at[2], at[3]);
            });
            for_each_position(inventory.b.extents(), [&](const position<4>& at) {
                elsewhere += &element(inventory.b, at) !=
                             &all.pool_b(at[1], at[2], at[0] * (out / heads) + at[3]);
            });
            CHECK(elsewhere == 0);
        }
}

TEST_CASE("a mixture of a library has the cross terms that are documented") {
    library<double, double> all;
    all.gather();
    layer<double> host;
    tensor<double, 3> weights({1, 1, modules});
    weights(0, 0, 0) = 0.25;
    weights(0, 0, 3) = 0.75;
    const auto got = host.routed(as_inventory(all.const_pool(), 1), weights);
    const tensor<index_t, 1> first({rows}); // every row has adapter 0
    const auto add = [&](index_t i, index_t j, tensor<double, 2>& y) {
        reference::lora_forward(
            first.view(), host.x.const_view(), all.pool_a.const_view().block(0, i, 1),
            all.pool_b.const_view().block(0, j, 1), weights(0, 0, i) * weights(0, 0, j), y.view());
    };
    tensor<double, 2> want({rows, out}), without_cross_terms({rows, out}), size({rows, out});
    for (index_t i : {0, 3})
        for (index_t j : {0, 3})
            add(i, j, want);
    add(0, 0, without_cross_terms);
    add(3, 3, without_cross_terms);
    for (double& value : size.values())
        value = 60; // terms of up to 1
    CHECK(compare(got.view(), want.view(), size.view(), within<double>(10)));
    CHECK_FALSE(compare(got.view(), without_cross_terms.view(), size.view(), within<double>(10)));
}

TEST_CASE("training the routing alone finds the adapter of the library that solves the task") {
    library<float, float> all;
    all.scales = {1, 1, 1, 1};
    all.gather();
    layer<float> host;
    const index_t solution = 2;
    const auto target = host.through(as_batch(all.adapters[static_cast<std::size_t>(solution)]), 1);
    for (index_t heads : {1, 3}) {
        CAPTURE(heads);
        const auto inventory = as_inventory(all.const_pool(), heads);
        const lora_shape shape = shape_of(inventory);
        std::vector<std::byte> state_memory(routed_lora_state_size<float>(host.plan, shape));
        std::vector<std::byte> memory(routed_lora_backward_workspace_size<float>(host.plan, shape));
        workspace of_state(state_memory.data(), state_memory.size());
        const auto state = take_routed_lora_state<float>(of_state, host.plan, shape);
        const routing_rule rule{sigmoid_gate{}};
        tensor<float, 3> logits({1, heads, modules}), weights(logits.extents());

        std::vector<double> losses;
        const auto before_a = all.pool_a.take_snapshot();
        const auto before_b = all.pool_b.take_snapshot();
        for (int step = 0; step <= 120; ++step) {
            router_forward(serial, logits.view(), host.plan.tasks(), rule, weights.view());
            tensor<float, 2> y({rows, out}), d_y({rows, out});
            routed_lora_forward(serial, host.plan, host.x.view(), inventory, weights.view(), 1,
                                y.view(), state);
            double loss = 0;
            for_each_position(y.extents(), [&](const position<2>& at) {
                const float difference = y(at[0], at[1]) - target(at[0], at[1]);
                loss += double(difference) * difference / 2;
                d_y(at[0], at[1]) = difference;
            });
            losses.push_back(loss);
            tensor<float, 3> d_weights(weights.extents()), d_logits(logits.extents());
            routed_lora_backward(serial, host.plan, host.x.view(), inventory, weights.view(), 1,
                                 state, d_y.view(), tensor_view<float, 2>{},
                                 lora_inventory<float>{}, d_weights.view(),
                                 workspace(memory.data(), memory.size()));
            router_backward(serial, logits.view(), host.plan.tasks(), rule, d_weights.view(),
                            d_logits.view());
            for_each_position(logits.extents(), [&](const position<3>& at) {
                logits(at[0], at[1], at[2]) -= 0.02F * d_logits(at[0], at[1], at[2]);
            });
        }
        for (std::size_t step = 1; step < losses.size(); ++step) {
            CAPTURE(step);
            CHECK(losses[step] < losses[step - 1]);
        }
        CAPTURE(losses.front());
        CAPTURE(losses.back());
        CHECK(losses.back() < 0.1 * losses.front());
        for (index_t h = 0; h < heads; ++h)
            for (index_t m = 0; m < modules; ++m) {
                CAPTURE(h);
                CAPTURE(m);
                if (m == solution)
                    CHECK(weights(0, h, m) > 0.6F); // from 1/4
                else
                    CHECK(weights(0, h, m) < 0.25F);
            }
        CHECK(all.pool_a.unchanged_since(before_a));
        CHECK(all.pool_b.unchanged_since(before_b));
    }
}

TEST_CASE("gathering gives the same bits on every executor, accepts shares, allocates nothing") {
    library<float, float> want;
    want.gather();
    const auto check = [&](library<float, float>& got) {
        CHECK(compare_bitwise(got.pool_a.view(), want.pool_a.view()));
        CHECK(compare_bitwise(got.pool_b.view(), want.pool_b.view()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        library<float, float> all;
        all.gather(executor);
        check(all);
    });
    library<float, float> shared;
    for_each_share(3, [&](executor_ref executor) { shared.gather(executor); });
    check(shared);
    CHECK(allocations_of([&] { want.gather(); }) == 0);
}

TEST_CASE("empty libraries") {
    gather_lora_library(serial, tensor_view<const lora<const float>, 1>{}, {}, lora_batch<float>{});
    CHECK(as_inventory(lora_batch<float>{}, 2).a.size() == 0);
    // An adapter of rank 0 is one of zeros.
    guarded_buffer<float, 3> a({1, 2, 3}), b({1, 3, 4});
    const lora<const float> nothing{{nullptr, {2, 0}}, {nullptr, {0, 4}}};
    gather_lora_library(serial, tensor_view<const lora<const float>, 1>(&nothing, {1}), {},
                        lora_batch<float>{a.view(), b.view()});
    CHECK(positive_zeros(a.view().slice(0, 0)));
    CHECK(positive_zeros(b.view().slice(0, 0)));
}

TEST_CASE("bad input of as_inventory") {
    library<float, float> all;
    const auto refused = [&](const char* argument, const lora_batch<float>& pool, index_t heads) {
        return refuses(
            "as_inventory", argument, [&] { (void)as_inventory(pool, heads); }, all.pool_a,
            all.pool_b);
    };
    for (const auto& bad : bad_as_input(all.pool_a.view(), {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.a", {bad.view, all.pool_b.view()}, 1));
    }
    for (const auto& bad : bad_as_input(all.pool_b.view(), {2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.b", {all.pool_a.view(), bad.view}, 1));
    }
    for (index_t heads : {0, -1, 4, 9, 5, 36}) { // 12 and 18 features
        CAPTURE(heads);
        CHECK(refused("heads", all.pool(), heads));
    }
    const std::vector<index_t> slots{0, 1, 2, 3};
    CHECK(refused("pool.slot_of_entry",
                  {all.pool_a.view(), all.pool_b.view(), {slots.data(), {modules}}}, 1));
}

TEST_CASE("bad input of gather_lora_library") {
    using adapter = lora<const float>;
    library<float, float> all;
    const auto refused = [&](const char* argument, const tensor_view<const adapter, 1>& adapters,
                             const tensor_view<const double, 1>& scales,
                             const lora_batch<float>& pool) {
        return refuses(
            "gather_lora_library", argument,
            [&] { gather_lora_library(serial, adapters, scales, pool); }, all.pool_a, all.pool_b);
    };
    for (const auto& bad : bad_as_input(all.view(), {0})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters", bad.view, {}, all.pool()));
    }
    CHECK(refused("pool.a", all.view().block(0, 0, 3), {}, all.pool()));
    for (const auto& bad : bad_as_input(all.scales_view())) {
        if (bad.view.absent()) continue;
        CAPTURE(bad.what);
        CHECK(refused("scales", all.view(), bad.view, all.pool()));
    }
    for (const auto& bad : bad_as_output(all.pool_a.view(), {1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.a", all.view(), {}, {bad.view, all.pool_b.view()}));
    }
    for (const auto& bad : bad_as_output(all.pool_b.view(), {2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.b", all.view(), {}, {all.pool_a.view(), bad.view}));
    }
    const std::vector<index_t> slots{0, 1, 2, 3};
    CHECK(refused("pool.slot_of_entry", all.view(), {},
                  {all.pool_a.view(), all.pool_b.view(), {slots.data(), {modules}}}));
    // One adapter among others.
    for (std::size_t i : {0U, 3U}) {
        const adapter good = all.adapters[i];
        for (const auto& bad : bad_as_input(good.a, {1})) {
            CAPTURE(bad.what);
            all.adapters[i] = {bad.view, good.b};
            CHECK(refused("adapters.a", all.view(), {}, all.pool()));
        }
        for (const auto& bad : bad_as_input(good.b)) {
            CAPTURE(bad.what);
            all.adapters[i] = {good.a, bad.view};
            CHECK(refused("adapters.b", all.view(), {}, all.pool()));
        }
        all.adapters[i] = good;
    }
    // A rank above the pool's; features of another layer.
    guarded_buffer<float, 2> a({in, common_rank + 1}), b({common_rank + 1, out});
    all.adapters[1] = {a.view(), b.view()};
    CHECK(refused("adapters.a", all.view(), {}, all.pool()));
    all.adapters[1] = {all.a[1].view().block(0, 0, in - 1), all.b[1].view()};
    CHECK(refused("adapters.a", all.view(), {}, all.pool()));
}

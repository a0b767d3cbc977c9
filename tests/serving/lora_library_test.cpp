#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <deque>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/reference/lora.hpp>
#include <mhr/serving/lora_library.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
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
struct library {
    std::deque<guarded_tensor<2>> a, b;
    std::vector<lora> adapters;
    guarded_tensor<3> pool_a, pool_b;

    explicit library(element_type of_adapters = element_type::f32,
                     element_type of_pool = element_type::f32,
                     layout order_of_adapters = layout::row_major,
                     layout order_of_pool = layout::row_major)
        : pool_a(of_pool, {modules, in, common_rank}, order_of_pool),
          pool_b(of_pool, {modules, common_rank, out}, order_of_pool) {
        random_source random(6);
        const std::array<double, modules> scales{0.5, -2, 4, 1};
        for (std::size_t i = 0; i < ranks.size(); ++i) {
            const std::array<index_t, 2> of_a{in, ranks[i]}, of_b{ranks[i], out};
            a.emplace_back(of_adapters, of_a, order_of_adapters).fill(random);
            b.emplace_back(of_adapters, of_b, order_of_adapters).fill(random);
            adapters.push_back({a.back().const_ref(), b.back().const_ref(), scales[i]});
        }
    }
    [[nodiscard]] tensor_view<const lora, 1> view() const { return {adapters.data(), {modules}}; }
    stacked_lora_matrices pool() { return {pool_a.ref(), pool_b.ref()}; }
    void gather(executor_ref executor = serial) {
        gather_lora_library(executor, {adapters.data(), {modules}}, pool());
    }
};

comparison positive_zeros(const const_tensor_ref<2>& tensor) {
    guarded_tensor<2> zeros(tensor.type(), tensor.extents());
    zeros.fill(0);
    return compare_bitwise(tensor, zeros.const_ref());
}

constexpr index_t rows = 19;

/// A batch of one task, and what it gives from zeros.
struct layer {
    element_type type;
    batch_plan plan;
    guarded_tensor<2> x;

    explicit layer(element_type of) : type(of), x(of, {rows, in}) {
        plan.assign_single_task(rows);
        x.fill(random_source(7));
    }
    tensor<double, 2> through(const lora& adapter) {
        guarded_tensor<2> y(type, {rows, out});
        y.fill(0);
        poisoned_memory of_state(lora_state_size({plan}, adapter, type));
        workspace memory = of_state;
        lora_forward({plan}, adapter, x.ref(), y.ref(),
                     take_lora_state(memory, {plan}, adapter, type));
        return values_as<double>(y.ref());
    }
    tensor<double, 2> routed(const lora_inventory& inventory, const const_tensor_ref<3>& weights) {
        guarded_tensor<2> y(type, {rows, out});
        y.fill(0);
        const routed_lora all{inventory.a, inventory.b, weights, 1};
        poisoned_memory of_state(routed_lora_state_size({plan}, all, type));
        workspace memory = of_state;
        routed_lora_forward({plan}, all, x.ref(), y.ref(),
                            take_routed_lora_state(memory, {plan}, all, type));
        return values_as<double>(y.ref());
    }
};

} // namespace

TEST_CASE("a gathered library holds scaled copies, padded with zeros") {
    for (element_type of_adapters : all_element_types)
        for (element_type of_pool : all_element_types)
            for (layout order_of_adapters : all_layouts)
                for (layout order_of_pool : all_layouts) {
                    CAPTURE(std::string(name_of(of_adapters)));
                    CAPTURE(std::string(name_of(of_pool)));
                    CAPTURE(name_of(order_of_adapters));
                    CAPTURE(name_of(order_of_pool));
                    library all(of_adapters, of_pool, order_of_adapters, order_of_pool);
                    all.gather();
                    for (index_t i = 0; i < modules; ++i) {
                        const lora& adapter = all.adapters[static_cast<std::size_t>(i)];
                        const index_t rank = adapter.a.extent(1);
                        // Scales are powers of two here: exact in f32.
                        guarded_tensor<2> a(of_pool, {in, rank}), b(of_pool, {rank, out});
                        for_each_position(a.extents(), [&](const position<2>& at) {
                            set_element(a.ref(), at, element(adapter.a, at));
                        });
                        for_each_position(b.extents(), [&](const position<2>& at) {
                            set_element(b.ref(), at, adapter.scale * element(adapter.b, at));
                        });
                        const auto in_pool_a = all.pool_a.const_ref().slice(0, i);
                        const auto in_pool_b = all.pool_b.const_ref().slice(0, i);
                        CHECK(compare_bitwise(in_pool_a.block(1, 0, rank), a.const_ref()));
                        CHECK(compare_bitwise(in_pool_b.block(0, 0, rank), b.const_ref()));
                        const index_t padding = common_rank - rank;
                        if (padding == 0) continue;
                        CHECK(positive_zeros(in_pool_a.block(1, rank, padding)));
                        CHECK(positive_zeros(in_pool_b.block(0, rank, padding)));
                    }
                    CHECK(all.pool_a.intact());
                    CHECK(all.pool_b.intact());
                }
}

TEST_CASE("adapters of one library may differ in their element types") {
    library all;
    guarded_tensor<2> a(element_type::bf16, {in, 5}), b(element_type::f16, {5, out});
    a.fill(random_source(20));
    b.fill(random_source(21));
    all.adapters[1] = {a.const_ref(), b.const_ref(), 1};
    all.gather();
    CHECK(compare(all.pool_a.ref().slice(0, 1), values_as<double>(a.ref()).view(),
                  error_bound{0, 0, 0}));
    CHECK(compare(all.pool_b.ref().slice(0, 1), values_as<double>(b.ref()).view(),
                  error_bound{0, 0, 0}));
}

TEST_CASE("rows longer than are copied at a time") {
    const index_t wide = 700;
    guarded_tensor<2> a(element_type::f32, {wide, 3}), b(element_type::f32, {3, wide});
    a.fill(random_source(1));
    b.fill(random_source(2));
    const lora adapter{a.const_ref(), b.const_ref(), 2};
    guarded_tensor<2> twice(element_type::f32, b.extents());
    for_each_position(b.extents(), [&](const position<2>& at) {
        set_element(twice.ref(), at, 2 * element(b.const_ref(), at));
    });
    for (layout order : {layout::row_major, layout::column_major}) {
        CAPTURE(name_of(order));
        guarded_tensor<3> pool_a(element_type::f32, {1, wide, 300}, order);
        guarded_tensor<3> pool_b(element_type::f32, {1, 300, wide}, order);
        gather_lora_library(serial, {&adapter, {1}}, {pool_a.ref(), pool_b.ref()});
        CHECK(compare_bitwise(pool_a.const_ref().slice(0, 0).block(1, 0, 3), a.const_ref()));
        CHECK(positive_zeros(pool_a.const_ref().slice(0, 0).block(1, 3, 297)));
        CHECK(compare_bitwise(pool_b.const_ref().slice(0, 0).block(0, 0, 3), twice.const_ref()));
        CHECK(positive_zeros(pool_b.const_ref().slice(0, 0).block(0, 3, 297)));
    }
}

TEST_CASE("factors that are not exact are rounded once") {
    library all(element_type::f32, element_type::bf16);
    const std::array<double, modules> scales{0.1, 1.0 / 3, -7.7, 1};
    for (std::size_t i = 0; i < scales.size(); ++i)
        all.adapters[i].scale = scales[i];
    all.gather();
    for (index_t i = 0; i < modules; ++i) {
        const lora& adapter = all.adapters[static_cast<std::size_t>(i)];
        auto want = values_as<double>(adapter.b);
        for (double& value : want.values())
            value *= adapter.scale;
        CHECK(compare(all.pool_b.ref().slice(0, i).block(0, 0, adapter.a.extent(1)), want.view(),
                      within(element_type::f32, 1, 0.5)));
    }
}

TEST_CASE("padding does not change what an adapter computes, to the last bit") {
    for (element_type type : sum_types) {
        library all(type, type);
        all.gather();
        layer host(type);
        for (index_t i = 0; i < modules; ++i) {
            CAPTURE(i);
            // Scales are powers of two here: exact in b as on the product.
            const auto want = host.through(all.adapters[static_cast<std::size_t>(i)]);
            const auto got = host.through(
                {all.pool_a.const_ref().slice(0, i), all.pool_b.const_ref().slice(0, i), 1});
            CHECK(compare_bitwise(got.view(), want.view()));
        }
    }
}

TEST_CASE("weights of one adapter alone give that adapter, to the last bit") {
    for (element_type type : sum_types) {
        library all(type, type);
        all.gather();
        layer host(type);
        for (index_t heads : {1, 2, 3, 6})
            for (index_t i = 0; i < modules; ++i) {
                CAPTURE(heads);
                CAPTURE(i);
                guarded_tensor<3> weights(type, {1, heads, modules});
                weights.fill(0);
                for (index_t h = 0; h < heads; ++h)
                    set_element(weights.ref(), {0, h, i}, 1);
                const auto want = host.through(all.adapters[static_cast<std::size_t>(i)]);
                const auto got = host.routed(as_inventory(all.pool(), heads), weights.const_ref());
                CHECK(compare_bitwise(got.view(), want.view()));
            }
    }
}

TEST_CASE("a pool as an inventory is the same memory, with any number of heads") {
    for (layout order : all_layouts)
        for (index_t heads : {1, 2, 3, 6}) {
            CAPTURE(name_of(order));
            CAPTURE(heads);
            library all(element_type::f32, element_type::f32, layout::row_major, order);
            const lora_inventory inventory = as_inventory(all.pool(), heads);
            const lora_inventory_matrices written = as_inventory_matrices(all.pool(), heads);
            REQUIRE(inventory.a.extents() ==
                    std::array<index_t, 4>{heads, modules, in / heads, common_rank});
            REQUIRE(inventory.b.extents() ==
                    std::array<index_t, 4>{heads, modules, common_rank, out / heads});
            std::size_t elsewhere = 0;
            for_each_position(inventory.a.extents(), [&](const position<4>& at) {
                const void* const want =
                    all.pool_a.ref().address_of(at[1], at[0] * (in / heads) + at[2], at[3]);
                elsewhere += address_of(inventory.a, at) != want;
                elsewhere += address_of(written.a, at) != want;
            });
            for_each_position(inventory.b.extents(), [&](const position<4>& at) {
                const void* const want =
                    all.pool_b.ref().address_of(at[1], at[2], at[0] * (out / heads) + at[3]);
                elsewhere += address_of(inventory.b, at) != want;
                elsewhere += address_of(written.b, at) != want;
            });
            CHECK(elsewhere == 0);
        }
}

TEST_CASE("a mixture of a library has the cross terms that are documented") {
    library all(element_type::f64, element_type::f64);
    all.gather();
    layer host(element_type::f64);
    guarded_tensor<3> weights(element_type::f64, {1, 1, modules});
    weights.fill(0);
    set_element(weights.ref(), {0, 0, 0}, 0.25);
    set_element(weights.ref(), {0, 0, 3}, 0.75);
    const auto got = host.routed(as_inventory(all.pool(), 1), weights.const_ref());
    const tensor<index_t, 1> first({rows}); // every row has adapter 0
    const auto x = values_as<double>(host.x.ref());
    const auto a = values_as<double>(all.pool_a.ref());
    const auto b = values_as<double>(all.pool_b.ref());
    const auto add = [&](index_t i, index_t j, tensor<double, 2>& y) {
        const double scale =
            element(weights.const_ref(), {0, 0, i}) * element(weights.const_ref(), {0, 0, j});
        reference::lora_forward(first.view(), x.const_view(), a.const_view().block(0, i, 1),
                                b.const_view().block(0, j, 1), scale, y.view());
    };
    tensor<double, 2> want({rows, out}), without_cross_terms({rows, out}), size({rows, out});
    for (index_t i : {0, 3})
        for (index_t j : {0, 3})
            add(i, j, want);
    add(0, 0, without_cross_terms);
    add(3, 3, without_cross_terms);
    std::fill(size.values().begin(), size.values().end(), 60); // terms of up to 1
    CHECK(compare(got.view(), want.view(), size.view(), within<double>(10)));
    CHECK_FALSE(compare(got.view(), without_cross_terms.view(), size.view(), within<double>(10)));
}

TEST_CASE("training the routing alone finds the adapter of the library that solves the task") {
    library all;
    for (lora& adapter : all.adapters)
        adapter.scale = 1;
    all.gather();
    layer host(element_type::f32);
    const index_t solution = 2;
    const auto target = host.through(all.adapters[static_cast<std::size_t>(solution)]);
    for (index_t heads : {1, 3}) {
        CAPTURE(heads);
        const lora_inventory inventory = as_inventory(all.pool(), heads);
        tensor<float, 3> logits({1, heads, modules}), weights(logits.extents());
        const routed_lora routed{inventory.a, inventory.b, weights.const_view(), 1};
        const batch of{host.plan};
        poisoned_memory of_state(routed_lora_state_size(of, routed));
        poisoned_memory scratch(routed_lora_backward_workspace_size(of, routed));
        workspace memory = of_state;
        const auto state = take_routed_lora_state(memory, of, routed);

        std::vector<double> losses;
        const auto before_a = all.pool_a.take_snapshot();
        const auto before_b = all.pool_b.take_snapshot();
        for (int step = 0; step <= 120; ++step) {
            // A sigmoid for each logit, normalised over the modules.
            std::vector<double> gates;
            for (float logit : logits.values())
                gates.push_back(1 / (1 + std::exp(-static_cast<double>(logit))));
            const auto gate = [&](index_t h, index_t m) {
                return gates[static_cast<std::size_t>(h * modules + m)];
            };
            const auto sum_of = [&](index_t h) {
                double sum = 0;
                for (index_t m = 0; m < modules; ++m)
                    sum += gate(h, m);
                return sum;
            };
            for (index_t h = 0; h < heads; ++h)
                for (index_t m = 0; m < modules; ++m)
                    weights(0, h, m) = static_cast<float>(gate(h, m) / sum_of(h));

            tensor<float, 2> y({rows, out}), d_y({rows, out});
            routed_lora_forward(of, routed, host.x.ref(), y.view(), state);
            double loss = 0;
            for_each_position(y.extents(), [&](const position<2>& at) {
                const double difference =
                    static_cast<double>(y(at[0], at[1])) - target(at[0], at[1]);
                loss += difference * difference / 2;
                d_y(at[0], at[1]) = static_cast<float>(difference);
            });
            losses.push_back(loss);
            tensor<float, 3> d_weights(weights.extents());
            routed_lora_backward(of, routed, host.x.ref(), d_y.const_view(), state,
                                 {{}, {}, {}, d_weights.view()}, scratch);
            for (index_t h = 0; h < heads; ++h) {
                double mean = 0;
                for (index_t m = 0; m < modules; ++m)
                    mean += static_cast<double>(d_weights(0, h, m) * weights(0, h, m));
                for (index_t m = 0; m < modules; ++m)
                    logits(0, h, m) -=
                        static_cast<float>(0.02 * gate(h, m) * (1 - gate(h, m)) / sum_of(h) *
                                           (static_cast<double>(d_weights(0, h, m)) - mean));
            }
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
    library want;
    want.gather();
    const auto check = [&](library& got) {
        CHECK(compare_bitwise(got.pool_a.ref(), want.pool_a.ref()));
        CHECK(compare_bitwise(got.pool_b.ref(), want.pool_b.ref()));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        library all;
        all.gather(executor);
        check(all);
    });
    library shared;
    for_each_share(3, [&](executor_ref executor) { shared.gather(executor); });
    check(shared);
    CHECK(allocations_of([&] { want.gather(); }) == 0);
}

TEST_CASE("empty libraries") {
    gather_lora_library(serial, {}, {});
    CHECK(as_inventory({}, 2).a.size() == 0);
    // An adapter of rank 0 is one of zeros.
    guarded_tensor<3> a(element_type::f32, {1, 2, 3}), b(element_type::f32, {1, 3, 4});
    float* const none = nullptr;
    const lora nothing{{none, {2, 0}}, {none, {0, 4}}};
    gather_lora_library(serial, {&nothing, {1}}, {a.ref(), b.ref()});
    CHECK(positive_zeros(a.const_ref().slice(0, 0)));
    CHECK(positive_zeros(b.const_ref().slice(0, 0)));
}

TEST_CASE("bad input of as_inventory") {
    library all;
    for (bool written : {false, true}) {
        const auto refused = [&](const char* argument, const stacked_lora_matrices& pool,
                                 index_t heads) {
            return refuses(
                written ? "as_inventory_matrices" : "as_inventory", argument,
                [&] {
                    if (written)
                        (void)as_inventory_matrices(pool, heads);
                    else
                        (void)as_inventory(pool, heads);
                },
                all.pool_a, all.pool_b);
        };
        for (const auto& bad : bad_as_input(all.pool_a.ref(), {0, 1, 2})) {
            CAPTURE(bad.what);
            CHECK(refused("pool.a", {bad.ref, all.pool_b.ref()}, 1));
        }
        for (const auto& bad : bad_as_input(all.pool_b.ref(), {2})) {
            CAPTURE(bad.what);
            CHECK(refused("pool.b", {all.pool_a.ref(), bad.ref}, 1));
        }
        for (index_t heads : {0, -1, 4, 9, 5, 36}) { // 12 and 18 features
            CAPTURE(heads);
            CHECK(refused("heads", all.pool(), heads));
        }
    }
}

TEST_CASE("bad input of gather_lora_library") {
    library all;
    const auto refused = [&](const char* argument, const tensor_view<const lora, 1>& adapters,
                             const stacked_lora_matrices& pool) {
        return refuses(
            "gather_lora_library", argument, [&] { gather_lora_library(serial, adapters, pool); },
            all.pool_a, all.pool_b);
    };
    for (const auto& bad : bad_as_input(all.view(), {0})) {
        CAPTURE(bad.what);
        CHECK(refused("adapters", bad.view, all.pool()));
    }
    CHECK(refused("pool.a", all.view().block(0, 0, 3), all.pool()));
    for (const auto& bad : bad_as_output(all.pool_a.ref(), {1, 2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.a", all.view(), {bad.ref, all.pool_b.ref()}));
    }
    for (const auto& bad : bad_as_output(all.pool_b.ref(), {2})) {
        CAPTURE(bad.what);
        CHECK(refused("pool.b", all.view(), {all.pool_a.ref(), bad.ref}));
    }
    // One adapter among others.
    for (std::size_t i : {0U, 3U}) {
        const lora good = all.adapters[i];
        for (const auto& bad : bad_as_input(good.a, {1})) {
            CAPTURE(bad.what);
            all.adapters[i] = {bad.ref, good.b};
            CHECK(refused("adapters.a", all.view(), all.pool()));
        }
        for (const auto& bad : bad_as_input(good.b)) {
            CAPTURE(bad.what);
            all.adapters[i] = {good.a, bad.ref};
            CHECK(refused("adapters.b", all.view(), all.pool()));
        }
        all.adapters[i] = good;
    }
    // A rank above the pool's; features of another layer.
    guarded_tensor<2> a(element_type::f32, {in, common_rank + 1});
    guarded_tensor<2> b(element_type::f32, {common_rank + 1, out});
    all.adapters[1] = {a.const_ref(), b.const_ref()};
    CHECK(refused("adapters.a", all.view(), all.pool()));
    all.adapters[1] = {all.a[1].const_ref().block(0, 0, in - 1), all.b[1].const_ref()};
    CHECK(refused("adapters.a", all.view(), all.pool()));
}

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/lora/routed_lora.hpp>
#include <mhr/serving/mixed_lora_cache.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_tensors.hpp"
#include "support/batches.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_tensor.hpp"
#include "support/layer_problem.hpp"
#include "support/random_tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

using tasks = std::vector<std::int64_t>;
constexpr lora_shape shape{2, 3, 10, 14, 4};
constexpr index_t table_tasks = 12;

/// A server has an inventory, and the weights of every task.
struct server {
    guarded_tensor<4> a, b;
    guarded_tensor<3> table;
    double scale = 0.3;

    explicit server(element_type of_modules = element_type::f32,
                    element_type of_weights = element_type::f32)
        : a(of_modules, {shape.heads, shape.modules, shape.in_features / shape.heads, shape.rank}),
          b(of_modules, {shape.heads, shape.modules, shape.rank, shape.out_features / shape.heads}),
          table(of_weights, {table_tasks, shape.heads, shape.modules}) {
        random_source random(3);
        a.fill(random);
        b.fill(random);
        table.fill(random);
    }

    /// The layer for a plan; `weights` is where its weights are put.
    [[nodiscard]] routed_lora layer_of(const batch_plan& plan, guarded_tensor<3>& weights) const {
        for (index_t entry = 0; entry < plan.entries(); ++entry)
            for (index_t h = 0; h < shape.heads; ++h)
                for (index_t m = 0; m < shape.modules; ++m)
                    set_element(weights.ref(), {entry, h, m},
                                element(table.const_ref(), {plan.tasks()(entry), h, m}));
        return {a.const_ref(), b.const_ref(), weights.const_ref(), scale};
    }
    [[nodiscard]] guarded_tensor<3> weights_for(const batch_plan& plan) const {
        return guarded_tensor<3>(table.type(), {plan.entries(), shape.heads, shape.modules});
    }

    lora_list get(mixed_lora_cache& cache, const batch_plan& plan, std::uint64_t version = 0,
                  executor_ref executor = serial) const {
        auto weights = weights_for(plan);
        return cache.get({plan, executor}, layer_of(plan, weights), version);
    }
};

/// Checks that the cache gives for a plan what mixing gives now.
void check_mixtures(const server& host, const batch_plan& plan, const lora_list& got) {
    REQUIRE(got.adapter_of_entry().extent(0) == plan.entries());
    if (plan.entries() == 0) return;
    const element_type type = got[0].a.type();
    guarded_tensor<3> a(type, {plan.entries(), shape.in_features, shape.rank});
    guarded_tensor<3> b(type, {plan.entries(), shape.rank, shape.out_features});
    auto weights = host.weights_for(plan);
    const routed_lora layer = host.layer_of(plan, weights);
    mix_lora_forward(serial, layer.weights, layer.inventory(), {a.ref(), b.ref()});
    std::set<index_t> adapters;
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        CAPTURE(entry);
        const index_t adapter = got.adapter_of(entry);
        adapters.insert(adapter);
        REQUIRE(adapter >= 0);
        REQUIRE(adapter < got.size());
        CHECK(compare_bitwise(got[adapter].a, a.const_ref().slice(0, entry)));
        CHECK(compare_bitwise(got[adapter].b, b.const_ref().slice(0, entry)));
        CHECK(got[adapter].scale == host.scale);
    }
    CHECK(static_cast<index_t>(adapters.size()) == plan.entries());
}

/// Gets the tasks from a cache and tells how many of them were mixed.
std::uint64_t misses_of(mixed_lora_cache& cache, const server& host, const tasks& wanted,
                        std::uint64_t version = 0) {
    const std::uint64_t hits = cache.hits(), misses = cache.misses();
    const batch_plan plan = plan_of(wanted);
    check_mixtures(host, plan, host.get(cache, plan, version));
    const std::uint64_t mixed = cache.misses() - misses;
    CHECK(cache.hits() - hits + mixed == static_cast<std::uint64_t>(plan.entries()));
    return mixed;
}

tasks held_by(const mixed_lora_cache& cache, std::uint64_t version = 0) {
    tasks held;
    for (std::int64_t task = -1; task < table_tasks; ++task)
        if (cache.holds(task, version)) held.push_back(task);
    return held;
}

} // namespace

TEST_CASE("batches through the cache are routed LoRA, to the last bit") {
    for (element_type of_rows : all_element_types)
        for (element_type of_modules : all_element_types)
            for (element_type of_weights : {element_type::f32, of_modules}) {
                CAPTURE(std::string(name_of(of_rows)));
                CAPTURE(std::string(name_of(of_modules)));
                server host(of_modules, of_weights);
                const element_type sums = sums_of(of_rows, sums_of(of_modules, of_weights));
                mixed_lora_cache cache(shape, 4, sums);
                random_source random(11);
                for (int step = 0; step < 12; ++step) {
                    CAPTURE(step);
                    // 3 of 6 tasks, and rows of none, in any order; the cache holds 4.
                    tasks task_of_row(20);
                    const auto chosen = random.permutation(6);
                    for (std::int64_t& task : task_of_row) {
                        const auto pick = static_cast<std::size_t>(random.integer(4));
                        task = pick == 3 ? no_task : chosen[pick];
                    }
                    const batch_plan plan = plan_of(task_of_row);
                    const batch rows{plan};
                    guarded_tensor<2> x(of_rows, {20, shape.in_features});
                    guarded_tensor<2> y(of_rows, {20, shape.out_features});
                    guarded_tensor<2> want(of_rows, {20, shape.out_features});
                    x.fill(random);
                    y.fill(random_source(20));
                    want.fill(random_source(20));
                    auto weights = host.weights_for(plan);
                    const routed_lora layer = host.layer_of(plan, weights);
                    poisoned_memory memory(routed_lora_state_size(rows, layer, sums));
                    workspace all = memory;
                    routed_lora_forward(rows, layer, x.ref(), want.ref(),
                                        take_routed_lora_state(all, rows, layer, sums));
                    const lora_list mixed = cache.get(rows, layer, 0);
                    poisoned_memory of_state(lora_state_size(rows, mixed, sums));
                    workspace room = of_state;
                    lora_forward(rows, mixed, x.ref(), y.ref(),
                                 take_lora_state(room, rows, mixed, sums));
                    CHECK(compare_bitwise(y.ref(), want.ref()));
                }
                CHECK(cache.hits() > 0);
                CHECK(cache.misses() > 6); // some were replaced
            }
}

TEST_CASE("a cache of a narrower type rounds each mixture once") {
    const server host;
    for (element_type type : {element_type::bf16, element_type::f16}) {
        mixed_lora_cache cache(shape, 3, type);
        const batch_plan plan = plan_of({7, 3, 5});
        const lora_list got = host.get(cache, plan);
        CHECK(got[0].a.type() == type);
        check_mixtures(host, plan, got);
        CHECK(cache.bytes() < mixed_lora_cache(shape, 3).bytes());
    }
}

TEST_CASE("what is in the cache is not mixed again, nor are its weights read") {
    const server host;
    mixed_lora_cache cache(shape, 3);
    const batch_plan plan = plan_of({4, 9, 4, no_task, 9});
    CHECK(misses_of(cache, host, {4, 9, 4, no_task, 9}) == 2);
    for (int again = 0; again < 3; ++again) {
        const auto weights = host.weights_for(plan); // full of NaN
        check_mixtures(
            host, plan,
            cache.get({plan},
                      {host.a.const_ref(), host.b.const_ref(), weights.const_ref(), host.scale},
                      0));
    }
    CHECK(cache.misses() == 2);
    CHECK(cache.hits() == 6);
    CHECK(misses_of(cache, host, {9, 2}) == 1);
    CHECK(held_by(cache) == tasks{2, 4, 9});
}

TEST_CASE("another scale needs no other mixture") {
    server host;
    mixed_lora_cache cache(shape, 3);
    CHECK(misses_of(cache, host, {4, 9}) == 2);
    host.scale = -7;
    CHECK(misses_of(cache, host, {9}) == 0);
    CHECK(misses_of(cache, host, {4}) == 0);
}

TEST_CASE("the task that was used least recently makes room") {
    const server host;
    mixed_lora_cache cache(shape, 3);
    for (std::int64_t task : {1, 2, 3, 1})
        misses_of(cache, host, {task});
    CHECK(held_by(cache) == tasks{1, 2, 3});
    misses_of(cache, host, {4});
    CHECK(held_by(cache) == tasks{1, 3, 4});
    misses_of(cache, host, {5});
    CHECK(held_by(cache) == tasks{1, 4, 5});
    // Among the tasks of one batch, the later in the plan counts as used later.
    misses_of(cache, host, {5, 4, 1});
    misses_of(cache, host, {7});
    CHECK(held_by(cache) == tasks{4, 5, 7});
    misses_of(cache, host, {8});
    CHECK(held_by(cache) == tasks{5, 7, 8});
}

TEST_CASE("tasks of the batch do not make room for each other") {
    const server host;
    mixed_lora_cache cache(shape, 2);
    misses_of(cache, host, {5});
    misses_of(cache, host, {2});
    CHECK(misses_of(cache, host, {1, 5}) == 1); // 5 is the least recent, and wanted last
    CHECK(held_by(cache) == tasks{1, 5});
    CHECK(misses_of(cache, host, {5, 9}) == 1);
    CHECK(held_by(cache) == tasks{5, 9});
    CHECK(misses_of(cache, host, {3, 4}) == 2);
    CHECK(held_by(cache) == tasks{3, 4});
}

TEST_CASE("an adapter of another version is mixed again") {
    server host;
    mixed_lora_cache cache(shape, 3);
    CHECK(misses_of(cache, host, {1, 2, 3}, 7) == 3);
    host.table.fill(random_source(20));
    host.a.fill(random_source(21));
    CHECK(misses_of(cache, host, {1, 3}, 8) == 2);
    CHECK(held_by(cache, 8) == tasks{1, 3});
    CHECK(held_by(cache, 7) == tasks{2});
    CHECK(misses_of(cache, host, {1, 2, 3}, 8) == 1);
    // No order among versions: an earlier one is another one.
    CHECK(misses_of(cache, host, {2}, 7) == 1);
    CHECK(held_by(cache, 8) == tasks{1, 3});
    CHECK(held_by(cache, 7) == tasks{2});
    CHECK(misses_of(cache, host, {1, 2}, std::numeric_limits<std::uint64_t>::max()) == 2);
}

TEST_CASE("adapters are forgotten one by one, or all") {
    server host;
    mixed_lora_cache cache(shape, 3);
    misses_of(cache, host, {1, 2, 3});
    cache.invalidate(2);
    cache.invalidate(11);
    cache.invalidate(no_task);
    CHECK(held_by(cache) == tasks{1, 3});
    for_each_position(std::array<index_t, 2>{shape.heads, shape.modules},
                      [&](const position<2>& at) {
                          set_element(host.table.ref(), {2, at[0], at[1]}, 0.125);
                      });
    CHECK(misses_of(cache, host, {1, 2, 3}) == 1);
    // Where there is none is taken first, although others are older.
    cache.invalidate(3);
    misses_of(cache, host, {6});
    CHECK(held_by(cache) == tasks{1, 2, 6});
    const std::uint64_t hits = cache.hits(), misses = cache.misses();
    cache.clear();
    CHECK(held_by(cache).empty());
    CHECK(cache.hits() == hits);
    CHECK(cache.misses() == misses);
    CHECK(misses_of(cache, host, {1, 2, 6}) == 3);
}

TEST_CASE("what was given out outlasts invalidate and clear") {
    const server host;
    mixed_lora_cache cache(shape, 2);
    const batch_plan plan = plan_of({3, 8});
    const lora_list got = host.get(cache, plan);
    cache.invalidate(3);
    cache.clear();
    check_mixtures(host, plan, got);
}

TEST_CASE("a cache of one adapter") {
    const server host;
    mixed_lora_cache cache(shape, 1);
    for (std::int64_t task : {1, 1, 2, 1})
        misses_of(cache, host, {task, task, no_task});
    CHECK(cache.hits() == 1);
    CHECK(cache.misses() == 3);
    CHECK(refuses("mixed_lora_cache::get", "rows.plan", [&] { host.get(cache, plan_of({1, 2})); }));
    CHECK(misses_of(cache, host, {1}) == 0);
}

TEST_CASE("a batch without tasks") {
    const server host;
    mixed_lora_cache cache(shape, 2);
    misses_of(cache, host, {1});
    for (const tasks& nobody : {tasks{}, tasks{no_task, no_task}}) {
        const batch_plan plan = plan_of(nobody);
        const lora_list got = host.get(cache, plan);
        CHECK(got.adapter_of_entry().extent(0) == 0);
        guarded_tensor<2> x(element_type::f32, {plan.rows(), shape.in_features});
        guarded_tensor<2> y(element_type::f32, {plan.rows(), shape.out_features});
        const auto before = y.take_snapshot();
        poisoned_memory of_state(lora_state_size({plan}, got));
        workspace room = of_state;
        lora_forward({plan}, got, x.ref(), y.ref(), take_lora_state(room, {plan}, got));
        CHECK(y.unchanged_since(before));
    }
    CHECK(cache.hits() == 0);
    CHECK(cache.misses() == 1);
    CHECK(held_by(cache) == tasks{1});
}

TEST_CASE("memory is bounded, told, and allocated once") {
    const server host;
    for (element_type type : all_element_types)
        for (index_t capacity : {1, 5, 40}) {
            mixed_lora_cache cache(shape, capacity, type);
            CHECK(cache.capacity() == capacity);
            const auto of_pool =
                static_cast<std::size_t>(capacity * shape.rank *
                                         (shape.in_features + shape.out_features)) *
                size_of(type);
            CHECK(cache.bytes() >= of_pool);
            CHECK(cache.bytes() <= of_pool +
                                       (sizeof(lora) + 64) * static_cast<std::size_t>(capacity) +
                                       4 * workspace_alignment);
            const batch_plan first = plan_of({1}), second = plan_of({7});
            auto weights = host.weights_for(first);
            const routed_lora layer = host.layer_of(first, weights);
            const void* const pool = cache.get({first}, layer, 0)[0].a.data();
            CHECK(allocations_of([&] {
                      for (std::uint64_t version = 0; version < 10; ++version) {
                          (void)cache.get({first}, layer, version);
                          (void)cache.get({second}, layer, version);
                          (void)cache.get({second}, layer, version);
                          cache.invalidate(1);
                      }
                      cache.clear();
                  }) == 0);
            CHECK(cache.get({first}, layer, 0)[0].a.data() == pool);
            CHECK(reinterpret_cast<std::uintptr_t>(pool) % workspace_alignment == 0);
        }
}

TEST_CASE("a moved cache keeps its adapters, and those that it has given out") {
    static_assert(!std::is_copy_constructible_v<mixed_lora_cache>);
    static_assert(!std::is_copy_assignable_v<mixed_lora_cache>);
    static_assert(std::is_nothrow_move_constructible_v<mixed_lora_cache>);
    const server host;
    const batch_plan plan = plan_of({3, 8});
    std::vector<mixed_lora_cache> layers;
    layers.emplace_back(shape, 2);
    const lora_list got = host.get(layers[0], plan);
    for (int layer = 0; layer < 5; ++layer)
        layers.emplace_back(shape, 1);
    check_mixtures(host, plan, got);
    CHECK(misses_of(layers[0], host, {3, 8}) == 0);
    layers[1] = std::move(layers[0]);
    check_mixtures(host, plan, got);
    CHECK(held_by(layers[1]) == tasks{3, 8});
    CHECK(misses_of(layers[1], host, {3, 8}) == 0);
    CHECK(layers[0].capacity() == 0); // NOLINT: what is left of it
    CHECK(refuses("mixed_lora_cache::get", "rows.plan", [&] { host.get(layers[0], plan); }));
}

TEST_CASE("the cache gives the same bits and the same adapters on every executor") {
    const server host;
    const auto run = [&](executor_ref executor) {
        mixed_lora_cache cache(shape, 4);
        std::vector<index_t> adapters;
        for (const tasks& step :
             {tasks{1, 2, 3}, tasks{2, 5, 6}, tasks{0, 1, 2, 3}, tasks{7}, tasks{1, 4, 8, 9}}) {
            const batch_plan plan = plan_of(step);
            const lora_list got = host.get(cache, plan, 0, executor);
            check_mixtures(host, plan, got);
            for (index_t entry = 0; entry < plan.entries(); ++entry)
                adapters.push_back(got.adapter_of(entry));
        }
        return adapters;
    };
    const auto want = run(serial);
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        CHECK(run(executor) == want);
    });
}

TEST_CASE("an executor that throws leaves nothing half mixed") {
    const server host;
    mixed_lora_cache cache(shape, 3);
    misses_of(cache, host, {1, 2, 3});
    for (int good_calls : {0, 1, 2, 3}) {
        CAPTURE(good_calls);
        cache.clear();
        misses_of(cache, host, {1});
        misses_of(cache, host, {4});
        misses_of(cache, host, {2});
        cache.invalidate(4);
        int calls = 0;
        const auto broken = [&](index_t parts, parallel_body body) {
            if (calls++ == good_calls) throw std::runtime_error("a thread is gone");
            serial(parts, body);
        };
        // Mixed in two calls of two phases each: 0 and 3 are no neighbours in the pool.
        CHECK_THROWS_AS(host.get(cache, plan_of({0, 2, 3}), 0, broken), std::runtime_error);
        CHECK(cache.holds(2, 0));
        for (std::int64_t task : held_by(cache))
            CHECK(misses_of(cache, host, {task}) == 0);
        CHECK(misses_of(cache, host, {0, 2, 3}) >= 1);
        CHECK(held_by(cache) == tasks{0, 2, 3});
    }
}

TEST_CASE("random batches, versions and invalidations agree with a plain model") {
    struct remembered {
        std::uint64_t version, last_use;
    };
    for (index_t capacity : {1, 2, 3, 5, 8}) {
        CAPTURE(capacity);
        server host;
        mixed_lora_cache cache(shape, capacity);
        std::map<std::int64_t, remembered> model;
        std::uint64_t hits = 0, misses = 0, clock = 0, version = 0;
        const auto set_weights = [&] { host.table.fill(random_source(version)); };
        set_weights();
        random_source random(static_cast<std::uint64_t>(capacity));
        for (int step = 0; step < 300; ++step) {
            CAPTURE(step);
            const index_t action = random.integer(20);
            if (action == 0) {
                cache.clear();
                model.clear();
            } else if (action <= 2) {
                const index_t task = random.integer(table_tasks);
                cache.invalidate(task);
                model.erase(task);
            } else if (action == 3) {
                version = static_cast<std::uint64_t>(random.integer(3));
                set_weights();
            } else {
                tasks wanted;
                const auto order = random.permutation(capacity + 3);
                const index_t count = random.integer(capacity + 1);
                for (index_t i = 0; i < count; ++i)
                    wanted.push_back(order[static_cast<std::size_t>(i)]);
                const batch_plan plan = plan_of(wanted);
                check_mixtures(host, plan, host.get(cache, plan, version));
                const std::set<std::int64_t> chosen(wanted.begin(), wanted.end());
                for (std::int64_t task : chosen) {
                    const auto found = model.find(task);
                    found != model.end() && found->second.version == version ? ++hits : ++misses;
                }
                // All of the batch are there; the oldest of the others go.
                for (std::int64_t task : chosen)
                    model[task] = {version, ++clock};
                while (static_cast<index_t>(model.size()) > capacity)
                    model.erase(std::min_element(
                        model.begin(), model.end(), [](const auto& one, const auto& other) {
                            return one.second.last_use < other.second.last_use;
                        }));
            }
            CHECK(cache.hits() == hits);
            CHECK(cache.misses() == misses);
            for (std::int64_t task = 0; task < table_tasks; ++task)
                for (std::uint64_t v : {0U, 1U, 2U}) {
                    const auto found = model.find(task);
                    CHECK(cache.holds(task, v) ==
                          (found != model.end() && found->second.version == v));
                }
        }
        CHECK(hits > 10);
        CHECK(misses > 50);
    }
}

TEST_CASE("bad input of the cache, which then is as before") {
    const server host;
    mixed_lora_cache cache(shape, 3);
    misses_of(cache, host, {1});
    misses_of(cache, host, {2});
    misses_of(cache, host, {3});
    const batch_plan plan = plan_of({1, 5});
    auto weights = host.weights_for(plan);
    const routed_lora good = host.layer_of(plan, weights);
    const auto refused = [&](const char* argument, const routed_lora& layer, const batch& rows) {
        auto outcome =
            refuses("mixed_lora_cache::get", argument, [&] { (void)cache.get(rows, layer, 1); });
        CHECK(held_by(cache) == tasks{1, 2, 3});
        CHECK(cache.hits() == 0);
        CHECK(cache.misses() == 3);
        return outcome;
    };
    for (const auto& bad : bad_as_input(good.weights)) {
        CAPTURE(bad.what);
        CHECK(refused("layer.weights", {good.a, good.b, bad.ref}, {plan}));
    }
    for (const auto& bad : bad_as_input(good.a)) {
        CAPTURE(bad.what);
        CHECK(refused("layer.a", {bad.ref, good.b, good.weights}, {plan}));
    }
    for (const auto& bad : bad_as_input(good.b)) {
        CAPTURE(bad.what);
        CHECK(refused("layer.b", {good.a, bad.ref, good.weights}, {plan}));
    }
    const share_executor share{0, 2};
    CHECK(refused("executor", good, {plan, share}));
    const batch_plan large = plan_of({1, 2, 3, 4});
    auto many = host.weights_for(large);
    CHECK(refused("rows.plan", host.layer_of(large, many), {large}));
    // Not even the order of use has changed.
    misses_of(cache, host, {9});
    CHECK(held_by(cache) == tasks{2, 3, 9});
}

TEST_CASE("bad arguments of the constructor") {
    const auto refused = [](const char* argument, const lora_shape& bad, index_t capacity,
                            element_type type = element_type::f32) {
        return refuses("mixed_lora_cache", argument,
                       [&] { mixed_lora_cache cache(bad, capacity, type); });
    };
    CHECK(refused("capacity", shape, 0));
    CHECK(refused("capacity", shape, -1));
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    CHECK(refused("capacity", shape, largest));
    CHECK(refused("capacity", shape, largest / 100));
    CHECK(refused("capacity", {1, 1, 0, 0, 0}, largest / 8));
    CHECK(refused("capacity", {1, 1, largest, 1, 2}, 1));
    CHECK(refused("shape", {0, 3, 10, 14, 4}, 1));
    CHECK(refused("shape", {-2, 3, 10, 14, 4}, 1));
    CHECK(refused("shape", {2, -3, 10, 14, 4}, 1));
    CHECK(refused("shape", {2, 3, -10, 14, 4}, 1));
    CHECK(refused("shape", {2, 3, 10, -14, 4}, 1));
    CHECK(refused("shape", {2, 3, 10, 14, -4}, 1));
    CHECK(refused("shape", {3, 3, 12, 14, 4}, 1));
    CHECK(refused("shape", {3, 3, 10, 15, 4}, 1));
    CHECK(refused("type", shape, 1, static_cast<element_type>(9)));
    CHECK_NOTHROW(mixed_lora_cache({1, 0, 0, 0, 0}, 1));
}

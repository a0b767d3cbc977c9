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

#include <mhr/adapters/mixed_lora_cache.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const serial_executor serial;

using tasks = std::vector<std::int64_t>;
constexpr lora_shape shape{2, 3, 10, 14, 4};
constexpr index_t table_tasks = 12;

/// What a server has: an inventory, and the weights of every task.
template <class M, class W>
struct server {
    guarded_buffer<M, 4> a{{shape.heads, shape.modules, shape.in_features / shape.heads, 4}};
    guarded_buffer<M, 4> b{{shape.heads, shape.modules, 4, shape.out_features / shape.heads}};
    tensor<W, 3> table{{table_tasks, shape.heads, shape.modules}};

    server() {
        random_source random(3);
        random.fill(a.view());
        random.fill(b.view());
        random.fill(table.view());
    }
    lora_inventory<const M> inventory() { return {a.view(), b.view()}; }
    tensor<W, 3> weights_of(const batch_plan& plan) {
        tensor<W, 3> weights({plan.entries(), shape.heads, shape.modules});
        for (index_t entry = 0; entry < plan.entries(); ++entry)
            transform(table.view().slice(0, static_cast<index_t>(plan.tasks()(entry))),
                      weights.view().slice(0, entry), [](const W& value) { return value; });
        return weights;
    }
    template <class A>
    lora_batch<const A> get(mixed_lora_cache<A>& cache, const batch_plan& plan,
                            std::uint64_t version = 0, executor_ref executor = serial) {
        const auto weights = weights_of(plan);
        return cache.get(executor, plan, weights.view(), inventory(), version);
    }
};
using plain = server<float, float>;

batch_plan plan_of(const tasks& task_of_row) {
    batch_plan plan;
    plan.assign_rows(tensor_view<const std::int64_t, 1>(
        task_of_row.data(), {static_cast<index_t>(task_of_row.size())}));
    return plan;
}

/// What the cache gives for a plan is what mixing gives now.
template <class A, class M, class W>
void check_mixtures(server<M, W>& host, const batch_plan& plan, const lora_batch<const A>& got) {
    REQUIRE(got.slot_of_entry.extent(0) == plan.entries());
    if (plan.entries() == 0) return;
    tensor<A, 3> a({plan.entries(), shape.in_features, shape.rank});
    tensor<A, 3> b({plan.entries(), shape.rank, shape.out_features});
    const auto weights = host.weights_of(plan);
    mix_lora_forward(serial, weights.view(), host.inventory(), lora_batch<A>{a.view(), b.view()});
    std::set<index_t> slots;
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        CAPTURE(entry);
        const index_t slot = got.slot_of_entry(entry);
        slots.insert(slot);
        REQUIRE(slot >= 0);
        REQUIRE(slot < got.a.extent(0));
        CHECK(compare_bitwise(got.a.slice(0, slot), a.const_view().slice(0, entry)));
        CHECK(compare_bitwise(got.b.slice(0, slot), b.const_view().slice(0, entry)));
    }
    CHECK(static_cast<index_t>(slots.size()) == plan.entries());
}

/// Gets the tasks from a cache and tells how many of them were mixed.
std::uint64_t misses_of(mixed_lora_cache<float>& cache, plain& host, const tasks& wanted,
                        std::uint64_t version = 0) {
    const std::uint64_t hits = cache.hits(), misses = cache.misses();
    const batch_plan plan = plan_of(wanted);
    check_mixtures(host, plan, host.get(cache, plan, version));
    const std::uint64_t mixed = cache.misses() - misses;
    CHECK(cache.hits() - hits + mixed == static_cast<std::uint64_t>(plan.entries()));
    return mixed;
}

tasks held_by(const mixed_lora_cache<float>& cache, std::uint64_t version = 0) {
    tasks held;
    for (std::int64_t task = -1; task < table_tasks; ++task)
        if (cache.holds(task, version)) held.push_back(task);
    return held;
}

} // namespace

TEST_CASE_TEMPLATE("batches through the cache are routed LoRA, to the last bit", X,
                   Eigen::bfloat16 MHR_TEST_ALSO(double, float)) {
    const auto check = [](auto of_inventory, auto of_weights) {
        using M = decltype(of_inventory);
        using W = decltype(of_weights);
        using A = accumulator_t<X, M, W>;
        server<M, W> host;
        mixed_lora_cache<A> cache(shape, 4);
        random_source random(11);
        for (int batch = 0; batch < 12; ++batch) {
            CAPTURE(batch);
            // 3 of 6 tasks, and rows of none, in any order; the cache holds 4.
            tasks task_of_row(20);
            const auto chosen = random.permutation(6);
            for (std::int64_t& task : task_of_row) {
                const auto pick = static_cast<std::size_t>(random.integer(4));
                task = pick == 3 ? no_task : chosen[pick];
            }
            const batch_plan plan = plan_of(task_of_row);
            tensor<X, 2> x({20, shape.in_features}), y({20, shape.out_features});
            random.fill(x.view());
            random.fill(y.view());
            auto want = y;
            std::vector<std::byte> memory(routed_lora_state_size<A>(plan, shape));
            workspace all(memory.data(), memory.size());
            const auto weights = host.weights_of(plan);
            routed_lora_forward(serial, plan, x.view(), host.inventory(), weights.view(), 0.3,
                                want.view(), take_routed_lora_state<A>(all, plan, shape));
            tensor<A, 2> hidden({20, shape.rank});
            lora_forward(serial, plan, x.view(),
                         cache.get(serial, plan, weights.view(), host.inventory(), 0), 0.3,
                         y.view(), hidden.view());
            CHECK(compare_bitwise(y.view(), want.view()));
        }
        CHECK(cache.hits() > 0);
        CHECK(cache.misses() > 6); // some were replaced
    };
    check(float(), float());
    check(Eigen::half(), float());
    check(X(), X());
}

TEST_CASE("a cache of a narrower type rounds each mixture once") {
    plain host;
    mixed_lora_cache<Eigen::bfloat16> cache(shape, 3);
    const batch_plan plan = plan_of({7, 3, 5});
    check_mixtures(host, plan, host.get(cache, plan));
    CHECK(cache.bytes() < mixed_lora_cache<float>(shape, 3).bytes());
}

TEST_CASE("what is in the cache is not mixed again, nor are its weights read") {
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
    const batch_plan plan = plan_of({4, 9, 4, no_task, 9});
    CHECK(misses_of(cache, host, {4, 9, 4, no_task, 9}) == 2);
    for (int again = 0; again < 3; ++again) {
        tensor<float, 3> weights({2, shape.heads, shape.modules});
        std::fill(weights.values().begin(), weights.values().end(),
                  std::numeric_limits<float>::quiet_NaN());
        check_mixtures(host, plan, cache.get(serial, plan, weights.view(), host.inventory(), 0));
    }
    CHECK(cache.misses() == 2);
    CHECK(cache.hits() == 6);
    CHECK(misses_of(cache, host, {9, 2}) == 1);
    CHECK(held_by(cache) == tasks{2, 4, 9});
}

TEST_CASE("the task that was used least recently makes room") {
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
    for (std::int64_t task : {1, 2, 3, 1})
        misses_of(cache, host, {task});
    CHECK(held_by(cache) == tasks{1, 2, 3});
    misses_of(cache, host, {4});
    CHECK(held_by(cache) == tasks{1, 3, 4});
    misses_of(cache, host, {5});
    CHECK(held_by(cache) == tasks{1, 4, 5});
    // Of one batch, the later in the plan is the later used.
    misses_of(cache, host, {5, 4, 1});
    misses_of(cache, host, {7});
    CHECK(held_by(cache) == tasks{4, 5, 7});
    misses_of(cache, host, {8});
    CHECK(held_by(cache) == tasks{5, 7, 8});
}

TEST_CASE("tasks of the batch do not make room for each other") {
    plain host;
    mixed_lora_cache<float> cache(shape, 2);
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
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
    CHECK(misses_of(cache, host, {1, 2, 3}, 7) == 3);
    random_source(20).fill(host.table.view());
    random_source(21).fill(host.a.view());
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
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
    misses_of(cache, host, {1, 2, 3});
    cache.invalidate(2);
    cache.invalidate(11);
    cache.invalidate(no_task);
    CHECK(held_by(cache) == tasks{1, 3});
    random_source(20).fill(host.table.view().slice(0, 2));
    CHECK(misses_of(cache, host, {1, 2, 3}) == 1);
    // The empty slot is taken first, although others are older.
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
    plain host;
    mixed_lora_cache<float> cache(shape, 2);
    const batch_plan plan = plan_of({3, 8});
    const auto got = host.get(cache, plan);
    cache.invalidate(3);
    cache.clear();
    check_mixtures(host, plan, got);
}

TEST_CASE("a cache of one adapter") {
    plain host;
    mixed_lora_cache<float> cache(shape, 1);
    for (std::int64_t task : {1, 1, 2, 1})
        misses_of(cache, host, {task, task, no_task});
    CHECK(cache.hits() == 1);
    CHECK(cache.misses() == 3);
    CHECK(refuses("mixed_lora_cache::get", "plan", [&] { host.get(cache, plan_of({1, 2})); }));
    CHECK(misses_of(cache, host, {1}) == 0);
}

TEST_CASE("a batch without tasks") {
    plain host;
    mixed_lora_cache<float> cache(shape, 2);
    misses_of(cache, host, {1});
    for (const tasks& nobody : {tasks{}, tasks{no_task, no_task}}) {
        const batch_plan plan = plan_of(nobody);
        const auto got = host.get(cache, plan);
        CHECK(got.slot_of_entry.extent(0) == 0);
        const auto rows = plan.rows();
        tensor<float, 2> x({rows, shape.in_features}), y({rows, shape.out_features});
        tensor<float, 2> hidden({rows, shape.rank});
        lora_forward(serial, plan, x.view(), got, 1, y.view(), hidden.view());
    }
    CHECK(cache.hits() == 0);
    CHECK(cache.misses() == 1);
    CHECK(held_by(cache) == tasks{1});
}

TEST_CASE("memory is bounded, told, and allocated once") {
    plain host;
    for (index_t capacity : {1, 5, 40}) {
        mixed_lora_cache<float> cache(shape, capacity);
        CHECK(cache.capacity() == capacity);
        const auto adapters = static_cast<std::size_t>(capacity * shape.rank *
                                                       (shape.in_features + shape.out_features));
        CHECK(cache.bytes() >= adapters * sizeof(float));
        CHECK(cache.bytes() <= adapters * sizeof(float) + 64 * static_cast<std::size_t>(capacity) +
                                   4 * workspace_alignment);
        const batch_plan first = plan_of({1}), second = plan_of({7});
        const auto weights = host.weights_of(first);
        const auto inventory = host.inventory();
        const auto got = cache.get(serial, first, weights.view(), inventory, 0);
        const float* const pool = got.a.data();
        CHECK(allocations_of([&] {
                  for (std::uint64_t version = 0; version < 10; ++version) {
                      cache.get(serial, first, weights.view(), inventory, version);
                      cache.get(serial, second, weights.view(), inventory, version);
                      cache.get(serial, second, weights.view(), inventory, version);
                      cache.invalidate(1);
                  }
                  cache.clear();
              }) == 0);
        CHECK(cache.get(serial, first, weights.view(), inventory, 0).a.data() == pool);
        CHECK(reinterpret_cast<std::uintptr_t>(pool) % workspace_alignment == 0);
    }
}

TEST_CASE("a moved cache keeps its adapters, and those that it has given out") {
    static_assert(!std::is_copy_constructible_v<mixed_lora_cache<float>>);
    static_assert(!std::is_copy_assignable_v<mixed_lora_cache<float>>);
    static_assert(std::is_nothrow_move_constructible_v<mixed_lora_cache<float>>);
    plain host;
    const batch_plan plan = plan_of({3, 8});
    std::vector<mixed_lora_cache<float>> layers;
    layers.emplace_back(shape, 2);
    const auto got = host.get(layers[0], plan);
    for (int layer = 0; layer < 5; ++layer)
        layers.emplace_back(shape, 1);
    check_mixtures(host, plan, got);
    CHECK(misses_of(layers[0], host, {3, 8}) == 0);
    layers[1] = std::move(layers[0]);
    check_mixtures(host, plan, got);
    CHECK(held_by(layers[1]) == tasks{3, 8});
    CHECK(misses_of(layers[1], host, {3, 8}) == 0);
}

TEST_CASE("the cache gives the same bits and the same slots on every executor") {
    const auto run = [](executor_ref executor) {
        plain host;
        mixed_lora_cache<float> cache(shape, 4);
        std::vector<index_t> slots;
        for (const tasks& batch :
             {tasks{1, 2, 3}, tasks{2, 5, 6}, tasks{0, 1, 2, 3}, tasks{7}, tasks{1, 4, 8, 9}}) {
            const batch_plan plan = plan_of(batch);
            const auto got = host.get(cache, plan, 0, executor);
            check_mixtures(host, plan, got);
            for (index_t entry = 0; entry < plan.entries(); ++entry)
                slots.push_back(got.slot_of_entry(entry));
        }
        return slots;
    };
    const auto want = run(serial);
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        CHECK(run(executor) == want);
    });
}

TEST_CASE("an executor that throws leaves nothing half mixed") {
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
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
        // Mixed in two calls of two phases each: 0 and 1 are no neighbours in the pool.
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
        plain host;
        mixed_lora_cache<float> cache(shape, capacity);
        std::map<std::int64_t, remembered> model;
        std::uint64_t hits = 0, misses = 0, clock = 0, version = 0;
        const auto set_weights = [&] { random_source(version).fill(host.table.view()); };
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
                const std::set<std::int64_t> batch(wanted.begin(), wanted.end());
                for (std::int64_t task : batch) {
                    const auto found = model.find(task);
                    found != model.end() && found->second.version == version ? ++hits : ++misses;
                }
                // All of the batch are there; the oldest of the others go.
                for (std::int64_t task : batch)
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
    plain host;
    mixed_lora_cache<float> cache(shape, 3);
    misses_of(cache, host, {1});
    misses_of(cache, host, {2});
    misses_of(cache, host, {3});
    const batch_plan plan = plan_of({1, 5});
    auto weights = host.weights_of(plan);
    guarded_buffer<float, 4> a(host.a.view().extents()), b(host.b.view().extents());
    const auto refused_by = [&](executor_ref executor, const char* argument,
                                const batch_plan& with_plan, const auto& w, const auto& of_a,
                                const auto& of_b) {
        auto outcome = refuses("mixed_lora_cache::get", argument, [&] {
            cache.get(executor, with_plan, w, lora_inventory<float>{of_a, of_b}, 1);
        });
        CHECK(held_by(cache) == tasks{1, 2, 3});
        CHECK(cache.hits() == 0);
        CHECK(cache.misses() == 3);
        return outcome;
    };
    const auto refused = [&](const char* argument, const auto& w, const auto& of_a,
                             const auto& of_b) {
        return refused_by(serial, argument, plan, w, of_a, of_b);
    };
    for (const auto& bad : bad_as_input(weights.view())) {
        CAPTURE(bad.what);
        CHECK(refused("weights", bad.view, a.view(), b.view()));
    }
    for (const auto& bad : bad_as_input(a.view())) {
        CAPTURE(bad.what);
        CHECK(refused("inventory.a", weights.view(), bad.view, b.view()));
    }
    for (const auto& bad : bad_as_input(b.view())) {
        CAPTURE(bad.what);
        CHECK(refused("inventory.b", weights.view(), a.view(), bad.view));
    }
    CHECK(refused_by(share_executor{0, 2}, "executor", plan, weights.view(), a.view(), b.view()));
    const batch_plan large = plan_of({1, 2, 3, 4});
    CHECK(refused_by(serial, "plan", large, host.weights_of(large).view(), a.view(), b.view()));
    // Not even the order of use has changed.
    misses_of(cache, host, {9});
    CHECK(held_by(cache) == tasks{2, 3, 9});
}

TEST_CASE("bad arguments of the constructor") {
    const auto refused = [](const char* argument, const lora_shape& bad, index_t capacity) {
        return refuses("mixed_lora_cache", argument,
                       [&] { mixed_lora_cache<float> cache(bad, capacity); });
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
    CHECK_NOTHROW(mixed_lora_cache<float>({1, 0, 0, 0, 0}, 1));
}

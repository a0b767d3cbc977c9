#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>

/// \file
/// The mixed adapters of one layer, kept from batch to batch: a server whose router and inventory
/// do not change mixes once for each task, rather than once for each task of each batch.

namespace mhr {
inline namespace MHR_ISA {

/// Adapters that were mixed for tasks, in a pool of `capacity` slots.
///
///     mhr::mixed_lora_cache<float> cache(shape_of(inventory), 64); // one for each layer
///     ...
///     mhr::lora_forward(executor, plan, x, cache.get(executor, plan, weights, inventory, version),
///                       scale, y, hidden);
///
/// gives what routed_lora_forward gives, to the last bit, where `A` is the accumulator type of x,
/// inventory and weights. A narrower `A`, such as a bf16, holds more adapters in the same memory:
/// each element of a mixture is then rounded to it once.
///
/// `version` is any number that the host changes when the inventory or the logits have changed: an
/// adapter that was mixed at another version counts as missing. Task ids are those of the plan, so
/// two routers (or noise drawn for each sequence) need two caches.
///
/// All memory is allocated by the constructor. A cache may be moved, what it has given out staying
/// valid, but not copied: that would be as much memory again, under views of the original. It is
/// not for several threads at once.
template <class A>
class mixed_lora_cache {
  public:
    /// Errors: `shape` is not one of an inventory; no slots; more memory than there are addresses.
    mixed_lora_cache(const lora_shape& shape, index_t capacity)
        : shape_(shape), memory_(checked_pool_size(shape, capacity)),
          slots_(static_cast<std::size_t>(capacity)),
          slot_of_entry_(static_cast<std::size_t>(capacity)) {
        workspace all = memory_;
        pool_ = take_pool(all, shape, capacity);
    }

    /// What was given out stays valid; a cache that was moved from has a capacity of 0.
    mixed_lora_cache(mixed_lora_cache&&) noexcept = default;
    /// The same.
    mixed_lora_cache& operator=(mixed_lora_cache&&) noexcept = default;
    mixed_lora_cache(const mixed_lora_cache&) = delete;
    mixed_lora_cache& operator=(const mixed_lora_cache&) = delete;
    ~mixed_lora_cache() = default;

    /// The mixed adapters of the plan's entries, as slots of the pool: those of tasks that are
    /// missing are mixed now (mix_lora_forward), into empty slots first, then into those of the
    /// tasks that were used least recently. Of the tasks of one batch, the later in the plan counts
    /// as used the later.
    ///
    /// weights [entries, heads, modules], of which those of missing tasks are read; inventory of
    /// the constructor's shape. What is returned is valid until the next `get`, and `invalidate`
    /// and `clear` do not touch it.
    ///
    /// Needs an executor that runs every part. Errors, before anything changes: more entries than
    /// capacity; a shape. Cost: entries * capacity comparisons, and for each missing task modules
    /// rank (in + out) multiply-adds.
    template <class W, class M>
    lora_batch<const A> get(executor_ref executor, const batch_plan& plan,
                            tensor_view<W, 3> weights, lora_inventory<M> inventory,
                            std::uint64_t version) {
        constexpr const char* function = "mixed_lora_cache::get";
        const index_t entries = plan.entries();
        require_that(
            entries <= capacity(), function, "plan",
            [&] { return "at most " + std::to_string(capacity()) + " tasks"; },
            [&] { return std::to_string(entries); });
        require_input(function, "weights", weights, {entries, shape_.heads, shape_.modules});
        require_input(
            function, "inventory.a", inventory.a,
            {shape_.heads, shape_.modules, shape_.in_features / shape_.heads, shape_.rank});
        require_input(
            function, "inventory.b", inventory.b,
            {shape_.heads, shape_.modules, shape_.rank, shape_.out_features / shape_.heads});
        require_every_part(function, executor);

        // First those that are there, so that none of them is replaced.
        const std::uint64_t before = uses_;
        for (index_t entry = 0; entry < entries; ++entry) {
            slot_of(entry) = find(plan.tasks()(entry));
            if (slot_of(entry) >= 0) slot(slot_of(entry)).last_use = before + use_of(entry);
        }
        for (index_t entry = 0; entry < entries; ++entry) {
            if (slot_of(entry) < 0) slot_of(entry) = least_recently_used();
            mixed_adapter& taken = slot(slot_of(entry));
            taken.last_use = before + use_of(entry);
            // Until it is mixed it is nobody's, should the host's executor throw.
            if (taken.task != plan.tasks()(entry) || taken.version != version) taken.task = no_task;
        }
        uses_ = before + static_cast<std::uint64_t>(entries);

        for (index_t entry = 0; entry < entries;) {
            const index_t count = missing_neighbours(entry, entries);
            if (count > 0) {
                const index_t first = slot_of(entry);
                mix_lora_forward(
                    executor, weights.block(0, entry, count), inventory,
                    lora_batch<A>{pool_.a.block(0, first, count), pool_.b.block(0, first, count)});
                for (index_t i = entry; i < entry + count; ++i) {
                    slot(slot_of(i)).task = plan.tasks()(i);
                    slot(slot_of(i)).version = version;
                }
                misses_ += static_cast<std::uint64_t>(count);
            } else {
                ++hits_;
            }
            entry += (std::max)(count, index_t(1));
        }
        return {pool_.a, pool_.b, {slot_of_entry_.data(), {entries}}};
    }

    /// Forgets the adapter of one task: for a host that trains the routing of that task alone.
    void invalidate(std::int64_t task) noexcept {
        const index_t found = find(task);
        if (found >= 0) slot(found) = {};
    }

    /// Forgets all adapters; the memory and the counters stay.
    void clear() noexcept { std::fill(slots_.begin(), slots_.end(), mixed_adapter{}); }

    /// True if there is an adapter of this task, mixed at this version.
    [[nodiscard]] bool holds(std::int64_t task, std::uint64_t version) const noexcept {
        const index_t found = find(task);
        return found >= 0 && slots_[static_cast<std::size_t>(found)].version == version;
    }

    /// Adapters that there is room for.
    [[nodiscard]] index_t capacity() const noexcept { return static_cast<index_t>(slots_.size()); }

    /// Bytes that were allocated.
    [[nodiscard]] std::size_t bytes() const noexcept {
        return pool_size(shape_, capacity()) + slots_.size() * sizeof(mixed_adapter) +
               slot_of_entry_.size() * sizeof(index_t);
    }

    /// Adapters that `get` has found so far.
    [[nodiscard]] std::uint64_t hits() const noexcept { return hits_; }

    /// Adapters that `get` has mixed so far.
    [[nodiscard]] std::uint64_t misses() const noexcept { return misses_; }

  private:
    struct mixed_adapter {
        std::int64_t task = no_task; ///< no_task: an empty slot
        std::uint64_t version = 0;
        std::uint64_t last_use = 0; ///< 0: never
    };

    static lora_batch<A> take_pool(workspace& memory, const lora_shape& shape,
                                   index_t capacity) noexcept {
        const auto a = memory.take<A, 3>({capacity, shape.in_features, shape.rank});
        const auto b = memory.take<A, 3>({capacity, shape.rank, shape.out_features});
        return {a, b};
    }
    static std::size_t pool_size(const lora_shape& shape, index_t capacity) noexcept {
        workspace meter;
        (void)take_pool(meter, shape, capacity);
        return meter.used();
    }
    static std::size_t checked_pool_size(const lora_shape& shape, index_t capacity) {
        constexpr const char* function = "mixed_lora_cache";
        require_that(
            shape.heads >= 1 && shape.modules >= 0 && shape.rank >= 0 && shape.in_features >= 0 &&
                shape.out_features >= 0 && shape.in_features % shape.heads == 0 &&
                shape.out_features % shape.heads == 0,
            function, "shape",
            [] { return "heads that divide the features, and no negative size"; },
            [&] {
                return detail::to_text<5>({shape.heads, shape.modules, shape.in_features,
                                           shape.out_features, shape.rank});
            });
        require_that(
            capacity >= 1, function, "capacity", [] { return "at least 1"; },
            [&] { return std::to_string(capacity); });
        constexpr auto largest = static_cast<std::size_t>((std::numeric_limits<index_t>::max)());
        const std::size_t size = pool_size(shape, capacity);
        require_that(
            size <= largest &&
                static_cast<std::size_t>(capacity) <= largest / sizeof(mixed_adapter),
            function, "capacity", [] { return "adapters whose bytes fit an index"; },
            [&] { return std::to_string(capacity); });
        return size;
    }

    [[nodiscard]] static std::uint64_t use_of(index_t entry) noexcept {
        return static_cast<std::uint64_t>(entry) + 1;
    }
    [[nodiscard]] index_t& slot_of(index_t entry) noexcept {
        return slot_of_entry_[static_cast<std::size_t>(entry)];
    }
    [[nodiscard]] mixed_adapter& slot(index_t number) noexcept {
        return slots_[static_cast<std::size_t>(number)];
    }

    /// The slot of a task, mixed at any version, or -1.
    [[nodiscard]] index_t find(std::int64_t task) const noexcept {
        if (task == no_task) return -1;
        for (std::size_t i = 0; i < slots_.size(); ++i)
            if (slots_[i].task == task) return static_cast<index_t>(i);
        return -1;
    }
    [[nodiscard]] index_t least_recently_used() const noexcept {
        std::size_t best = 0;
        for (std::size_t i = 1; i < slots_.size(); ++i)
            if (slots_[i].last_use < slots_[best].last_use) best = i;
        return static_cast<index_t>(best);
    }
    /// How many entries from this one on are missing, with slots that follow each other: they are
    /// mixed at once, which gives the executor more to share out.
    [[nodiscard]] index_t missing_neighbours(index_t first, index_t entries) noexcept {
        index_t count = 0;
        while (first + count < entries && slot_of(first + count) == slot_of(first) + count &&
               slot(slot_of(first) + count).task == no_task)
            ++count;
        return count;
    }

    lora_shape shape_;
    owned_workspace memory_;
    lora_batch<A> pool_{};
    std::vector<mixed_adapter> slots_;
    std::vector<index_t> slot_of_entry_;
    std::uint64_t uses_ = 0;
    std::uint64_t hits_ = 0;
    std::uint64_t misses_ = 0;
};

} // namespace MHR_ISA
} // namespace mhr

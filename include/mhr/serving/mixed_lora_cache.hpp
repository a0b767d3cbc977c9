#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/routed_lora.hpp>

/// \file
/// The mixed adapters of one layer, kept from batch to batch: a server whose router and inventory
/// do not change mixes once for each task, rather than once for each task of each batch.

namespace mhr {
namespace cache_details {

/// An adapter of the pool: what it was mixed for.
struct mixture {
    std::int64_t task = no_task; ///< no_task: it holds nothing
    std::uint64_t version = 0;   ///< of the inventory and the logits
    std::uint64_t last_use = 0;  ///< 0: never
};

/// The data of a cache. Each adapter has a mixture and an entry in the list that was given out.
struct cache_data {
    lora_shape shape{};
    owned_workspace memory{};
    stacked_lora_matrices pool{}; ///< a [capacity, in_features, rank], b [capacity, rank, out]
    std::vector<mixture> mixtures{};
    std::vector<lora> adapters{};
    std::vector<index_t> adapter_of_entry{};
    std::uint64_t uses = 0, hits = 0, misses = 0;
};

inline namespace MHR_ISA {
void make(cache_data& cache, const lora_shape& shape, index_t capacity, element_type type);
lora_list get(cache_data& cache, const batch& rows, const routed_lora& layer,
              std::uint64_t version);
index_t find(const cache_data& cache, std::int64_t task) noexcept;
} // namespace MHR_ISA

} // namespace cache_details

/// Adapters that were mixed for tasks, in a pool of `capacity` of them.
///
///     mhr::mixed_lora_cache cache(shape_of(layer.inventory()), 64); // one for each layer
///     ...
///     mhr::lora_forward(batch, cache.get(batch, layer, version), x, y, state);
///
/// gives what routed_lora_forward gives, to the last bit, where the pool has the type of its state.
/// A narrower type, such as bf16, holds more adapters in the same memory: each element of a mixture
/// is then rounded to it once.
///
/// `version` is any number that the host changes when the inventory or the logits have changed: an
/// adapter that was mixed at another version counts as missing. Task ids are those of the plan, so
/// two routers (or noise drawn for each sequence) need two caches.
///
/// All memory is allocated by the constructor. A cache may be moved, and what it has given out
/// stays valid, but it may not be copied: that would be as much memory again, under tensors of the
/// original. It is not for several threads at once.
class mixed_lora_cache {
  public:
    /// Makes a cache of adapters of this type. These are refused: a shape that is not one of an
    /// inventory; a capacity below 1; a type that is none; more memory than there are addresses.
    MHR_INLINE mixed_lora_cache(const lora_shape& shape, index_t capacity,
                                element_type type = element_type::f32) {
        cache_details::make(data_, shape, capacity, type);
    }

    /// Moves a cache: what was given out stays valid, and the source has a capacity of 0.
    mixed_lora_cache(mixed_lora_cache&&) noexcept = default;
    /// Moves a cache, like the constructor.
    mixed_lora_cache& operator=(mixed_lora_cache&&) noexcept = default;
    mixed_lora_cache(const mixed_lora_cache&) = delete;
    mixed_lora_cache& operator=(const mixed_lora_cache&) = delete;
    ~mixed_lora_cache() = default;

    /// The mixed adapters of the plan's entries, with the layer's scale: those of tasks that are
    /// missing are mixed now (mix_lora_forward), in place of none first, then of those that were
    /// used least recently. Of the tasks of one batch, the later in the plan counts as used the
    /// later.
    ///
    /// layer.weights [entries, heads, modules], of which those of missing tasks are read; layer.a
    /// and layer.b are of the constructor's shape. The list is valid until the next `get`, and
    /// `invalidate` and `clear` do not touch what it refers to.
    ///
    /// It needs an executor that runs every part. These are refused, before anything changes: more
    /// entries than the capacity; shapes that do not fit. The cost is entries * capacity
    /// comparisons, and for each missing task modules rank (in + out) multiply-adds.
    MHR_INLINE lora_list get(const batch& rows, const routed_lora& layer, std::uint64_t version) {
        return cache_details::get(data_, rows, layer, version);
    }

    /// Forgets the adapter of one task: for a host that trains the routing of that task alone.
    MHR_INLINE void invalidate(std::int64_t task) noexcept {
        const index_t found = cache_details::find(data_, task);
        if (found >= 0) data_.mixtures[static_cast<std::size_t>(found)] = {};
    }

    /// Forgets all adapters; the memory and the counters stay.
    MHR_INLINE void clear() noexcept {
        for (cache_details::mixture& mixture : data_.mixtures)
            mixture = {};
    }

    /// True if there is an adapter of this task, mixed at this version.
    [[nodiscard]] MHR_INLINE bool holds(std::int64_t task, std::uint64_t version) const noexcept {
        const index_t found = cache_details::find(data_, task);
        return found >= 0 && data_.mixtures[static_cast<std::size_t>(found)].version == version;
    }

    /// Returns the number of adapters that there is room for.
    [[nodiscard]] MHR_INLINE index_t capacity() const noexcept {
        return static_cast<index_t>(data_.mixtures.size());
    }

    /// Returns the bytes that were allocated.
    [[nodiscard]] MHR_INLINE std::size_t bytes() const noexcept {
        return data_.memory.size() + data_.mixtures.size() * sizeof(cache_details::mixture) +
               data_.adapters.size() * sizeof(lora) +
               data_.adapter_of_entry.size() * sizeof(index_t);
    }

    /// Returns how many adapters `get` has found so far.
    [[nodiscard]] MHR_INLINE std::uint64_t hits() const noexcept { return data_.hits; }

    /// Returns how many adapters `get` has mixed so far.
    [[nodiscard]] MHR_INLINE std::uint64_t misses() const noexcept { return data_.misses; }

  private:
    cache_details::cache_data data_{};
};

namespace cache_details {
inline namespace MHR_ISA {

/// The columns of a are dense, as the rows of b are: what the products read fastest.
inline stacked_lora_matrices take_pool(workspace& memory, const lora_shape& shape, index_t capacity,
                                       element_type type) noexcept {
    const auto a = memory.take<3>(type, {capacity, shape.rank, shape.in_features});
    const auto b = memory.take<3>(type, {capacity, shape.rank, shape.out_features});
    return {a.transpose(1, 2), b};
}

inline void make(cache_data& cache, const lora_shape& shape, index_t capacity, element_type type) {
    argument_checks checks("mixed_lora_cache");
    checks.expect(shape.heads >= 1 && shape.modules >= 0 && shape.rank >= 0 &&
                      shape.in_features >= 0 && shape.out_features >= 0 &&
                      shape.in_features % shape.heads == 0 && shape.out_features % shape.heads == 0,
                  "shape", "heads that divide the features, and no negative size",
                  std::array<index_t, 5>{shape.heads, shape.modules, shape.in_features,
                                         shape.out_features, shape.rank});
    checks.expect(capacity >= 1, "capacity", "at least 1", capacity);
    checks.element("type", type);
    checks.raise();
    workspace meter;
    (void)take_pool(meter, shape, capacity, type);
    constexpr auto largest = static_cast<std::size_t>((std::numeric_limits<index_t>::max)());
    constexpr std::size_t of_each = sizeof(mixture) + sizeof(lora) + sizeof(index_t);
    checks.expect(meter.used() <= largest &&
                      static_cast<std::size_t>(capacity) <= largest / of_each,
                  "capacity", "adapters whose bytes fit an index", capacity);
    checks.raise();

    const auto adapters = static_cast<std::size_t>(capacity);
    cache.shape = shape;
    cache.memory = owned_workspace(meter.used());
    workspace all = cache.memory;
    cache.pool = take_pool(all, shape, capacity, type);
    cache.mixtures.resize(adapters);
    cache.adapter_of_entry.resize(adapters);
    for (index_t n = 0; n < capacity; ++n)
        cache.adapters.push_back({cache.pool.a.slice(0, n), cache.pool.b.slice(0, n)});
}

/// Returns the adapter of a task, mixed at any version, or -1.
inline index_t find(const cache_data& cache, std::int64_t task) noexcept {
    if (task == no_task) return -1;
    for (std::size_t n = 0; n < cache.mixtures.size(); ++n)
        if (cache.mixtures[n].task == task) return static_cast<index_t>(n);
    return -1;
}

inline index_t least_recently_used(const cache_data& cache) noexcept {
    std::size_t best = 0;
    for (std::size_t n = 1; n < cache.mixtures.size(); ++n)
        if (cache.mixtures[n].last_use < cache.mixtures[best].last_use) best = n;
    return static_cast<index_t>(best);
}

inline index_t& adapter_of(cache_data& cache, index_t entry) noexcept {
    return cache.adapter_of_entry[static_cast<std::size_t>(entry)];
}

inline mixture& mixture_of(cache_data& cache, index_t entry) noexcept {
    return cache.mixtures[static_cast<std::size_t>(adapter_of(cache, entry))];
}

/// Gives each entry an adapter: that of its task, or one to mix for it, which is nobody's until
/// then, should the host's executor throw.
inline void choose_adapters(cache_data& cache, const batch_plan& plan, std::uint64_t version) {
    const std::uint64_t before = cache.uses;
    const auto use_of = [&](index_t entry) {
        return before + static_cast<std::uint64_t>(entry) + 1;
    };
    // First those that are there, so that none of them is replaced.
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        adapter_of(cache, entry) = find(cache, plan.tasks()(entry));
        if (adapter_of(cache, entry) >= 0) mixture_of(cache, entry).last_use = use_of(entry);
    }
    for (index_t entry = 0; entry < plan.entries(); ++entry) {
        if (adapter_of(cache, entry) < 0) adapter_of(cache, entry) = least_recently_used(cache);
        mixture& taken = mixture_of(cache, entry);
        taken.last_use = use_of(entry);
        if (taken.task != plan.tasks()(entry) || taken.version != version) taken.task = no_task;
    }
    cache.uses = before + static_cast<std::uint64_t>(plan.entries());
}

/// How many entries from this one on are missing, with adapters that follow each other in the pool:
/// they are mixed at once, which gives the executor more to share out.
inline index_t missing_neighbours(cache_data& cache, index_t first, index_t entries) noexcept {
    index_t count = 0;
    while (first + count < entries &&
           adapter_of(cache, first + count) == adapter_of(cache, first) + count &&
           mixture_of(cache, first + count).task == no_task)
        ++count;
    return count;
}

inline lora_list get(cache_data& cache, const batch& rows, const routed_lora& layer,
                     std::uint64_t version) {
    const auto capacity = static_cast<index_t>(cache.mixtures.size());
    const index_t entries = rows.plan.entries();
    const lora_shape& shape = cache.shape;
    argument_checks checks("mixed_lora_cache::get");
    checks.expect(entries <= capacity, "rows.plan", joined("at most ", capacity, " tasks"),
                  entries);
    checks.input("layer.weights", layer.weights, {entries, shape.heads, shape.modules});
    if (checks.passed()) { // a cache of no adapters has no heads
        const index_t heads = (std::max)(shape.heads, index_t(1));
        checks.input("layer.a", layer.a,
                     {shape.heads, shape.modules, shape.in_features / heads, shape.rank});
        checks.input("layer.b", layer.b,
                     {shape.heads, shape.modules, shape.rank, shape.out_features / heads});
    }
    checks.every_part(rows.executor);
    checks.raise();

    choose_adapters(cache, rows.plan, version);
    for (index_t entry = 0; entry < entries;) {
        const index_t count = missing_neighbours(cache, entry, entries);
        if (count > 0) {
            const index_t first = adapter_of(cache, entry);
            mix_lora_forward(
                rows.executor, layer.weights.block(0, entry, count), layer.inventory(),
                {cache.pool.a.block(0, first, count), cache.pool.b.block(0, first, count)});
            for (index_t i = entry; i < entry + count; ++i) {
                mixture_of(cache, i).task = rows.plan.tasks()(i);
                mixture_of(cache, i).version = version;
            }
            cache.misses += static_cast<std::uint64_t>(count);
        } else {
            ++cache.hits;
        }
        entry += (std::max)(count, index_t(1));
    }
    for (index_t entry = 0; entry < entries; ++entry)
        cache.adapters[static_cast<std::size_t>(adapter_of(cache, entry))].scale = layer.scale;
    return {cache.adapters.data(), capacity, {cache.adapter_of_entry.data(), {entries}}};
}

} // namespace MHR_ISA
} // namespace cache_details
} // namespace mhr

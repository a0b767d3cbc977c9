#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// A library of LoRAs, trained one by one, as an inventory: a new task learns by its routing alone
/// how to mix them (MHR-z: leave d_inventory of routed_lora_backward absent).
///
/// Routed LoRA mixes the matrices a and b *separately*: of a mixture of several adapters,
/// x (sum w_i a_i) (sum w_j b_j), it also computes what the a of one and the b of another give.
/// Adapters of an inventory are trained for that, those of a library are not. What mixes the
/// adapters' *outputs*, sum w_i x a_i b_i, is adapters/output_mixed_lora.hpp.

namespace mhr {
inline namespace MHR_ISA {

/// A pool of adapters seen as an inventory, with any number of heads: nothing is copied.
///
/// pool.a [modules, in_features, rank], pool.b [modules, rank, out_features], no slots. Adapters of
/// lower ranks are padded with zeros by their owner (gather_lora_library does so).
///
/// Errors: a shape; heads that do not divide in_features and out_features.
template <class T>
lora_inventory<T> as_inventory(lora_batch<T> pool, index_t heads) {
    constexpr const char* function = "as_inventory";
    require_input(function, "pool.a", pool.a, {any_extent, any_extent, any_extent});
    require_input(function, "pool.b", pool.b, {pool.a.extent(0), pool.a.extent(2), any_extent});
    detail::require_no_slots(function, "pool.slot_of_entry", pool);
    const index_t in = pool.a.extent(1);
    const index_t out = pool.b.extent(2);
    require_that(
        heads >= 1 && in % heads == 0 && out % heads == 0, function, "heads",
        [&] {
            return "a divisor of " + std::to_string(in) + " and " + std::to_string(out) +
                   " features";
        },
        [&] { return std::to_string(heads); });
    return {pool.a.split(1, heads).transpose(0, 1),
            pool.b.split(2, heads).transpose(1, 2).transpose(0, 1)};
}

namespace detail {

/// to[p, q] = factor from[p, q], and 0 where `from` has no such row or column.
template <class P, class M>
void copy_padded(tensor_view<const P, 2> from, double factor, tensor_view<M, 2> to) noexcept {
    using A = accumulator_t<P, M>;
    for (index_t p = 0; p < to.extent(0); ++p)
        for (index_t q = 0; q < to.extent(1); ++q)
            to(p, q) = p < from.extent(0) && q < from.extent(1)
                           ? store<M>(static_cast<A>(factor) * load<A>(from(p, q)))
                           : store<M>(A(0));
}

} // namespace detail

/// Copies plain adapters, of different ranks and scales, into one pool:
/// pool.a[i] = adapters(i).a and pool.b[i] = scales(i) adapters(i).b, both padded with zeros up to
/// the pool's rank, which changes nothing of what they compute. `as_inventory(pool, heads)` is then
/// the inventory, and its scale is 1, since that of each adapter (alpha / rank, say) is in its b.
///
/// adapters [modules] is a view of (const) `lora<P>`, each a [in_features, rank of i] and
/// b [rank of i, out_features]; PEFT's lora_A [rank, in_features] is such an a transposed. scales
/// [modules], absent: all 1; pool.a [modules, in_features, rank], pool.b [modules, rank,
/// out_features], overwritten, no slots. The pool may have another storage type, to which each
/// element is rounded once. To gather adapters of several storage types, gather the blocks of the
/// pool one after the other.
///
/// One phase; the pool must not overlap the adapters. Errors: a shape; a rank above the pool's;
/// overlapping elements of the pool. Cost: the pool is written once.
template <class Adapter, class M>
void gather_lora_library(executor_ref executor, tensor_view<Adapter, 1> adapters,
                         tensor_view<const double, 1> scales, lora_batch<M> pool) {
    constexpr const char* function = "gather_lora_library";
    require_input(function, "adapters", adapters, {any_extent});
    const index_t modules = adapters.extent(0);
    require_output(function, "pool.a", pool.a, {modules, any_extent, any_extent});
    const index_t rank = pool.a.extent(2);
    require_output(function, "pool.b", pool.b, {modules, rank, any_extent});
    detail::require_no_slots(function, "pool.slot_of_entry", pool);
    if (!scales.absent()) require_input(function, "scales", scales, {modules});
    for (index_t i = 0; i < modules; ++i) {
        const auto& adapter = adapters(i);
        require_input(function, "adapters.a", adapter.a, {pool.a.extent(1), any_extent});
        require_that(
            adapter.a.extent(1) <= rank, function, "adapters.a",
            [&] { return "ranks up to that of the pool, " + std::to_string(rank); },
            [&] {
                return std::to_string(adapter.a.extent(1)) + " at position " + std::to_string(i);
            });
        require_input(function, "adapters.b", adapter.b, {adapter.a.extent(1), pool.b.extent(2)});
    }

    executor.run(modules, [&](index_t i) noexcept {
        const auto& adapter = adapters(i);
        detail::copy_padded(as_const(adapter.a), 1, pool.a.slice(0, i));
        detail::copy_padded(as_const(adapter.b), scales.absent() ? 1 : scales(i),
                            pool.b.slice(0, i));
    });
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>
#include <cstddef>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/inventory.hpp>

/// \file
/// A library of LoRAs, trained one by one, as an inventory: a new task learns by its routing alone
/// how to mix them (MHR-z: leave a and b of routed_lora_backward's gradients absent).
///
/// Routed LoRA mixes the matrices a and b *separately*: of a mixture of several adapters,
/// x (sum w_i a_i) (sum w_j b_j), it also computes what the a of one and the b of another give.
/// Adapters of an inventory are trained for that, those of a library are not. What mixes the
/// adapters' *outputs*, sum w_i x a_i b_i, is LoRA with mixed outputs.

namespace mhr {
inline namespace MHR_ISA {

/// A pool of adapters seen as an inventory, with any number of heads: nothing is copied.
///
/// pool.a [modules, in_features, rank], pool.b [modules, rank, out_features]. Adapters of lower
/// ranks are padded with zeros by their owner (gather_lora_library does so).
///
/// These are refused: shapes that do not fit; heads that do not divide in_features and
/// out_features.
inline lora_inventory as_inventory(const const_stacked_lora_matrices& pool, index_t heads);

/// Sees a pool that is written as an inventory: the gradients of a pool are those of its inventory.
/// It refuses what as_inventory refuses.
inline lora_inventory_matrices as_inventory_matrices(const stacked_lora_matrices& pool,
                                                     index_t heads);

/// Copies plain adapters, of different ranks, types and scales, into one pool:
/// pool.a[i] = adapters(i).a and pool.b[i] = adapters(i).scale adapters(i).b, both padded with
/// zeros up to the pool's rank, which changes nothing of what they compute.
/// `as_inventory(pool, heads)` is then the inventory, and its scale is 1, since that of each
/// adapter (alpha / rank, say) is in its b.
///
/// adapters [modules], each with a [in_features, its rank] and b [its rank, out_features]; PEFT's
/// lora_A [rank, in_features] is such an a transposed. pool.a [modules, in_features, rank] and
/// pool.b [modules, rank, out_features] are overwritten; each element is rounded once to their
/// type. Products are f64 if one of the two types is, else f32.
///
/// It has one phase; the pool must not overlap the adapters. These are refused: shapes that do not
/// fit; a rank above the pool's; a pool two of whose elements overlap. The cost is that of writing
/// the pool once.
inline void gather_lora_library(executor_ref executor, const tensor_view<const lora, 1>& adapters,
                                const stacked_lora_matrices& pool);

namespace library_details {

inline void check_pool(const char* function, const const_stacked_lora_matrices& pool,
                       index_t heads) {
    argument_checks checks(function);
    checks.input("pool.a", pool.a);
    checks.input("pool.b", pool.b, {pool.a.extent(0), pool.a.extent(2), any_extent});
    const index_t in = pool.a.extent(1);
    const index_t out = pool.b.extent(2);
    checks.expect(heads >= 1 && in % heads == 0 && out % heads == 0, "heads",
                  joined("a divisor of ", in, " and ", out, " features"), heads);
    checks.raise();
}

/// Matrices of a pool as mixing sees the modules: heads first.
/// @{
template <class Void>
basic_tensor_ref<Void, 4> modules_of_a(const basic_tensor_ref<Void, 3>& a, index_t heads) noexcept {
    return lora_details::heads_of_a(a, heads).transpose(0, 1);
}
template <class Void>
basic_tensor_ref<Void, 4> modules_of_b(const basic_tensor_ref<Void, 3>& b, index_t heads) noexcept {
    return lora_details::heads_of_b(b, heads).transpose(0, 1);
}
/// @}

/// to[i] = factor from[i], computed as A, and 0 where `from` has no such element.
template <class A>
void copy_run(const const_tensor_ref<1>& from, double factor, const tensor_ref<1>& to) noexcept {
    constexpr index_t longest = 256;
    A numbers[static_cast<std::size_t>(longest)];
    for (index_t first = 0; first < to.extent(0); first += longest) {
        const index_t count = (std::min)(longest, to.extent(0) - first);
        const index_t there = (std::max)(index_t(0), (std::min)(count, from.extent(0) - first));
        if (there > 0) kernels::read_elements(from.block(0, first, there), numbers);
        for (index_t i = 0; i < there; ++i)
            numbers[i] = static_cast<A>(factor) * numbers[i];
        std::fill(numbers + there, numbers + count, A(0));
        kernels::write_elements(numbers, to.block(0, first, count));
    }
}

/// to[p, q] = factor from[p, q], and 0 where `from` has no such row or column.
inline void copy_padded(const_tensor_ref<2> from, double factor, tensor_ref<2> to) noexcept {
    if (to.stride(0) == 1 && to.stride(1) != 1) { // along the memory of `to`
        from = from.transpose(0, 1);
        to = to.transpose(0, 1);
    }
    const bool wide = sums_of(from.type(), to.type()) == element_type::f64;
    for (index_t p = 0; p < to.extent(0); ++p) {
        const bool there = p < from.extent(0);
        const auto row = there ? from.slice(0, p) : const_tensor_ref<1>(nullptr, from.type(), {0});
        if (wide)
            copy_run<double>(row, factor, to.slice(0, p));
        else
            copy_run<float>(row, factor, to.slice(0, p));
    }
}

} // namespace library_details

inline lora_inventory as_inventory(const const_stacked_lora_matrices& pool, index_t heads) {
    library_details::check_pool("as_inventory", pool, heads);
    return {library_details::modules_of_a(pool.a, heads),
            library_details::modules_of_b(pool.b, heads)};
}

inline lora_inventory_matrices as_inventory_matrices(const stacked_lora_matrices& pool,
                                                     index_t heads) {
    library_details::check_pool("as_inventory_matrices", pool, heads);
    return {library_details::modules_of_a(pool.a, heads),
            library_details::modules_of_b(pool.b, heads)};
}

inline void gather_lora_library(executor_ref executor, const tensor_view<const lora, 1>& adapters,
                                const stacked_lora_matrices& pool) {
    argument_checks checks("gather_lora_library");
    checks.numbers("adapters", adapters, {any_extent});
    const index_t modules = adapters.extent(0);
    checks.output("pool.a", pool.a, {modules, any_extent, any_extent});
    const index_t rank = pool.a.extent(2);
    checks.output("pool.b", pool.b, {modules, rank, any_extent});
    for (index_t i = 0; checks.passed() && i < modules; ++i) {
        const lora& adapter = adapters(i);
        checks.input("adapters.a", adapter.a, {pool.a.extent(1), any_extent});
        checks.expect(adapter.a.extent(1) <= rank, "adapters.a",
                      joined("ranks up to that of the pool, ", rank),
                      joined(adapter.a.extent(1), " at position ", i));
        checks.input("adapters.b", adapter.b, {adapter.a.extent(1), pool.b.extent(2)});
    }
    checks.raise();

    executor.run(modules, [&](index_t i) noexcept {
        const lora& adapter = adapters(i);
        library_details::copy_padded(adapter.a, 1, pool.a.slice(0, i));
        library_details::copy_padded(adapter.b, adapter.scale, pool.b.slice(0, i));
    });
}

} // namespace MHR_ISA
} // namespace mhr

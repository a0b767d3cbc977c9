#pragma once

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/mixing.hpp>

/// \file
/// The inventory of LoRA modules of one adapted layer: its sizes, its mixtures and its average as
/// ready adapters.

namespace mhr {

/// The modules of one adapted layer, as PEFT stores them. Other memory orders are the same tensors
/// with other strides (mttl: a is [modules, heads, ..], b [modules, rank, heads, ..]).
struct lora_inventory {
    const_tensor_ref<4> a; ///< [heads, modules, in_features / heads, rank]
    const_tensor_ref<4> b; ///< [heads, modules, rank, out_features / heads]
};

/// An inventory that is written, by an initialisation or as the gradients of an inventory. Either
/// gradient may be absent.
struct lora_inventory_matrices {
    tensor_ref<4> a{}; ///< [heads, modules, in_features / heads, rank]
    tensor_ref<4> b{}; ///< [heads, modules, rank, out_features / heads]

    /// Converts to an inventory that is only read.
    MHR_INLINE operator lora_inventory() const noexcept { return {a, b}; } // NOLINT: implicit
};

/// The sizes of an inventory.
struct lora_shape {
    index_t heads;        ///< blocks of the parameters, each with a choice of its own
    index_t modules;      ///< of the inventory
    index_t in_features;  ///< of x, all heads together
    index_t out_features; ///< of y, all heads together
    index_t rank;         ///< of each module
};

inline namespace MHR_ISA {

/// The sizes of an inventory, whose two tensors must fit together.
inline lora_shape shape_of(const lora_inventory& inventory) noexcept {
    const auto& [a, b] = inventory;
    return {a.extent(0), a.extent(1), a.extent(0) * a.extent(2), b.extent(0) * b.extent(3),
            a.extent(3)};
}

/// Mixes an inventory into one adapter for each entry of `weights`; see mix_forward.
///
/// weights [entries, heads, modules]; mixed.a [entries, in_features, rank] and mixed.b
/// [entries, rank, out_features], overwritten.
///
/// It has one phase. These are refused: shapes that do not fit; a mixed.a or mixed.b two of whose
/// elements overlap. The cost is entries modules rank (in + out) multiply-adds.
inline void mix_lora_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                             const lora_inventory& inventory, const stacked_lora_matrices& mixed);

/// The gradients that mix_lora_backward computes. Each is added to; one that is absent is not
/// computed.
struct mix_lora_gradients {
    tensor_ref<4> a{};       ///< [heads, modules, in_features / heads, rank]
    tensor_ref<4> b{};       ///< [heads, modules, rank, out_features / heads]
    tensor_ref<3> weights{}; ///< [entries, heads, modules]
};

/// The backward of mix_lora_forward; see mix_backward.
///
/// d_a [entries, in_features, rank] and d_b [entries, rank, out_features] are the gradients of the
/// mixed adapters.
///
/// It has one phase. These are refused: shapes that do not fit; a gradient two of whose elements
/// overlap. The cost is entries modules rank (in + out) multiply-adds for each of the inventory and
/// the weights.
inline void mix_lora_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                              const lora_inventory& inventory, const const_tensor_ref<3>& d_a,
                              const const_tensor_ref<3>& d_b, const mix_lora_gradients& gradients);

/// The average of an inventory as one plain adapter (MHR-mu: Caccia et al. 2023, arXiv 2211.03831);
/// equal to the mixture with weights 1 / modules to the last bit.
///
/// average.a [in_features, rank], average.b [rank, out_features], overwritten, rounded once to
/// their type.
///
/// It has one phase. These are refused: shapes that do not fit; an average.a or average.b two of
/// whose elements overlap. The cost is modules rank (in + out) multiply-adds.
inline void average_lora_forward(executor_ref executor, const lora_inventory& inventory,
                                 const lora_matrices& average);

/// The backward of average_lora_forward: each module's gradient gets 1 / modules of the average's.
///
/// d_a [in_features, rank] and d_b [rank, out_features] are the gradients of the average;
/// d_inventory accumulates. Of its two, one that is absent is not computed, and what belongs to it,
/// d_a or d_b, is not looked at.
///
/// It has one phase. These are refused: shapes that do not fit; a gradient two of whose elements
/// overlap. The cost is modules rank (in + out) multiply-adds.
inline void average_lora_backward(executor_ref executor, const const_tensor_ref<2>& d_a,
                                  const const_tensor_ref<2>& d_b,
                                  const lora_inventory_matrices& d_inventory);

namespace lora_details {

inline void check_inventory(argument_checks& checks, const lora_inventory& inventory) {
    checks.input("inventory.a", inventory.a);
    checks.expect(inventory.a.extent(0) >= 1, "inventory.a", "at least one head", "none");
    checks.input("inventory.b", inventory.b,
                 {inventory.a.extent(0), inventory.a.extent(1), inventory.a.extent(3), any_extent});
}

/// Matrices of a batch, seen head by head as mixing sees them: a as [entries, heads, in / heads,
/// rank], b as [entries, heads, rank, out / heads].
/// @{
template <class Void>
basic_tensor_ref<Void, 4> heads_of_a(const basic_tensor_ref<Void, 3>& a, index_t heads) noexcept {
    return a.split(1, heads);
}
template <class Void>
basic_tensor_ref<Void, 4> heads_of_b(const basic_tensor_ref<Void, 3>& b, index_t heads) noexcept {
    return b.split(2, heads).transpose(1, 2);
}
/// @}

/// mix_lora_forward without checks.
inline void mix(executor_ref executor, const const_tensor_ref<3>& weights,
                const lora_inventory& inventory, const stacked_lora_matrices& mixed) {
    const index_t heads = inventory.a.extent(0);
    mixing_details::mix(executor, weights, inventory.a, heads_of_a(mixed.a, heads));
    mixing_details::mix(executor, weights, inventory.b, heads_of_b(mixed.b, heads));
}

/// mix_lora_backward without checks; what has no gradient is left out.
inline void mix_back(executor_ref executor, const const_tensor_ref<3>& weights,
                     const lora_inventory& inventory, const const_tensor_ref<3>& d_a,
                     const const_tensor_ref<3>& d_b, const mix_lora_gradients& gradients) {
    const index_t heads = inventory.a.extent(0);
    if (!gradients.a.absent() || !gradients.weights.absent())
        mixing_details::mix_back(executor, weights, inventory.a, heads_of_a(d_a, heads),
                                 {gradients.a, gradients.weights});
    if (!gradients.b.absent() || !gradients.weights.absent())
        mixing_details::mix_back(executor, weights, inventory.b, heads_of_b(d_b, heads),
                                 {gradients.b, gradients.weights});
}

} // namespace lora_details

inline void mix_lora_forward(executor_ref executor, const const_tensor_ref<3>& weights,
                             const lora_inventory& inventory, const stacked_lora_matrices& mixed) {
    argument_checks checks("mix_lora_forward");
    lora_details::check_inventory(checks, inventory);
    const lora_shape shape = shape_of(inventory);
    checks.input("weights", weights, {any_extent, shape.heads, shape.modules});
    checks.output("mixed.a", mixed.a, {weights.extent(0), shape.in_features, shape.rank});
    checks.output("mixed.b", mixed.b, {weights.extent(0), shape.rank, shape.out_features});
    checks.raise();
    lora_details::mix(executor, weights, inventory, mixed);
}

inline void mix_lora_backward(executor_ref executor, const const_tensor_ref<3>& weights,
                              const lora_inventory& inventory, const const_tensor_ref<3>& d_a,
                              const const_tensor_ref<3>& d_b, const mix_lora_gradients& gradients) {
    argument_checks checks("mix_lora_backward");
    lora_details::check_inventory(checks, inventory);
    const lora_shape shape = shape_of(inventory);
    checks.input("weights", weights, {any_extent, shape.heads, shape.modules});
    checks.input("d_a", d_a, {weights.extent(0), shape.in_features, shape.rank});
    checks.input("d_b", d_b, {weights.extent(0), shape.rank, shape.out_features});
    checks.optional_output("gradients.a", gradients.a, inventory.a.extents());
    checks.optional_output("gradients.b", gradients.b, inventory.b.extents());
    checks.optional_output("gradients.weights", gradients.weights, weights.extents());
    checks.raise();
    lora_details::mix_back(executor, weights, inventory, d_a, d_b, gradients);
}

inline void average_lora_forward(executor_ref executor, const lora_inventory& inventory,
                                 const lora_matrices& average) {
    argument_checks checks("average_lora_forward");
    lora_details::check_inventory(checks, inventory);
    const lora_shape shape = shape_of(inventory);
    checks.output("average.a", average.a, {shape.in_features, shape.rank});
    checks.output("average.b", average.b, {shape.rank, shape.out_features});
    checks.raise();
    const auto a = lora_details::heads_of_a(average.a.prepend_axis(), shape.heads);
    const auto b = lora_details::heads_of_b(average.b.prepend_axis(), shape.heads);
    average_forward(executor, inventory.a, a.slice(0, 0));
    average_forward(executor, inventory.b, b.slice(0, 0));
}

inline void average_lora_backward(executor_ref executor, const const_tensor_ref<2>& d_a,
                                  const const_tensor_ref<2>& d_b,
                                  const lora_inventory_matrices& d_inventory) {
    argument_checks checks("average_lora_backward");
    const auto& [a, b] = d_inventory;
    const auto heads = [&](const char* argument, const tensor_ref<4>& gradient) {
        checks.expect(gradient.extent(0) >= 1, argument, "at least one head", "none");
    };
    if (!a.absent()) {
        checks.output("d_inventory.a", a, argument_checks::any_extents<4>());
        heads("d_inventory.a", a);
        checks.input("d_a", d_a, {a.extent(0) * a.extent(2), a.extent(3)});
    }
    if (!b.absent()) {
        if (a.absent())
            checks.output("d_inventory.b", b, argument_checks::any_extents<4>());
        else
            checks.output("d_inventory.b", b, {a.extent(0), a.extent(1), a.extent(3), any_extent});
        heads("d_inventory.b", b);
        checks.input("d_b", d_b, {b.extent(2), b.extent(0) * b.extent(3)});
    }
    checks.raise();
    if (!a.absent())
        average_backward(executor,
                         lora_details::heads_of_a(d_a.prepend_axis(), a.extent(0)).slice(0, 0), a);
    if (!b.absent())
        average_backward(executor,
                         lora_details::heads_of_b(d_b.prepend_axis(), b.extent(0)).slice(0, 0), b);
}

} // namespace MHR_ISA
} // namespace mhr

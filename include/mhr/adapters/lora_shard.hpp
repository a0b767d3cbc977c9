#pragma once

#include <array>
#include <string>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Sharding by heads: each of p ranks owns some heads of a layer, and of them everything: the rows
/// of a over its in_features, the columns of b over its out_features, their columns of the logits,
/// of the weights and of all gradients. It never sees another rank's.
/// adapters/routed_lora_halves.hpp computes with them; what crosses ranks is the sum of [rows,
/// rank] once forward and once backward.
///
/// This is how layers are split in tensor-parallel hosts (Shoeybi et al. 2019, arXiv 1909.08053,
/// section 3): a like a row-parallel layer, b like a column-parallel one, and it goes with both
/// kinds. Each rank takes its features of what it has:
///
///     host's layer      x                    y, d_y               d_x
///     column-parallel   features of the      its own              adds to its features of the
///                       whole x                                   rank's summand, before the host
///                                                                 sums over ranks
///     row-parallel      its own              adds to its features its own
///                                            of the rank's
///                                            summand, likewise;
///                                            of the whole d_y
///
/// The router needs nothing else: gates and normalisers know one head at a time, so a rank routes
/// with its columns of the logits, and their gradients are complete. (Only a noise that is drawn
/// has to be drawn for all heads, and cut.)
///
/// Communication of a layer, forward and again backward: an all-reduce of rows x rank accumulators,
/// 4 rows rank bytes in f32, rank / out_features of what the all-reduce of a row-parallel layer's
/// own f32 output takes. On p ranks with links of latency L and bandwidth B, for V bytes:
///
///     ring                 2 (p - 1) L + 2 (p - 1) / p V / B       for much
///     recursive doubling   log2(p) (L + V / B)                     for little, as here
///
/// Layers that read the same x (the query, key and value of attention) may lay their hidden in one
/// span: one all-reduce. It may also run while the host computes y = x W, which needs neither.
///
/// The sum over ranks groups in_features otherwise than one rank does: results differ in rounding,
/// and are the same every time for the same number of ranks if the host's all-reduce is.

namespace mhr {

/// What one rank owns of a layer.
struct lora_shard {
    lora_shape whole; ///< of the layer
    lora_shape shape; ///< of this shard: its heads, and their in_features and out_features
    index_t first_head = 0;
    index_t first_in_feature = 0;
    index_t first_out_feature = 0;

    /// These heads of the layer's inventory; of its table or weights, [.., heads, modules]; these
    /// features of x [rows, in_features]; of y [rows, out_features]. Views, of nothing if the whole
    /// is absent. For those who have the whole: a checkpoint's reader, or the x of a
    /// column-parallel layer. Errors: a shape.
    template <class T>
    [[nodiscard]] lora_inventory<T> of_inventory(const lora_inventory<T>& inventory) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 3> of_weights(const tensor_view<T, 3>& weights) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 2> of_inputs(const tensor_view<T, 2>& x) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 2> of_outputs(const tensor_view<T, 2>& y) const;
};

/// Shard `ith` of `nth`: heads / nth heads, and one more in the first ones where that does not come
/// out even. Errors: a number that does not fit; features that the heads do not divide; more shards
/// than heads.
inline lora_shard shard_of_heads(const lora_shape& whole, index_t ith, index_t nth) {
    constexpr const char* function = "shard_of_heads";
    require(
        whole.heads >= 1, function, "whole.heads", [] { return "1 or more"; },
        [&] { return std::to_string(whole.heads); });
    const auto require_divisible = [&](const char* argument, index_t features) {
        require(
            features >= 0 && features % whole.heads == 0, function, argument,
            [&] { return "a multiple of " + std::to_string(whole.heads) + " heads"; },
            [&] { return std::to_string(features); });
    };
    require_divisible("whole.in_features", whole.in_features);
    require_divisible("whole.out_features", whole.out_features);
    require(
        nth >= 1 && nth <= whole.heads, function, "nth",
        [&] { return "1 to " + std::to_string(whole.heads) + " shards, one head each at least"; },
        [&] { return std::to_string(nth); });
    require(
        ith >= 0 && ith < nth, function, "ith", [&] { return "0 to " + std::to_string(nth - 1); },
        [&] { return std::to_string(ith); });

    const index_t quotient = whole.heads / nth;
    const index_t remainder = whole.heads % nth;
    const index_t first = quotient * ith + (ith < remainder ? ith : remainder);
    const index_t heads = quotient + (ith < remainder ? 1 : 0);
    const index_t in_block = whole.in_features / whole.heads;
    const index_t out_block = whole.out_features / whole.heads;
    return {whole,
            {heads, whole.modules, heads * in_block, heads * out_block, whole.rank},
            first,
            first * in_block,
            first * out_block};
}

template <class T>
lora_inventory<T> lora_shard::of_inventory(const lora_inventory<T>& inventory) const {
    constexpr const char* function = "lora_shard::of_inventory";
    const auto take = [&](const char* argument, const tensor_view<T, 4>& matrices,
                          const std::array<index_t, 4>& extents) {
        if (matrices.absent()) return matrices;
        require_input(function, argument, matrices, extents);
        return matrices.block(0, first_head, shape.heads);
    };
    const index_t in_block = whole.in_features / whole.heads;
    const index_t out_block = whole.out_features / whole.heads;
    return {take("inventory.a", inventory.a, {whole.heads, whole.modules, in_block, whole.rank}),
            take("inventory.b", inventory.b, {whole.heads, whole.modules, whole.rank, out_block})};
}

template <class T>
tensor_view<T, 3> lora_shard::of_weights(const tensor_view<T, 3>& weights) const {
    if (weights.absent()) return weights;
    require_input("lora_shard::of_weights", "weights", weights,
                  {any_extent, whole.heads, whole.modules});
    return weights.block(1, first_head, shape.heads);
}

template <class T>
tensor_view<T, 2> lora_shard::of_inputs(const tensor_view<T, 2>& x) const {
    if (x.absent()) return x;
    require_input("lora_shard::of_inputs", "x", x, {any_extent, whole.in_features});
    return x.block(1, first_in_feature, shape.in_features);
}

template <class T>
tensor_view<T, 2> lora_shard::of_outputs(const tensor_view<T, 2>& y) const {
    if (y.absent()) return y;
    require_input("lora_shard::of_outputs", "y", y, {any_extent, whole.out_features});
    return y.block(1, first_out_feature, shape.out_features);
}

} // namespace mhr

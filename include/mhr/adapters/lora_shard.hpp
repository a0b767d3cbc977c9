#pragma once

#include <array>
#include <string>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Sharding by heads: each of p ranks owns some heads of a layer, and of them everything: the rows
/// of a over its in_features, the columns of b over its out_features, its part of the logits, of
/// the weights and of all gradients. It never sees another rank's. With
/// adapters/routed_lora_halves.hpp it computes its features of y and of d_x; what crosses ranks is
/// the sum of [rows, rank], once forward and once backward.
///
/// This is how tensor-parallel hosts split layers (Shoeybi et al. 2019, arXiv 1909.08053, section
/// 3): a like the second, row-parallel layer of a pair, b like the first, column-parallel one. It
/// goes with a host's layer of either kind:
///
///   - column-parallel, where every rank has the whole x and its own features of y: it takes its
///     features of x; it adds to these of its summand of d_x, which the host sums over the ranks;
///   - row-parallel, where every rank has its own features of x and a summand of y: it adds to its
///     features of this summand before the host sums them over the ranks; it takes its features of
///     d_y, which every rank has the whole of.
///
/// The router needs nothing else: gates and normalisers know one head at a time, so a rank routes
/// with its part of the logits, whose gradient is complete. (Noise that is drawn for all heads is
/// cut likewise.)
///
/// Communication of a layer, forward and again backward: an all-reduce of V = 4 rows rank bytes (in
/// f32), which is rank / out_features of the f32 output that a row-parallel host sums itself. On p
/// ranks with links of latency L and bandwidth B it takes
///
///     recursive doubling   log2(p) (L + V / B)                  best for little, as here
///     ring                 2 (p - 1) (L + V / (p B))            best for much, as the host's own
///
/// With 512 rows, rank 16, 64 ranks, 2 us and 25 GB/s: 32 KiB in 20 us, beside 8 MiB in 910 us for
/// the host's own sum of 4096 features. Layers that read the same x (query, key and value) may lay
/// their hidden in one span, for one all-reduce; and the host may compute its y = x W meanwhile,
/// which needs neither.
///
/// The sum over ranks groups in_features otherwise than one rank does: results differ in rounding,
/// and are the same every time for the same number of ranks if the host's all-reduce is.

namespace mhr {
inline namespace MHR_ISA {

/// What one rank owns of a layer.
struct lora_shard {
    lora_shape whole;       ///< of the layer
    lora_shape shape;       ///< of this shard: its heads, and their in_features and out_features
    index_t first_head = 0; ///< of the whole layer
    index_t first_in_feature = 0;  ///< the same
    index_t first_out_feature = 0; ///< the same

    /// These heads of the layer's inventory; of its table or weights, [.., heads, modules]; these
    /// features of x [rows, in_features]; of y [rows, out_features]. Views, of nothing if the whole
    /// is absent. For those who have the whole: a checkpoint's reader, or the x of a
    /// column-parallel layer. Errors: a shape.
    /// @{
    template <class T>
    [[nodiscard]] lora_inventory<T> of_inventory(const lora_inventory<T>& inventory) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 3> of_weights(const tensor_view<T, 3>& weights) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 2> of_inputs(const tensor_view<T, 2>& x) const;
    template <class T>
    [[nodiscard]] tensor_view<T, 2> of_outputs(const tensor_view<T, 2>& y) const;
    /// @}
};

/// Shard `ith` of `nth`: heads / nth heads, and one more in the first ones where that does not come
/// out even. Errors: a number that does not fit; features that the heads do not divide; more shards
/// than heads.
inline lora_shard shard_of_heads(const lora_shape& whole, index_t ith, index_t nth) {
    constexpr const char* function = "shard_of_heads";
    require_that(
        whole.heads >= 1, function, "whole.heads", [] { return "1 or more"; },
        [&] { return std::to_string(whole.heads); });
    const auto require_divisible = [&](const char* argument, index_t features) {
        require_that(
            features >= 0 && features % whole.heads == 0, function, argument,
            [&] { return "a multiple of " + std::to_string(whole.heads) + " heads"; },
            [&] { return std::to_string(features); });
    };
    require_divisible("whole.in_features", whole.in_features);
    require_divisible("whole.out_features", whole.out_features);
    require_that(
        nth >= 1 && nth <= whole.heads, function, "nth",
        [&] { return "1 to " + std::to_string(whole.heads) + " shards, one head each at least"; },
        [&] { return std::to_string(nth); });
    require_that(
        ith >= 0 && ith < nth, function, "ith", [&] { return "0 to " + std::to_string(nth - 1); },
        [&] { return std::to_string(ith); });

    const auto [first, heads] = detail::share_of(whole.heads, ith, nth);
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

} // namespace MHR_ISA
} // namespace mhr

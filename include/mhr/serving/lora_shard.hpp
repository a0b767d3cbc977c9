#pragma once

#include <cstddef>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/routed_lora.hpp>

/// \file
/// Sharding by heads: each of p ranks owns some heads of a layer, and of them everything: the rows
/// of a over its in_features, the columns of b over its out_features, its part of the logits, of
/// the weights and of all gradients. It never sees another rank's. It calls routed_lora_forward and
/// routed_lora_backward (or those of plain LoRA) on what it owns, and computes its features of y
/// and of d_x; what crosses ranks is the sum of [rows, rank], once forward and once backward:
///
///     const auto sum = [&](mhr::tensor_ref<2> values) { all_reduce(values.data(), ..); };
///     mhr::routed_lora_forward({plan, executor, sum}, layer, x, y, state);
///
/// `batch::sum_over_ranks` is called, on every rank, once in a forward, between the product with a
/// and that with b, with the state's hidden = x a; and once in a backward, between the products
/// with b and with a, with d_hidden = scale d_y b^T (where modules are applied one by one, as
/// batch::mixtures may say and row_routed_lora always does, it comes without the scale). Both are
/// dense, of the type of the state, and 0 in rows of no task. All ranks must make the same calls,
/// with plans of the same rows and the same batch::mixtures: ranks that ask for other gradients
/// than the rest may not come to the sum, which a backward leaves out where neither x nor a nor the
/// weights have a gradient.
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
/// The communication of a layer, forward and again backward, is an all-reduce of V = 4 rows rank
/// bytes (in f32), which is rank / out_features of the f32 output that a row-parallel host sums
/// itself. On p ranks with links of latency L and bandwidth B it takes
///
///     recursive doubling   log2(p) (L + V / B)                  best for little, as here
///     ring                 2 (p - 1) (L + V / (p B))            best for much, as the host's own
///
/// With 512 rows, rank 16, 64 ranks, 2 us and 25 GB/s, that is 32 KiB in 20 us, beside 8 MiB in
/// 910 us for the host's own sum of 4096 features. The host may compute its y = x W while the sum
/// is under way, which needs neither: its callable starts the all-reduce, multiplies and waits.
///
/// The sum over ranks groups in_features otherwise than one rank does: results differ in rounding,
/// and are the same every time for the same number of ranks if the host's all-reduce is. With a
/// callable that changes nothing, as on one rank, the bits are those without it.

namespace mhr {

struct lora_shard;

inline namespace MHR_ISA {
namespace shard_details {
routed_lora layer_of(const lora_shard& shard, const routed_lora& layer);
lora adapter_of(const lora_shard& shard, const lora& adapter);
routed_lora_gradients gradients_of(const lora_shard& shard, const routed_lora_gradients& gradients);
template <class Void>
basic_tensor_ref<Void, 3> heads_of(argument_checks& checks, const char* argument,
                                   const lora_shard& shard, const basic_tensor_ref<Void, 3>& table);
template <class Void>
basic_tensor_ref<Void, 2> inputs_of(argument_checks& checks, const char* argument,
                                    const lora_shard& shard, const basic_tensor_ref<Void, 2>& rows);
template <class Void>
basic_tensor_ref<Void, 2> outputs_of(argument_checks& checks, const char* argument,
                                     const lora_shard& shard,
                                     const basic_tensor_ref<Void, 2>& rows);
} // namespace shard_details
} // namespace MHR_ISA

/// The part of a layer that one rank owns. The member functions cut the shard's part out of tensors
/// of the whole layer, for those who have the whole: a checkpoint's reader, or the x of a
/// column-parallel layer. They return an absent tensor for an absent one. These are refused: shapes
/// that are not those of the whole layer.
struct lora_shard {
    lora_shape whole;              ///< of the layer
    lora_shape shape;              ///< of this shard: its heads, their in_ and out_features
    index_t first_head = 0;        ///< of the whole layer
    index_t first_in_feature = 0;  ///< the same
    index_t first_out_feature = 0; ///< the same

    /// Returns these heads of the inventory and of the weights, with the same scale.
    [[nodiscard]] MHR_INLINE routed_lora of_layer(const routed_lora& layer) const {
        return shard_details::layer_of(*this, layer);
    }
    /// Returns these features of a plain adapter of any rank, such as the average of the inventory.
    [[nodiscard]] MHR_INLINE lora of_adapter(const lora& adapter) const {
        return shard_details::adapter_of(*this, adapter);
    }
    /// Returns these heads of the gradients of a, b and the weights, and these features of the
    /// gradient of x.
    [[nodiscard]] MHR_INLINE routed_lora_gradients
    of_gradients(const routed_lora_gradients& gradients) const {
        return shard_details::gradients_of(*this, gradients);
    }
    /// These return these heads of a routing table [tasks, heads, modules], and of its gradient.
    /// @{
    [[nodiscard]] MHR_INLINE const_tensor_ref<3>
    of_logits(const const_tensor_ref<3>& logits) const {
        return checked("lora_shard::of_logits", [&](argument_checks& checks) {
            return shard_details::heads_of(checks, "logits", *this, logits);
        });
    }
    [[nodiscard]] MHR_INLINE tensor_ref<3> of_d_logits(const tensor_ref<3>& d_logits) const {
        return checked("lora_shard::of_d_logits", [&](argument_checks& checks) {
            return shard_details::heads_of(checks, "d_logits", *this, d_logits);
        });
    }
    /// @}
    /// Returns these features of x [rows, in_features].
    [[nodiscard]] MHR_INLINE const_tensor_ref<2> of_x(const const_tensor_ref<2>& x) const {
        return checked("lora_shard::of_x", [&](argument_checks& checks) {
            return shard_details::inputs_of(checks, "x", *this, x);
        });
    }
    /// These return these features of y [rows, out_features], and of its gradient.
    /// @{
    [[nodiscard]] MHR_INLINE tensor_ref<2> of_y(const tensor_ref<2>& y) const {
        return checked("lora_shard::of_y", [&](argument_checks& checks) {
            return shard_details::outputs_of(checks, "y", *this, y);
        });
    }
    [[nodiscard]] MHR_INLINE const_tensor_ref<2> of_d_y(const const_tensor_ref<2>& d_y) const {
        return checked("lora_shard::of_d_y", [&](argument_checks& checks) {
            return shard_details::outputs_of(checks, "d_y", *this, d_y);
        });
    }
    /// @}
};

inline namespace MHR_ISA {

/// Shard `ith` of `nth`: it has heads / nth heads, and one more in the first ones where that does
/// not come out even. These are refused: less than one head; features that the heads do not divide;
/// more shards than heads, or less than one; an `ith` that is not one of them.
inline lora_shard shard_of_heads(const lora_shape& whole, index_t ith, index_t nth) {
    argument_checks checks("shard_of_heads");
    checks.expect(whole.heads >= 1, "whole.heads", "1 or more", whole.heads);
    const auto expect_multiple = [&](const char* argument, index_t features) {
        checks.expect(whole.heads >= 1 && features >= 0 && features % whole.heads == 0, argument,
                      joined("a multiple of ", whole.heads, " heads"), features);
    };
    expect_multiple("whole.in_features", whole.in_features);
    expect_multiple("whole.out_features", whole.out_features);
    checks.expect(nth >= 1 && nth <= whole.heads, "nth",
                  joined("1 to ", whole.heads, " shards, one head each at least"), nth);
    checks.expect(ith >= 0 && ith < nth, "ith", joined("0 to ", nth - 1), ith);
    checks.raise();

    const auto [first, heads] = executor_details::share_of(whole.heads, ith, nth);
    const index_t in_block = whole.in_features / whole.heads;
    const index_t out_block = whole.out_features / whole.heads;
    return {whole,
            {heads, whole.modules, heads * in_block, heads * out_block, whole.rank},
            first,
            first * in_block,
            first * out_block};
}

namespace shard_details {

/// Some of the indices of one axis of a tensor, which may be absent and has these extents.
template <class Void, std::size_t Rank>
basic_tensor_ref<Void, Rank>
block_of(argument_checks& checks, const char* argument, const basic_tensor_ref<Void, Rank>& tensor,
         const std::array<index_t, Rank>& extents, std::size_t axis, index_t first, index_t count) {
    if (tensor.absent()) return tensor;
    checks.input(argument, const_tensor_ref<Rank>(tensor), extents);
    return checks.passed() ? tensor.block(axis, first, count) : basic_tensor_ref<Void, Rank>();
}

/// The features of one head: none of a layer without heads, as a shard that was not made is.
inline index_t of_one_head(const lora_shape& whole, index_t features) noexcept {
    return whole.heads == 0 ? 0 : features / whole.heads;
}

template <class Void>
basic_tensor_ref<Void, 4> modules_of_a(argument_checks& checks, const char* argument,
                                       const lora_shard& shard,
                                       const basic_tensor_ref<Void, 4>& a) {
    const lora_shape& whole = shard.whole;
    return block_of(checks, argument, a,
                    {whole.heads, whole.modules, of_one_head(whole, whole.in_features), whole.rank},
                    0, shard.first_head, shard.shape.heads);
}

template <class Void>
basic_tensor_ref<Void, 4> modules_of_b(argument_checks& checks, const char* argument,
                                       const lora_shard& shard,
                                       const basic_tensor_ref<Void, 4>& b) {
    const lora_shape& whole = shard.whole;
    return block_of(
        checks, argument, b,
        {whole.heads, whole.modules, whole.rank, of_one_head(whole, whole.out_features)}, 0,
        shard.first_head, shard.shape.heads);
}

template <class Void>
basic_tensor_ref<Void, 3> heads_of(argument_checks& checks, const char* argument,
                                   const lora_shard& shard,
                                   const basic_tensor_ref<Void, 3>& table) {
    return block_of(checks, argument, table, {any_extent, shard.whole.heads, shard.whole.modules},
                    1, shard.first_head, shard.shape.heads);
}

template <class Void>
basic_tensor_ref<Void, 2> inputs_of(argument_checks& checks, const char* argument,
                                    const lora_shard& shard,
                                    const basic_tensor_ref<Void, 2>& rows) {
    return block_of(checks, argument, rows, {any_extent, shard.whole.in_features}, 1,
                    shard.first_in_feature, shard.shape.in_features);
}

template <class Void>
basic_tensor_ref<Void, 2> outputs_of(argument_checks& checks, const char* argument,
                                     const lora_shard& shard,
                                     const basic_tensor_ref<Void, 2>& rows) {
    return block_of(checks, argument, rows, {any_extent, shard.whole.out_features}, 1,
                    shard.first_out_feature, shard.shape.out_features);
}

inline routed_lora layer_of(const lora_shard& shard, const routed_lora& layer) {
    return checked("lora_shard::of_layer", [&](argument_checks& checks) {
        return routed_lora{modules_of_a(checks, "layer.a", shard, layer.a),
                           modules_of_b(checks, "layer.b", shard, layer.b),
                           heads_of(checks, "layer.weights", shard, layer.weights), layer.scale};
    });
}

inline lora adapter_of(const lora_shard& shard, const lora& adapter) {
    const lora_shape& whole = shard.whole;
    return checked("lora_shard::of_adapter", [&](argument_checks& checks) {
        return lora{block_of(checks, "adapter.a", adapter.a, {whole.in_features, any_extent}, 0,
                             shard.first_in_feature, shard.shape.in_features),
                    block_of(checks, "adapter.b", adapter.b, {any_extent, whole.out_features}, 1,
                             shard.first_out_feature, shard.shape.out_features),
                    adapter.scale};
    });
}

inline routed_lora_gradients gradients_of(const lora_shard& shard,
                                          const routed_lora_gradients& gradients) {
    return checked("lora_shard::of_gradients", [&](argument_checks& checks) {
        return routed_lora_gradients{
            inputs_of(checks, "gradients.x", shard, gradients.x),
            modules_of_a(checks, "gradients.a", shard, gradients.a),
            modules_of_b(checks, "gradients.b", shard, gradients.b),
            heads_of(checks, "gradients.weights", shard, gradients.weights)};
    });
}

} // namespace shard_details
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/serving/combining/combine_matrices.hpp>

/// \file
/// Combining adapters into one, offline, as PEFT's `add_weighted_adapter` does. Its
/// `combination_type`s are these rules of combine_lora, each with PEFT's `density` d:
///
///     linear           {}
///     magnitude_prune  {pruning::magnitude, d}
///     dare_linear      {pruning::mask, d}
///     ties             {pruning::magnitude, d, sign_election::total}     (or frequency, PEFT's
///     dare_ties        {pruning::mask, d, sign_election::total}           majority_sign_method)
///     cat              concatenate_lora
///
/// With one adapter PEFT takes `linear` for all of them. `average_lora_forward` (lora/mixing.hpp)
/// averages an inventory; uniform weights there are another function than `linear` here, since
/// square roots are not taken.

namespace mhr {

/// One of the adapters that are combined. Masks are given for DARE alone: 0 drops an element, and
/// the host draws the others with probability density.
struct weighted_lora {
    lora adapter{};                              ///< of which all have one shape
    double weight = 1;                           ///< of either sign
    tensor_view<const std::uint8_t, 2> keep_a{}; ///< as a
    tensor_view<const std::uint8_t, 2> keep_b{}; ///< as b
};

inline namespace MHR_ISA {

/// Returns the bytes of workspace that combine_lora needs for so many adapters.
inline std::size_t combine_lora_workspace_size(index_t adapters,
                                               const combining_rule& rule) noexcept;

/// With c[i] = weight[i] scale[i], by combine_matrices:
///     result.a of a[i] with the factors sign(c[i]) sqrt|c[i]|
///     result.b of b[i] with the factors sqrt|c[i]|
/// where a and b are pruned, and their signs elected, independently of each other. The result has
/// the rank of the adapters and is meant for a scale of 1.
///
/// It is PEFT's arithmetic, with two traits to know of. The product of the two sums has cross terms
/// a[i] b[j]: it is no linear combination of the adapters' products, which concatenate_lora gives.
/// And PEFT itself then applies the result of adapters with rsLoRA with
/// scale_of_peft_with_rslora(rank), not with 1.
///
/// adapters [any number], of one shape; result.a [in_features, rank], result.b [rank,
/// out_features], overwritten; they must not overlap the adapters. Elements are ordered, where two
/// of one magnitude compete, as PEFT stores them: a as [rank, in_features], b as
/// [out_features, rank].
///
/// It has several phases. The result is the same to the bit for every executor. These are refused:
/// what combine_matrices refuses, weights and scales whose product is not finite included. The cost
/// is that of combine_matrices for a and for b.
inline void combine_lora(executor_ref executor, tensor_view<const weighted_lora, 1> adapters,
                         const combining_rule& rule, const lora_matrices& result,
                         workspace scratch);

/// result.a = [c[0] a[0], c[1] a[1], ..] along the rank, with c[i] = weight[i] scale[i], and
/// result.b = [b[0], b[1], ..]: PEFT's `cat`, whose product is exactly the weighted sum of the
/// adapters' products. Ranks may differ.
///
/// adapters [any number]; result.a [in_features, sum of ranks], result.b [sum of ranks,
/// out_features], overwritten, for a scale of 1; they must not overlap the adapters.
///
/// It has one phase. These are refused: no adapter; adapters of other features; a result of another
/// rank than the sum, or of which elements overlap; weights and scales whose product is no number
/// in the range of f32. Each element is read and written once.
inline void concatenate_lora(executor_ref executor, tensor_view<const weighted_lora, 1> adapters,
                             const lora_matrices& result);

/// The scale with which PEFT applies what it has combined of adapters with `use_rslora`:
/// sqrt(rank). The new adapter has alpha = rank, and inherits rsLoRA by mistake; its output is
/// sqrt(rank) times that of the combination, whose scale should be 1, as it is for other adapters.
/// It serves parity with models that were used so.
inline double scale_of_peft_with_rslora(index_t rank) noexcept {
    return std::sqrt(static_cast<double>(rank));
}

namespace combining_details {

inline void check_adapters(argument_checks& checks, tensor_view<const weighted_lora, 1> adapters) {
    checks.numbers("adapters", adapters, {any_extent});
    checks.expect(adapters.extent(0) >= 1, "adapters", "1 or more", adapters.extent(0));
}

/// The matrix a of an adapter, or its b, with the order of elements that PEFT stores.
inline combined_matrix source_a(const weighted_lora& of) noexcept {
    const double c = of.weight * of.adapter.scale;
    const double root = std::sqrt((std::abs)(c));
    return {of.adapter.a.transpose(0, 1), c < 0 ? -root : root, of.keep_a.transpose(0, 1)};
}
inline combined_matrix source_b(const weighted_lora& of) noexcept {
    const double c = of.weight * of.adapter.scale;
    return {of.adapter.b.transpose(0, 1), std::sqrt((std::abs)(c)), of.keep_b.transpose(0, 1)};
}

} // namespace combining_details

inline std::size_t combine_lora_workspace_size(index_t adapters,
                                               const combining_rule& rule) noexcept {
    return combine_matrices_workspace_size(adapters, rule);
}

inline void combine_lora(executor_ref executor, tensor_view<const weighted_lora, 1> adapters,
                         const combining_rule& rule, const lora_matrices& result,
                         workspace scratch) {
    using combining_details::source_a;
    using combining_details::source_b;
    argument_checks checks("combine_lora");
    combining_details::check_adapters(checks, adapters);
    combining_details::check_rule(checks, rule);
    checks.output("result.a", result.a, argument_checks::any_extents<2>());
    checks.output("result.b", result.b, {result.a.extent(1), any_extent});
    const tensor_ref<2> a = result.a.transpose(0, 1);
    const tensor_ref<2> b = result.b.transpose(0, 1);
    element_type sums = sums_of(a.type(), b.type());
    for (index_t i = 0; checks.passed() && i < adapters.extent(0); ++i) {
        const combined_matrix of_a = source_a(adapters(i));
        const combined_matrix of_b = source_b(adapters(i));
        combining_details::check_source(checks, of_a, rule, a.extents(), "adapters.a, transposed",
                                        "adapters.keep_a, transposed");
        combining_details::check_source(checks, of_b, rule, b.extents(), "adapters.b, transposed",
                                        "adapters.keep_b, transposed");
        sums = sums_of(sums, sums_of(of_a.matrix.type(), of_b.matrix.type()));
    }
    checks.every_part(executor);
    if (checks.passed())
        checks.workspace_size(scratch, combine_lora_workspace_size(adapters.extent(0), rule));
    checks.raise();
    const index_t count = adapters.extent(0);
    const auto memory = combining_details::take_pruning(scratch, count, rule);
    with_sums(sums, [&](auto zero) {
        using A = decltype(zero);
        combining_details::combine<A>(
            executor, count, [&](index_t i) { return source_a(adapters(i)); }, rule, a, memory);
        combining_details::combine<A>(
            executor, count, [&](index_t i) { return source_b(adapters(i)); }, rule, b, memory);
    });
}

inline void concatenate_lora(executor_ref executor, tensor_view<const weighted_lora, 1> adapters,
                             const lora_matrices& result) {
    argument_checks checks("concatenate_lora");
    combining_details::check_adapters(checks, adapters);
    checks.output("result.a", result.a, argument_checks::any_extents<2>());
    checks.output("result.b", result.b, {result.a.extent(1), any_extent});
    index_t ranks = 0;
    for (index_t i = 0; checks.passed() && i < adapters.extent(0); ++i) {
        const lora& adapter = adapters(i).adapter;
        checks.input("adapters.a", adapter.a, {result.a.extent(0), any_extent});
        checks.input("adapters.b", adapter.b, {adapter.a.extent(1), result.b.extent(1)});
        combining_details::check_factor(checks, "adapters.weight, times the scale",
                                        adapters(i).weight * adapter.scale);
        ranks += adapter.a.extent(1);
    }
    checks.expect(ranks == result.a.extent(1), "result.a",
                  joined("a rank of ", ranks, ", the sum of the adapters'"), result.a.extent(1));
    checks.raise();
    index_t first = 0;
    const auto copy = [&](const const_tensor_ref<2>& from, double factor, const tensor_ref<2>& to) {
        const combined_matrix source{from, factor, {}};
        with_sums(sums_of(from.type(), to.type()), [&](auto zero) {
            combining_details::combine<decltype(zero)>(executor, 1, [&](index_t) { return source; },
                                                       {}, to, {});
        });
    };
    for (index_t i = 0; i < adapters.extent(0); ++i) {
        const auto& [adapter, weight, keep_a, keep_b] = adapters(i);
        const index_t rank = adapter.a.extent(1);
        copy(adapter.a.transpose(0, 1), weight * adapter.scale,
             result.a.block(1, first, rank).transpose(0, 1));
        copy(adapter.b.transpose(0, 1), 1, result.b.block(0, first, rank).transpose(0, 1));
        first += rank;
    }
}

} // namespace MHR_ISA
} // namespace mhr

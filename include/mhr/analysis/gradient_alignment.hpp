#pragma once

#include <initializer_list>
#include <limits>
#include <string>

#include <mhr/adapters/lora.hpp>
#include <mhr/adapters/routed_lora.hpp>
#include <mhr/analysis/gram.hpp>
#include <mhr/core/scalar.hpp>

/// \file
/// Do the gradients of different tasks agree? The mean cosine between the gradients of each pair of
/// tasks, from their Gram matrix. That matrix is a sum over parameters: it is filled layer by
/// layer, or in pieces of any size, and no task's whole gradient has to exist.

namespace mhr {
inline namespace MHR_ISA {

/// gram[s, t] += <gradients[s], gradients[t]>: call it once for each piece of the parameters (a
/// layer, some rows of one), in any cut, with the gradients of all tasks to that piece.
///
/// gradients [tasks, n]; gram [tasks, tasks] accumulates (start it at zeros). All is multiplied and
/// summed in f64, in partial sums of an order that the shapes give: products of f32 and narrower
/// types are exact. Every layout of the gradients gives the same bits, and what is added is
/// symmetric to the bit.
///
/// One phase. Errors: a shape; overlapping elements of gram.
/// Cost: tasks (tasks + 1) / 2 n multiply-adds; the gradients are read tasks / 8 times. Only pairs
/// of eight tasks are shared out among threads.
template <class G>
void gradient_gram(executor_ref executor, tensor_view<G, 2> gradients,
                   tensor_view<double, 2> gram) {
    constexpr const char* function = "gradient_gram";
    require_input(function, "gradients", gradients, {any_extent, any_extent});
    require_output(function, "gram", gram, {gradients.extent(0), gradients.extent(0)});
    detail::add_gram(executor, detail::as_blocks(gradients), detail::unit_factor, gram);
}

namespace detail {

/// Checks gradients of one adapter per entry: each matrix may be absent.
template <class D>
void check_adapter_gradients(const char* function, const char* name_of_a, const char* name_of_b,
                             const char* name_of_slots, const lora_batch<D>& gradients,
                             index_t entries) {
    if (!gradients.a.absent())
        require_input(function, name_of_a, gradients.a, {entries, any_extent, any_extent});
    const index_t rank = gradients.a.absent() ? any_extent : gradients.a.extent(2);
    if (!gradients.b.absent())
        require_input(function, name_of_b, gradients.b, {entries, rank, any_extent});
    require_no_slots(function, name_of_slots, gradients);
}

} // namespace detail

/// gradient_gram of the gradients of one plain adapter per task, a and b together: what the
/// backward of LoRA leaves when each entry has an adapter of its own.
///
/// d_adapters.a [tasks, in_features, rank], d_adapters.b [tasks, rank, out_features], of which
/// either may be absent (frozen: it counts nothing); gram [tasks, tasks] accumulates.
///
/// One phase. Errors: a shape; overlapping elements of gram.
/// Cost: tasks (tasks + 1) / 2 rank (in + out) multiply-adds.
template <class D>
void lora_gradient_gram(executor_ref executor, lora_batch<D> d_adapters,
                        tensor_view<double, 2> gram) {
    constexpr const char* function = "lora_gradient_gram";
    require_output(function, "gram", gram, {any_extent, gram.extent(0)});
    detail::check_adapter_gradients(function, "d_adapters.a", "d_adapters.b",
                                    "d_adapters.slot_of_entry", d_adapters, gram.extent(0));
    // Absent gradients are vectors without elements.
    detail::for_gram_tiles(executor, gram.extent(0), [&](index_t row, index_t column) noexcept {
        for (const auto& matrices : {d_adapters.a, d_adapters.b})
            if (!matrices.absent())
                detail::add_gram_tile(detail::as_blocks(matrices), row, column, detail::unit_factor,
                                      gram);
    });
}

namespace detail {

/// sum over modules of weights[s, h, m] weights[t, h, m].
template <class W>
auto routing_factor(const tensor_view<W, 3>& weights) noexcept {
    return [weights](index_t s, index_t t, index_t h) noexcept {
        double sum = 0;
        for (index_t m = 0; m < weights.extent(2); ++m)
            sum += load<double>(weights(s, h, m)) * load<double>(weights(t, h, m));
        return sum;
    };
}

} // namespace detail

/// The Gram matrix of the tasks' gradients with respect to an *inventory* that they share, from the
/// gradients of their mixed blocks; no gradient of a module is formed.
///
/// Mixing is linear in the modules: mixed[t, h] = sum over m of weights[t, h, m] modules[h, m]. So
/// the gradient of task t's loss to module (h, m) is weights[t, h, m] d_mixed[t, h] (mix_backward
/// with the one entry t), and the inner product over all modules factorises:
///     <g_s, g_t> = sum over h of (sum over m of weights[s, h, m] weights[t, h, m])
///                                <d_mixed[s, h], d_mixed[t, h]>
/// Entry t of d_mixed must come from the rows of task t alone, as the backward of a batch gives it:
/// one backward to the mixed adapters serves all tasks of a batch.
///
/// weights [tasks, heads, modules]; d_mixed [tasks, heads, p, q], as mix_backward takes it ((IA)3:
/// p is 1); gram [tasks, tasks] accumulates gram[s, t] += <g_s, g_t>, as in gradient_gram. Heads in
/// which two tasks' weights are orthogonal (no module in common) add nothing.
///
/// One phase. Errors: a shape; overlapping elements of gram.
/// Cost: tasks (tasks + 1) / 2 heads (p q + modules) multiply-adds.
template <class W, class D>
void routed_gradient_gram(executor_ref executor, tensor_view<W, 3> weights,
                          tensor_view<D, 4> d_mixed, tensor_view<double, 2> gram) {
    constexpr const char* function = "routed_gradient_gram";
    require_input(function, "weights", weights, {any_extent, any_extent, any_extent});
    require_input(function, "d_mixed", d_mixed,
                  {weights.extent(0), weights.extent(1), any_extent, any_extent});
    require_output(function, "gram", gram, {weights.extent(0), weights.extent(0)});
    detail::add_gram(executor, as_const(d_mixed), detail::routing_factor(weights), gram);
}

/// routed_gradient_gram of routed LoRA: the Gram matrix of the gradients of a batch's tasks with
/// respect to the layer's inventory, a and b together. d_mixed is what lora_backward gives as
/// d_adapters (from zeros) for the state's mixed adapters:
///     lora_backward(executor, plan, x, state.mixed, scale, state.hidden, d_y, {}, d_mixed, ..)
///
/// weights [tasks, heads, modules]; d_mixed.a [tasks, in_features, rank] and d_mixed.b
/// [tasks, rank, out_features], whose features the heads divide, and of which either may be absent;
/// gram [tasks, tasks] accumulates. Tasks are the entries of the plan.
///
/// One phase. Errors: a shape; overlapping elements of gram.
/// Cost: tasks (tasks + 1) / 2 (rank (in + out) + 2 heads modules) multiply-adds.
template <class W, class D>
void routed_lora_gradient_gram(executor_ref executor, tensor_view<W, 3> weights,
                               lora_batch<D> d_mixed, tensor_view<double, 2> gram) {
    constexpr const char* function = "routed_lora_gradient_gram";
    require_input(function, "weights", weights, {any_extent, any_extent, any_extent});
    const index_t heads = weights.extent(1);
    require_that(
        heads >= 1, function, "weights", [] { return "at least one head"; }, [] { return "none"; });
    detail::check_adapter_gradients(function, "d_mixed.a", "d_mixed.b", "d_mixed.slot_of_entry",
                                    d_mixed, weights.extent(0));
    const auto require_blocks = [&](const char* argument, index_t features) {
        require_that(
            features % heads == 0, function, argument,
            [&] { return "features that " + std::to_string(heads) + " heads divide"; },
            [&] { return std::to_string(features); });
    };
    require_blocks("d_mixed.a", d_mixed.a.extent(1));
    require_blocks("d_mixed.b", d_mixed.b.extent(2));
    require_output(function, "gram", gram, {weights.extent(0), weights.extent(0)});

    const auto factor = detail::routing_factor(weights);
    const auto blocks_of_a = as_const(detail::blocks_of_a(d_mixed.a, heads));
    const auto blocks_of_b = as_const(detail::blocks_of_b(d_mixed.b, heads));
    detail::for_gram_tiles(executor, gram.extent(0), [&](index_t row, index_t column) noexcept {
        for (const auto& blocks : {blocks_of_a, blocks_of_b})
            if (!blocks.absent()) detail::add_gram_tile(blocks, row, column, factor, gram);
    });
}

/// How far the gradients of a set of tasks agree.
struct task_alignment {
    double mean;   ///< of the pairs' cosines; NaN where there is no pair
    index_t pairs; ///< that were counted
};

/// The mean cosine between the gradients of each pair of tasks (Caccia et al. 2023, arXiv
/// 2211.03831): 1 where all pull the same way, 0 where they do not meet, and -1 / (tasks - 1) on
/// average where gradients of equal length cancel, as at a minimum of their sum.
///
/// gram [tasks, tasks], from the functions above; of a layer, or the sum over layers for the
/// model. A pair with a gradient of 0 is left out. What is not finite makes the mean NaN.
///
/// Errors: a shape; a negative diagonal. Cost: tasks^2 / 2 roots.
template <class T>
task_alignment gradient_alignment(tensor_view<T, 2> gram) {
    detail::check_gram("gradient_alignment", gram);
    double sum = 0;
    index_t pairs = 0;
    for (index_t s = 0; s < gram.extent(0); ++s)
        for (index_t t = s + 1; t < gram.extent(0); ++t) {
            const double square = load<double>(gram(s, s));
            const double other = load<double>(gram(t, t));
            if (detail::is_exactly(square, 0) || detail::is_exactly(other, 0)) continue;
            sum += detail::cosine(load<double>(gram(s, t)), square, other);
            ++pairs;
        }
    if (pairs == 0) return {std::numeric_limits<double>::quiet_NaN(), 0};
    return {sum / static_cast<double>(pairs), pairs};
}

} // namespace MHR_ISA
} // namespace mhr

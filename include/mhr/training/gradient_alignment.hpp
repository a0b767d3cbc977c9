#pragma once

#include <limits>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/lora/adapters.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/training/gram.hpp>

/// \file
/// Do the gradients of different tasks agree? The answer is the mean cosine between the gradients
/// of each pair of tasks, from their Gram matrix. That matrix is a sum over parameters: it is
/// filled layer by layer, or with any cut of the parameters, and no task's whole gradient has to
/// exist.

namespace mhr {

/// How far the gradients of a set of tasks agree.
struct task_alignment {
    double mean;   ///< of the pairs' cosines; NaN where there is no pair
    index_t pairs; ///< that were counted
};

inline namespace MHR_ISA {

/// gram[s, t] += <gradients[s], gradients[t]>: call it once for each layer, or for each block of a
/// layer's parameters, in any cut, with the gradients of all tasks to them.
///
/// gradients [tasks, n]; gram [tasks, tasks] accumulates (start it at zeros). All is multiplied and
/// summed in f64, in partial sums of an order that the shapes give: products of f32 and narrower
/// types are exact. Every layout of the gradients gives the same bits, and what is added is
/// symmetric to the bit.
///
/// It has one phase. These are refused: a gram of other extents, or two of whose elements overlap.
/// The cost is tasks (tasks + 1) / 2 n multiply-adds; the gradients are read tasks / 8 times. Only
/// pairs of eight tasks are shared out among threads.
inline void gradient_gram(executor_ref executor, const const_tensor_ref<2>& gradients,
                          const tensor_view<double, 2>& gram);

/// gradient_gram of the gradients of one plain adapter for each task, a and b together: what the
/// backward of LoRA leaves when each entry has an adapter of its own.
///
/// gradients.a [tasks, in_features, rank] and gradients.b [tasks, rank, out_features], of which
/// either may be absent (it is frozen, and counts nothing); gram [tasks, tasks] accumulates.
///
/// It has one phase. These are refused: gradients that do not fit together or to gram; a gram that
/// is not square, or two of whose elements overlap. The cost is tasks (tasks + 1) / 2 rank (in +
/// out) multiply-adds.
inline void lora_gradient_gram(executor_ref executor, const const_stacked_lora_matrices& gradients,
                               const tensor_view<double, 2>& gram);

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
/// weights [tasks, heads, modules]; d_mixed [tasks, heads, p, q], as mix_backward takes it (p is 1
/// for (IA)3); gram [tasks, tasks] accumulates gram[s, t] += <g_s, g_t>, as in gradient_gram. Heads
/// in which two tasks' weights are orthogonal (they have no module in common) add nothing.
///
/// It has one phase. These are refused: shapes that do not fit; a gram two of whose elements
/// overlap. The cost is tasks (tasks + 1) / 2 heads (p q + modules) multiply-adds.
inline void routed_gradient_gram(executor_ref executor, const const_tensor_ref<3>& weights,
                                 const const_tensor_ref<4>& d_mixed,
                                 const tensor_view<double, 2>& gram);

/// routed_gradient_gram of routed LoRA: the Gram matrix of the gradients of a batch's tasks with
/// respect to the layer's inventory, a and b together. d_mixed is what lora_backward gives (from
/// zeros) as the gradients of the state's mixed adapters:
///     lora_backward(batch, {state.mixed.a, state.mixed.b, layer.scale}, x, d_y, {state.hidden},
///                   {{}, d_mixed}, scratch)
///
/// weights [tasks, heads, modules]; d_mixed.a [tasks, in_features, rank] and d_mixed.b
/// [tasks, rank, out_features], whose features the heads divide, and of which either may be absent;
/// gram [tasks, tasks] accumulates. Tasks are the entries of the plan.
///
/// It has one phase. These are refused: shapes that do not fit; no head at all, or features that
/// the heads do not divide; a gram two of whose elements overlap. The cost is tasks (tasks + 1) / 2
/// (rank (in + out) + 2 heads modules) multiply-adds.
inline void routed_lora_gradient_gram(executor_ref executor, const const_tensor_ref<3>& weights,
                                      const const_stacked_lora_matrices& d_mixed,
                                      const tensor_view<double, 2>& gram);

/// The mean cosine between the gradients of each pair of tasks (Caccia et al. 2023, arXiv
/// 2211.03831). It is 1 where all pull the same way, 0 where they do not meet, and
/// -1 / (tasks - 1) on average where gradients of equal length cancel, as at a minimum of their
/// sum.
///
/// gram [tasks, tasks] comes from the functions above; it is that of a layer, or the sum over
/// layers for the model. A pair with a gradient of 0 is left out. What is not finite makes the mean
/// NaN.
///
/// These are refused: a gram that is not square; a negative number on its diagonal. The cost is
/// tasks^2 roots.
inline task_alignment gradient_alignment(const const_tensor_ref<2>& gram);

namespace alignment_details {

/// Checks gradients of one adapter for each entry, of which each matrix may be absent.
inline void check_gradients(argument_checks& checks, const char* name_of_a, const char* name_of_b,
                            const const_stacked_lora_matrices& gradients, index_t entries) {
    if (!gradients.a.absent())
        checks.input(name_of_a, gradients.a, {entries, any_extent, any_extent});
    const index_t rank = gradients.a.absent() ? any_extent : gradients.a.extent(2);
    if (!gradients.b.absent()) checks.input(name_of_b, gradients.b, {entries, rank, any_extent});
}

/// sum over modules of weights[s, h, m] weights[t, h, m].
struct routing_factor {
    const_tensor_ref<3> weights;

    double operator()(index_t s, index_t t, index_t h) const noexcept {
        double sum = 0;
        for (index_t m = 0; m < weights.extent(2); ++m)
            sum += read_element(weights, s, h, m) * read_element(weights, t, h, m);
        return sum;
    }
};

/// Adds the inner products of a's blocks and of b's, of which either may be absent: such are
/// vectors without elements.
template <class Factor>
void add_grams(executor_ref executor, const const_tensor_ref<4>& a, const const_tensor_ref<4>& b,
               const Factor& factor, const tensor_view<double, 2>& gram) {
    gram_details::for_tiles(executor, gram.extent(0), [&](index_t row, index_t column) noexcept {
        if (!a.absent()) gram_details::add_tile(a, row, column, factor, gram);
        if (!b.absent()) gram_details::add_tile(b, row, column, factor, gram);
    });
}

} // namespace alignment_details

inline void gradient_gram(executor_ref executor, const const_tensor_ref<2>& gradients,
                          const tensor_view<double, 2>& gram) {
    argument_checks checks("gradient_gram");
    checks.input("gradients", gradients);
    checks.output("gram", tensor_ref<2>(gram), {gradients.extent(0), gradients.extent(0)});
    checks.raise();
    gram_details::add_gram(executor, gram_details::rows_as_blocks(gradients),
                           gram_details::unit_factor, gram);
}

inline void lora_gradient_gram(executor_ref executor, const const_stacked_lora_matrices& gradients,
                               const tensor_view<double, 2>& gram) {
    argument_checks checks("lora_gradient_gram");
    checks.output("gram", tensor_ref<2>(gram), {any_extent, gram.extent(0)});
    alignment_details::check_gradients(checks, "gradients.a", "gradients.b", gradients,
                                       gram.extent(0));
    checks.raise();
    alignment_details::add_grams(executor, gram_details::matrices_as_blocks(gradients.a),
                                 gram_details::matrices_as_blocks(gradients.b),
                                 gram_details::unit_factor, gram);
}

inline void routed_gradient_gram(executor_ref executor, const const_tensor_ref<3>& weights,
                                 const const_tensor_ref<4>& d_mixed,
                                 const tensor_view<double, 2>& gram) {
    argument_checks checks("routed_gradient_gram");
    checks.input("weights", weights);
    checks.input("d_mixed", d_mixed,
                 {weights.extent(0), weights.extent(1), any_extent, any_extent});
    checks.output("gram", tensor_ref<2>(gram), {weights.extent(0), weights.extent(0)});
    checks.raise();
    gram_details::add_gram(executor, d_mixed, alignment_details::routing_factor{weights}, gram);
}

inline void routed_lora_gradient_gram(executor_ref executor, const const_tensor_ref<3>& weights,
                                      const const_stacked_lora_matrices& d_mixed,
                                      const tensor_view<double, 2>& gram) {
    argument_checks checks("routed_lora_gradient_gram");
    checks.input("weights", weights);
    const index_t heads = weights.extent(1);
    checks.expect(heads >= 1, "weights", "at least one head", "none");
    alignment_details::check_gradients(checks, "d_mixed.a", "d_mixed.b", d_mixed,
                                       weights.extent(0));
    const auto expect_blocks = [&](const char* argument, index_t features) {
        checks.expect(heads >= 1 && features % heads == 0, argument,
                      joined("features that ", heads, " heads divide"), features);
    };
    expect_blocks("d_mixed.a", d_mixed.a.extent(1));
    expect_blocks("d_mixed.b", d_mixed.b.extent(2));
    checks.output("gram", tensor_ref<2>(gram), {weights.extent(0), weights.extent(0)});
    checks.raise();
    alignment_details::add_grams(executor, lora_details::heads_of_a(d_mixed.a, heads),
                                 lora_details::heads_of_b(d_mixed.b, heads),
                                 alignment_details::routing_factor{weights}, gram);
}

inline task_alignment gradient_alignment(const const_tensor_ref<2>& gram) {
    argument_checks checks("gradient_alignment");
    gram_details::check_gram(checks, gram);
    checks.raise();
    double sum = 0;
    index_t pairs = 0;
    for (index_t s = 0; s < gram.extent(0); ++s)
        for (index_t t = s + 1; t < gram.extent(0); ++t) {
            const double square = read_element(gram, s, s);
            const double other = read_element(gram, t, t);
            if (gram_details::is_zero(square) || gram_details::is_zero(other)) continue;
            sum += gram_details::cosine(read_element(gram, s, t), square, other);
            ++pairs;
        }
    if (pairs == 0) return {std::numeric_limits<double>::quiet_NaN(), 0};
    return {sum / static_cast<double>(pairs), pairs};
}

} // namespace MHR_ISA
} // namespace mhr

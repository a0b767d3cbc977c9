#pragma once

#include <algorithm>
#include <cstddef>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>

/// \file
/// The mean of the rows of each sequence, from which a gate chooses for the whole of it: SMEAR
/// (Muqeeth et al. 2023, arXiv 2306.03745, section 3.2) mixes the parameters of modules by weights
/// of that mean. The sequences are the tasks of the batch (their numbers, as `assign_sequences`
/// takes them), and so the weights are those of routed LoRA's entries:
///
///     mhr::pool_rows_forward(batch, x, pooled);                       // [entries, features]
///     mhr::row_gate_forward(executor, gate, pooled, logits);          // [entries, modules]
///     mhr::row_weights_forward(executor, logits.split(1, 1), rule, weights);
///     mhr::routed_lora_forward(batch, {a, b, weights, scale}, x, y, state);

namespace mhr {
inline namespace MHR_ISA {

/// pooled[g] = mean of x[row] over the rows of entry g of the plan. Rows of no task take no part.
///
/// x [rows, features]; pooled [entries, features], overwritten, of f32 or f64: the type of all
/// sums.
///
/// It has one phase. These are refused: shapes that do not fit; f64 beside a pooled of f32; pooled
/// of which elements overlap. The cost is rows features additions.
inline void pool_rows_forward(const batch& rows, const const_tensor_ref<2>& x,
                              const tensor_ref<2>& pooled);

/// The backward of pool_rows_forward: d_x[row] += d_pooled[g] / rows of g, for each row of an entry
/// g.
///
/// d_pooled [entries, features], of f32 or f64: the type of all sums; d_x [rows, features]
/// accumulates.
///
/// It has one phase. These are refused: shapes that do not fit; f64 beside d_pooled of f32; d_x of
/// which elements overlap. The cost is rows features multiply-adds.
inline void pool_rows_backward(const batch& rows, const const_tensor_ref<2>& d_pooled,
                               const tensor_ref<2>& d_x);

namespace pooling_details {

/// Features that a part of the work owns.
inline constexpr index_t features_per_part = 512;

/// [rows, 1], all of them 1.
inline const_tensor_ref<2> ones(element_type sums, index_t rows) noexcept {
    static constexpr float one_f32 = 1;
    static constexpr double one_f64 = 1;
    const void* one = sums == element_type::f64 ? static_cast<const void*>(&one_f64) : &one_f32;
    return {one, sums, {rows, 1}, {0, 0}};
}

/// Calls `f(rows of the entry, 1 / their number, entry, first feature, number of features)`, each
/// a part of the work.
template <class Function>
void for_parts(const batch& rows, index_t features, const Function& f) {
    const index_t columns = features / features_per_part + (features % features_per_part != 0);
    rows.executor.run(rows.plan.entries() * columns, [&](index_t part) noexcept {
        const index_t entry = part / columns;
        const index_t first = part % columns * features_per_part;
        const auto numbers = rows.plan.rows_of(entry);
        f(row_set{numbers.data(), numbers.extent(0)}, 1 / static_cast<double>(numbers.extent(0)),
          entry, first, (std::min)(features_per_part, features - first));
    });
}

} // namespace pooling_details

inline void pool_rows_forward(const batch& rows, const const_tensor_ref<2>& x,
                              const tensor_ref<2>& pooled) {
    argument_checks checks("pool_rows_forward");
    checks.sums_type("pooled", pooled.type());
    checks.sums_are(pooled.type());
    checks.input("x", x, {rows.plan.rows(), any_extent});
    checks.output("pooled", pooled, {rows.plan.entries(), x.extent(1)});
    checks.raise();
    const auto ones = pooling_details::ones(pooled.type(), x.extent(0));
    pooling_details::for_parts(
        rows, x.extent(1),
        [&](row_set of_entry, double share, index_t entry, index_t first, index_t count) noexcept {
            kernels::add_outer_products(of_entry, x.block(1, first, count), ones, share,
                                        pooled.block(0, entry, 1).block(1, first, count), false,
                                        {});
        });
}

inline void pool_rows_backward(const batch& rows, const const_tensor_ref<2>& d_pooled,
                               const tensor_ref<2>& d_x) {
    argument_checks checks("pool_rows_backward");
    checks.sums_type("d_pooled", d_pooled.type());
    checks.sums_are(d_pooled.type());
    checks.output("d_x", d_x, {rows.plan.rows(), any_extent});
    checks.input("d_pooled", d_pooled, {rows.plan.entries(), d_x.extent(1)});
    checks.raise();
    const auto ones = pooling_details::ones(d_pooled.type(), d_x.extent(0));
    pooling_details::for_parts(
        rows, d_x.extent(1),
        [&](row_set of_entry, double share, index_t entry, index_t first, index_t count) noexcept {
            kernels::expand(of_entry, ones, d_pooled.block(0, entry, 1).block(1, first, count),
                            share, d_x.block(1, first, count));
        });
}

} // namespace MHR_ISA
} // namespace mhr

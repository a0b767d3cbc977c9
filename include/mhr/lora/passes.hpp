#pragma once

#include <algorithm>
#include <cstddef>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/adapters.hpp>

/// \file
/// The passes of LoRA over the rows of a batch, forward and backward, which lora/lora.hpp and
/// lora/routed_lora.hpp share. Where ranks share the layer, each pass is two, with a sum over the
/// ranks in between. Nothing is checked here.

namespace mhr {
inline namespace MHR_ISA {
namespace lora_details {

/// Checks what ranks that share a layer sum.
inline void check_rank_sum(argument_checks& checks, const batch& rows,
                           const tensor_ref<2>& hidden) {
    if (!rows.sum_over_ranks) return;
    checks.every_part(rows.executor);
    checks.expect(hidden.is_contiguous(), "state.hidden", "dense elements, which the ranks can sum",
                  joined("strides ", hidden.strides()));
}

/// The rows of a range of the plan's order.
inline row_set rows_of(const batch_plan& plan, const batch_details::row_range& range) noexcept {
    return {plan.data().row_order.data() + range.first, range.count};
}

/// Multiply-adds of one of `count` ranges of rows on average; reading and writing an element of x
/// or y costs about four.
inline index_t cost_of_range(const batch_plan& plan, const lora_list& adapters, std::size_t count,
                             index_t features) noexcept {
    index_t terms = 0;
    for (index_t entry = 0; entry < plan.entries(); ++entry)
        terms +=
            plan.rows_of(entry).extent(0) * (adapters[adapters.adapter_of(entry)].a.extent(1) + 4);
    return terms / (std::max)(static_cast<index_t>(count), index_t(1)) * features;
}

/// Sets what no row computes to 0, so that ranks may sum the whole: rows of no task, and columns
/// beyond the rank of a row's adapter.
inline void clear(const tensor_ref<2>& values) noexcept {
    for (index_t row = 0; row < values.extent(0); ++row)
        std::fill_n(static_cast<std::byte*>(values.address_of(row, 0)),
                    static_cast<std::size_t>(values.extent(1)) * size_of(values.type()),
                    std::byte{0});
}

/// y[row] += scale (x[row] a) b, and hidden[row] = x[row] a.
inline void forward(const batch& rows, const lora_list& adapters, const const_tensor_ref<2>& x,
                    const tensor_ref<2>& y, const tensor_ref<2>& hidden) {
    const batch_plan& plan = rows.plan;
    const auto& blocks = plan.data().blocks;
    const auto count = static_cast<index_t>(blocks.size());
    const auto run = [&](bool shrinks, bool expands, index_t features) {
        const index_t cost = cost_of_range(plan, adapters, blocks.size(), features);
        rows.executor.run(count, cost, [&](index_t block) noexcept {
            const auto& range = blocks[static_cast<std::size_t>(block)];
            const row_set numbers = rows_of(plan, range);
            const lora adapter = adapters[adapters.adapter_of(range.entry)];
            const auto hidden_of_block = hidden.block(1, 0, adapter.a.extent(1));
            if (shrinks) kernels::shrink(numbers, x, adapter.a, 1, hidden_of_block);
            if (expands) kernels::expand(numbers, hidden_of_block, adapter.b, adapter.scale, y);
        });
    };
    if (!rows.sum_over_ranks) return run(true, true, x.extent(1) + y.extent(1));
    clear(hidden);
    run(true, false, x.extent(1));
    rows.sum_over_ranks(hidden);
    run(false, true, y.extent(1));
}

/// The sums over rows that a backward is asked for.
struct wanted_sums {
    bool a, b;
};

inline wanted_sums wanted_of(const lora_list_gradients& gradients) noexcept {
    wanted_sums wanted{false, false};
    for (index_t adapter = 0; adapter < gradients.size(); ++adapter) {
        wanted.a = wanted.a || !gradients[adapter].a.absent();
        wanted.b = wanted.b || !gradients[adapter].b.absent();
    }
    return wanted;
}

inline void check_gradients(argument_checks& checks, const lora_list& adapters,
                            const lora_list_gradients& gradients, index_t in_features,
                            index_t out_features) {
    const auto& [a, b] = gradients.stacked();
    checks.optional_output("gradients.adapters.a", a, {adapters.size(), in_features, any_extent});
    checks.optional_output("gradients.adapters.b", b, {adapters.size(), any_extent, out_features});
    checks.expect(gradients.size() == 0 || gradients.size() == adapters.size(),
                  "gradients.adapters", joined(adapters.size(), ", one for each adapter, or none"),
                  gradients.size());
    for (index_t n = 0; checks.passed() && n < gradients.size(); ++n) {
        const index_t rank = adapters[n].a.extent(1);
        checks.optional_output("gradients.adapters.a", gradients[n].a, {in_features, rank});
        checks.optional_output("gradients.adapters.b", gradients[n].b, {rank, out_features});
    }
}

/// The sums of a backward over the rows of each part of the plan, and later of each entry: those of
/// d_a^T are the rows of `a`, those of d_b the rows of `b`, as many for each part as its adapter
/// has ranks.
struct backward_sums {
    tensor_ref<2> a{}; ///< [ranks of all parts, in_features]
    tensor_ref<2> b{}; ///< [ranks of all parts, out_features]
};

/// The scratch memory of a backward.
struct backward_scratch {
    tensor_ref<2> d_hidden{}; ///< [rows, the largest rank]
    tensor_view<index_t, 1>
        first_rank{}; ///< [entries + 1]: where the ranks of an entry's parts begin
    backward_sums sums{};

    static backward_scratch take(workspace& memory, const batch_plan& plan,
                                 const lora_list& adapters, element_type type) noexcept {
        const auto& first_part = plan.data().first_part_of_entry;
        const index_t entries = plan.entries();
        backward_scratch scratch;
        scratch.d_hidden = memory.take<2>(type, {plan.rows(), largest_rank(plan, adapters)});
        scratch.first_rank = memory.take<index_t, 1>({entries + 1});
        index_t ranks = 0;
        index_t in_features = adapters.size() > 0 ? adapters[0].a.extent(0) : 0;
        index_t out_features = adapters.size() > 0 ? adapters[0].b.extent(1) : 0;
        for (index_t entry = 0; entry < entries; ++entry) {
            const auto e = static_cast<std::size_t>(entry);
            const lora adapter = adapters[adapters.adapter_of(entry)];
            if (scratch.first_rank.data() != nullptr) scratch.first_rank(entry) = ranks;
            ranks += (first_part[e + 1] - first_part[e]) * adapter.a.extent(1);
            in_features = adapter.a.extent(0);
            out_features = adapter.b.extent(1);
        }
        if (scratch.first_rank.data() != nullptr) scratch.first_rank(entries) = ranks;
        scratch.sums.a = memory.take_rows<2>(type, {ranks, in_features});
        scratch.sums.b = memory.take_rows<2>(type, {ranks, out_features});
        return scratch;
    }

    static std::size_t size(const batch_plan& plan, const lora_list& adapters,
                            element_type type) noexcept {
        workspace meter;
        (void)take(meter, plan, adapters, type);
        return meter.used();
    }
};

/// The tensors that a backward goes along, row by row.
struct backward_rows {
    const_tensor_ref<2> x, d_y, hidden;
    tensor_ref<2> d_x; ///< may be absent
};

/// Rows that a backward takes through all its products before it goes on: their d_y stays in L2
/// from the first to the second.
inline index_t rows_of_backward(element_type type, index_t features) noexcept {
    constexpr index_t bytes = index_t(1) << 19;
    constexpr index_t step = 12;
    const index_t fit =
        bytes / static_cast<index_t>(size_of(type)) / (std::max)(features, index_t(1));
    return (std::min)(index_t(48), (std::max)(step, fit / step * step));
}

/// Goes through the rows of all parts: adds to d_x, and leaves in `scratch.sums` those sums that
/// are wanted, of each part.
inline void sum_parts(const batch& rows, const lora_list& adapters, const backward_rows& tensors,
                      const wanted_sums& wanted, const backward_scratch& scratch) {
    const batch_plan& plan = rows.plan;
    const auto& parts = plan.data().parts;
    const auto& first_part = plan.data().first_part_of_entry;
    const bool wants_d_hidden = wanted.a || !tensors.d_x.absent();
    const index_t step = rows_of_backward(tensors.d_y.type(), tensors.d_y.extent(1));
    // Through y += scale hidden b, and through hidden = x a.
    const auto run = [&](bool through_b, bool through_a, index_t features) {
        const index_t cost = 2 * cost_of_range(plan, adapters, parts.size(), features);
        rows.executor.run(static_cast<index_t>(parts.size()), cost, [&](index_t part) noexcept {
            const auto& range = parts[static_cast<std::size_t>(part)];
            const row_set all = rows_of(plan, range);
            const lora adapter = adapters[adapters.adapter_of(range.entry)];
            const index_t rank = adapter.a.extent(1);
            const auto hidden = tensors.hidden.block(1, 0, rank);
            const auto d_hidden = scratch.d_hidden.block(1, 0, rank);
            const index_t part_of_entry = part - first_part[static_cast<std::size_t>(range.entry)];
            const index_t first_rank = scratch.first_rank(range.entry) + part_of_entry * rank;
            const auto sums_a = scratch.sums.a.block(0, first_rank, rank);
            const auto sums_b = scratch.sums.b.block(0, first_rank, rank);
            for (index_t first = 0; first < all.count; first += step) {
                const row_set some{all.numbers + first, (std::min)(step, all.count - first)};
                const bool adding = first != 0;
                if (through_b && wants_d_hidden)
                    kernels::shrink(some, tensors.d_y, adapter.b.transpose(0, 1), adapter.scale,
                                    d_hidden);
                if (through_b && wanted.b)
                    kernels::add_outer_products(some, tensors.d_y, hidden, adapter.scale, sums_b,
                                                adding,
                                                through_a ? tensors.x : const_tensor_ref<2>{});
                if (through_a && !tensors.d_x.absent())
                    kernels::expand(some, d_hidden, adapter.a.transpose(0, 1), 1, tensors.d_x);
                if (through_a && wanted.a)
                    kernels::add_outer_products(some, tensors.x, d_hidden, 1, sums_a, adding, {});
            }
        });
    };
    const index_t in_features = tensors.x.extent(1);
    const index_t out_features = tensors.d_y.extent(1);
    if (!rows.sum_over_ranks) return run(true, true, in_features + out_features);
    if (wants_d_hidden) clear(scratch.d_hidden);
    run(true, false, out_features);
    if (!wants_d_hidden) return;
    rows.sum_over_ranks(scratch.d_hidden);
    run(false, true, in_features);
}

/// Adds the sums of the parts of each entry up, and moves them together: those of entry g begin
/// where the ranks of the entries before end.
inline void add_up_parts(const batch& rows, const lora_list& adapters,
                         const tensor_view<index_t, 1>& first_rank, const tensor_ref<2>& sums) {
    const batch_plan& plan = rows.plan;
    const auto& first_part = plan.data().first_part_of_entry;
    const auto parts = static_cast<index_t>(plan.data().parts.size());
    if (parts == plan.entries()) return;
    constexpr index_t columns = 512;
    // A part of the work owns some columns of all entries: the place of entry g is that of a part
    // of g or of an entry before it, which has been added up by then.
    rows.executor.run(
        (sums.extent(1) + columns - 1) / columns, columns * sums.extent(0),
        [&](index_t part) noexcept {
            const index_t first = part * columns;
            const auto of_columns =
                sums.block(1, first, (std::min)(columns, sums.extent(1) - first));
            index_t place = 0;
            for (index_t entry = 0; entry < plan.entries(); ++entry) {
                const auto e = static_cast<std::size_t>(entry);
                const index_t rank = adapters[adapters.adapter_of(entry)].a.extent(1);
                const auto part_of = [&](index_t n) {
                    return of_columns.block(0, first_rank(entry) + n * rank, rank);
                };
                const auto to = of_columns.block(0, place, rank);
                if (first_rank(entry) != place)
                    for (index_t k = 0; k < rank; ++k)
                        std::copy_n(static_cast<const std::byte*>(part_of(0).address_of(k, 0)),
                                    static_cast<std::size_t>(of_columns.extent(1)) *
                                        size_of(sums.type()),
                                    static_cast<std::byte*>(to.address_of(k, 0)));
                for (index_t n = 1; n < first_part[e + 1] - first_part[e]; ++n)
                    kernels::add_sums(part_of(n), to);
                place += rank;
            }
        });
}

/// The passes of a backward over the rows: adds to d_x and returns, for each entry, the sums that
/// are wanted: those of entry g begin where the ranks of the entries before end.
inline backward_sums sum_backward(const batch& rows, const lora_list& adapters,
                                  const backward_rows& tensors, const wanted_sums& wanted,
                                  const backward_scratch& scratch) {
    sum_parts(rows, adapters, tensors, wanted, scratch);
    if (wanted.a) add_up_parts(rows, adapters, scratch.first_rank, scratch.sums.a);
    if (wanted.b) add_up_parts(rows, adapters, scratch.first_rank, scratch.sums.b);
    return scratch.sums;
}

/// gradients of each adapter += the sums of the entries that use it, in their order.
inline void add_to_gradients(const batch& rows, const lora_list& adapters,
                             const backward_sums& sums, const lora_list_gradients& gradients) {
    constexpr index_t columns = 256;
    const auto add = [&](const tensor_ref<2>& of_entries, auto&& gradient_of) {
        const index_t features = of_entries.extent(1);
        // A part of the work owns some features of all gradients.
        rows.executor.run((features + columns - 1) / columns, 4 * columns * of_entries.extent(0),
                          [&](index_t part) noexcept {
                              const index_t first = part * columns;
                              const index_t width = (std::min)(columns, features - first);
                              index_t place = 0;
                              for (index_t entry = 0; entry < rows.plan.entries(); ++entry) {
                                  const index_t adapter = adapters.adapter_of(entry);
                                  const index_t rank = adapters[adapter].a.extent(1);
                                  const tensor_ref<2> gradient = gradient_of(adapter);
                                  if (!gradient.absent())
                                      kernels::add_sums(
                                          of_entries.block(0, place, rank).block(1, first, width),
                                          gradient.block(1, first, width));
                                  place += rank;
                              }
                          });
    };
    if (gradients.size() == 0) return;
    const wanted_sums wanted = wanted_of(gradients);
    if (wanted.a)
        add(sums.a, [&](index_t n) {
            return gradients[n].a.absent() ? tensor_ref<2>{} : gradients[n].a.transpose(0, 1);
        });
    if (wanted.b) add(sums.b, [&](index_t n) { return gradients[n].b; });
}

} // namespace lora_details
} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <algorithm>

#include <mhr/batch/batch.hpp>
#include <mhr/core/argument_checks.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/sums.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/inventory.hpp>
#include <mhr/lora/passes.hpp>

/// \file
/// The passes of LoRA that go through an inventory module by module, over the rows that use each,
/// and write no mixed adapter: lora/routed_lora.hpp and lora/row_routed_lora.hpp share them. Where
/// ranks share the layer, hidden is summed over them in between. Nothing is checked here.

namespace mhr {

/// What a forward that goes module by module keeps for its backward. Its type, f32 or f64, is the
/// type of all sums.
struct module_products {
    tensor_ref<3> weights{}; ///< [rows, heads, modules]: those of each row
    tensor_ref<4> each{};    ///< [rows, heads, modules, rank]: x_h a[h, m], if the weight is not 0
};

inline namespace MHR_ISA {

/// Takes the products of a layer of this shape from a workspace.
inline module_products take_module_products(workspace& memory, const batch& rows,
                                            const lora_shape& shape, element_type sums) noexcept {
    const index_t n = rows.plan.rows();
    return {memory.take<3>(sums, {n, shape.heads, shape.modules}),
            memory.take<4>(sums, {n, shape.heads, shape.modules, shape.rank})};
}

namespace lora_details {

/// The parts of a state that a forward by module writes.
inline void check_module_products(argument_checks& checks, const batch& rows,
                                  const lora_shape& shape, const module_products& products,
                                  element_type sums) {
    const index_t n = rows.plan.rows();
    checks.output("state.products.weights", products.weights, {n, shape.heads, shape.modules});
    checks.output("state.products.each", products.each,
                  {n, shape.heads, shape.modules, shape.rank});
    checks.of_sums("state.products.weights", products.weights.type(), sums);
    checks.of_sums("state.products.each", products.each.type(), sums);
}

/// Rows for which a module is read once.
inline constexpr index_t rows_of_module = 192;

/// Rows of a part of the sums over modules, which cost little.
inline constexpr index_t rows_per_part_of_sums = 24;

/// What both directions know of a layer. `hidden` [rows, rank] is the sum over heads and modules of
/// weights times products where parameters are mixed, and absent where outputs are: there each
/// module goes on with its own product.
struct module_layer {
    lora_inventory inventory;
    double scale;
    module_products products;
    tensor_ref<2> hidden;

    [[nodiscard]] bool mixes_outputs() const noexcept { return hidden.absent(); }

    /// What head h's expand takes of each module: [rows, modules, rank].
    [[nodiscard]] const_tensor_ref<3> narrow(const const_tensor_ref<4>& of_modules,
                                             const const_tensor_ref<2>& shared,
                                             index_t head) const noexcept {
        if (mixes_outputs()) return of_modules.slice(1, head);
        return {shared.data(),
                shared.type(),
                {shared.extent(0), inventory.a.extent(1), shared.extent(1)},
                {shared.stride(0), 0, shared.stride(1)}};
    }
};

/// The rows of part n of the plan's order, of `size` rows each.
inline row_set part_of_rows(const batch_plan& plan, index_t n, index_t size) noexcept {
    const auto order = plan.row_order();
    return {order.data() + n * size, (std::min)(size, order.extent(0) - n * size)};
}
inline index_t parts_of_rows(const batch_plan& plan, index_t size) noexcept {
    return (plan.row_order().extent(0) + size - 1) / size;
}

/// Those rows of a set whose weights of a module are 0, or are not.
template <class A>
row_set rows_that_use(row_set rows, const tensor_view<const A, 3>& weights, index_t head,
                      index_t module, bool used, index_t* memory) noexcept {
    index_t count = 0;
    for (index_t r = 0; r < rows.count; ++r)
        if (is_exactly(weights(rows.numbers[r], head, module), 0) != used)
            memory[count++] = rows.numbers[r];
    return {memory, count};
}

/// to[row, h, m, k] = sum over i of from_h[row, i] matrices[h, m, i, k] for the pairs of a row and
/// a module that are used, or for those that are not.
template <class A>
void shrink_modules(const batch& rows, const const_tensor_ref<2>& from,
                    const const_tensor_ref<4>& matrices, const tensor_ref<3>& weights, bool used,
                    const tensor_ref<4>& to) {
    const index_t heads = matrices.extent(0), modules = matrices.extent(1);
    const index_t n = matrices.extent(2);
    const index_t parts = parts_of_rows(rows.plan, rows_of_module) * heads * modules;
    const index_t cost =
        (std::min)(rows.plan.row_order().extent(0), rows_of_module) * n * matrices.extent(3);
    rows.executor.run(parts, cost, [&](index_t part) noexcept {
        const index_t m = part % modules, h = part / modules % heads;
        const row_set all = part_of_rows(rows.plan, part / modules / heads, rows_of_module);
        index_t memory[static_cast<std::size_t>(rows_of_module)];
        const row_set chosen = rows_that_use(all, as_const(weights.as<A>()), h, m, used, memory);
        if (chosen.count == 0) return;
        kernels::shrink_along_rank(chosen, from.block(1, h * n, n),
                                   matrices.slice(0, h).slice(0, m), to.slice(1, h).slice(1, m));
    });
}

/// to[row, k] = sum over heads and modules, in their order, of weights[row, h, m] products[row, h,
/// m, k]; weights of 0 are left out.
template <class A>
void mix_products(const batch& rows, const tensor_ref<3>& weights, const tensor_ref<4>& products,
                  const tensor_ref<2>& to) {
    const auto w = weights.as<A>();
    const auto p = products.as<A>();
    const auto sums = to.as<A>();
    const index_t cost = rows_per_part_of_sums * w.extent(1) * w.extent(2) * sums.extent(1);
    rows.executor.run(parts_of_rows(rows.plan, rows_per_part_of_sums), cost,
                      [&](index_t part) noexcept {
                          const row_set set = part_of_rows(rows.plan, part, rows_per_part_of_sums);
                          for (index_t r = 0; r < set.count; ++r) {
                              const index_t row = set.numbers[r];
                              for (index_t k = 0; k < sums.extent(1); ++k)
                                  sums(row, k) = 0;
                              for (index_t h = 0; h < w.extent(1); ++h)
                                  for (index_t m = 0; m < w.extent(2); ++m) {
                                      const A weight = w(row, h, m);
                                      if (is_exactly(weight, 0)) continue;
                                      for (index_t k = 0; k < sums.extent(1); ++k)
                                          sums(row, k) += weight * p(row, h, m, k);
                                  }
                          }
                      });
}

/// to_h[row] += scale sum over modules of weights[row, h, m] narrow[row, h, m] matrices[h, m].
inline void expand_rows(const batch& rows, const module_layer& layer,
                        const const_tensor_ref<4>& of_modules, const const_tensor_ref<2>& shared,
                        const const_tensor_ref<4>& matrices, const tensor_ref<2>& to) {
    constexpr index_t height = 48;
    constexpr index_t columns = 512;
    const index_t heads = matrices.extent(0);
    const index_t n = matrices.extent(3);
    const index_t pieces = (n + columns - 1) / columns;
    const index_t cost = (std::min)(rows.plan.row_order().extent(0), height) *
                         (std::min)(n, columns) * matrices.extent(1) * matrices.extent(2);
    rows.executor.run(
        parts_of_rows(rows.plan, height) * heads * pieces, cost, [&](index_t part) noexcept {
            const index_t first = part % pieces * columns, h = part / pieces % heads;
            const index_t width = (std::min)(columns, n - first);
            kernels::expand_rows(part_of_rows(rows.plan, part / pieces / heads, height),
                                 layer.narrow(of_modules, shared, h),
                                 layer.products.weights.slice(1, h),
                                 matrices.slice(0, h).block(2, first, width), layer.scale,
                                 to.block(1, h * n + first, width));
        });
}

/// The weights of each row, read once: its entry's, or its own.
template <class A>
void copy_weights(const batch& rows, const const_tensor_ref<3>& weights, bool of_entries,
                  const tensor_ref<3>& to) noexcept {
    const auto copies = to.as<A>();
    for (index_t entry = 0; entry < rows.plan.entries(); ++entry) {
        const auto numbers = rows.plan.rows_of(entry);
        for (index_t r = 0; r < numbers.extent(0); ++r) {
            const index_t row = numbers(r);
            for (index_t h = 0; h < copies.extent(1); ++h)
                for (index_t m = 0; m < copies.extent(2); ++m)
                    copies(row, h, m) = read_number<A>(
                        weights.type(), weights.address_of(of_entries ? entry : row, h, m));
        }
    }
}

/// y_h[row] += scale sum over m of weights[row, h, m] hidden[row] b[h, m].
template <class A>
void forward_by_module(const batch& rows, const module_layer& layer,
                       const const_tensor_ref<3>& weights, bool of_entries,
                       const const_tensor_ref<2>& x, const tensor_ref<2>& y) {
    const auto& [a, b] = layer.inventory;
    const auto& products = layer.products;
    copy_weights<A>(rows, weights, of_entries, products.weights);
    shrink_modules<A>(rows, x, a, products.weights, true, products.each);
    if (!layer.mixes_outputs()) {
        if (rows.sum_over_ranks) clear(layer.hidden);
        mix_products<A>(rows, products.weights, products.each, layer.hidden);
        if (rows.sum_over_ranks) rows.sum_over_ranks(layer.hidden);
    }
    expand_rows(rows, layer, products.each, layer.hidden, b, y);
}

} // namespace lora_details
} // namespace MHR_ISA
} // namespace mhr

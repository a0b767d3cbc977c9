#pragma once

#include <algorithm>
#include <cstddef>

#include <mhr/batch/batch.hpp>
#include <mhr/core/element_access.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/kernels/kernels.hpp>
#include <mhr/lora/module_passes.hpp>

/// \file
/// The backward of lora/module_passes.hpp. With u[row, h, m] = d_y_h b[h, m]^T, and p the products
/// of the forward, it needs
///     d_hidden[row] = sum over h, m of weights[row, h, m] u[row, h, m]   (outputs mixed: u itself)
///     d_weights[row, h, m] = scale (hidden . u[row, h, m] + d_hidden . p[row, h, m])
///                            (outputs mixed: scale p . u)
/// and sums over rows of weighted outer products. Nothing is checked here.

namespace mhr {
inline namespace MHR_ISA {
namespace lora_details {

/// What a backward that goes module by module adds to; each may be absent.
struct module_gradients {
    tensor_ref<2> x;
    tensor_ref<4> a, b;
    tensor_ref<3> weights; ///< [rows, heads, modules], or [entries, heads, modules]
    bool of_entries;       ///< which of them
    bool of_zeros;         ///< whether weights of 0 have a gradient, too
};

/// The scratch memory of a backward.
struct module_scratch {
    tensor_ref<4> u{};     ///< [rows, heads, modules, rank], later weighted d_hidden
    tensor_ref<4> other{}; ///< the same: products that the forward left out, then weighted hidden
    tensor_ref<2> d_hidden{};  ///< [rows, rank]
    tensor_ref<3> d_weights{}; ///< [rows, heads, modules]: what each row adds, without the scale

    static module_scratch take(workspace& memory, const batch& rows, const lora_shape& shape,
                               element_type sums) noexcept {
        const index_t n = rows.plan.rows();
        const auto narrow = [&] {
            return memory.take<4>(sums, {n, shape.heads, shape.modules, shape.rank});
        };
        module_scratch scratch;
        scratch.u = narrow();
        scratch.other = narrow();
        scratch.d_hidden = memory.take<2>(sums, {n, shape.rank});
        scratch.d_weights = memory.take<3>(sums, {n, shape.heads, shape.modules});
        return scratch;
    }
};

/// u . v of `count` numbers, in an order that does not depend on the stride of u: lanes first.
template <class A>
A inner_product(const tensor_view<A, 1>& u, const A* v, index_t count) noexcept {
    constexpr index_t width = 8;
    A sums[static_cast<std::size_t>(width)] = {};
    const auto add = [&](auto&& from) {
        index_t k = 0;
        for (; k + width <= count; k += width)
            for (index_t lane = 0; lane < width; ++lane)
                sums[lane] += from(k + lane) * v[k + lane];
        for (index_t lane = 0; k < count; ++k, ++lane)
            sums[lane] += from(k) * v[k];
    };
    if (u.stride(0) == 1)
        add([from = u.data()](index_t k) { return from[k]; });
    else
        add([&](index_t k) { return u(k); });
    for (index_t half = width / 2; half > 0; half /= 2)
        for (index_t lane = 0; lane < half; ++lane)
            sums[lane] += sums[lane + half];
    return sums[0];
}

/// d_weights of each row without the scale, where `with_u`; and then what the outer products of the
/// modules take: weights times d_hidden in u, where `with_u`, and weights times hidden in `other`.
template <class A>
void weigh_rows(const batch& rows, const module_layer& layer, const module_scratch& scratch,
                bool with_u, bool of_zeros) {
    const auto w = layer.products.weights.as<A>();
    const auto p = layer.products.each.as<A>();
    const auto all_u = scratch.u.as<A>();
    const auto other = scratch.other.as<A>();
    const auto d_w = scratch.d_weights.as<A>();
    const bool outputs = layer.mixes_outputs();
    const auto hidden = (outputs ? scratch.d_hidden : layer.hidden).as<A>();
    const auto d_hidden = scratch.d_hidden.as<A>();
    const index_t rank = all_u.extent(3);
    const auto weigh = [&](index_t row, index_t h, index_t m) {
        const A weight = w(row, h, m);
        const bool used = !is_exactly(weight, 0);
        if (!used && !of_zeros) return;
        const auto left = outputs ? (used ? p : other).slice(0, row).slice(0, h).slice(0, m)
                                  : hidden.slice(0, row);
        A* const to = &other(row, h, m, 0); // the scratch memory is dense
        if (with_u) {
            A* const u = &all_u(row, h, m, 0);
            A sum = inner_product(left, u, rank);
            if (!outputs) {
                const A* const d = &d_hidden(row, 0);
                sum += inner_product((used ? p : other).slice(0, row).slice(0, h).slice(0, m), d,
                                     rank);
                for (index_t k = 0; k < rank; ++k)
                    u[k] = weight * d[k];
            } else {
                for (index_t k = 0; k < rank; ++k)
                    u[k] *= weight;
            }
            d_w(row, h, m) = sum;
        }
        for (index_t k = 0; k < rank; ++k)
            to[k] = weight * left(k);
    };
    const index_t cost = rows_per_part_of_sums * w.extent(1) * w.extent(2) * 4 * rank;
    rows.executor.run(parts_of_rows(rows.plan, rows_per_part_of_sums), cost,
                      [&](index_t part) noexcept {
                          const row_set set = part_of_rows(rows.plan, part, rows_per_part_of_sums);
                          for (index_t r = 0; r < set.count; ++r)
                              for (index_t h = 0; h < w.extent(1); ++h)
                                  for (index_t m = 0; m < w.extent(2); ++m)
                                      weigh(set.numbers[r], h, m);
                      });
}

/// gradients.weights += scale d_weights of each row, or scale times their sums over the rows of
/// each entry.
template <class A>
void add_weight_gradients(const batch& rows, const module_layer& layer,
                          const module_scratch& scratch, const module_gradients& gradients) {
    const auto w = layer.products.weights.as<A>();
    const auto d_w = scratch.d_weights.as<A>();
    const auto add = [&](A sum, index_t place, index_t h, index_t m) {
        void* const to = gradients.weights.address_of(place, h, m);
        const A old = read_number<A>(gradients.weights.type(), to);
        write_number<A>(gradients.weights.type(), to, old + static_cast<A>(layer.scale) * sum);
    };
    rows.executor.run(rows.plan.entries(), [&](index_t entry) noexcept {
        const auto numbers = rows.plan.rows_of(entry);
        for (index_t h = 0; h < d_w.extent(1); ++h)
            for (index_t m = 0; m < d_w.extent(2); ++m) {
                A sum = 0;
                for (index_t r = 0; r < numbers.extent(0); ++r) {
                    const index_t row = numbers(r);
                    if (is_exactly(w(row, h, m), 0) && !gradients.of_zeros) continue;
                    if (gradients.of_entries)
                        sum += d_w(row, h, m);
                    else
                        add(d_w(row, h, m), row, h, m);
                }
                if (gradients.of_entries) add(sum, entry, h, m);
            }
    });
}

/// matrices[h, m, i, k] += scale * sum over the rows that use the module of wide_h[row, i]
/// narrow[row, h, m, k]. A part owns some features of one module and takes the rows in the plan's
/// order, so that each sum has one owner and is rounded once.
template <class A>
void add_module_gradients(const batch& rows, const module_layer& layer,
                          const const_tensor_ref<2>& wide, const const_tensor_ref<4>& narrow,
                          const tensor_ref<4>& matrices) {
    constexpr index_t features = 256;
    constexpr index_t ranks = 16;
    const index_t heads = matrices.extent(0), modules = matrices.extent(1);
    const index_t n = matrices.extent(2), rank = matrices.extent(3);
    const index_t pieces = (n + features - 1) / features;
    const index_t cost = rows.plan.row_order().extent(0) * (std::min)(features, n) * rank;
    rows.executor.run(heads * modules * pieces, cost, [&](index_t part) noexcept {
        const index_t first = part % pieces * features;
        const index_t m = part / pieces % modules, h = part / pieces / modules;
        const index_t width = (std::min)(features, n - first);
        alignas(64) A memory[static_cast<std::size_t>(ranks * features)];
        index_t numbers[static_cast<std::size_t>(rows_of_module)];
        for (index_t k0 = 0; k0 < rank; k0 += ranks) {
            const index_t depth = (std::min)(ranks, rank - k0);
            const tensor_ref<2> sums(memory, {depth, width}, {features, 1});
            bool empty = true;
            for (index_t g = 0; g < parts_of_rows(rows.plan, rows_of_module); ++g) {
                const row_set used =
                    rows_that_use(part_of_rows(rows.plan, g, rows_of_module),
                                  as_const(layer.products.weights.as<A>()), h, m, true, numbers);
                if (used.count == 0) continue;
                kernels::add_outer_products(used, wide.block(1, h * n + first, width),
                                            narrow.slice(1, h).slice(1, m).block(1, k0, depth),
                                            layer.scale, sums, !empty, {});
                empty = false;
            }
            if (!empty)
                kernels::add_sums(sums, matrices.slice(0, h)
                                            .slice(0, m)
                                            .block(0, first, width)
                                            .block(1, k0, depth)
                                            .transpose(0, 1));
        }
    });
}

/// The backward of forward_by_module.
template <class A>
void backward_by_module(const batch& rows, const module_layer& layer, const const_tensor_ref<2>& x,
                        const const_tensor_ref<2>& d_y, const module_gradients& gradients,
                        const module_scratch& scratch) {
    const auto& [a, b] = layer.inventory;
    const auto& [weights, products] = layer.products;
    const bool of_weights = !gradients.weights.absent();
    const bool of_zeros = of_weights && gradients.of_zeros;
    const bool needs_u = of_weights || !gradients.x.absent() || !gradients.a.absent();
    const auto b_transposed = b.transpose(2, 3);
    if (needs_u) shrink_modules<A>(rows, d_y, b_transposed, weights, true, scratch.u);
    if (of_zeros) {
        shrink_modules<A>(rows, d_y, b_transposed, weights, false, scratch.u);
        shrink_modules<A>(rows, x, a, weights, false, scratch.other);
    }
    if (needs_u && !layer.mixes_outputs()) {
        if (rows.sum_over_ranks) clear(scratch.d_hidden);
        mix_products<A>(rows, weights, scratch.u, scratch.d_hidden);
        if (rows.sum_over_ranks) rows.sum_over_ranks(scratch.d_hidden);
    }
    if (!gradients.x.absent())
        expand_rows(rows, layer, scratch.u, scratch.d_hidden, a.transpose(2, 3), gradients.x);
    if (needs_u || !gradients.b.absent()) weigh_rows<A>(rows, layer, scratch, needs_u, of_zeros);
    if (of_weights) add_weight_gradients<A>(rows, layer, scratch, gradients);
    if (!gradients.a.absent()) add_module_gradients<A>(rows, layer, x, scratch.u, gradients.a);
    if (!gradients.b.absent())
        add_module_gradients<A>(rows, layer, d_y, scratch.other, gradients.b.transpose(2, 3));
}

} // namespace lora_details
} // namespace MHR_ISA
} // namespace mhr

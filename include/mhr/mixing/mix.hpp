#pragma once

#include <algorithm>
#include <type_traits>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/tensor_view.hpp>
#include <mhr/simd/mixing.hpp>

/// \file
/// Heads-wise mixing of the modules of an inventory, and back. The same two functions serve both
/// matrices of LoRA and the vectors of (IA)3, in every memory order: the views say how
/// (adapters/routed_lora.hpp makes those of LoRA).

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Elements of a block that a part mixes, about.
inline constexpr index_t elements_per_part = 8192;

/// Rows of a block [P, Q] that a part mixes: a multiple of 16, so that vectors stay whole.
inline index_t rows_per_part(index_t columns) noexcept {
    constexpr index_t multiple = 16;
    return (std::max)(multiple,
                      elements_per_part / (std::max)(columns, index_t(1)) / multiple * multiple);
}

/// Modules whose gradients a part owns: all of them if the heads alone give parts enough for eight
/// threads, or for those that `cost` multiply-adds in all are worth.
inline index_t modules_per_part(index_t heads, index_t modules, index_t cost) noexcept {
    const index_t enough_parts = (std::min)(index_t(8), cost / worth_a_thread + 1);
    return (std::max)(index_t(1), (std::min)(modules, heads * modules / enough_parts));
}

} // namespace detail

/// mixed[n, h, p, q] = sum over modules of weights[n, h, m] modules[h, m, p, q]: the blocks of a
/// head are mixed with the weights of that head (Caccia et al. 2023, arXiv 2211.03831, section 3;
/// one head: Ponti et al. 2023, arXiv 2202.13914).
///
/// weights [n, heads, modules]; modules [heads, modules, p, q]; mixed [n, heads, p, q],
/// overwritten. A module of weight 0 is not read.
///
/// One phase. Errors: a shape; overlapping elements of mixed. Cost: n h m p q multiply-adds;
/// modules are read once for every 32 entries, mixed is written once. Fastest where the rows (q) or
/// the columns (p) of modules and mixed are dense, be it not the same ones.
template <class W, class M, class Y>
void mix_forward(executor_ref executor, tensor_view<W, 3> weights, tensor_view<M, 4> modules,
                 tensor_view<Y, 4> mixed) {
    constexpr const char* function = "mix_forward";
    require_input(function, "weights", weights, {any_extent, any_extent, any_extent});
    require_input(function, "modules", modules,
                  {weights.extent(1), weights.extent(2), any_extent, any_extent});
    require_output(function, "mixed", mixed,
                   {weights.extent(0), weights.extent(1), modules.extent(2), modules.extent(3)});
    if (mixed.size() == 0) return;

    // The kernel walks along rows: those of the modules are the ones to be dense.
    if (modules.stride(2) == 1 && modules.stride(3) != 1) {
        modules = modules.transpose(2, 3);
        mixed = mixed.transpose(2, 3);
    }
    const index_t rows = detail::rows_per_part(modules.extent(3));
    const index_t pieces = (modules.extent(2) + rows - 1) / rows;
    const index_t cost = weights.extent(0) * modules.extent(1) *
                         (std::min)(rows, modules.extent(2)) * modules.extent(3);
    executor.run(modules.extent(0) * pieces, cost, [&](index_t part) noexcept {
        const index_t h = part / pieces;
        const index_t first = part % pieces * rows;
        const index_t count = (std::min)(rows, modules.extent(2) - first);
        detail::mix_blocks(as_const(weights.slice(1, h)),
                           as_const(modules.slice(0, h).block(1, first, count)),
                           mixed.slice(1, h).block(1, first, count));
    });
}

/// The backward of mix_forward:
/// d_modules[h, m, p, q] += sum over n of weights[n, h, m] d_mixed[n, h, p, q] and
/// d_weights[n, h, m] += sum over p, q of d_mixed[n, h, p, q] modules[h, m, p, q].
///
/// Shapes as in the forward; d_modules and d_weights accumulate, and either may be absent: its work
/// is skipped. An entry of weight 0 adds nothing to d_modules.
///
/// d_modules is the same for every layout, to the last bit. The sums of d_weights run along the
/// memory of the modules, and over the ends of rows where those of all three are dense: another
/// layout may round them otherwise.
///
/// One phase. Errors: a shape; overlapping elements of a gradient. Cost: n h m p q multiply-adds
/// for each gradient; modules and d_modules are read, and d_modules rounded to its type and
/// written, once for every 32 entries.
template <class W, class M, class D, class DM = std::remove_const_t<M>,
          class DW = std::remove_const_t<W>>
void mix_backward(executor_ref executor, tensor_view<W, 3> weights, tensor_view<M, 4> modules,
                  tensor_view<D, 4> d_mixed, tensor_view<DM, 4> d_modules,
                  tensor_view<DW, 3> d_weights) {
    constexpr const char* function = "mix_backward";
    require_input(function, "weights", weights, {any_extent, any_extent, any_extent});
    require_input(function, "modules", modules,
                  {weights.extent(1), weights.extent(2), any_extent, any_extent});
    require_input(function, "d_mixed", d_mixed,
                  {weights.extent(0), weights.extent(1), modules.extent(2), modules.extent(3)});
    require_optional_output(function, "d_modules", d_modules, modules.extents());
    require_optional_output(function, "d_weights", d_weights, weights.extents());
    if (d_mixed.size() == 0) return;

    if (modules.stride(2) == 1 && modules.stride(3) != 1) {
        modules = modules.transpose(2, 3);
        d_mixed = d_mixed.transpose(2, 3);
        if (!d_modules.absent()) d_modules = d_modules.transpose(2, 3);
    }
    // Each gradient has one owner, which adds in the order of entries.
    const index_t cost_of_module = 2 * weights.extent(0) * modules.extent(2) * modules.extent(3);
    const index_t group =
        detail::modules_per_part(modules.extent(0), modules.extent(1),
                                 modules.extent(0) * modules.extent(1) * cost_of_module);
    const index_t groups = (modules.extent(1) + group - 1) / group;
    const index_t cost = group * cost_of_module;
    executor.run(modules.extent(0) * groups, cost, [&](index_t part) noexcept {
        const index_t h = part / groups;
        const index_t first = part % groups * group;
        const index_t count = (std::min)(group, modules.extent(1) - first);
        detail::mix_blocks_backward(
            as_const(weights.slice(1, h).block(1, first, count)),
            as_const(modules.slice(0, h).block(0, first, count)), as_const(d_mixed.slice(1, h)),
            d_modules.absent() ? tensor_view<DM, 3>{}
                               : d_modules.slice(0, h).block(0, first, count),
            d_weights.absent() ? tensor_view<DW, 2>{}
                               : d_weights.slice(1, h).block(1, first, count));
    });
}

} // namespace MHR_ISA
} // namespace mhr

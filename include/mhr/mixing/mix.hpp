#pragma once

#include <algorithm>

#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Heads-wise mixing of the modules of an inventory, and back. The same two functions serve both
/// matrices of LoRA and the vectors of (IA)3, in every memory order: the views say how
/// (adapters/routed_lora.hpp makes those of LoRA).

namespace mhr {

namespace detail {

/// Elements that a mixing kernel sums at a time, on the stack: enough for the compiler to keep
/// vector registers busy, few enough to stay in L1.
inline constexpr index_t mix_chunk = 256;

/// A block [p, q] of dense rows is one long row [1, p q]: short rows (a rank) then mix as fast as
/// long ones. `dense` tells if all views involved allow it.
template <class T>
bool has_dense_rows(const tensor_view<T, 4>& view) noexcept {
    return view.stride(2) == view.extent(3) && view.stride(3) == 1;
}
template <class T>
tensor_view<T, 4> with_rows_joined(const tensor_view<T, 4>& view) noexcept {
    return {view.data(),
            {view.extent(0), view.extent(1), 1, view.extent(2) * view.extent(3)},
            {view.stride(0), view.stride(1), 0, 1}};
}

/// Calls `f(p, first, count)` for chunks of the rows of a [p, q] block.
template <class F>
void for_chunks(index_t rows, index_t length, F&& f) {
    for (index_t p = 0; p < rows; ++p)
        for (index_t first = 0; first < length; first += mix_chunk)
            f(p, first, std::min(mix_chunk, length - first));
}

/// mixed[p, q] = sum over modules of weights[m] modules[m, p, q], for one entry and one head.
template <bool Dense, class W, class M, class Y>
void mix_block(tensor_view<const W, 1> weights, tensor_view<const M, 3> modules,
               tensor_view<Y, 2> mixed) noexcept {
    using A = accumulator_t<W, M, Y>;
    for_chunks(mixed.extent(0), mixed.extent(1), [&](index_t p, index_t first, index_t count) {
        A sum[mix_chunk];
        std::fill_n(sum, count, A(0));
        for (index_t m = 0; m < modules.extent(0); ++m) {
            const A weight = load<A>(weights(m));
            if (weight == A(0)) continue; // a module that is switched off costs nothing
            const strided<const M, Dense> module{&modules(m, p, first), modules.stride(2)};
            for (index_t i = 0; i < count; ++i)
                sum[i] += weight * load<A>(module[i]);
        }
        const strided<Y, Dense> to{&mixed(p, first), mixed.stride(1)};
        for (index_t i = 0; i < count; ++i)
            to[i] = store<Y>(sum[i]);
    });
}

/// d_module[p, q] += sum over entries of weights[n] d_mixed[n, p, q], for one head and module.
template <bool Dense, class W, class D, class DM>
void mix_block_backward_module(tensor_view<const W, 1> weights, tensor_view<const D, 3> d_mixed,
                               tensor_view<DM, 2> d_module) noexcept {
    using A = accumulator_t<W, D, DM>;
    for_chunks(d_module.extent(0), d_module.extent(1),
               [&](index_t p, index_t first, index_t count) {
                   A sum[mix_chunk];
                   std::fill_n(sum, count, A(0));
                   for (index_t n = 0; n < d_mixed.extent(0); ++n) {
                       const A weight = load<A>(weights(n));
                       if (weight == A(0)) continue;
                       const strided<const D, Dense> d{&d_mixed(n, p, first), d_mixed.stride(2)};
                       for (index_t i = 0; i < count; ++i)
                           sum[i] += weight * load<A>(d[i]);
                   }
                   const strided<DM, Dense> to{&d_module(p, first), d_module.stride(1)};
                   for (index_t i = 0; i < count; ++i)
                       to[i] = store<DM>(load<A>(to[i]) + sum[i]);
               });
}

/// The sum over p, q of d_mixed[p, q] module[p, q], in partial sums that fill vector registers.
template <class A, bool Dense, class D, class M>
A mix_block_inner_product(tensor_view<const D, 2> d_mixed,
                          tensor_view<const M, 2> module) noexcept {
    constexpr index_t lanes = 16;
    A sum[lanes] = {};
    for_chunks(module.extent(0), module.extent(1), [&](index_t p, index_t first, index_t count) {
        const strided<const D, Dense> d{&d_mixed(p, first), d_mixed.stride(1)};
        const strided<const M, Dense> v{&module(p, first), module.stride(1)};
        index_t i = 0;
        for (; i + lanes <= count; i += lanes)
            for (index_t lane = 0; lane < lanes; ++lane)
                sum[lane] += load<A>(d[i + lane]) * load<A>(v[i + lane]);
        for (; i < count; ++i)
            sum[i % lanes] += load<A>(d[i]) * load<A>(v[i]);
    });
    A total = 0;
    for (index_t lane = 0; lane < lanes; ++lane)
        total += sum[lane];
    return total;
}

template <bool Dense, class W, class M, class Y>
void mix_forward(executor_ref executor, tensor_view<const W, 3> weights,
                 tensor_view<const M, 4> modules, tensor_view<Y, 4> mixed) {
    const index_t heads = mixed.extent(1);
    executor.run(mixed.extent(0) * heads, [&](index_t part) noexcept {
        const index_t n = part / heads;
        const index_t h = part % heads;
        mix_block<Dense>(weights.slice(0, n).slice(0, h), modules.slice(0, h),
                         mixed.slice(0, n).slice(0, h));
    });
}

template <bool Dense, class W, class M, class D, class DM, class DW>
void mix_backward(executor_ref executor, tensor_view<const W, 3> weights,
                  tensor_view<const M, 4> modules, tensor_view<const D, 4> d_mixed,
                  tensor_view<DM, 4> d_modules, tensor_view<DW, 3> d_weights) {
    const index_t count = modules.extent(1);
    // Parts are (head, module): each gradient has one owner, which adds in the order of entries.
    executor.run(modules.extent(0) * count, [&](index_t part) noexcept {
        const index_t h = part / count;
        const index_t m = part % count;
        const tensor_view<const D, 3> d = d_mixed.slice(1, h);
        if (!d_modules.absent())
            mix_block_backward_module<Dense>(weights.slice(1, h).slice(1, m), d,
                                             d_modules.slice(0, h).slice(0, m));
        if (!d_weights.absent())
            for (index_t n = 0; n < d.extent(0); ++n) {
                using A = accumulator_t<D, M, DW>;
                DW& target = d_weights(n, h, m);
                target = store<DW>(load<A>(target) +
                                   mix_block_inner_product<A, Dense>(
                                       d.slice(0, n), modules.slice(0, h).slice(0, m)));
            }
    });
}

} // namespace detail

/// mixed[n, h, p, q] = sum over modules of weights[n, h, m] modules[h, m, p, q]: the blocks of a
/// head are mixed with the weights of that head (Caccia et al. 2023, arXiv 2211.03831, section 3;
/// one head: Ponti et al. 2023, arXiv 2202.13914).
///
/// weights [n, heads, modules]; modules [heads, modules, p, q]; mixed [n, heads, p, q],
/// overwritten. A module of weight 0 is not read.
///
/// One phase. Errors: a shape; overlapping elements of mixed.
/// Cost: n h m p q multiply-adds; the same number of elements read, n h p q written.
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

    if (detail::has_dense_rows(modules) && detail::has_dense_rows(mixed))
        detail::mix_forward<true>(executor, as_const(weights),
                                  as_const(detail::with_rows_joined(modules)),
                                  detail::with_rows_joined(mixed));
    else if (modules.stride(3) == 1 && mixed.stride(3) == 1)
        detail::mix_forward<true>(executor, as_const(weights), as_const(modules), mixed);
    else
        detail::mix_forward<false>(executor, as_const(weights), as_const(modules), mixed);
}

/// The backward of mix_forward:
/// d_modules[h, m, p, q] += sum over n of weights[n, h, m] d_mixed[n, h, p, q] and
/// d_weights[n, h, m] += sum over p, q of d_mixed[n, h, p, q] modules[h, m, p, q].
///
/// Shapes as in the forward; d_modules and d_weights accumulate, and either may be absent: its work
/// is skipped. An entry of weight 0 adds nothing to d_modules.
///
/// One phase. Errors: a shape; overlapping elements of a gradient.
/// Cost: n h m p q multiply-adds for each gradient; modules and d_modules are read once.
template <class W, class M, class D, class DM, class DW>
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

    const bool joined = detail::has_dense_rows(modules) && detail::has_dense_rows(d_mixed) &&
                        (d_modules.absent() || detail::has_dense_rows(d_modules));
    const bool dense = modules.stride(3) == 1 && d_mixed.stride(3) == 1 &&
                       (d_modules.absent() || d_modules.stride(3) == 1);
    if (joined)
        detail::mix_backward<true>(
            executor, as_const(weights), as_const(detail::with_rows_joined(modules)),
            as_const(detail::with_rows_joined(d_mixed)),
            d_modules.absent() ? d_modules : detail::with_rows_joined(d_modules), d_weights);
    else if (dense)
        detail::mix_backward<true>(executor, as_const(weights), as_const(modules),
                                   as_const(d_mixed), d_modules, d_weights);
    else
        detail::mix_backward<false>(executor, as_const(weights), as_const(modules),
                                    as_const(d_mixed), d_modules, d_weights);
}

} // namespace mhr

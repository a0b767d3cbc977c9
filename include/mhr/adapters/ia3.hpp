#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <mhr/adapters/batch_plan.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/executor.hpp>
#include <mhr/core/scalar.hpp>
#include <mhr/core/strided.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// (IA)3 with ready scales, one vector for each distinct task of a batch, or a single one
/// (`prepend_axis()` makes a vector [features] the scales of a plan of one task).
/// adapters/routed_ia3.hpp does the mixing as well.

namespace mhr {
inline namespace MHR_ISA {

namespace detail {

/// Features of which a backward part owns the gradient; their sums are kept on the stack.
inline constexpr index_t ia3_features_per_part = 128;

/// The rows that one part rescales, and their entry: -1 for rows of no task.
struct rescaled_rows {
    index_t entry;
    tensor_view<const index_t, 1> numbers;
};

/// The blocks of the plan come first, then the rows of no task in blocks of the same size.
inline index_t rescaling_parts(const batch_plan& plan) noexcept {
    constexpr index_t size = batch_plan::rows_per_block;
    return static_cast<index_t>(plan.blocks().size()) +
           (plan.base_rows().extent(0) + size - 1) / size;
}
inline rescaled_rows rescaling_part(const batch_plan& plan, index_t part) noexcept {
    const auto blocks = static_cast<index_t>(plan.blocks().size());
    if (part < blocks) {
        const auto& block = plan.blocks()[static_cast<std::size_t>(part)];
        return {block.entry, plan.row_order().block(0, block.first, block.count)};
    }
    constexpr index_t size = batch_plan::rows_per_block;
    const auto rows = plan.base_rows();
    const index_t first = (part - blocks) * size;
    return {-1, rows.block(0, first, (std::min)(size, rows.extent(0) - first))};
}

/// to[row, i] = from[row, i] * scales[i] for some rows, or with `Add` += that; absent scales are 1.
template <bool Add, class X, class P, class Y>
void rescale_rows(tensor_view<const index_t, 1> rows, tensor_view<const X, 2> from,
                  tensor_view<const P, 1> scales, tensor_view<Y, 2> to) noexcept {
    using A = accumulator_t<X, P, Y>;
    const bool scaled = !scales.absent();
    const bool dense =
        from.stride(1) == 1 && to.stride(1) == 1 && (!scaled || scales.stride(0) == 1);
    const auto run = [&](auto is_dense, auto is_scaled) {
        constexpr bool Dense = decltype(is_dense)::value;
        const strided<const P, Dense> s{scales.data(), scales.stride(0)};
        for (index_t r = 0; r < rows.extent(0); ++r) {
            const strided<const X, Dense> x{&from(rows(r), 0), from.stride(1)};
            const strided<Y, Dense> y{&to(rows(r), 0), to.stride(1)};
            for (index_t i = 0; i < from.extent(1); ++i) {
                A value = load<A>(x[i]);
                if constexpr (decltype(is_scaled)::value) value *= load<A>(s[i]);
                if constexpr (Add) value += load<A>(y[i]);
                y[i] = store<Y>(value);
            }
        }
    };
    specialise(dense, [&](auto is_dense) {
        specialise(scaled, [&](auto is_scaled) { run(is_dense, is_scaled); });
    });
}

/// d_scales[i] += sum over the rows of x[row, i] d_y[row, i], for some features.
template <bool Dense, class X, class D, class DP>
void add_products_of_rows(tensor_view<const index_t, 1> rows, tensor_view<const X, 2> x,
                          tensor_view<const D, 2> d_y, tensor_view<DP, 1> d_scales) noexcept {
    using A = accumulator_t<X, D, DP>;
    const index_t n = d_scales.extent(0);
    A sum[ia3_features_per_part] = {};
    for (index_t r = 0; r < rows.extent(0); ++r) {
        const strided<const X, Dense> v{&x(rows(r), 0), x.stride(1)};
        const strided<const D, Dense> d{&d_y(rows(r), 0), d_y.stride(1)};
        for (index_t i = 0; i < n; ++i)
            sum[i] += load<A>(v[i]) * load<A>(d[i]);
    }
    for (index_t i = 0; i < n; ++i) {
        DP& target = d_scales(i);
        target = store<DP>(load<A>(target) + sum[i]);
    }
}

template <class X, class P>
void check_ia3(const char* function, const batch_plan& plan, const tensor_view<X, 2>& x,
               const tensor_view<P, 2>& scales) {
    require_input(function, "x", x, {plan.rows(), any_extent});
    require_input(function, "scales", scales, {plan.entries(), x.extent(1)});
}

} // namespace detail

/// y[row, i] = x[row, i] scales[g, i] for every row that has a task, g the row's entry in the plan
/// (Liu et al. 2022, arXiv 2205.05638, section 3.3), and y[row] = x[row] for rows of no task.
///
/// x [rows, features] is what the host has at the adapted place, such as the output of a linear
/// layer: with its bias, if that is to be scaled too, as the papers' code does; scales
/// [entries, features]; y [rows, features], overwritten.
///
/// y may *be* x (one pointer, one type, equal strides): the rows of tasks are then scaled where
/// they are, those of no task not touched. Otherwise y must not overlap x. The backward to scales
/// wants x as it was.
///
/// One phase. Errors: a shape; overlapping elements of y. Cost: rows features multiplications; x is
/// read and y written once.
template <class X, class P, class Y>
void ia3_forward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                 tensor_view<P, 2> scales, tensor_view<Y, 2> y) {
    constexpr const char* function = "ia3_forward";
    detail::check_ia3(function, plan, x, scales);
    require_output(function, "y", y, x.extents());
    if (y.size() == 0) return;

    const bool in_place = static_cast<const void*>(x.data()) == y.data(); // or they would overlap
    executor.run(detail::rescaling_parts(plan), [&](index_t part) noexcept {
        const auto [entry, rows] = detail::rescaling_part(plan, part);
        if (entry >= 0)
            detail::rescale_rows<false>(rows, as_const(x), as_const(scales.slice(0, entry)), y);
        else if (!in_place)
            detail::rescale_rows<false>(rows, as_const(x), tensor_view<const P, 1>{}, y);
    });
}

/// The backward of ia3_forward:
///     d_x[row, i] += d_y[row, i] scales[g, i], for rows of no task d_x[row] += d_y[row]
///     d_scales[g, i] += sum over the rows of g of x[row, i] d_y[row, i]
///
/// Shapes as in the forward; d_y [rows, features]. Both gradients accumulate, and each may be
/// absent: its work is skipped. Neither may overlap an input.
///
/// x is that of the forward. A host that worked in place has to keep a copy for d_scales (dividing
/// y by the scales fails where one is 0); without d_scales x is not read, and may be y.
///
/// One phase. Errors: a shape, overlapping elements of a gradient. Cost: rows features
/// multiply-adds for each gradient.
template <class X, class P, class D, class DX = std::remove_const_t<X>,
          class DP = std::remove_const_t<P>>
void ia3_backward(executor_ref executor, const batch_plan& plan, tensor_view<X, 2> x,
                  tensor_view<P, 2> scales, tensor_view<D, 2> d_y, tensor_view<DX, 2> d_x,
                  tensor_view<DP, 2> d_scales) {
    constexpr const char* function = "ia3_backward";
    detail::check_ia3(function, plan, x, scales);
    require_input(function, "d_y", d_y, x.extents());
    require_optional_output(function, "d_x", d_x, x.extents());
    require_optional_output(function, "d_scales", d_scales, scales.extents());
    if (x.size() == 0) return;

    if (!d_x.absent())
        executor.run(detail::rescaling_parts(plan), [&](index_t part) noexcept {
            const auto [entry, rows] = detail::rescaling_part(plan, part);
            const auto factors =
                entry >= 0 ? as_const(scales.slice(0, entry)) : tensor_view<const P, 1>{};
            detail::rescale_rows<true>(rows, as_const(d_y), factors, d_x);
        });
    if (!d_scales.absent()) {
        const index_t features = x.extent(1);
        const index_t pieces =
            (features + detail::ia3_features_per_part - 1) / detail::ia3_features_per_part;
        executor.run(plan.entries() * pieces, [&](index_t part) noexcept {
            const index_t entry = part / pieces;
            const index_t first = part % pieces * detail::ia3_features_per_part;
            const index_t count = (std::min)(detail::ia3_features_per_part, features - first);
            detail::specialise(x.stride(1) == 1 && d_y.stride(1) == 1, [&](auto dense) {
                detail::add_products_of_rows<decltype(dense)::value>(
                    plan.rows_of(entry), as_const(x.block(1, first, count)),
                    as_const(d_y.block(1, first, count)),
                    d_scales.slice(0, entry).block(0, first, count));
            });
        });
    }
}

} // namespace MHR_ISA
} // namespace mhr

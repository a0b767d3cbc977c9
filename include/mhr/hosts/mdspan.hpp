#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#if __has_include(<mdspan>)
#include <mdspan>
#endif

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// `mdspan` as a view, and a view as `std::mdspan`: nothing is copied either way. Every view is a
/// `tensor_ref` where a function takes one.

namespace mhr {
namespace mdspan {
inline namespace MHR_ISA {

namespace mdspan_details {

/// Extents, data handle and mapping as [mdspan.mdspan.overview] has them.
template <class Span, class = void>
inline constexpr bool is_mdspan = false;
template <class Span>
inline constexpr bool
    is_mdspan<Span, std::void_t<typename Span::extents_type, typename Span::mapping_type,
                                typename Span::accessor_type, typename Span::data_handle_type>> =
        true;

template <class Span>
inline constexpr bool has_plain_elements =
    std::is_same_v<typename Span::data_handle_type, typename Span::element_type*>&&
        std::is_same_v<typename Span::reference, typename Span::element_type&>;

} // namespace mdspan_details

/// The view of an mdspan, the standard library's or another implementation's (such as Kokkos',
/// which is there for C++17). Its elements lie in plain memory (`default_accessor`), at strides
/// (`layout_right`, `layout_left`, `layout_stride`); extents may be static or dynamic. Whatever has
/// other accessors or layouts does not compile.
template <class Span, std::enable_if_t<mdspan_details::is_mdspan<Span>, int> = 0>
constexpr auto view_of(const Span& span) noexcept {
    static_assert(Span::rank() >= 1, "mhr: a view has at least one dimension");
    static_assert(mdspan_details::has_plain_elements<Span>,
                  "mhr: a view has its elements in memory (std::default_accessor)");
    static_assert(Span::is_always_strided(),
                  "mhr: a view has strides (std::layout_right, layout_left or layout_stride)");
    std::array<index_t, Span::rank()> extents{};
    std::array<index_t, Span::rank()> strides{};
    for (std::size_t axis = 0; axis < Span::rank(); ++axis) {
        extents[axis] = static_cast<index_t>(span.extent(axis));
        strides[axis] = static_cast<index_t>(span.stride(axis));
    }
    return tensor_view<typename Span::element_type, Span::rank()>(span.data_handle(), extents,
                                                                  strides);
}

#if defined(__cpp_lib_mdspan)

namespace mdspan_details {

/// The view's strides as layout_stride wants them: positive, even where they lead nowhere.
template <std::size_t Rank>
constexpr std::array<index_t, Rank> positive_strides(const tensor_axes<Rank>& axes) noexcept {
    auto at_least_one = axes.extents;
    for (index_t& extent : at_least_one)
        if (extent == 0) extent = 1;
    if (axes.empty()) return tensor_axes<Rank>::row_major(at_least_one).strides;
    auto strides = axes.strides;
    for (std::size_t axis = 0; axis < Rank; ++axis)
        if (axes.extents[axis] == 1) strides[axis] = 1;
    return strides;
}

/// The precondition of layout_stride ([mdspan.layout.stride.cons]): in some order of the axes, each
/// stride is at least the stride and extent before it, multiplied.
template <class T, std::size_t Rank>
bool fits_layout_stride(const tensor_view<T, Rank>& view) noexcept {
    const auto inside = [&](std::size_t inner, std::size_t outer) {
        return view.stride(outer) >=
               check_details::saturating_product(view.stride(inner), view.extent(inner));
    };
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        if (view.stride(axis) < 1) return false;
        for (std::size_t other = 0; other < axis; ++other)
            if (!inside(axis, other) && !inside(other, axis)) return false;
    }
    return check_details::is_addressable(check_details::memory_of(view));
}

} // namespace mdspan_details

/// Returns the mdspan of a view. A `tensor_ref` tells its type first:
/// `span_of(hidden.as<float>())`.
///
/// These are refused: a view without memory or of extents below 0; strides that
/// `std::layout_stride` cannot have, which are those of 0, negative ones, and those that
/// interleave.
template <class T, std::size_t Rank>
std::mdspan<T, std::dextents<index_t, Rank>, std::layout_stride>
span_of(const tensor_view<T, Rank>& view) {
    argument_checks checks("mdspan::span_of");
    checks.numbers("view", view, argument_checks::any_extents<Rank>());
    checks.raise();
    const auto strides = mdspan_details::positive_strides(view.axes());
    checks.expect(mdspan_details::fits_layout_stride(
                      tensor_view<T, Rank>(view.data(), view.extents(), strides)),
                  "view", "positive strides, each at least the next smaller one times its extent",
                  joined("strides ", view.strides(), " with extents ", view.extents()));
    checks.raise();
    return {view.data(),
            std::layout_stride::mapping<std::dextents<index_t, Rank>>(view.extents(), strides)};
}

#endif

} // namespace MHR_ISA
} // namespace mdspan
} // namespace mhr

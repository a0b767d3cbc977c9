#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string>

#include <mhr/adapters/routed_lora.hpp>
#include <mhr/core/checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// All inventories and routers of a model in one span of memory, laid out once. Their gradients lie
/// in a second span in the same places, an optimiser's moments in further ones: it goes through a
/// span from end to end, and data-parallel ranks sum their gradients by one all-reduce.
///
///     mhr::parameter_layout layout;                       // places are numbers: no memory yet
///     const auto query = layout.place_inventory(shape);   // for every adapted layer
///     const auto router = layout.place<3>({tasks, heads, modules});
///     std::vector<float> values(layout.size()), gradients(layout.size());
///     ... query.in(view of values), query.in(view of gradients), router.in(...)

namespace mhr {
inline namespace MHR_ISA {

/// Where a tensor lies in a span: `first`, and dense and row-major from there on.
template <std::size_t Rank>
struct parameter_place {
    index_t first = 0;                   ///< element of the span
    std::array<index_t, Rank> extents{}; ///< of the tensor

    /// The tensor in one of the spans of the layout [size or more], whose elements must be dense
    /// (or an absent view, of an absent one). Errors: a span that is too short or not dense.
    template <class T>
    [[nodiscard]] tensor_view<T, Rank> in(const tensor_view<T, 1>& span) const;

    /// Number of elements.
    [[nodiscard]] index_t size() const noexcept {
        return tensor_view<const char, Rank>(nullptr, extents).size();
    }
};

/// Where an inventory lies.
struct inventory_place {
    parameter_place<4> a; ///< [heads, modules, in_features / heads, rank]
    parameter_place<4> b; ///< [heads, modules, rank, out_features / heads]

    /// The inventory in one of the spans. Errors: as of parameter_place.
    template <class T>
    [[nodiscard]] lora_inventory<T> in(const tensor_view<T, 1>& span) const {
        return {a.in(span), b.in(span)};
    }
    /// Number of elements of both.
    [[nodiscard]] index_t size() const noexcept { return a.size() + b.size(); }
};

/// Lays tensors out one after the other. Each begins at a multiple of 32 elements from the start:
/// in a span that is aligned to 64 bytes, at such an address for every storage type of 2 bytes or
/// more, so that parameters in bf16 and moments in f32 share a layout. Fill a new span with zeros:
/// what lies between tensors stays zero then, in sums over ranks and in steps of an optimiser.
///
/// What is trained in another way (the logits at a rate of their own) is placed after the rest: it
/// begins at the `size()` before.
class parameter_layout {
  public:
    /// Elements; see above.
    static constexpr index_t alignment = 32;

    /// The next tensor: a router's logits [tasks, heads, modules], the modules of (IA)3, or what
    /// else the host trains. Errors: a negative extent; more elements than an index counts.
    template <std::size_t Rank>
    parameter_place<Rank> place(const std::array<index_t, Rank>& extents) {
        return place("parameter_layout::place", "extents", extents);
    }

    /// The next inventory: its a [heads, modules, in_features / heads, rank], then its b
    /// [heads, modules, rank, out_features / heads]. Errors: as of `place`; features that the heads
    /// do not divide.
    inventory_place place_inventory(const lora_shape& shape) {
        constexpr const char* function = "parameter_layout::place_inventory";
        require_that(
            shape.heads >= 1 && shape.in_features % shape.heads == 0 &&
                shape.out_features % shape.heads == 0,
            function, "shape", [] { return "heads that divide the features"; },
            [&] {
                return std::to_string(shape.heads) + " heads of " +
                       std::to_string(shape.in_features) + " and " +
                       std::to_string(shape.out_features) + " features";
            });
        parameter_layout next = *this; // both or neither
        const auto place = [&](const std::array<index_t, 4>& extents) {
            return next.place(function, "shape", extents);
        };
        const inventory_place result{
            place({shape.heads, shape.modules, shape.in_features / shape.heads, shape.rank}),
            place({shape.heads, shape.modules, shape.rank, shape.out_features / shape.heads})};
        *this = next;
        return result;
    }

    /// Elements so far, those between tensors and after the last one included: a multiple of the
    /// alignment.
    [[nodiscard]] index_t size() const noexcept { return size_; }

  private:
    template <std::size_t Rank>
    parameter_place<Rank> place(const char* function, const char* argument,
                                const std::array<index_t, Rank>& extents) {
        constexpr index_t largest = (std::numeric_limits<index_t>::max)();
        index_t count = 1;
        bool counts = true;
        for (index_t extent : extents) {
            counts = counts && extent >= 0;
            if (counts) count = detail::saturating_product(count, extent);
        }
        require_that(
            counts && count <= largest - alignment - size_, function, argument,
            [] { return "extents of 0 and more, whose elements an index counts"; },
            [&] {
                return detail::to_text(extents) + " after " + std::to_string(size_) + " elements";
            });
        const parameter_place<Rank> result{size_, extents};
        size_ += (count + alignment - 1) / alignment * alignment;
        return result;
    }

    index_t size_ = 0;
};

template <std::size_t Rank>
template <class T>
tensor_view<T, Rank> parameter_place<Rank>::in(const tensor_view<T, 1>& span) const {
    constexpr const char* function = "parameter_place::in";
    if (span.absent()) return {};
    require_input(function, "span", span, {any_extent});
    require_that(
        span.is_contiguous() && span.extent(0) - first >= size(), function, "span",
        [&] { return std::to_string(first + size()) + " dense elements"; },
        [&] {
            return "extents " + detail::to_text(span.extents()) + " with strides " +
                   detail::to_text(span.strides());
        });
    return {span.data() + first, extents};
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_ref.hpp>
#include <mhr/lora/inventory.hpp>

/// \file
/// All inventories and routers of a model in one buffer, laid out once. Their gradients lie in a
/// second buffer in the same places, and an optimiser's moments in further ones: it goes through a
/// buffer from end to end, and data-parallel ranks sum their gradients by one all-reduce.
///
///     mhr::parameter_layout layout;                       // places are numbers: no memory yet
///     const auto query = layout.place_inventory(shape);   // for every adapted layer
///     const auto router = layout.place<3>({tasks, heads, modules});
///     std::vector<float> values(layout.size()), gradients(layout.size());
///     ... query.in({values.data(), {layout.size()}}), query.in({gradients.data(), ..}),
///     router.in(..)

namespace mhr {

inline namespace MHR_ISA {
namespace layout_details {

/// Checks that a buffer holds a tensor of `size` elements from `first` on.
inline void check_buffer(const const_tensor_ref<1>& buffer, index_t first, index_t size) {
    argument_checks checks("parameter_place::in");
    checks.input("buffer", buffer);
    checks.expect(buffer.is_contiguous() && buffer.extent(0) - first >= size, "buffer",
                  joined(first + size, " dense elements"),
                  joined("extents ", buffer.extents(), " with strides ", buffer.strides()));
    checks.raise();
}

/// Moves `end` behind a tensor of these extents, which begins where it was; checks them.
inline void append(argument_checks& checks, const char* argument, const index_t* extents,
                   std::size_t rank, index_t alignment, index_t& end) {
    constexpr index_t largest = (std::numeric_limits<index_t>::max)();
    index_t count = 1;
    bool counts = true;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        counts = counts && extents[axis] >= 0;
        if (counts) count = check_details::saturating_product(count, extents[axis]);
    }
    checks.expect(counts && count <= largest - alignment - end, argument,
                  "extents of 0 and more, whose elements an index counts", [&] {
                      return check_details::text_of(extents, rank) + " after " +
                             std::to_string(end) + " elements";
                  });
    if (checks.passed()) end += (count + alignment - 1) / alignment * alignment;
}

inline void check_heads(argument_checks& checks, const lora_shape& shape) {
    checks.expect(shape.heads >= 1 && shape.in_features % shape.heads == 0 &&
                      shape.out_features % shape.heads == 0,
                  "shape", "heads that divide the features",
                  joined(shape.heads, " heads of ", shape.in_features, " and ", shape.out_features,
                         " features"));
}

} // namespace layout_details
} // namespace MHR_ISA

/// Where a tensor lies in a buffer: it begins at `first`, and is dense and row-major from there on.
template <std::size_t Rank>
struct parameter_place {
    index_t first = 0;                   ///< element of the buffer
    std::array<index_t, Rank> extents{}; ///< of the tensor

    /// The tensor in one of the buffers of the layout [size or more], of any element type; an
    /// absent one has an absent tensor. These are refused: a buffer that is too short or not dense.
    [[nodiscard]] MHR_INLINE tensor_ref<Rank> in(const tensor_ref<1>& buffer) const {
        if (buffer.absent()) return {};
        layout_details::check_buffer(buffer, first, size());
        return {tensor_axes<Rank>::row_major(extents), buffer.address_of(first), buffer.type()};
    }

    /// Returns the place in a buffer that is only read.
    [[nodiscard]] MHR_INLINE const_tensor_ref<Rank>
    in_const(const const_tensor_ref<1>& buffer) const {
        if (buffer.absent()) return {};
        layout_details::check_buffer(buffer, first, size());
        return {tensor_axes<Rank>::row_major(extents), buffer.address_of(first), buffer.type()};
    }

    /// Returns the number of elements.
    [[nodiscard]] MHR_INLINE index_t size() const noexcept {
        return tensor_axes<Rank>::row_major(extents).size();
    }
};

/// Where an inventory lies.
struct inventory_place {
    parameter_place<4> a; ///< [heads, modules, in_features / heads, rank]
    parameter_place<4> b; ///< [heads, modules, rank, out_features / heads]

    /// Returns the inventory in one of the buffers. These are refused: what parameter_place
    /// refuses.
    [[nodiscard]] MHR_INLINE lora_inventory_matrices in(const tensor_ref<1>& buffer) const {
        return {a.in(buffer), b.in(buffer)};
    }

    /// Returns the place in a buffer that is only read.
    [[nodiscard]] MHR_INLINE lora_inventory in_const(const const_tensor_ref<1>& buffer) const {
        return {a.in_const(buffer), b.in_const(buffer)};
    }

    /// Returns the number of elements of both.
    [[nodiscard]] MHR_INLINE index_t size() const noexcept { return a.size() + b.size(); }
};

/// Lays tensors out one after the other. Each begins at a multiple of 32 elements from the start:
/// in a buffer that is aligned to 64 bytes, at such an address for every element type, so that
/// parameters in bf16 and moments in f32 share a layout. Fill a new buffer with zeros: what lies
/// between tensors stays zero then, in sums over ranks and in steps of an optimiser.
///
/// Place what is trained in another way (the logits, at a rate of their own) after the rest: it
/// begins at the `size()` before.
class parameter_layout {
  public:
    /// Elements; see above.
    static constexpr index_t alignment = 32;

    /// Places the next tensor: a router's logits [tasks, heads, modules], the modules of (IA)3, or
    /// what else the host trains. These are refused: a negative extent; more elements than an index
    /// counts.
    template <std::size_t Rank>
    MHR_INLINE parameter_place<Rank> place(const std::array<index_t, Rank>& extents) {
        argument_checks checks("parameter_layout::place");
        const parameter_place<Rank> result = append(checks, "extents", extents, size_);
        checks.raise();
        return result;
    }

    /// Places the next inventory: its a [heads, modules, in_features / heads, rank], then its b
    /// [heads, modules, rank, out_features / heads]. These are refused: what `place` refuses;
    /// features that the heads do not divide.
    MHR_INLINE inventory_place place_inventory(const lora_shape& shape) {
        argument_checks checks("parameter_layout::place_inventory");
        layout_details::check_heads(checks, shape);
        checks.raise();
        const index_t in_block = shape.in_features / shape.heads;
        const index_t out_block = shape.out_features / shape.heads;
        index_t end = size_; // both are placed or neither
        const inventory_place result{
            append<4>(checks, "shape", {shape.heads, shape.modules, in_block, shape.rank}, end),
            append<4>(checks, "shape", {shape.heads, shape.modules, shape.rank, out_block}, end)};
        checks.raise();
        size_ = end;
        return result;
    }

    /// Returns the number of elements so far, those between tensors and after the last one
    /// included, which is a multiple of the alignment.
    [[nodiscard]] MHR_INLINE index_t size() const noexcept { return size_; }

  private:
    template <std::size_t Rank>
    MHR_INLINE static parameter_place<Rank> append(argument_checks& checks, const char* argument,
                                                   const std::array<index_t, Rank>& extents,
                                                   index_t& end) {
        const parameter_place<Rank> result{end, extents};
        layout_details::append(checks, argument, extents.data(), Rank, alignment, end);
        return result;
    }

    index_t size_ = 0;
};

} // namespace mhr

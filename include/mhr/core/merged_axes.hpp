#pragma once

#include <array>
#include <cstddef>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Tensors whose number of axes is known at run time, as hosts have them, as views, whose is not.

namespace mhr {
inline namespace MHR_ISA {
namespace detail {

template <std::size_t Rank>
struct merged_axes {
    std::array<index_t, Rank> extents;
    std::array<index_t, Rank> strides;
    bool evenly_spaced; ///< whether the merged axis is one: otherwise no view shows the tensor
};

/// `count` axes seen as `Rank`. Of more, the leading ones become one: activations [sequences, rows,
/// features] are as two axes [sequences rows, features]. Of fewer, extents of 1 come first.
/// `extent_of(axis)` and `stride_of(axis)` are the tensor's, in elements.
template <std::size_t Rank, class Extent, class Stride>
merged_axes<Rank> merge_leading_axes(std::size_t count, Extent&& extent_of, Stride&& stride_of) {
    merged_axes<Rank> merged{{}, {}, true};
    merged.extents.fill(1);
    for (std::size_t axis = count; axis-- > 0;) {
        // Counted from the last: axes beyond the view's fall to its first.
        const std::size_t from_last = count - 1 - axis;
        const std::size_t to = from_last < Rank ? Rank - 1 - from_last : 0;
        const index_t extent = extent_of(axis);
        if (extent == 1) continue; // whatever its stride is
        index_t& merged_extent = merged.extents[to];
        if (merged_extent == 1)
            merged.strides[to] = stride_of(axis);
        else if (extent != 0 && merged_extent != 0)
            merged.evenly_spaced =
                merged.evenly_spaced && stride_of(axis) == merged_extent * merged.strides[to];
        merged_extent *= extent;
    }
    return merged;
}

} // namespace detail
} // namespace MHR_ISA
} // namespace mhr

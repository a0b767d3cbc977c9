#pragma once

#include <cstddef>
#include <vector>

#include <mhr/core/argument_checks.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// Tensors whose number of axes is known at run time, as hosts have them, as tensors of a rank that
/// the compiler knows.

namespace mhr {
inline namespace MHR_ISA {
namespace host_details {

/// The result of `merge_leading_axes`.
template <std::size_t Rank>
struct merged_axes {
    tensor_axes<Rank> axes{};   ///< of the result
    bool evenly_spaced = false; ///< whether the merged axis is one; else no `Rank` axes show it
};

/// `count` axes seen as `Rank`. Of more, the leading ones become one: activations [sequences, rows,
/// features] are as two axes [sequences rows, features]. Of fewer, extents of 1 come first.
/// `extent_of(axis)`, which are not negative, and `stride_of(axis)` are the tensor's, in elements.
template <std::size_t Rank, class Extent, class Stride>
merged_axes<Rank> merge_leading_axes(std::size_t count, Extent&& extent_of, Stride&& stride_of) {
    // Where it wraps, the tensor spans more than memory, and no stride of its own is equal.
    const auto wrapping_product = [](index_t a, index_t b) {
        return static_cast<index_t>(static_cast<std::size_t>(a) * static_cast<std::size_t>(b));
    };
    merged_axes<Rank> merged;
    merged.evenly_spaced = true;
    auto& [extents, strides] = merged.axes;
    extents.fill(1);
    for (std::size_t axis = count; axis-- > 0;) {
        // Axes are counted from the last, so that those beyond the result's fall to its first.
        const std::size_t from_last = count - 1 - axis;
        const std::size_t to = from_last < Rank ? Rank - 1 - from_last : 0;
        const index_t extent = extent_of(axis);
        if (extent == 1) continue; // whatever its stride is
        if (extents[to] == 1)
            strides[to] = stride_of(axis);
        else if (extent != 0 && extents[to] != 0)
            merged.evenly_spaced = merged.evenly_spaced &&
                                   stride_of(axis) == wrapping_product(extents[to], strides[to]);
        extents[to] = check_details::saturating_product(extents[to], extent);
    }
    return merged;
}

/// Does the same for a tensor that somebody else made. These fail: negative extents; axes that are
/// to become one and are not evenly spaced. The result is of use if `checks` passed.
template <std::size_t Rank, class Extent, class Stride>
tensor_axes<Rank> merge_leading_axes(argument_checks& checks, const char* argument,
                                     std::size_t count, Extent&& extent_of, Stride&& stride_of) {
    const auto text = [&](auto&& number_of) {
        std::vector<index_t> numbers(count);
        for (std::size_t axis = 0; axis < count; ++axis)
            numbers[axis] = number_of(axis);
        return check_details::text_of(numbers.data(), count);
    };
    for (std::size_t axis = 0; axis < count; ++axis)
        checks.expect(extent_of(axis) >= 0, argument, "extents of 0 or more",
                      [&] { return text(extent_of); });
    if (!checks.passed()) return {};
    const auto merged = host_details::merge_leading_axes<Rank>(count, extent_of, stride_of);
    checks.expect(merged.evenly_spaced, argument,
                  joined("elements spaced evenly, to be seen as ", Rank, " axes"), [&] {
                      return "strides " + text(stride_of) + " with extents " + text(extent_of);
                  });
    return merged.axes;
}

} // namespace host_details
} // namespace MHR_ISA
} // namespace mhr

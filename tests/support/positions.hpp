#pragma once

#include <array>
#include <cstddef>
#include <string>

#include <mhr/core/tensor_view.hpp>

/// \file
/// Walks through all elements of a view of any rank: what every comparator needs and no kernel.

namespace mhr::test {

template <std::size_t Rank>
using position = std::array<index_t, Rank>;

/// Calls `f(position)` for each position inside the extents, the last index fastest.
template <std::size_t Rank, class F>
void for_each_position(const std::array<index_t, Rank>& extents, F&& f) {
    for (index_t extent : extents)
        if (extent <= 0) return;
    position<Rank> at{};
    index_t* const index = at.data();
    const index_t* const end = extents.data();
    for (;;) {
        f(static_cast<const position<Rank>&>(at));
        std::size_t axis = Rank;
        while (axis > 0 && ++index[axis - 1] == end[axis - 1])
            index[--axis] = 0;
        if (axis == 0) return;
    }
}

/// Where an element lies, counted in elements from the view's pointer.
template <std::size_t Rank>
index_t offset_of(const position<Rank>& at, const std::array<index_t, Rank>& strides) {
    // By pointers: unoptimised, as under sanitizers, every operator of std::array is a call.
    const index_t* const index = at.data();
    const index_t* const stride = strides.data();
    index_t offset = 0;
    for (std::size_t axis = 0; axis < Rank; ++axis)
        offset += index[axis] * stride[axis];
    return offset;
}

template <class T, std::size_t Rank>
T& element(const tensor_view<T, Rank>& view, const position<Rank>& at) {
    return view.data()[offset_of(at, view.strides())];
}

template <std::size_t Rank>
std::string to_text(const std::array<index_t, Rank>& numbers) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < Rank; ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(numbers[axis]);
    return text + "]";
}

} // namespace mhr::test

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <mhr/core/tensor_view.hpp>

/// \file
/// A good view spoilt in every way that an entry point must notice. None of them may ever be read.

namespace mhr::test {

/// Wrong wherever they come: negative extents, no memory, misaligned memory, offsets that overflow.
template <class T, std::size_t Rank>
std::vector<tensor_view<T, Rank>> bad_inputs(const tensor_view<T, Rank>& good) {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    std::vector<tensor_view<T, Rank>> result{{nullptr, good.extents(), good.strides()}};
    if (alignof(T) > 1) {
        const auto odd = reinterpret_cast<std::uintptr_t>(good.data()) + 1;
        result.push_back({reinterpret_cast<T*>(odd), good.extents(), good.strides()});
    }
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        auto extents = good.extents();
        extents[axis] = -extents[axis];
        result.push_back({good.data(), extents, good.strides()});
        if (good.extent(axis) < 2) continue;
        auto strides = good.strides();
        strides[axis] = largest;
        result.push_back({good.data(), good.extents(), strides});
        strides[axis] = std::numeric_limits<index_t>::min();
        result.push_back({good.data(), good.extents(), strides});
        // Elements that fit an index where their bytes do not.
        if (sizeof(T) == 1) continue;
        strides[axis] = largest / static_cast<index_t>(sizeof(T)) / (good.extent(axis) - 1) + 1;
        result.push_back({good.data(), good.extents(), strides});
    }
    return result;
}

/// One element more and one less along each axis, and the absent view (no use for optional ones).
template <class T, std::size_t Rank>
std::vector<tensor_view<T, Rank>> wrong_extents(const tensor_view<T, Rank>& good) {
    std::vector<tensor_view<T, Rank>> result{{}};
    for (std::size_t axis = 0; axis < Rank; ++axis)
        for (index_t change : {-1, 1}) {
            auto extents = good.extents();
            extents[axis] += change;
            result.push_back({good.data(), extents, good.strides()});
        }
    return result;
}

/// Elements at the same address, as no output may have them.
template <class T, std::size_t Rank>
std::vector<tensor_view<T, Rank>> overlapping(const tensor_view<T, Rank>& good) {
    std::vector<tensor_view<T, Rank>> result;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        if (good.extent(axis) < 2) continue;
        auto strides = good.strides();
        strides[axis] = 0;
        result.push_back({good.data(), good.extents(), strides});
        for (std::size_t other = 0; other < Rank; ++other) {
            if (other == axis || good.extent(other) < 2) continue;
            strides[axis] = good.stride(other);
            result.push_back({good.data(), good.extents(), strides});
        }
    }
    return result;
}

} // namespace mhr::test

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <mhr/core/tensor_view.hpp>

#include "support/combinations.hpp"
#include "support/positions.hpp"

/// \file
/// Memory of a tensor as hosts lay it out, with sentinels round it and between its rows.

namespace mhr::test {

enum class layout {
    row_major,    ///< contiguous
    padded,       ///< row-major with a gap after every row, matrix, ...
    column_major, ///< the first index is the fastest
    reversed,     ///< row-major with negative strides: the view starts at the last element
    misaligned,   ///< row-major, one element off the alignment of vector registers
};

inline constexpr std::array all_layouts{
    layout::column_major,
    layout::reversed MHR_TEST_ALSO(layout::row_major, layout::padded, layout::misaligned)};

inline std::string name_of(layout order) {
    switch (order) {
    case layout::row_major:
        return "row-major";
    case layout::padded:
        return "padded";
    case layout::column_major:
        return "column-major";
    case layout::reversed:
        return "reversed";
    case layout::misaligned:
        return "misaligned";
    }
    return "?";
}

/// All bytes of a buffer at one moment. (Not std::byte, which the standard library fills and
/// compares one by one.)
using snapshot = std::vector<unsigned char>;

/// Owns a tensor of any extents and layout. Everything is filled with signalling NaN, elements too:
/// a kernel that reads what it must not spoils its result, and one that writes where it must not
/// changes bits, even if it writes back a sum with what was there (which makes the NaN quiet).
template <class T, std::size_t Rank>
class guarded_buffer {
  public:
    explicit guarded_buffer(const std::array<index_t, Rank>& extents,
                            layout order = layout::row_major)
        : extents_(extents) {
        index_t reach = 1; // elements between the first and the end of the last, gaps included
        const auto stride_of_next_axis = [&](std::size_t axis) {
            strides_[axis] = reach;
            reach *= extents[axis] > 1 ? extents[axis] : 1;
            if (order == layout::padded) reach += gap;
        };
        for (std::size_t axis = 0; axis < Rank; ++axis)
            stride_of_next_axis(order == layout::column_major ? axis : Rank - 1 - axis);

        start_ = guard + (order == layout::misaligned ? 1 : 0);
        bytes_.resize(static_cast<std::size_t>(2 * guard + 1 + reach) * sizeof(T) + alignment);
        const T sentinel = poison();
        unsigned char* at = address(0);
        for (index_t left = slots(); left > 0; --left, at += sizeof(T))
            std::memcpy(at, &sentinel, sizeof(T));
        if (order == layout::reversed)
            for (std::size_t axis = 0; axis < Rank; ++axis) {
                if (extents[axis] > 1) start_ += (extents[axis] - 1) * strides_[axis];
                strides_[axis] = -strides_[axis];
            }
        untouched_ = bytes_;
    }

    guarded_buffer(const guarded_buffer&) = delete; // views point into it
    guarded_buffer& operator=(const guarded_buffer&) = delete;

    [[nodiscard]] tensor_view<T, Rank> view() {
        return {static_cast<T*>(static_cast<void*>(address(start_))), extents_, strides_};
    }
    [[nodiscard]] tensor_view<const T, Rank> const_view() const {
        return const_cast<guarded_buffer*>(this)->view();
    }

    template <class... Index>
    T& operator()(Index... index) {
        return view()(index...);
    }

    /// Sets all elements.
    void fill(const T& value) {
        const auto elements = view();
        for_each_position(extents_,
                          [&](const position<Rank>& at) { element(elements, at) = value; });
    }

    /// True if every byte that belongs to no element is as it was made.
    [[nodiscard]] bool intact() const {
        snapshot expected = untouched_;
        for_each_position(extents_, [&](const position<Rank>& at) {
            const std::size_t first = byte_of(start_ + offset_of(at, strides_));
            std::memcpy(expected.data() + first, bytes_.data() + first, sizeof(T));
        });
        return expected == bytes_;
    }

    /// All bytes now, for `unchanged_since`: outputs must not be touched when an input is refused.
    [[nodiscard]] snapshot take_snapshot() const { return bytes_; }
    [[nodiscard]] bool unchanged_since(const snapshot& before) const { return bytes_ == before; }

  private:
    static constexpr std::size_t alignment = 64;
    static constexpr index_t guard = 64; // elements, so that the first element keeps the alignment
    static constexpr index_t gap = 3;

    static T poison() {
        if constexpr (std::numeric_limits<T>::has_signaling_NaN)
            return std::numeric_limits<T>::signaling_NaN();
        else
            return static_cast<T>(0x55);
    }

    [[nodiscard]] index_t slots() const {
        return static_cast<index_t>((bytes_.size() - alignment) / sizeof(T));
    }
    [[nodiscard]] std::size_t byte_of(index_t slot) const {
        const auto base = reinterpret_cast<std::uintptr_t>(bytes_.data());
        const std::size_t to_alignment = (alignment - base % alignment) % alignment;
        return to_alignment + static_cast<std::size_t>(slot) * sizeof(T);
    }
    unsigned char* address(index_t slot) { return bytes_.data() + byte_of(slot); }

    std::array<index_t, Rank> extents_;
    std::array<index_t, Rank> strides_{};
    index_t start_ = 0;
    snapshot bytes_{};
    snapshot untouched_{};
};

} // namespace mhr::test

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_ref.hpp>

#include "support/element_access.hpp"
#include "support/guarded_buffer.hpp"
#include "support/positions.hpp"
#include "support/random_tensor.hpp"

/// \file
/// A tensor of any element type and layout, as hosts lay it out, with sentinels round it and
/// between its rows.

namespace mhr::test {

/// Every element type; and the two in which sums are kept.
inline constexpr std::array all_element_types{element_type::f32, element_type::bf16,
                                              element_type::f16, element_type::f64};
inline constexpr std::array sum_types{element_type::f32, element_type::f64};

/// Owns a tensor of any extents, element type and layout. Everything is filled with signalling NaN,
/// elements too: a kernel that reads what it must not spoils its result, and one that writes where
/// it must not changes bits, even if it writes back a sum with what was there (which makes the NaN
/// quiet).
template <std::size_t Rank>
class guarded_tensor {
  public:
    guarded_tensor(element_type type, const std::array<index_t, Rank>& extents,
                   layout order = layout::row_major)
        : type_(type), size_(size_of(type)), extents_(extents) {
        index_t reach = 1; // elements between the first and the end of the last, gaps included
        const auto stride_of_next_axis = [&](std::size_t axis) {
            strides_[axis] = reach;
            reach *= extents[axis] > 1 ? extents[axis] : 1;
            if (order == layout::padded) reach += gap;
        };
        for (std::size_t axis = 0; axis < Rank; ++axis)
            stride_of_next_axis(order == layout::column_major ? axis : Rank - 1 - axis);

        start_ = guard + (order == layout::misaligned ? 1 : 0);
        const auto places = static_cast<std::size_t>(2 * guard + 1 + reach);
        bytes_.resize(places * size_ + alignment);
        const std::uint64_t sentinel = signalling_nan(type);
        for (std::size_t place = 0; place < places; ++place)
            std::memcpy(address(static_cast<index_t>(place)), &sentinel, size_);
        if (order == layout::reversed)
            for (std::size_t axis = 0; axis < Rank; ++axis) {
                if (extents[axis] > 1) start_ += (extents[axis] - 1) * strides_[axis];
                strides_[axis] = -strides_[axis];
            }
        untouched_ = bytes_;
    }

    guarded_tensor(const guarded_tensor&) = delete; // tensors point into it
    guarded_tensor& operator=(const guarded_tensor&) = delete;

    [[nodiscard]] tensor_ref<Rank> ref() { return {address(start_), type_, extents_, strides_}; }
    [[nodiscard]] const_tensor_ref<Rank> const_ref() const {
        return const_cast<guarded_tensor*>(this)->ref();
    }
    operator tensor_ref<Rank>() { return ref(); }                   // NOLINT: implicit
    operator const_tensor_ref<Rank>() const { return const_ref(); } // NOLINT: implicit

    [[nodiscard]] element_type type() const { return type_; }
    [[nodiscard]] const std::array<index_t, Rank>& extents() const { return extents_; }

    /// Sets all elements.
    void fill(double value) {
        transform_elements(ref(), [&](double) { return value; });
    }

    /// Sets all elements to random numbers in [low, high), the same for every type and layout but
    /// for their rounding.
    void fill(random_source& random, double low = -1, double high = 1) {
        transform_elements(ref(), [&](double) { return random.uniform(low, high); });
    }
    void fill(random_source&& random, double low = -1, double high = 1) { fill(random, low, high); }

    /// True if every byte that belongs to no element is as it was made.
    [[nodiscard]] bool intact() const {
        snapshot expected = untouched_;
        for_each_position(extents_, [&](const position<Rank>& at) {
            const std::size_t first = byte_of(start_ + offset_of(at, strides_));
            std::memcpy(expected.data() + first, bytes_.data() + first, size_);
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

    static std::uint64_t signalling_nan(element_type type) {
        switch (type) {
        case element_type::f64:
            return 0x7FF4000000000000U;
        case element_type::f32:
            return 0x7FA00000U;
        case element_type::bf16:
            return 0x7FA0U;
        case element_type::f16:
            return 0x7D00U;
        }
        return 0;
    }

    [[nodiscard]] std::size_t byte_of(index_t place) const {
        const auto base = reinterpret_cast<std::uintptr_t>(bytes_.data());
        const std::size_t to_alignment = (alignment - base % alignment) % alignment;
        return to_alignment + static_cast<std::size_t>(place) * size_;
    }
    unsigned char* address(index_t place) { return bytes_.data() + byte_of(place); }

    element_type type_;
    std::size_t size_;
    std::array<index_t, Rank> extents_;
    std::array<index_t, Rank> strides_{};
    index_t start_ = 0;
    snapshot bytes_{};
    snapshot untouched_{};
};

} // namespace mhr::test

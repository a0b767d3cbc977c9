#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// `tensor_axes<Rank>`: extents and strides, and what becomes of them when an axis is cut, split or
/// moved. `tensor_view<T, Rank>`: memory whose element type the compiler knows. Entry points take
/// `tensor_ref` (core/tensor_ref.hpp), to which every view converts.

namespace mhr {

/// The type of extents, strides and positions. It is signed, so that strides may be negative.
using index_t = std::ptrdiff_t;

/// Extents and element strides of `Rank` axes.
template <std::size_t Rank>
struct tensor_axes {
    std::array<index_t, Rank> extents{}; ///< numbers of elements
    std::array<index_t, Rank> strides{}; ///< elements between neighbours

    /// Dense axes in row-major order: the last index is the fastest.
    MHR_INLINE static constexpr tensor_axes
    row_major(const std::array<index_t, Rank>& extents) noexcept {
        tensor_axes axes{extents, {}};
        index_t stride = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            axes.strides[axis] = stride;
            // The product wraps for absurd extents, which the entry points refuse.
            stride = static_cast<index_t>(static_cast<std::size_t>(stride) *
                                          static_cast<std::size_t>(extents[axis]));
        }
        return axes;
    }

    /// Returns the number of elements.
    [[nodiscard]] MHR_INLINE constexpr index_t size() const noexcept {
        index_t product = 1;
        for (index_t extent : extents)
            product *= extent;
        return product;
    }

    /// True if some extent is 0.
    [[nodiscard]] MHR_INLINE constexpr bool empty() const noexcept {
        for (index_t extent : extents)
            if (extent == 0) return true;
        return false;
    }

    /// True if the elements lie densely in row-major order.
    [[nodiscard]] MHR_INLINE constexpr bool is_contiguous() const noexcept {
        index_t stride = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            if (extents[axis] != 1 && strides[axis] != stride) return false;
            stride *= extents[axis];
        }
        return true;
    }

    /// Returns the number of elements from the first one to the one at the given indices.
    template <class... Index>
    [[nodiscard]] MHR_INLINE constexpr index_t offset_of(Index... index) const noexcept {
        static_assert(sizeof...(Index) == Rank, "mhr: one index per dimension");
        // A pointer, because unoptimised builds call every operator of std::array.
        const index_t* stride = strides.data();
        index_t offset = 0;
        ((offset += static_cast<index_t>(index) * *stride++), ...);
        return offset;
    }

    /// Returns all axes but one.
    [[nodiscard]] MHR_INLINE constexpr tensor_axes<Rank - 1>
    without(std::size_t axis) const noexcept {
        static_assert(Rank >= 2, "mhr: a slice of a vector is an element: use operator()");
        tensor_axes<Rank - 1> result;
        for (std::size_t from = 0, to = 0; from < Rank; ++from) {
            if (from == axis) continue;
            result.extents[to] = extents[from];
            result.strides[to] = strides[from];
            ++to;
        }
        return result;
    }

    /// Returns the axes with another extent of one axis.
    [[nodiscard]] MHR_INLINE constexpr tensor_axes with_extent(std::size_t axis,
                                                               index_t extent) const noexcept {
        tensor_axes result = *this;
        result.extents[axis] = extent;
        return result;
    }

    /// Returns the axes with two of them exchanged.
    [[nodiscard]] MHR_INLINE constexpr tensor_axes exchanged(std::size_t axis0,
                                                             std::size_t axis1) const noexcept {
        tensor_axes result = *this;
        result.extents[axis0] = extents[axis1];
        result.extents[axis1] = extents[axis0];
        result.strides[axis0] = strides[axis1];
        result.strides[axis1] = strides[axis0];
        return result;
    }

    /// Cuts an axis into `count` equal blocks: [.., n, ..] becomes [.., count, n / count, ..].
    [[nodiscard]] MHR_INLINE constexpr tensor_axes<Rank + 1> split(std::size_t axis,
                                                                   index_t count) const noexcept {
        tensor_axes<Rank + 1> result;
        for (std::size_t from = 0; from < Rank; ++from) {
            const std::size_t to = from > axis ? from + 1 : from;
            result.extents[to] = extents[from];
            result.strides[to] = strides[from];
        }
        const index_t inner = count == 0 ? 0 : extents[axis] / count;
        result.extents[axis] = count;
        result.extents[axis + 1] = inner;
        result.strides[axis] = inner * strides[axis];
        result.strides[axis + 1] = strides[axis];
        return result;
    }

    /// Returns the axes with a new one of extent 1 in front.
    [[nodiscard]] MHR_INLINE constexpr tensor_axes<Rank + 1> prepended() const noexcept {
        tensor_axes<Rank + 1> result;
        result.extents[0] = 1;
        for (std::size_t axis = 0; axis < Rank; ++axis) {
            result.extents[axis + 1] = extents[axis];
            result.strides[axis + 1] = strides[axis];
        }
        return result;
    }
};

namespace tensor_details {

/// The questions that every kind of tensor answers from its `data()` and `axes()`.
template <class Tensor, std::size_t Rank>
class strided {
    static_assert(Rank >= 1, "mhr: a tensor has at least one dimension");

  public:
    using extents_type = std::array<index_t, Rank>; ///< also the type of all strides

    /// These return the numbers of elements along the axes, and the elements between neighbours, of
    /// all axes or of one.
    /// @{
    [[nodiscard]] MHR_INLINE constexpr const extents_type& extents() const noexcept {
        return self().axes().extents;
    }
    [[nodiscard]] MHR_INLINE constexpr const extents_type& strides() const noexcept {
        return self().axes().strides;
    }
    [[nodiscard]] MHR_INLINE constexpr index_t extent(std::size_t axis) const noexcept {
        return extents()[axis];
    }
    [[nodiscard]] MHR_INLINE constexpr index_t stride(std::size_t axis) const noexcept {
        return strides()[axis];
    }
    /// @}

    /// Returns the number of elements.
    [[nodiscard]] MHR_INLINE constexpr index_t size() const noexcept {
        return self().axes().size();
    }

    /// True if there is nothing: no memory and no elements.
    [[nodiscard]] MHR_INLINE constexpr bool absent() const noexcept {
        return self().data() == nullptr && self().axes().empty();
    }

    /// True if the elements lie densely in row-major order.
    [[nodiscard]] MHR_INLINE constexpr bool is_contiguous() const noexcept {
        return self().axes().is_contiguous();
    }

  private:
    MHR_INLINE constexpr const Tensor& self() const noexcept {
        return static_cast<const Tensor&>(*this);
    }
};

} // namespace tensor_details

/// A pointer, extents and element strides; neither owns nor copies, and is trivially copyable.
/// Strides are counted in elements and may be anything for an input: padded rows, column-major,
/// negative, or 0 (one element repeated). Outputs must not place two elements at one address.
///
/// A default-constructed view is *absent*: as an optional argument it means "not wanted", and is
/// written `{}`. So is a pair of matrices of which neither is wanted; where one of the two is, the
/// pair is called by its type, as in `lora_inventory<float>{d_a, {}}`.
/// Nothing is checked here; the entry points check their arguments once (core/argument_checks.hpp).
template <class T, std::size_t Rank>
class tensor_view : public tensor_details::strided<tensor_view<T, Rank>, Rank> {
  public:
    using element_type = T;                         ///< const where elements may only be read
    using value_type = std::remove_const_t<T>;      ///< what an element holds
    using extents_type = std::array<index_t, Rank>; ///< also the type of all strides

    /// The absent view.
    constexpr tensor_view() noexcept = default;

    /// Contiguous memory in row-major order: the last index is the fastest.
    MHR_INLINE constexpr tensor_view(T* data, const extents_type& extents) noexcept
        : tensor_view(tensor_axes<Rank>::row_major(extents), data) {}

    /// Memory with a distance between neighbours along each axis, in elements.
    MHR_INLINE constexpr tensor_view(T* data, const extents_type& extents,
                                     const extents_type& strides) noexcept
        : tensor_view(tensor_axes<Rank>{extents, strides}, data) {}

    /// Memory with given axes. (They come first, so that braces never mean them.)
    MHR_INLINE constexpr tensor_view(const tensor_axes<Rank>& axes, T* data) noexcept
        : data_(data), axes_(axes) {}

    /// A view of mutable elements is a view of constant ones.
    template <class U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
    MHR_INLINE constexpr tensor_view(const tensor_view<U, Rank>& other) noexcept
        : data_(other.data()), axes_(other.axes()) {}

    /// Returns the address of the element whose indices are all 0.
    [[nodiscard]] MHR_INLINE constexpr T* data() const noexcept { return data_; }

    /// Returns extents and strides.
    [[nodiscard]] MHR_INLINE constexpr const tensor_axes<Rank>& axes() const noexcept {
        return axes_;
    }

    /// Returns the element at the given indices, which must be inside the extents.
    template <class... Index>
    [[nodiscard]] MHR_INLINE constexpr T& operator()(Index... index) const noexcept {
        return data_[axes_.offset_of(index...)];
    }

    /// Returns the view at one index of an axis, which disappears.
    [[nodiscard]] MHR_INLINE constexpr tensor_view<T, Rank - 1>
    slice(std::size_t axis, index_t index) const noexcept {
        return {axes_.without(axis), offset_by(index * axes_.strides[axis])};
    }

    /// Returns the part [first, first + count) of an axis.
    [[nodiscard]] MHR_INLINE constexpr tensor_view block(std::size_t axis, index_t first,
                                                         index_t count) const noexcept {
        return {axes_.with_extent(axis, count), offset_by(first * axes_.strides[axis])};
    }

    /// Returns the same elements with two axes exchanged.
    [[nodiscard]] MHR_INLINE constexpr tensor_view transpose(std::size_t axis0,
                                                             std::size_t axis1) const noexcept {
        return {axes_.exchanged(axis0, axis1), data_};
    }

    /// Cuts an axis into `count` equal blocks: [.., n, ..] becomes [.., count, n / count, ..].
    [[nodiscard]] MHR_INLINE constexpr tensor_view<T, Rank + 1>
    split(std::size_t axis, index_t count) const noexcept {
        return {axes_.split(axis, count), data_};
    }

    /// Returns the same elements with a new axis of extent 1 in front.
    [[nodiscard]] MHR_INLINE constexpr tensor_view<T, Rank + 1> prepend_axis() const noexcept {
        return {axes_.prepended(), data_};
    }

  private:
    // An absent or empty view has no address to move: null plus an offset is undefined.
    MHR_INLINE constexpr T* offset_by(index_t offset) const noexcept {
        return data_ == nullptr ? nullptr : data_ + offset;
    }

    T* data_ = nullptr;
    tensor_axes<Rank> axes_{};
};

/// Returns the view with constant elements, as a kernel takes an input.
template <class T, std::size_t Rank>
MHR_INLINE constexpr tensor_view<const T, Rank>
as_const(const tensor_view<T, Rank>& view) noexcept {
    return view;
}

} // namespace mhr

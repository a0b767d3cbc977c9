#pragma once

#include <array>
#include <cstddef>
#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// `tensor_view<T, Rank>`: how a host shows its memory to the library.

namespace mhr {
inline namespace MHR_ISA {

/// Extents, strides and positions. Signed, so that strides may be negative.
using index_t = std::ptrdiff_t;

namespace detail {
/// A number as the bound of an array or the size of a container, which are unsigned. (A template,
/// since GCC calls a cast useless where the types happen to be the same.)
template <class Number>
constexpr std::size_t as_size(Number number) noexcept {
    return static_cast<std::size_t>(number);
}
} // namespace detail

/// A pointer, extents and element strides; neither owns nor copies, and is trivially copyable.
/// Strides are counted in elements and may be anything for an input: padded rows, column-major,
/// negative, or 0 (one element repeated). Outputs must not place two elements at one address.
///
/// A default-constructed view is *absent*: as an optional argument it means "not wanted", and is
/// written `{}`. So is a pair of matrices of which neither is wanted; where one of the two is, the
/// pair is called by its type, as in `lora_inventory<float>{d_a, {}}`.
/// Nothing is checked here; the entry points check their arguments once (core/checks.hpp).
template <class T, std::size_t Rank>
class tensor_view {
    static_assert(Rank >= 1, "mhr: a view has at least one dimension");

  public:
    using element_type = T;                         ///< const where they may only be read
    using value_type = std::remove_const_t<T>;      ///< what an element holds
    using extents_type = std::array<index_t, Rank>; ///< and type of strides

    /// The absent view.
    constexpr tensor_view() noexcept = default;

    /// Contiguous, row-major (the last index is the fastest).
    constexpr tensor_view(T* data, const extents_type& extents) noexcept
        : data_(data), extents_(extents) {
        index_t stride = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            strides_[axis] = stride;
            // Wraps for absurd extents, which the checks of the entry points refuse.
            stride = static_cast<index_t>(static_cast<std::size_t>(stride) *
                                          static_cast<std::size_t>(extents[axis]));
        }
    }

    /// With a distance between neighbours along each axis, in elements.
    constexpr tensor_view(T* data, const extents_type& extents,
                          const extents_type& strides) noexcept
        : data_(data), extents_(extents), strides_(strides) {}

    /// A view of mutable elements is a view of constant ones.
    template <class U, std::enable_if_t<std::is_same_v<const U, T>, int> = 0>
    constexpr tensor_view(const tensor_view<U, Rank>& other) noexcept
        : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

    /// Address of the element whose indices are all 0.
    [[nodiscard]] constexpr T* data() const noexcept { return data_; }

    /// Numbers of elements along the axes, and elements between neighbours; of all or one.
    /// @{
    [[nodiscard]] constexpr const extents_type& extents() const noexcept { return extents_; }
    [[nodiscard]] constexpr const extents_type& strides() const noexcept { return strides_; }
    [[nodiscard]] constexpr index_t extent(std::size_t axis) const noexcept {
        return extents_[axis];
    }
    [[nodiscard]] constexpr index_t stride(std::size_t axis) const noexcept {
        return strides_[axis];
    }
    /// @}

    /// Number of elements.
    [[nodiscard]] constexpr index_t size() const noexcept {
        index_t product = 1;
        for (index_t extent : extents_)
            product *= extent;
        return product;
    }

    /// True for a view of nothing: no memory and no elements.
    [[nodiscard]] constexpr bool absent() const noexcept {
        if (data_ != nullptr) return false;
        for (index_t extent : extents_)
            if (extent == 0) return true;
        return false;
    }

    /// True if the elements lie densely in row-major order.
    [[nodiscard]] constexpr bool is_contiguous() const noexcept {
        index_t stride = 1;
        for (std::size_t axis = Rank; axis-- > 0;) {
            if (extents_[axis] != 1 && strides_[axis] != stride) return false;
            stride *= extents_[axis];
        }
        return true;
    }

    /// The element at the given indices, which must be inside the extents.
    template <class... Index>
    [[nodiscard]] constexpr T& operator()(Index... index) const noexcept {
        static_assert(sizeof...(Index) == Rank, "mhr: one index per dimension");
        // By a pointer: unoptimised builds call every operator of std::array.
        const index_t* stride = strides_.data();
        index_t offset = 0;
        ((offset += static_cast<index_t>(index) * *stride++), ...);
        return data_[offset];
    }

    /// The view at one index of an axis, which disappears.
    [[nodiscard]] constexpr tensor_view<T, Rank - 1> slice(std::size_t axis,
                                                           index_t index) const noexcept {
        static_assert(Rank >= 2, "mhr: a slice of a vector is an element: use operator()");
        std::array<index_t, Rank - 1> extents{};
        std::array<index_t, Rank - 1> strides{};
        for (std::size_t from = 0, to = 0; from < Rank; ++from) {
            if (from == axis) continue;
            extents[to] = extents_[from];
            strides[to] = strides_[from];
            ++to;
        }
        return {offset_by(index * strides_[axis]), extents, strides};
    }

    /// The part [first, first + count) of an axis.
    [[nodiscard]] constexpr tensor_view block(std::size_t axis, index_t first,
                                              index_t count) const noexcept {
        tensor_view result = *this;
        result.data_ = offset_by(first * strides_[axis]);
        result.extents_[axis] = count;
        return result;
    }

    /// The same elements with two axes exchanged.
    [[nodiscard]] constexpr tensor_view transpose(std::size_t axis0,
                                                  std::size_t axis1) const noexcept {
        tensor_view result = *this;
        result.extents_[axis0] = extents_[axis1];
        result.extents_[axis1] = extents_[axis0];
        result.strides_[axis0] = strides_[axis1];
        result.strides_[axis1] = strides_[axis0];
        return result;
    }

    /// An axis seen as `parts` equal blocks: [.., n, ..] becomes [.., parts, n / parts, ..].
    [[nodiscard]] constexpr tensor_view<T, Rank + 1> split(std::size_t axis,
                                                           index_t parts) const noexcept {
        std::array<index_t, Rank + 1> extents{};
        std::array<index_t, Rank + 1> strides{};
        for (std::size_t from = 0; from < Rank; ++from) {
            const std::size_t to = from > axis ? from + 1 : from;
            extents[to] = extents_[from];
            strides[to] = strides_[from];
        }
        const index_t inner = parts == 0 ? 0 : extents_[axis] / parts;
        extents[axis] = parts;
        extents[axis + 1] = inner;
        strides[axis] = inner * strides_[axis];
        strides[axis + 1] = strides_[axis];
        return {data_, extents, strides};
    }

    /// The same elements with a new axis of extent 1 in front.
    [[nodiscard]] constexpr tensor_view<T, Rank + 1> prepend_axis() const noexcept {
        std::array<index_t, Rank + 1> extents{1};
        std::array<index_t, Rank + 1> strides{0};
        for (std::size_t axis = 0; axis < Rank; ++axis) {
            extents[axis + 1] = extents_[axis];
            strides[axis + 1] = strides_[axis];
        }
        return {data_, extents, strides};
    }

  private:
    // An absent or empty view has no address to move: null plus an offset is undefined.
    constexpr T* offset_by(index_t offset) const noexcept {
        return data_ == nullptr ? nullptr : data_ + offset;
    }

    T* data_ = nullptr;
    extents_type extents_{};
    extents_type strides_{};
};

/// The same view with constant elements: what a kernel takes an input as.
template <class T, std::size_t Rank>
constexpr tensor_view<const T, Rank> as_const(const tensor_view<T, Rank>& view) noexcept {
    return view;
}

} // namespace MHR_ISA
} // namespace mhr

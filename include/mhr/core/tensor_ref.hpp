#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <type_traits>

#include <mhr/config.hpp>
#include <mhr/core/element_type.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// `tensor_ref<Rank>` and `const_tensor_ref<Rank>`: how a host shows its memory to the library. The
/// element type is data, so that one function serves all of them.

namespace mhr {

/// A pointer, an element type, extents and element strides; neither owns nor copies, and is
/// trivially copyable. `Void` is `void` where elements may be written, else `const void`. Strides
/// are those of `tensor_view`.
///
/// A default-constructed one is *absent*: as an optional argument it means "not wanted". Nothing is
/// checked here; the entry points check their arguments once (core/argument_checks.hpp).
template <class Void, std::size_t Rank>
class basic_tensor_ref : public tensor_details::strided<basic_tensor_ref<Void, Rank>, Rank> {
    static constexpr bool is_const = std::is_const_v<Void>;
    using byte = std::conditional_t<is_const, const std::byte, std::byte>;
    template <class T>
    using qualified = std::conditional_t<is_const, const T, T>;

    /// Pointers that carry an element type, and may be seen as Void.
    template <class T>
    using if_element =
        std::enable_if_t<!std::is_void_v<T> && (is_const || !std::is_const_v<T>), int>;

  public:
    using extents_type = std::array<index_t, Rank>; ///< also the type of all strides

    /// The absent tensor.
    constexpr basic_tensor_ref() noexcept = default;

    /// Memory whose type the pointer tells: contiguous in row-major order, or with a distance
    /// between neighbours along each axis, in elements.
    /// @{
    template <class T, if_element<T> = 0>
    MHR_INLINE constexpr basic_tensor_ref(T* data, const extents_type& extents) noexcept
        : basic_tensor_ref(tensor_axes<Rank>::row_major(extents), data, element_type_of_v<T>) {}
    template <class T, if_element<T> = 0>
    MHR_INLINE constexpr basic_tensor_ref(T* data, const extents_type& extents,
                                          const extents_type& strides) noexcept
        : basic_tensor_ref(tensor_axes<Rank>{extents, strides}, data, element_type_of_v<T>) {}
    /// @}

    /// Memory of a type that is known at run time alone, such as `uint16_t` from a file.
    /// @{
    MHR_INLINE constexpr basic_tensor_ref(Void* data, element_type type,
                                          const extents_type& extents) noexcept
        : basic_tensor_ref(tensor_axes<Rank>::row_major(extents), data, type) {}
    MHR_INLINE constexpr basic_tensor_ref(Void* data, element_type type,
                                          const extents_type& extents,
                                          const extents_type& strides) noexcept
        : basic_tensor_ref(tensor_axes<Rank>{extents, strides}, data, type) {}
    /// @}

    /// Memory with given axes. (They come first, so that braces never mean them.)
    MHR_INLINE constexpr basic_tensor_ref(const tensor_axes<Rank>& axes, Void* data,
                                          element_type type) noexcept
        : data_(data), axes_(axes), type_(type) {}

    /// Every view is such a tensor.
    template <class T, if_element<T> = 0>
    MHR_INLINE constexpr basic_tensor_ref(const tensor_view<T, Rank>& view) noexcept
        : basic_tensor_ref(view.axes(), view.data(), element_type_of_v<T>) {}

    /// A tensor that may be written may be read.
    template <class V, std::enable_if_t<is_const && std::is_same_v<V, void>, int> = 0>
    MHR_INLINE constexpr basic_tensor_ref(const basic_tensor_ref<V, Rank>& other) noexcept
        : basic_tensor_ref(other.axes(), other.data(), other.type()) {}

    /// Returns the address of the element whose indices are all 0.
    [[nodiscard]] MHR_INLINE constexpr Void* data() const noexcept { return data_; }

    /// Returns extents and strides.
    [[nodiscard]] MHR_INLINE constexpr const tensor_axes<Rank>& axes() const noexcept {
        return axes_;
    }

    /// Returns the type of the elements.
    [[nodiscard]] MHR_INLINE constexpr element_type type() const noexcept { return type_; }

    /// Returns a view of the same elements as T, which must have this element type.
    template <class T>
    [[nodiscard]] MHR_INLINE constexpr tensor_view<qualified<T>, Rank> as() const noexcept {
        assert(this->absent() || type_ == element_type_of_v<T>);
        return {axes_, static_cast<qualified<T>*>(data_)};
    }

    /// Returns the address of the element at the given indices, which must be inside the extents.
    template <class... Index>
    [[nodiscard]] MHR_INLINE Void* address_of(Index... index) const noexcept {
        return offset_by(axes_.offset_of(index...));
    }

    /// Returns the tensor at one index of an axis, which disappears.
    [[nodiscard]] MHR_INLINE constexpr basic_tensor_ref<Void, Rank - 1>
    slice(std::size_t axis, index_t index) const noexcept {
        return {axes_.without(axis), offset_by(index * axes_.strides[axis]), type_};
    }

    /// Returns the part [first, first + count) of an axis.
    [[nodiscard]] MHR_INLINE constexpr basic_tensor_ref block(std::size_t axis, index_t first,
                                                              index_t count) const noexcept {
        return {axes_.with_extent(axis, count), offset_by(first * axes_.strides[axis]), type_};
    }

    /// Returns the same elements with two axes exchanged.
    [[nodiscard]] MHR_INLINE constexpr basic_tensor_ref
    transpose(std::size_t axis0, std::size_t axis1) const noexcept {
        return {axes_.exchanged(axis0, axis1), data_, type_};
    }

    /// Cuts an axis into `count` equal blocks: [.., n, ..] becomes [.., count, n / count, ..].
    [[nodiscard]] MHR_INLINE constexpr basic_tensor_ref<Void, Rank + 1>
    split(std::size_t axis, index_t count) const noexcept {
        return {axes_.split(axis, count), data_, type_};
    }

    /// Returns the same elements with a new axis of extent 1 in front.
    [[nodiscard]] MHR_INLINE constexpr basic_tensor_ref<Void, Rank + 1>
    prepend_axis() const noexcept {
        return {axes_.prepended(), data_, type_};
    }

  private:
    // An absent or empty tensor has no address to move: null plus an offset is undefined.
    MHR_INLINE constexpr Void* offset_by(index_t offset) const noexcept {
        if (data_ == nullptr) return nullptr;
        return static_cast<byte*>(data_) + offset * static_cast<index_t>(size_of(type_));
    }

    Void* data_ = nullptr;
    tensor_axes<Rank> axes_{};
    element_type type_ = element_type::f32;
};

/// Elements that may be written.
template <std::size_t Rank>
using tensor_ref = basic_tensor_ref<void, Rank>;

/// Elements that are only read.
template <std::size_t Rank>
using const_tensor_ref = basic_tensor_ref<const void, Rank>;

} // namespace mhr

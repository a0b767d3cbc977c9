#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include <mhr/core/error.hpp>
#include <mhr/core/tensor_view.hpp>

/// \file
/// The checks of the entry points. Every message names function, argument, expected and actual.

namespace mhr {

/// Raises "function: argument: expected EXPECTED, got ACTUAL" unless `condition` holds. The texts
/// are made by callables, so that the good path builds no string.
template <class Expected, class Actual>
void require(bool condition, const char* function, const char* argument, Expected&& expected,
             Actual&& actual) {
    if (!condition)
        raise(std::string(function) + ": " + argument + ": expected " + expected() + ", got " +
              actual());
}

namespace detail {

template <std::size_t Rank>
std::string to_text(const std::array<index_t, Rank>& numbers) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < Rank; ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(numbers[axis]);
    return text + "]";
}

/// a * b of two numbers that are not negative, or the largest index if that overflows.
constexpr index_t saturating_product(index_t a, index_t b) noexcept {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    // Nearly always; the division below is what small layers would notice.
    constexpr index_t small = index_t(1) << (std::numeric_limits<index_t>::digits / 2);
    if (a < small && b < small) return a * b;
    return a != 0 && b > largest / a ? largest : a * b;
}

/// |stride| * (extent - 1), saturating: how far an axis reaches.
constexpr index_t axis_reach(index_t extent, index_t stride) noexcept {
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    if (extent <= 1) return 0;
    if (stride < -largest) return largest;
    return saturating_product(extent - 1, stride < 0 ? -stride : stride);
}

/// True if the offsets of all elements, in bytes, fit an index.
template <class T, std::size_t Rank>
constexpr bool is_addressable(const tensor_view<T, Rank>& view) noexcept {
    constexpr index_t largest =
        std::numeric_limits<index_t>::max() / static_cast<index_t>(sizeof(T));
    index_t elements = 1;
    index_t reach = 0;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        elements = saturating_product(elements, view.extent(axis));
        const index_t step = axis_reach(view.extent(axis), view.stride(axis));
        reach = step > largest - reach ? largest : reach + step;
    }
    return elements < largest && reach < largest;
}

/// True if no two elements share an address, decided by nesting: each axis's stride exceeds the
/// reach of all axes with smaller strides. (Sufficient, and true of every layout that arrays,
/// padding and transposition give.)
template <class T, std::size_t Rank>
constexpr bool is_nested(const tensor_view<T, Rank>& view) noexcept {
    const auto stride = [&](std::size_t axis) {
        return view.stride(axis) < 0 ? -view.stride(axis) : view.stride(axis);
    };
    for (index_t extent : view.extents())
        if (extent == 0) return true;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        if (view.extent(axis) == 1) continue;
        index_t reach = 0;
        for (std::size_t other = 0; other < Rank; ++other)
            if (other != axis && view.extent(other) != 1 &&
                (stride(other) < stride(axis) || (stride(other) == stride(axis) && other < axis)))
                reach += axis_reach(view.extent(other), view.stride(other));
        if (stride(axis) <= reach) return false;
    }
    return true;
}

} // namespace detail

/// An extent that an expected shape leaves open.
inline constexpr index_t any_extent = -1;

/// Checks an input: the expected extents (`any_extent` accepts every one), memory where there are
/// elements, aligned, and offsets that fit an index. Strides are free.
template <class T, std::size_t Rank>
void require_input(const char* function, const char* argument, const tensor_view<T, Rank>& view,
                   const std::array<index_t, Rank>& expected) {
    bool fits = true;
    bool empty = false;
    for (std::size_t axis = 0; axis < Rank; ++axis) {
        const index_t extent = view.extent(axis);
        fits = fits && extent >= 0 && (expected[axis] == any_extent || extent == expected[axis]);
        empty = empty || extent == 0;
    }
    require(
        fits, function, argument,
        [&] {
            std::string text = "extents [";
            for (std::size_t axis = 0; axis < Rank; ++axis)
                text += (axis == 0 ? "" : ", ") + (expected[axis] == any_extent
                                                       ? std::string("any")
                                                       : std::to_string(expected[axis]));
            return text + "]";
        },
        [&] { return detail::to_text(view.extents()); });
    require(
        empty || view.data() != nullptr, function, argument, [] { return "memory"; },
        [&] { return "a null pointer with extents " + detail::to_text(view.extents()); });
    require(
        reinterpret_cast<std::uintptr_t>(view.data()) % alignof(T) == 0, function, argument,
        [] { return "a pointer aligned to " + std::to_string(alignof(T)) + " bytes"; },
        [&] {
            return "remainder " +
                   std::to_string(reinterpret_cast<std::uintptr_t>(view.data()) % alignof(T));
        });
    require(
        detail::is_addressable(view), function, argument,
        [] { return "offsets that fit an index"; },
        [&] {
            return "extents " + detail::to_text(view.extents()) + " with strides " +
                   detail::to_text(view.strides());
        });
}

/// Checks an input of any extents, for code that is generic in the rank.
template <class T, std::size_t Rank>
void require_input(const char* function, const char* argument, const tensor_view<T, Rank>& view) {
    std::array<index_t, Rank> any{};
    any.fill(any_extent);
    require_input(function, argument, view, any);
}

/// Checks an output: as an input, and no two elements at one address.
template <class T, std::size_t Rank>
void require_output(const char* function, const char* argument, const tensor_view<T, Rank>& view,
                    const std::array<index_t, Rank>& expected) {
    static_assert(!std::is_const_v<T>, "mhr: an output must be mutable");
    require_input(function, argument, view, expected);
    require(
        detail::is_nested(view), function, argument,
        [] { return "strides that place every element at its own address"; },
        [&] {
            return "strides " + detail::to_text(view.strides()) + " with extents " +
                   detail::to_text(view.extents());
        });
}

/// Checks an output that may be absent ("not wanted").
template <class T, std::size_t Rank>
void require_optional_output(const char* function, const char* argument,
                             const tensor_view<T, Rank>& view,
                             const std::array<index_t, Rank>& expected) {
    if (!view.absent()) require_output(function, argument, view, expected);
}

} // namespace mhr

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
inline namespace MHR_ISA {

/// Raises "function: argument: expected EXPECTED, got ACTUAL" unless `condition` holds. The texts
/// are made by callables, so that the good path builds no string.
template <class Expected, class Actual>
void require_that(bool condition, const char* function, const char* argument, Expected&& expected,
                  Actual&& actual) {
    if (!condition)
        raise(std::string(function) + ": " + argument + ": expected " + expected() + ", got " +
              actual());
}

namespace detail {

inline std::string to_text(const index_t* numbers, std::size_t count) {
    std::string text = "[";
    for (std::size_t axis = 0; axis < count; ++axis)
        text += (axis == 0 ? "" : ", ") + std::to_string(numbers[axis]);
    return text + "]";
}

template <std::size_t Rank>
std::string to_text(const std::array<index_t, Rank>& numbers) {
    return to_text(numbers.data(), Rank);
}

/// a * b of two numbers that are not negative, or the largest index if that overflows.
constexpr index_t saturating_product(index_t a, index_t b) noexcept {
    constexpr index_t largest = (std::numeric_limits<index_t>::max)();
    // Nearly always; the division below is what small layers would notice.
    constexpr index_t root = index_t(1) << (std::numeric_limits<index_t>::digits / 2);
    if (a < root && b < root) return a * b;
    return a != 0 && b > largest / a ? largest : a * b;
}

/// |stride| * (extent - 1), saturating: how far an axis reaches.
constexpr index_t axis_reach(index_t extent, index_t stride) noexcept {
    constexpr index_t largest = (std::numeric_limits<index_t>::max)();
    if (extent <= 1) return 0;
    if (stride < -largest) return largest;
    return saturating_product(extent - 1, stride < 0 ? -stride : stride);
}

/// A view as the checks see it, so that they are compiled once for all types and ranks.
struct viewed_memory {
    const void* data;
    index_t element_size;
    std::size_t alignment;
    std::size_t rank;
    const index_t* extents;
    const index_t* strides;
};

template <class T, std::size_t Rank>
viewed_memory memory_of(const tensor_view<T, Rank>& view) noexcept {
    return {view.data(), index_t{sizeof(T)},    alignof(T),
            Rank,        view.extents().data(), view.strides().data()};
}

/// True if the offsets of all elements, in bytes, fit an index.
inline bool is_addressable(const viewed_memory& view) noexcept {
    const index_t largest = (std::numeric_limits<index_t>::max)() / view.element_size;
    index_t elements = 1;
    index_t reach = 0;
    for (std::size_t axis = 0; axis < view.rank; ++axis) {
        elements = saturating_product(elements, view.extents[axis]);
        const index_t step = axis_reach(view.extents[axis], view.strides[axis]);
        reach = step > largest - reach ? largest : reach + step;
    }
    return elements < largest && reach < largest;
}

/// True if no two elements share an address, decided by nesting: each axis's stride exceeds the
/// reach of all axes with smaller strides. (Sufficient, and true of every layout that arrays,
/// padding and transposition give.)
inline bool is_nested(const viewed_memory& view) noexcept {
    const auto stride = [&](std::size_t axis) {
        return view.strides[axis] < 0 ? -view.strides[axis] : view.strides[axis];
    };
    for (std::size_t axis = 0; axis < view.rank; ++axis)
        if (view.extents[axis] == 0) return true;
    for (std::size_t axis = 0; axis < view.rank; ++axis) {
        if (view.extents[axis] == 1) continue;
        index_t reach = 0;
        for (std::size_t other = 0; other < view.rank; ++other)
            if (other != axis && view.extents[other] != 1 &&
                (stride(other) < stride(axis) || (stride(other) == stride(axis) && other < axis)))
                reach += axis_reach(view.extents[other], view.strides[other]);
        if (stride(axis) <= reach) return false;
    }
    return true;
}

inline void require_input(const char* function, const char* argument, const viewed_memory& view,
                          const index_t* expected);
inline void require_output(const char* function, const char* argument, const viewed_memory& view,
                           const index_t* expected);

} // namespace detail

/// An extent that an expected shape leaves open.
inline constexpr index_t any_extent = -1;

/// Checks an input: the expected extents (`any_extent` accepts every one), memory where there are
/// elements, aligned, and offsets that fit an index. Strides are free.
template <class T, std::size_t Rank>
void require_input(const char* function, const char* argument, const tensor_view<T, Rank>& view,
                   const std::array<index_t, Rank>& expected) {
    detail::require_input(function, argument, detail::memory_of(view), expected.data());
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
    detail::require_output(function, argument, detail::memory_of(view), expected.data());
}

/// Checks an output that may be absent ("not wanted").
template <class T, std::size_t Rank>
void require_optional_output(const char* function, const char* argument,
                             const tensor_view<T, Rank>& view,
                             const std::array<index_t, Rank>& expected) {
    if (!view.absent()) require_output(function, argument, view, expected);
}

namespace detail {

inline void require_input(const char* function, const char* argument, const viewed_memory& view,
                          const index_t* expected) {
    bool fits = true;
    bool empty = false;
    for (std::size_t axis = 0; axis < view.rank; ++axis) {
        const index_t extent = view.extents[axis];
        fits = fits && extent >= 0 && (expected[axis] == any_extent || extent == expected[axis]);
        empty = empty || extent == 0;
    }
    const auto extents = [&] { return to_text(view.extents, view.rank); };
    require_that(
        fits, function, argument,
        [&] {
            std::string text = "extents [";
            for (std::size_t axis = 0; axis < view.rank; ++axis)
                text += (axis == 0 ? "" : ", ") + (expected[axis] == any_extent
                                                       ? std::string("any")
                                                       : std::to_string(expected[axis]));
            return text + "]";
        },
        extents);
    require_that(
        empty || view.data != nullptr, function, argument, [] { return "memory"; },
        [&] { return "a null pointer with extents " + extents(); });
    const std::size_t beyond = reinterpret_cast<std::uintptr_t>(view.data) % view.alignment;
    require_that(
        beyond == 0, function, argument,
        [&] { return "a pointer aligned to " + std::to_string(view.alignment) + " bytes"; },
        [&] { return "remainder " + std::to_string(beyond); });
    require_that(
        is_addressable(view), function, argument, [] { return "offsets that fit an index"; },
        [&] {
            return "extents " + extents() + " with strides " + to_text(view.strides, view.rank);
        });
}

inline void require_output(const char* function, const char* argument, const viewed_memory& view,
                           const index_t* expected) {
    require_input(function, argument, view, expected);
    require_that(
        is_nested(view), function, argument,
        [] { return "strides that place every element at its own address"; },
        [&] {
            return "strides " + to_text(view.strides, view.rank) + " with extents " +
                   to_text(view.extents, view.rank);
        });
}

} // namespace detail

} // namespace MHR_ISA
} // namespace mhr

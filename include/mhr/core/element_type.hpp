#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <mhr/config.hpp>

/// \file
/// The element types of tensors, as data: a host learns them at run time. Here are also classes for
/// the 16-bit ones, and the traits by which a host tells what its own classes are.
///
/// Numbers that are not finite stay with what they belong to:
///   - in a row of x, y or d_y: with the results of that row, the gradients of its task's weights,
///     and those of the modules that its task uses;
///   - in a module: with the tasks that use it. A task whose weight of it is 0 does not read it,
///     but for the gradient of that weight, which then is not finite, and from which the router's
///     backward keeps the other logits;
///   - in a weight, or in a logit: with its task, and, of weights and their gradients, its head.
/// Rows of no task may hold anything, and so may memory for states, workspaces and results that are
/// overwritten.
///
/// Under -ffast-math this does not hold: numbers have to be finite, and checks do not see those
/// that are not. Nor are bits the same for other sizes, layouts or functions there; any number of
/// threads still gives the same bits.

namespace mhr {

/// The type of a tensor's elements.
enum class element_type : std::uint8_t {
    f32,  ///< IEEE 754 binary32
    f64,  ///< IEEE 754 binary64
    bf16, ///< the upper half of an f32
    f16,  ///< IEEE 754 binary16
};

/// Returns the bytes of an element.
[[nodiscard]] MHR_INLINE constexpr std::size_t size_of(element_type type) noexcept {
    return type == element_type::f64 ? 8 : type == element_type::f32 ? 4 : 2;
}

/// Returns the name of a type, as messages have it.
[[nodiscard]] MHR_INLINE constexpr const char* name_of(element_type type) noexcept {
    switch (type) {
    case element_type::f32:
        return "f32";
    case element_type::f64:
        return "f64";
    case element_type::bf16:
        return "bf16";
    case element_type::f16:
        return "f16";
    }
    return "unknown";
}

/// True for a value that is one of the types: an enumeration that comes from elsewhere may hold
/// anything.
[[nodiscard]] MHR_INLINE constexpr bool is_known(element_type type) noexcept {
    return type <= element_type::f16;
}

/// The type in which products of elements of both types are summed: f64 if one of them is f64, else
/// f32.
[[nodiscard]] MHR_INLINE constexpr element_type sums_of(element_type a, element_type b) noexcept {
    return a == element_type::f64 || b == element_type::f64 ? element_type::f64 : element_type::f32;
}

namespace element_details {

MHR_INLINE std::uint32_t bits_of(float value) noexcept {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
MHR_INLINE float float_of(std::uint32_t bits) noexcept {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/// Rounds to the nearest, ties to even; NaN stays NaN.
MHR_INLINE std::uint16_t bf16_bits(float value) noexcept {
    const std::uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U)
        return static_cast<std::uint16_t>((bits | 0x00400000U) >> 16);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// Rounds to the nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
MHR_INLINE std::uint16_t f16_bits(float value) noexcept {
    const std::uint32_t bits = bits_of(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    std::uint32_t result = 0;
    if (magnitude > 0x7F800000U)
        result = 0x7E00U | ((magnitude >> 13) & 0x3FFU);
    else if (magnitude >= (127U + 16U) << 23)
        result = 0x7C00U;
    else if (magnitude >= (127U - 14U) << 23)
        result = (magnitude - ((127U - 15U) << 23) + 0x0FFFU + ((magnitude >> 13) & 1U)) >> 13;
    else // Adding 1/2 aligns the fraction of a subnormal result with the last bits, and rounds it.
        result = bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F);
    return static_cast<std::uint16_t>(sign | result);
}

MHR_INLINE float f16_value(std::uint16_t bits) noexcept {
    const std::uint32_t sign = (bits & 0x8000U) << 16;
    const std::uint32_t magnitude = (bits & 0x7FFFU) << 13;
    if (magnitude >= 31U << 23) return float_of(sign | (magnitude + ((255U - 31U) << 23)));
    if (magnitude >= 1U << 23) return float_of(sign | (magnitude + ((127U - 15U) << 23)));
    // A subnormal number is its fraction over 2^24: exact as the difference of two normal ones.
    constexpr std::uint32_t least = (127U - 14U) << 23;
    return float_of(sign | bits_of(float_of(magnitude + least) - float_of(least)));
}

} // namespace element_details

/// An element of bf16: storage only, without arithmetic.
struct bf16 {
    std::uint16_t bits; ///< the upper half of an f32

    /// Holds whatever the memory holds.
    bf16() = default;
    /// Rounds to the nearest, ties to even.
    MHR_INLINE explicit bf16(float value) noexcept : bits(element_details::bf16_bits(value)) {}
    /// The value, which is exact.
    [[nodiscard]] MHR_INLINE explicit operator float() const noexcept {
        return element_details::float_of(static_cast<std::uint32_t>(bits) << 16);
    }
};

/// An element of f16: storage only, without arithmetic.
struct f16 {
    std::uint16_t bits; ///< sign, 5 bits of the exponent, 10 of the fraction

    /// Holds whatever the memory holds.
    f16() = default;
    /// Rounds to the nearest, ties to even; what is too large becomes infinite.
    MHR_INLINE explicit f16(float value) noexcept : bits(element_details::f16_bits(value)) {}
    /// The value, which is exact.
    [[nodiscard]] MHR_INLINE explicit operator float() const noexcept {
        return element_details::f16_value(bits);
    }
};

/// True for types that are no element type until `element_type_of` is specialised for them.
template <class T>
struct unknown_element_type : std::false_type {};

/// The specialisations of `element_type_of` derive from this; its `value` is the element type.
template <element_type Type>
using element_type_constant = std::integral_constant<element_type, Type>;

/// The element type of a C++ type. A host specialises it for its own 16-bit classes, which must
/// hold the same bits as `bf16` or `f16`:
///
///     template <>
///     struct mhr::element_type_of<c10::Half>
///         : mhr::element_type_constant<mhr::element_type::f16> {};
template <class T>
struct element_type_of {
    static_assert(unknown_element_type<T>::value,
                  "mhr: not an element type: use float, double, mhr::bf16 or mhr::f16, or "
                  "specialise mhr::element_type_of for a class of the same bits");
};
/// The types that the library knows.
/// @{
template <>
struct element_type_of<float> : element_type_constant<element_type::f32> {};
/// `double` holds f64.
template <>
struct element_type_of<double> : element_type_constant<element_type::f64> {};
/// `bf16` holds bf16.
template <>
struct element_type_of<bf16> : element_type_constant<element_type::bf16> {};
/// `f16` holds f16.
template <>
struct element_type_of<f16> : element_type_constant<element_type::f16> {};
/// @}

/// The element type of T or const T.
template <class T>
inline constexpr element_type element_type_of_v = element_type_of<std::remove_const_t<T>>::value;

} // namespace mhr

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>

#include <mhr/config.hpp>
#include <mhr/core/element_type.hpp>

/// \file
/// The element types of safetensors files, and which of them are those of tensors here.

namespace mhr {
inline namespace MHR_ISA {

/// The types of a whole number of bytes, in the order by which the format's own serialiser sorts.
enum class dtype : unsigned char {
    boolean,
    u8,
    i8,
    f8_e5m2,
    f8_e4m3,
    f8_e8m0,
    f8_e4m3fnuz,
    f8_e5m2fnuz,
    i16,
    u16,
    f16,
    bf16,
    i32,
    u32,
    f32,
    c64,
    f64,
    i64,
    u64
};

namespace safetensors_details {

struct dtype_row {
    const char* name;
    std::size_t bytes;
};
inline constexpr std::array<dtype_row, 19> dtype_table{{{"BOOL", 1},
                                                        {"U8", 1},
                                                        {"I8", 1},
                                                        {"F8_E5M2", 1},
                                                        {"F8_E4M3", 1},
                                                        {"F8_E8M0", 1},
                                                        {"F8_E4M3FNUZ", 1},
                                                        {"F8_E5M2FNUZ", 1},
                                                        {"I16", 2},
                                                        {"U16", 2},
                                                        {"F16", 2},
                                                        {"BF16", 2},
                                                        {"I32", 4},
                                                        {"U32", 4},
                                                        {"F32", 4},
                                                        {"C64", 8},
                                                        {"F64", 8},
                                                        {"I64", 8},
                                                        {"U64", 8}}};

} // namespace safetensors_details

/// The name in files, such as "BF16".
constexpr const char* dtype_name(dtype type) noexcept {
    return safetensors_details::dtype_table[static_cast<std::size_t>(type)].name;
}

/// Returns the bytes of an element.
constexpr std::size_t dtype_size(dtype type) noexcept {
    return safetensors_details::dtype_table[static_cast<std::size_t>(type)].bytes;
}

/// The type of a name; none for one that is unknown.
inline std::optional<dtype> dtype_named(std::string_view name) noexcept {
    for (std::size_t i = 0; i < safetensors_details::dtype_table.size(); ++i)
        if (name == safetensors_details::dtype_table[i].name) return static_cast<dtype>(i);
    return std::nullopt;
}

/// The element type of a tensor that is stored so; none for the types of the format that are no
/// element types here, which are integers, complex numbers and those of 8 bits.
constexpr std::optional<element_type> to_element_type(dtype type) noexcept {
    if (type == dtype::f64) return element_type::f64;
    if (type == dtype::f32) return element_type::f32;
    if (type == dtype::bf16) return element_type::bf16;
    if (type == dtype::f16) return element_type::f16;
    return std::nullopt;
}

/// What a tensor of an element type is stored as.
constexpr dtype to_dtype(element_type type) noexcept {
    switch (type) {
    case element_type::f64:
        return dtype::f64;
    case element_type::bf16:
        return dtype::bf16;
    case element_type::f16:
        return dtype::f16;
    case element_type::f32:
        break;
    }
    return dtype::f32;
}

/// What an integer of C++ is stored as, by its size and sign. bool is none of them: a byte of a
/// file need not be a bool.
template <class Integer>
constexpr dtype dtype_of_integer() noexcept {
    using Plain = std::remove_const_t<Integer>;
    static_assert(std::is_integral_v<Plain> && !std::is_same_v<Plain, bool>,
                  "mhr: not an integer of a file: use std::int64_t, std::uint8_t, ..");
    constexpr bool is_signed = std::is_signed_v<Plain>;
    switch (sizeof(Plain)) {
    case 1:
        return is_signed ? dtype::i8 : dtype::u8;
    case 2:
        return is_signed ? dtype::i16 : dtype::u16;
    case 4:
        return is_signed ? dtype::i32 : dtype::u32;
    default:
        return is_signed ? dtype::i64 : dtype::u64;
    }
}

namespace safetensors_details {

/// Files are little-endian, and tensors show their bytes as they are.
inline bool is_little_endian() noexcept {
    const std::uint16_t one = 1;
    unsigned char first = 0;
    std::memcpy(&first, &one, 1);
    return first == 1;
}

} // namespace safetensors_details

} // namespace MHR_ISA
} // namespace mhr

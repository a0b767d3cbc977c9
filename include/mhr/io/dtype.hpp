#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <type_traits>

#include <mhr/simd/conversion.hpp>

/// \file
/// The element types of safetensors files, and which C++ type is which.

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

namespace detail {

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

} // namespace detail

/// The name in files, such as "BF16".
constexpr const char* dtype_name(dtype type) noexcept {
    return detail::dtype_table[static_cast<std::size_t>(type)].name;
}

/// Bytes of an element.
constexpr std::size_t dtype_size(dtype type) noexcept {
    return detail::dtype_table[static_cast<std::size_t>(type)].bytes;
}

/// The type of a name; none for one that is unknown.
inline std::optional<dtype> dtype_named(std::string_view name) noexcept {
    for (std::size_t i = 0; i < detail::dtype_table.size(); ++i)
        if (name == detail::dtype_table[i].name) return static_cast<dtype>(i);
    return std::nullopt;
}

/// True of the types that are read as numbers with a fraction: F64, F32, F16 and BF16.
constexpr bool is_floating(dtype type) noexcept {
    return type == dtype::f64 || type == dtype::f32 || type == dtype::f16 || type == dtype::bf16;
}

/// The least type that holds the numbers of two types with fractions.
constexpr dtype dtype_of_both(dtype a, dtype b) noexcept {
    if (a == b) return a;
    return a == dtype::f64 || b == dtype::f64 ? dtype::f64 : dtype::f32;
}

/// What a C++ type is stored as: double F64, float F32, integers by size and sign, and of the
/// 16-bit classes (Eigen::half, c10::BFloat16, _Float16, ...) F16 or BF16, told by the bits of 1.
/// None for every other type.
template <class T>
std::optional<dtype> dtype_of() noexcept {
    using V = std::remove_const_t<T>;
    if constexpr (std::is_same_v<V, double>) {
        return dtype::f64;
    } else if constexpr (std::is_same_v<V, float>) {
        return dtype::f32;
    } else if constexpr (std::is_same_v<V, bool>) {
        return std::nullopt; // a byte of a file need not be a bool
    } else if constexpr (std::is_integral_v<V>) {
        constexpr bool is_signed = std::is_signed_v<V>;
        switch (sizeof(V)) {
        case 1:
            return is_signed ? dtype::i8 : dtype::u8;
        case 2:
            return is_signed ? dtype::i16 : dtype::u16;
        case 4:
            return is_signed ? dtype::i32 : dtype::u32;
        default:
            return is_signed ? dtype::i64 : dtype::u64;
        }
    } else if constexpr (sizeof(V) == 2) {
        switch (detail::format_of<V>()) {
        case detail::format::bf16:
            return dtype::bf16;
        case detail::format::f16:
            return dtype::f16;
        case detail::format::other:
            break;
        }
        return std::nullopt;
    } else {
        return std::nullopt;
    }
}

namespace detail {

/// Files are little-endian, and views show their bytes as they are.
inline bool is_little_endian() noexcept {
    const std::uint16_t one = 1;
    unsigned char first = 0;
    std::memcpy(&first, &one, 1);
    return first == 1;
}

} // namespace detail

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <mhr/config.hpp>

/// \file
/// Text out of files in messages: what a file says must neither break a line, nor move a terminal's
/// cursor, nor turn the direction of writing, nor fill a screen.

namespace mhr {
inline namespace MHR_ISA {
namespace text_details {

/// Bytes of the character of UTF-8 that a text begins with: 0 if it begins with none, or with one
/// that shows nothing but changes how a terminal shows others.
inline std::size_t readable_bytes(std::string_view text) {
    const auto byte = [&](std::size_t i) {
        return std::uint32_t(static_cast<unsigned char>(text[i]));
    };
    if (text.empty()) return 0;
    const std::uint32_t first = byte(0);
    if (first < 0x80) return first >= 0x20 && first != 0x7f ? 1 : 0;
    const std::size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    if (first < 0xc2 || first > 0xf4 || text.size() < size) return 0;
    std::uint32_t code = first & (0xffU >> (size + 1));
    for (std::size_t i = 1; i < size; ++i) {
        if ((byte(i) & 0xc0U) != 0x80U) return 0;
        code = code << 6U | (byte(i) & 0x3fU);
    }
    const auto between = [&](std::uint32_t low, std::uint32_t high) {
        return code >= low && code <= high;
    };
    const bool longer_than_need_be = (size == 3 && code < 0x800) || (size == 4 && code < 0x10000);
    if (longer_than_need_be || between(0xd800, 0xdfff) || code > 0x10ffff) return 0;
    const bool controls = between(0x80, 0x9f) || between(0x2028, 0x202e) || // ends of lines, ..
                          between(0x2066, 0x2069) || between(0x200e, 0x200f) || code == 0x61c ||
                          code == 0xfeff;
    return controls ? 0 : size;
}

} // namespace text_details

/// The text with control characters and what is not UTF-8 as `\\xNN`, cut off after `longest` bytes
/// and the character that they end in. Cost: what it returns, however long the text.
inline std::string printable(std::string_view text, std::size_t longest = 200) {
    constexpr const char* digits = "0123456789abcdef";
    std::string result;
    while (!text.empty()) {
        if (result.size() >= longest) return result + "...";
        const std::size_t readable = text_details::readable_bytes(text);
        if (readable != 0) {
            result += text.substr(0, readable);
        } else {
            const auto byte = static_cast<unsigned char>(text.front());
            (result += "\\x") += {digits[byte / 16], digits[byte % 16]};
        }
        text.remove_prefix(readable == 0 ? 1 : readable);
    }
    return result;
}

/// The same in quotes, as messages show names.
inline std::string in_quotes(std::string_view text) {
    return "'" + printable(text) + "'";
}

} // namespace MHR_ISA
} // namespace mhr

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <mhr/config.hpp>

/// \file
/// Text out of files in messages: what a file says must neither break a line, nor move a terminal's
/// cursor, nor fill a screen.

namespace mhr {
inline namespace MHR_ISA {

/// The text with everything but printable ASCII as `\\xNN`, cut off after `longest` characters.
/// Cost: what it returns, however long the text.
inline std::string printable(std::string_view text, std::size_t longest = 200) {
    constexpr const char* digits = "0123456789abcdef";
    std::string result;
    for (const char c : text) {
        if (result.size() >= longest) return result + "...";
        if (c >= ' ' && c <= '~') {
            result += c;
        } else {
            const auto byte = static_cast<unsigned char>(c);
            (result += "\\x") += {digits[byte / 16], digits[byte % 16]};
        }
    }
    return result;
}

namespace detail {
inline std::string in_quotes(std::string_view text) {
    return "'" + printable(text) + "'";
}
} // namespace detail

} // namespace MHR_ISA
} // namespace mhr

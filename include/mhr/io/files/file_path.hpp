#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

#include <mhr/config.hpp>
#include <mhr/io/files/printable.hpp>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#include <sys/stat.h>
#endif

/// \file
/// Names of files in any script: how they are opened, and how messages show them. Windows has them
/// as UTF-16, of which its narrow functions know but the characters of one code page.

namespace mhr {
inline namespace MHR_ISA {
namespace file_details {

/// UTF-16 as UTF-8. A half of a pair that stands alone becomes three bytes that are not UTF-8.
template <class Unit>
std::string utf8_of(std::basic_string_view<Unit> text) {
    std::string result;
    const auto unit = [&](std::size_t i) { return std::uint32_t(text[i]) & 0xffffU; };
    const auto put = [&](std::uint32_t byte) { result += static_cast<char>(byte); };
    for (std::size_t i = 0; i < text.size(); ++i) {
        std::uint32_t code = unit(i);
        if (code >> 10U == 0x36 && i + 1 < text.size() && unit(i + 1) >> 10U == 0x37)
            code = 0x10000 + ((code & 0x3ffU) << 10U) + (unit(++i) & 0x3ffU);
        if (code < 0x80) {
            put(code);
            continue;
        }
        const std::uint32_t tails = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        constexpr std::uint32_t first[] = {0, 0xc0, 0xe0, 0xf0};
        put(first[tails] | code >> (6 * tails));
        for (std::uint32_t tail = tails; tail-- > 0;)
            put(0x80U | (code >> (6 * tail) & 0x3fU));
    }
    return result;
}

inline std::string utf8_of(std::string_view bytes) {
    return std::string(bytes);
}

} // namespace file_details

/// How messages call a file: its path in UTF-8, what is not fit to be shown as `printable` shows
/// it.
inline std::string path_text(const std::filesystem::path& path) {
    using units = std::basic_string_view<std::filesystem::path::value_type>;
    return printable(file_details::utf8_of(units(path.native())));
}

namespace file_details {

/// Opens a file for reading; null if that fails.
inline std::FILE* open_file(const std::filesystem::path& path) {
#if defined(_WIN32)
    return ::_wfopen(path.c_str(), L"rb");
#else
    return std::fopen(path.c_str(), "rb");
#endif
}

/// Opens a file for writing that is not there yet; null if that fails.
inline std::FILE* open_new_file(const std::filesystem::path& path) {
#if defined(_WIN32)
    // Not every C library of Windows knows the mode "x".
    const int file =
        ::_wopen(path.c_str(), _O_CREAT | _O_EXCL | _O_WRONLY | _O_BINARY, _S_IREAD | _S_IWRITE);
    return file < 0 ? nullptr : ::_fdopen(file, "wb");
#else
    return std::fopen(path.c_str(), "wbx");
#endif
}

} // namespace file_details
} // namespace MHR_ISA
} // namespace mhr

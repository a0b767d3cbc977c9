#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include <mhr/config.hpp>
#include <mhr/core/error.hpp>

/// \file
/// What people have in place of a file that was to be downloaded or converted, told by its first
/// bytes. None of these can begin a safetensors file (its header would be too long) nor JSON.

namespace mhr {
inline namespace MHR_ISA {
namespace file_details {

/// What the bytes are, and what to do about it; null for all others.
inline const char* foreign_content(std::string_view bytes) {
    const auto begins = [&](std::string_view with) { return bytes.substr(0, with.size()) == with; };
    if (begins("version https://git-lfs.github.com/spec/"))
        return "a pointer of Git LFS in its place: fetch the file itself with 'git lfs pull'";
    if (begins("PK\x03\x04") || begins("\x80\x02\x8a\x0a\x6c"))
        return "a file of PyTorch: load it in Python and save it with safetensors.torch.save_file";
    if (begins("GGUF")) return "a GGUF file: take the one that it was converted from";

    constexpr std::size_t looked_at = 64;
    std::string_view page = bytes.substr(0, looked_at);
    if (begins("\xef\xbb\xbf")) page.remove_prefix(3);
    page.remove_prefix((std::min)(page.find_first_not_of(" \t\r\n"), page.size()));
    for (const std::string_view tag : {"<!doctype", "<html", "<head", "<?xml"})
        if (page.size() >= tag.size() &&
            std::equal(tag.begin(), tag.end(), page.begin(), [](char wanted, char c) {
                return wanted == (c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c);
            }))
            return "a web page in its place: download the file itself, after logging in if the "
                   "page "
                   "asks for that";
    return nullptr;
}

/// These are refused: such bytes. `subject` begins the message.
inline void require_no_foreign_content(const std::string& subject, const char* expected,
                                       std::string_view bytes) {
    if (const char* const found = foreign_content(bytes))
        raise(subject + ": content: expected " + expected + ", got " + found);
}

} // namespace file_details
} // namespace MHR_ISA
} // namespace mhr

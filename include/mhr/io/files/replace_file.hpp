#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <random>
#include <string>
#include <system_error>

#include <mhr/core/error.hpp>
#include <mhr/io/files/file_path.hpp>

/// \file
/// Writing a file in the place of another, at once.

namespace mhr {
inline namespace MHR_ISA {
namespace file_details {

/// Calls `use(FILE*)` with a new file beside `path`, which then takes its place: whoever reads that
/// path sees the old file or the new one, whole, and views into the old one stay valid.
template <class Use>
void replace_file(const char* function, const std::filesystem::path& path, Use&& use) {
    std::filesystem::path beside = path;
    beside += "." + std::to_string(std::random_device{}()) + ".tmp";
    const auto fail = [&](const std::string& got) {
        std::error_code ignored;
        std::filesystem::remove(beside, ignored);
        raise(std::string(function) + ": " + path_text(path) +
              ": expected a file that can be written, got " + got);
    };
    std::FILE* const file = open_new_file(beside);
    if (file == nullptr) return fail("none in that folder");
    const bool written = use(file);
    if (std::fclose(file) != 0 || !written) fail("no room, or another error of the device");
    std::error_code problem;
    std::filesystem::rename(beside, path, problem);
    if (problem) fail(problem.message());
}

inline bool write_bytes(std::FILE* file, const void* bytes, std::size_t size) noexcept {
    return size == 0 || std::fwrite(bytes, 1, size, file) == size;
}

} // namespace file_details
} // namespace MHR_ISA
} // namespace mhr

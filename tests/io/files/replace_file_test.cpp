#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <string>

#include <doctest/doctest.h>

#include <mhr/io/files/mapped_file.hpp>
#include <mhr/io/files/replace_file.hpp>

#include "support/error_check.hpp"
#include "support/temporary_folder.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

std::size_t files_in(const std::filesystem::path& folder) {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder))
        ++count;
    return count;
}

std::string text_of(const mapped_file& file) {
    return {reinterpret_cast<const char*>(file.data()), file.size()};
}
std::string text_at(const std::filesystem::path& path) {
    return text_of(mapped_file(path, file_access::copy));
}

/// Writes a text, and says that this went well or did not.
void replace(const std::filesystem::path& path, const std::string& text, bool good = true) {
    file_details::replace_file("test", path, [&](std::FILE* file) {
        return file_details::write_bytes(file, text.data(), text.size()) && good;
    });
}

} // namespace

TEST_CASE("replace_file: a file takes the place of another, which stays where it is mapped") {
    const temporary_folder folder;
    const auto path = folder.path() / "file";
    replace(path, "first");
    const mapped_file first(path);
    replace(path, "the second");
    CHECK(text_at(path) == "the second");
    CHECK(text_of(first) == "first");
    replace(path, "");
    CHECK(text_at(path).empty());
    CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("replace_file: what cannot be written whole leaves the old file, and nothing else") {
    const temporary_folder folder;
    const auto path = folder.path() / "file";
    replace(path, "old");
    CHECK(refuses("test", path_text(path), [&] { replace(path, "new", false); }));
    CHECK(text_at(path) == "old");
    const auto nowhere = folder.path() / "absent" / "file";
    CHECK(refuses("test", path_text(nowhere), [&] { replace(nowhere, "new"); }));
    std::filesystem::create_directories(folder.path() / "taken" / "inside");
    CHECK(refuses("test", path_text(folder.path() / "taken"),
                  [&] { replace(folder.path() / "taken", "new"); }));
    CHECK(files_in(folder.path()) == 2);
}

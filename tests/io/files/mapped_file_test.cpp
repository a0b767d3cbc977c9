#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include <doctest/doctest.h>

#include <mhr/io/files/mapped_file.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/long_cases.hpp"
#include "support/temporary_folder.hpp"

#if MHR_MAP_FILES
#include <sys/stat.h>
#endif

using namespace mhr;
using namespace mhr::test;

namespace {

std::string text_of(const mapped_file& file) {
    return {reinterpret_cast<const char*>(file.data()), file.size()};
}

error_outcome refuses_file(const std::filesystem::path& path, file_access access) {
    return refuses("mapped_file", path_text(path), [&] { const mapped_file file(path, access); });
}

} // namespace

TEST_CASE("mapped_file: the bytes of a file, mapped or copied") {
    const temporary_folder folder;
    const auto path = folder.path() / "file";
    const std::string bytes = std::string(100000, 'x') + '\0' + "end";
    write_file(path, bytes);
    for (const file_access access : {file_access::map, file_access::copy}) {
        mapped_file file(path, access);
        CHECK(text_of(file) == bytes);
        CHECK(reinterpret_cast<std::uintptr_t>(file.data()) % alignof(std::max_align_t) == 0);

        const std::byte* const before = file.data();
        mapped_file moved = std::move(file);
        CHECK(moved.data() == before);
        CHECK(text_of(moved) == bytes);
        mapped_file other;
        CHECK(other.size() == 0);
        other = std::move(moved);
        CHECK(other.data() == before);
    }
}

TEST_CASE("mapped_file: a copy stays as it was read, a mapping outlives the name") {
    const temporary_folder folder;
    const auto path = folder.path() / "file";
    write_file(path, "before");
    const mapped_file copy(path, file_access::copy);
    write_file(path, "after!");
    CHECK(text_of(copy) == "before");
    const mapped_file mapped(path);
    std::filesystem::remove(path);
    CHECK(text_of(mapped) == "after!");
}

TEST_CASE("mapped_file: an empty file has no bytes") {
    const temporary_folder folder;
    write_file(folder.path() / "empty", "");
    for (const file_access access : {file_access::map, file_access::copy})
        CHECK(mapped_file(folder.path() / "empty", access).size() == 0);
}

TEST_CASE("mapped_file: what is no regular file is refused, and waits for nobody") {
    const temporary_folder folder;
    for (const file_access access : {file_access::map, file_access::copy}) {
        CHECK(refuses_file(folder.path() / "absent", access));
        CHECK(refuses_file(folder.path(), access));
    }
#if MHR_MAP_FILES
    REQUIRE(::mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);
    std::filesystem::create_symlink("pipe", folder.path() / "link");
    std::filesystem::create_symlink("loop", folder.path() / "loop");
    for (const file_access access : {file_access::map, file_access::copy}) {
        CHECK(refuses_file(folder.path() / "pipe", access));
        CHECK(refuses_file(folder.path() / "link", access));
        CHECK(refuses_file(folder.path() / "loop", access));
        CHECK(refuses_file("/dev/zero", access));
    }
#endif
}

TEST_CASE("mapped_file: a file larger than memory is mapped, or refused" * left_out_if_emulated()) {
    const temporary_folder folder;
    const auto path = folder.path() / "sparse";
    write_file(path, "begin");
    std::error_code problem;
    constexpr std::uintmax_t bytes = std::uintmax_t(1) << 42;
    std::filesystem::resize_file(path, bytes, problem);
    if (problem) return; // a file system without holes, or a system of 32 bits
#if MHR_MAP_FILES
    const mapped_file file(path);
    CHECK(file.size() == bytes);
    CHECK(std::memcmp(file.data(), "begin", 5) == 0);
#endif
}

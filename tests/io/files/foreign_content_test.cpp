#include <string>
#include <string_view>

#include <doctest/doctest.h>

#include <mhr/io/files/foreign_content.hpp>

#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

/// What the bytes are said to be; empty for nothing known.
std::string said_of(std::string_view bytes) {
    const char* const text = file_details::foreign_content(bytes);
    return text == nullptr ? std::string() : text;
}

} // namespace

TEST_CASE("foreign_content: what people have in the place of a file is called by its name") {
    struct row {
        std::string bytes;
        const char* says;
    };
    using namespace std::string_literals;
    const row rows[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"},
        {"PK\x03\x04 and so on", "a file of PyTorch"},
        {"\x80\x02\x8a\x0a\x6c and so on", "safetensors.torch.save_file"},
        {"GGUF\x03\0\0\0"s, "a GGUF file"},
        {"<!DOCTYPE html><html>", "a web page"},
        {"\xef\xbb\xbf \n <HTML>", "a web page"},
        {"\t<?xml version", "a web page"},
        {"<head>", "a web page"},
    };
    for (const row& one : rows) {
        CAPTURE(one.bytes);
        CHECK(said_of(one.bytes).find(one.says) != std::string::npos);
        const auto refused = refuses("some.file", "content", [&] {
            file_details::require_no_foreign_content("some.file", "a file of ours", one.bytes);
        });
        CHECK(refused);
        CHECK(refused.message.find("expected a file of ours, got ") != std::string::npos);
    }
}

TEST_CASE("foreign_content: nothing is said of other bytes, however short") {
    for (const std::string_view bytes :
         {"", "{", "{\"a\":1}", "<", "<!doc", "<html", "version https", "PK", "GGU", "\xef\xbb\xbf",
          "     ", "a <html>"}) {
        CAPTURE(bytes);
        if (bytes == "<html") continue; // just long enough
        CHECK(said_of(bytes).empty());
        file_details::require_no_foreign_content("some.file", "a file of ours", bytes);
    }
    CHECK(said_of("<html") != "");
}

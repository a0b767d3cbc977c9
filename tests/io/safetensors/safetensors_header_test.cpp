#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include <doctest/doctest.h>

#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_header.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/long_cases.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr const char* name = "safetensors: some.file";

void open_text(const std::string& text) {
    const safetensors_file file("some.file", text.data(), text.size());
}

} // namespace

TEST_CASE("safetensors: lengths of the header that lie") {
    const std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();
    for (std::uint64_t length : {std::uint64_t{3}, std::uint64_t{1} << 32, std::uint64_t{1} << 63,
                                 largest - 8, largest - 7, largest}) {
        CAPTURE(length);
        CHECK(refuses(name, "header", [&] { open_text(safetensors_bytes(length, "{}", "")); }));
    }
    CHECK(refuses(name, "header", [&] { open_text(safetensors_bytes(0, "", "")); }));
    CHECK(refuses(name, "JSON", [&] { open_text(safetensors_bytes(1, "{}", "")); }));
    CHECK(refuses(name, "header", [&] {
        open_text(safetensors_bytes("{}" + std::string(safetensors_header::max_bytes, ' ')));
    }));
}

TEST_CASE("safetensors: hostile headers") {
    const std::string two = bytes_of<float>({1, 2});
    const auto f32 = [](const std::string& shape, const std::string& offsets) {
        return "{" + header_entry("t", "F32", shape, offsets) + "}";
    };
    struct hostile {
        std::string header, subject, message;
    };
    const hostile cases[] = {
        // Not JSON, or of another kind than expected.
        {"", "header", "none"},
        {"nonsense", "header", "a JSON object"},
        {" {}", "header", "a JSON object"},
        {"[]", "header", "a JSON object"},
        {"7", "header", "a JSON object"},
        {"{} {}", "JSON", "well-formed"},
        {"{", "JSON", "well-formed"},
        {R"({"t":7})", "'t'", "a JSON object"},
        {R"({"t":{}})", "'t'", "'shape'"},
        {R"({"t":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", "'t'", "'dtype'"},
        {R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", "'t'", "'shape'"},
        {R"({"t":{"dtype":"F32","shape":[2]}})", "'t'", "'data_offsets'"},
        {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":0}})", "'t'", "more"},
        {R"({"__metadata__":[]})", "'__metadata__'", "a JSON object"},
        {R"({"__metadata__":{"a":1}})", "'__metadata__'", "'a': number"},
        {R"({"__metadata__":{},"__metadata__":{}})", "'__metadata__'", "comes once"},
        {R"({"__metadata__":null,"__metadata__":{}})", "'__metadata__'", "comes once"},
        {"{\"\xff\":{}}", "JSON", "well-formed"},
        {"{\"a\nb\":7}", "JSON", "well-formed"},
        {R"({"a\nb":7})", "'a\\x0ab'", "a JSON object"}, // no message breaks a line
        // JSON that is nested for ever, and names that come twice.
        {"{\"t\":" + std::string(1000000, '['), "JSON", "nesting"},
        {R"({"t":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", "JSON", "nesting"},
        {"{" + header_entry("t", "F32", "[1]", "[0,4]") + "," +
             header_entry("t", "F32", "[1]", "[4,8]") + "}",
         "'t'", "comes once"},
        {R"({"t":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "JSON",
         "another 'dtype'"},
        // Numbers.
        {"{" + header_entry("t", "F31", "[2]", "[0,8]") + "}", "'t'", "'F31'"},
        {f32("[-2]", "[0,8]"), "'t'", "integers from 0"},
        {f32("[2.0]", "[0,8]"), "'t'", "integers from 0"},
        {f32("[\"2\"]", "[0,8]"), "'t'", "integers from 0"},
        {f32("[1e400]", "[0,8]"), "JSON", "well-formed"},
        {f32("[18446744073709551616]", "[0,8]"), "'t'", "integers from 0"},
        {f32("[2]", "[-8,0]"), "'t'", "integers from 0"},
        {f32("[2]", "[0]"), "'t'", "two 'data_offsets'"},
        {f32("[2]", "[0,8,8]"), "'t'", "'data_offsets'"},
        {f32("[1,1,1,1,1,1,1,1,2]", "[0,8]"), "'t'", "'shape'"}, // of rank 9
        // 2^63, 2^32 * 2^32 and 2^62 * 4 bytes overflow to 0 or below; so would 0 * 2^63.
        {f32("[9223372036854775808]", "[0,8]"), "'t'", "integers from 0"},
        {f32("[4294967296,4294967296]", "[0,0]"), "'t'", "'shape'"},
        {f32("[4611686018427387904]", "[0,0]"), "'t'", "'shape'"},
        {f32("[0,4611686018427387904,4]", "[0,0]"), "'t'", "'shape'"},
        // Places.
        {f32("[2]", "[8,0]"), "'t'", "'data_offsets' in order"},
        {f32("[3]", "[0,12]"), "'t'", "up to 8"},
        {f32("[2]", "[18446744073709551608,18446744073709551615]"), "'t'", "integers from 0"},
        {f32("[2]", "[9223372036854775800,9223372036854775807]"), "'t'", "up to 8"},
        {f32("[1]", "[0,8]"), "'t'", "of 4 bytes"},
        {f32("[2,2]", "[0,8]"), "'t'", "of 16 bytes"},
        {f32("[1]", "[4,8]"), "'t'", "a hole"},
        {f32("[1]", "[0,4]"), "data", "a file of"},
        {"{}", "data", "a file of"},
        {"{" + header_entry("t", "F32", "[2]", "[0,8]") + "," +
             header_entry("u", "F32", "[2]", "[0,8]") + "}",
         "'u'", "an overlap"},
        {"{" + header_entry("t", "F32", "[2]", "[0,8]") + "," +
             header_entry("u", "F32", "[1]", "[4,8]") + "}",
         "'u'", "an overlap"},
    };
    open_text(safetensors_bytes(f32("[2]", "[0,8]"), two));
    for (const hostile& one : cases) {
        CAPTURE(one.header.substr(0, 100));
        const auto refused =
            refuses(name, one.subject, [&] { open_text(safetensors_bytes(one.header, two)); });
        CHECK(refused);
        CAPTURE(refused.message);
        CHECK(refused.message.find(one.message) != std::string::npos);
        CHECK(refused.message.find("(byte ") != std::string::npos);
        CHECK(refused.message.find('\n') == std::string::npos);
        CHECK(refused.message.size() < 500);
    }
}

TEST_CASE("safetensors: the byte of a mistake in the header is named") {
    const std::string header = "{" + header_entry("good", "F32", "[0]", "[0,0]") + ",";
    const auto refused = refuses(name, "'bad'", [&] {
        open_text(safetensors_bytes(header + header_entry("bad", "F31", "[0]", "[0,0]") + "}"));
    });
    CHECK(refused.message.find("(byte " + std::to_string(8 + header.size()) + ")") !=
          std::string::npos);
}

TEST_CASE("safetensors: no more tensors, metadata and text than the limits permit" *
          long_if_checked()) {
    std::string header = "{";
    for (std::size_t i = 0; i <= safetensors_header::max_tensors; ++i)
        header += header_entry(std::to_string(i), "U8", "[0]", "[0,0]") + ",";
    header.back() = '}';
    REQUIRE(header.size() < safetensors_header::max_bytes);
    CHECK(refuses(name, "JSON", [&] { open_text(safetensors_bytes(header)); }));

    std::string metadata = R"({"__metadata__":{)";
    for (int i = 0; i < 5000; ++i)
        metadata += "\"" + std::to_string(i) + "\":\"\",";
    metadata.back() = '}';
    CHECK(refuses(name, "JSON", [&] { open_text(safetensors_bytes(metadata + "}")); }));

    const std::string text(2000000, 'x');
    CHECK(refuses(name, "JSON", [&] {
        open_text(safetensors_bytes(R"({"__metadata__":{"a":")" + text + "\"}}"));
    }));
    CHECK(refuses(name, "JSON", [&] { open_text(safetensors_bytes("{\"" + text + "\":{}}")); }));
    CHECK(refuses(name, "JSON", [&] {
        open_text(safetensors_bytes(R"({"a":{"shape":[)" + std::string(2000000, '1') + "]}}"));
    }));
}

TEST_CASE("safetensors: null stands for no metadata, as MLX writes it") {
    open_text(safetensors_bytes(R"({"__metadata__":null})"));
}

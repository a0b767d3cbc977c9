#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/io/safetensors.hpp>

#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_buffer.hpp"
#include "support/long_cases.hpp"
#include "support/positions.hpp"
#include "support/temporary_folder.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

constexpr const char* name = "safetensors: some.file";

/// Bytes where the mapped file would have them, at a multiple of 64; `shift` moves them off it.
struct memory {
    alignas(64) std::array<char, 2048> bytes{};
    std::size_t size;
    std::size_t shift;

    explicit memory(const std::string& text, std::size_t by = 0) : size(text.size()), shift(by) {
        REQUIRE(size + shift <= bytes.size());
        std::memcpy(bytes.data() + shift, text.data(), size);
    }
    safetensors_file open() const { return {"some.file", bytes.data() + shift, size}; }
};

void open_text(const std::string& text) {
    const safetensors_file file("some.file", text.data(), text.size());
}

/// A good file of four tensors, one of them empty, one a single number; its data begin at byte 267,
/// those of b at no multiple of its size.
std::string good_file() {
    std::string header = "{"
                         R"("__metadata__":{"kind":"good"},)" +
                         header_entry("flag", "U8", "[1]", "[0,1]") + "," +
                         header_entry("a", "F32", "[2,3]", "[1,25]") + "," +
                         header_entry("b", "F64", "[]", "[25,33]") + "," +
                         header_entry("ids", "I64", "[0,5]", "[33,33]") + "}";
    header.resize(267 - 8, ' '); // so that those of a, at byte 1 of the data, are aligned
    return safetensors_bytes(header, bytes_of<std::uint8_t>({7}) +
                                         bytes_of<float>({1, 2, 3, 4, 5, 6}) +
                                         bytes_of<double>({0.1}));
}

} // namespace

TEST_CASE("safetensors: a good file is read") {
    const memory whole(good_file());
    const safetensors_file file = whole.open();
    CHECK(file.name() == "some.file");
    CHECK(file.metadata().at("kind") == "good");
    CHECK(file.tensors().size() == 4);
    CHECK(file.contains("a"));
    CHECK_FALSE(file.contains("__metadata__"));
    CHECK(file.view<std::uint8_t, 1>("flag")(0) == 7);
    CHECK(file.view<std::int64_t, 2>("ids").extents() == std::array<index_t, 2>{0, 5});

    const auto a = file.view<float, 2>("a");
    CHECK(a.extents() == std::array<index_t, 2>{2, 3});
    CHECK(a.is_contiguous());
    CHECK(a(1, 2) == 6);
    // No copy: the view is where the bytes are.
    CHECK(static_cast<const void*>(a.data()) == whole.bytes.data() + file.tensor("a").first);
    CHECK(file.tensor("a").first == 268);
    CHECK(file.tensor("b").bytes() == 8);
    CHECK(file.tensor("b").rank == 0);
}

TEST_CASE("safetensors: files come mapped or copied, and stay where they are when moved") {
    const temporary_folder folder;
    const auto path = folder.path() / "good.safetensors";
    write_file(path, good_file());
    for (const file_access access : {file_access::map, file_access::copy}) {
        safetensors_file file(path, access);
        const auto a = file.view<float, 2>("a");
        const safetensors_file moved = std::move(file);
        CHECK(moved.view<float, 2>("a").data() == a.data());
        CHECK(a(0, 1) == 2);
        CHECK(moved.name() == path_text(path));
    }
}

TEST_CASE("safetensors: 16-bit types are viewed as they are stored") {
    // 1, -2.5, the least and the largest number, and minus 0
    const std::vector<std::uint16_t> halves{0x3c00, 0xc100, 0x0001, 0x7bff, 0x8000};
    const std::vector<std::uint16_t> bfloats{0x3f80, 0xc020, 0x0001, 0x7f7f, 0x8000};
    const memory whole(safetensors_bytes("{" + header_entry("h", "F16", "[5]", "[0,10]") + "," +
                                             header_entry("b", "BF16", "[5]", "[10,20]") + "} ",
                                         bytes_of(halves) + bytes_of(bfloats)));
    const safetensors_file file = whole.open();
    const auto h = file.view<Eigen::half, 1>("h");
    const auto b = file.view<Eigen::bfloat16, 1>("b");
    CHECK(std::memcmp(h.data(), halves.data(), 10) == 0);
    CHECK(std::memcmp(b.data(), bfloats.data(), 10) == 0);
    CHECK(static_cast<float>(h(1)) == -2.5F);
    CHECK(static_cast<float>(b(1)) == -2.5F);
    CHECK(refuses(name, "'b'", [&] { (void)file.view<Eigen::half, 1>("b"); }));
    CHECK(refuses(name, "'h'", [&] { (void)file.view<Eigen::bfloat16, 1>("h"); }));
    CHECK(refuses(name, "'h'", [&] { (void)file.view<std::uint16_t, 1>("h"); }));
    CHECK(refuses(name, "'h'", [&] { (void)file.view<float, 1>("h"); }));

    // Copies widen them exactly, of any count, wherever they begin.
    for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
        const memory moved(std::string(whole.bytes.data(), whole.size), shift);
        tensor<float, 1> as_float({5});
        tensor<double, 1> as_double({5});
        moved.open().read("h", as_float.view());
        moved.open().read("b", as_double.view());
        for (index_t i = 0; i < 5; ++i) {
            CHECK(as_float(i) == static_cast<float>(h(i)));
            CHECK(as_double(i) == static_cast<double>(static_cast<float>(b(i))));
        }
        tensor<Eigen::half, 1> same({5}), rounded({5});
        moved.open().read("h", same.view());
        CHECK(bytes_of(same.values()) == bytes_of(halves));
        moved.open().read("b", rounded.view());
        CHECK(static_cast<float>(rounded(1)) == -2.5F);
    }
}

TEST_CASE("safetensors: copies go into every layout, longer than a run of the copy") {
    std::vector<double> values;
    for (int i = 0; i < 6 * 35; ++i)
        values.push_back(0.1 * i);
    const std::string file_bytes = safetensors_bytes(
        "{" + header_entry("t", "F64", "[6,35]", "[0,1680]") + "}", bytes_of(values));
    const memory whole(file_bytes, 3); // at no multiple of its size
    for (const layout order : all_layouts) {
        guarded_buffer<float, 2> narrow({6, 35}, order);
        guarded_buffer<double, 3> reshaped({2, 3, 35}, order);
        whole.open().read("t", narrow.view());
        whole.open().read("t", reshaped.view(), std::array<index_t, 2>{6, 35});
        std::size_t i = 0;
        for_each_position(narrow.view().extents(), [&](const auto& at) {
            CHECK(element(narrow.view(), at) == static_cast<float>(values[i]));
            CHECK(reshaped.view()(at[0] / 3, at[0] % 3, at[1]) == values[i]);
            ++i;
        });
    }
}

TEST_CASE("safetensors: what does not fit is not read") {
    const memory whole(good_file());
    const safetensors_file file = whole.open();
    guarded_buffer<float, 2> out({2, 3}), wrong({3, 2});
    guarded_buffer<std::int64_t, 2> integers({2, 3});
    CHECK(refuses(name, "'absent'", [&] { (void)file.view<float, 1>("absent"); }));
    CHECK(refuses(name, "'a'", [&] { (void)file.view<float, 1>("a"); }));
    CHECK(refuses(name, "'a'", [&] { (void)file.view<std::int64_t, 2>("a"); }));
    CHECK(refuses(name, "'a'", [&] { (void)file.view<bool, 2>("a"); }));
    CHECK(refuses(name, "'ids'", [&] { (void)file.view<float, 2>("ids"); }));
    CHECK(refuses(
        name, "'a'", [&] { file.read("a", integers.view()); }, integers));
    CHECK(refuses(
        "safetensors_file::read", "out", [&] { file.read("a", wrong.view()); }, wrong));
    CHECK(refuses(
        "safetensors_file::read", "out",
        [&] {
            file.read("a", out.view().block(0, 0, 1), std::array<index_t, 2>{2, 3});
        },
        out));
    CHECK(refuses(
        name, "'a'",
        [&] {
            file.read("a", wrong.view(), std::array<index_t, 2>{3, 2});
        },
        wrong));
    // The byte at which the tensor begins is named.
    const auto refused = refuses(name, "'a'", [&] { (void)file.view<double, 2>("a"); });
    CHECK(refused.message.find("(byte 268)") != std::string::npos);
}

TEST_CASE("safetensors: data at no multiple of their size can be copied, but not viewed") {
    const memory whole(good_file(), 2);
    CHECK(refuses(name, "'a'", [&] { (void)whole.open().view<float, 2>("a"); }));
    tensor<float, 2> a({2, 3});
    whole.open().read("a", a.view());
    CHECK(a.values() == std::vector<float>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("safetensors: every truncation and every bit that is flipped is refused, or harmless") {
    const std::string whole = good_file();
    open_text(whole);
    for (std::size_t size = 0; size < whole.size(); ++size) {
        CAPTURE(size);
        // A copy of just these bytes, so that a sanitizer sees what is read beyond them.
        const std::vector<char> part(whole.begin(),
                                     whole.begin() + static_cast<std::ptrdiff_t>(size));
        CHECK_THROWS_AS(safetensors_file("some.file", part.data(), part.size()), error);
    }
    CHECK(refuses(name, "data", [&] { open_text(whole + "x"); }));
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
        CAPTURE(bit);
        std::vector<char> flipped(whole.begin(), whole.end());
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        try {
            const safetensors_file file("some.file", flipped.data(), flipped.size());
            for (const auto& [key, stored] : file.tensors()) {
                CHECK(stored.last <= flipped.size());
                if (stored.rank != 2 || !is_floating(stored.type)) continue;
                tensor<double, 2> copy({stored.extents[0], stored.extents[1]});
                file.read(key, copy.view());
            }
        } catch (const error&) {
            // And nothing else may be thrown.
        }
    }
}

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
        open_text(safetensors_bytes("{}" + std::string(safetensors_file::max_header, ' ')));
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
    for (std::size_t i = 0; i <= safetensors_file::max_tensors; ++i)
        header += header_entry(std::to_string(i), "U8", "[0]", "[0,0]") + ",";
    header.back() = '}';
    REQUIRE(header.size() < safetensors_file::max_header);
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

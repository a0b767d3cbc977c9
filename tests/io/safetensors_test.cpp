#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include "support/safetensors.hpp"

using namespace mhr::test;

namespace {

std::vector<char> file_of(std::uint64_t length, const std::string& header,
                          const std::string& data) {
    std::vector<char> bytes;
    for (int i = 0; i < 8; ++i)
        bytes.push_back(static_cast<char>(length >> (8 * i)));
    bytes.insert(bytes.end(), header.begin(), header.end());
    bytes.insert(bytes.end(), data.begin(), data.end());
    return bytes;
}

std::vector<char> file_of(const std::string& header, const std::string& data = "") {
    return file_of(header.size(), header, data);
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
    return '"' + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
           R"(,"data_offsets":)" + offsets + "}";
}

/// The message of the error that reading ends in, or what else happened.
template <class F>
std::string error_of(F&& f) {
    try {
        f();
    } catch (const std::runtime_error& error) {
        return error.what();
    } catch (const std::exception& error) {
        return std::string("not a runtime_error: ") + error.what();
    }
    return "no error";
}

std::string error_of_file(const std::vector<char>& bytes) {
    return error_of([&] { safetensors_file("some.file", bytes); });
}

bool mentions(const std::string& text, const std::string& part) {
    return text.find("some.file: ") == 0 && text.find(part) != std::string::npos;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
    std::string bytes(values.size() * sizeof(T), '\0');
    std::memcpy(&bytes[0], values.data(), bytes.size());
    return bytes;
}

/// A good file of four tensors, one of them empty; the data of b begin at an odd address.
std::vector<char> good_file() {
    return file_of("{"
                   R"("__metadata__":{"kind":"good"},)" +
                       entry("flag", "U8", "[1]", "[0,1]") + "," +
                       entry("a", "F32", "[2,3]", "[1,25]") + "," +
                       entry("b", "F64", "[]", "[25,33]") + "," +
                       entry("ids", "I64", "[0,5]", "[33,33]") + "}   ",
                   bytes_of<std::uint8_t>({7}) + bytes_of<float>({1, 2, 3, 4, 5, 6}) +
                       bytes_of<double>({0.1}));
}

} // namespace

TEST_CASE("safetensors: a good file is read") {
    const safetensors_file file("some.file", good_file());
    CHECK(file.metadata().at("kind") == "good");
    CHECK(file.tensors().size() == 4);
    CHECK(file.contains("a"));
    CHECK_FALSE(file.contains("__metadata__"));
    CHECK(file.read<std::uint8_t, 1>("flag")(0) == 7);
    CHECK(file.read<std::int64_t, 2>("ids").extents() == std::array<mhr::index_t, 2>{0, 5});
    const auto a = file.read<float, 2>("a");
    CHECK(a.extents() == std::array<mhr::index_t, 2>{2, 3});
    CHECK(a.values() == std::vector<float>{1, 2, 3, 4, 5, 6});
    CHECK(file.read<double, 2>("a")(1, 2) == 6); // the one conversion: exact
}

TEST_CASE("safetensors: 16-bit types are read as they are stored") {
    // 1, -2.5, the least and the largest number, and minus 0
    const std::vector<std::uint16_t> halves{0x3c00, 0xc100, 0x0001, 0x7bff, 0x8000};
    const std::vector<std::uint16_t> bfloats{0x3f80, 0xc020, 0x0001, 0x7f7f, 0x8000};
    const safetensors_file file("some.file",
                                file_of("{" + entry("h", "F16", "[5]", "[0,10]") + "," +
                                            entry("b", "BF16", "[5]", "[10,20]") + "}",
                                        bytes_of(halves) + bytes_of(bfloats)));
    const auto h = file.read<Eigen::half, 1>("h");
    const auto b = file.read<Eigen::bfloat16, 1>("b");
    CHECK(bytes_of(h.values()) == bytes_of(halves));
    CHECK(bytes_of(b.values()) == bytes_of(bfloats));
    CHECK(static_cast<float>(h(0)) == 1);
    CHECK(static_cast<float>(h(1)) == -2.5F);
    CHECK(static_cast<float>(h(3)) == 65504);
    CHECK(static_cast<float>(b(0)) == 1);
    CHECK(static_cast<float>(b(1)) == -2.5F);
    CHECK(mentions(error_of([&] { (void)file.read<Eigen::half, 1>("b"); }), "b: BF16 cannot"));
    CHECK(mentions(error_of([&] { (void)file.read<Eigen::bfloat16, 1>("h"); }), "h: F16 cannot"));
    CHECK(mentions(error_of([&] { (void)file.read<float, 1>("h"); }), "h: F16 cannot"));
    CHECK(mentions(error_of([&] { (void)file.read<double, 1>("b"); }), "b: BF16 cannot"));
}

TEST_CASE("safetensors: what does not fit is not read") {
    const safetensors_file file("some.file", good_file());
    CHECK(mentions(error_of([&] { (void)file.read<float, 1>("absent"); }), "absent: missing"));
    CHECK(mentions(error_of([&] { (void)file.read<float, 1>("a"); }), "a: not of rank 1"));
    CHECK(mentions(error_of([&] { (void)file.read<std::int64_t, 2>("a"); }), "a: F32 cannot"));
    CHECK(mentions(error_of([&] { (void)file.read<float, 2>("ids"); }), "ids: I64 cannot"));
    CHECK(error_of([] { safetensors_file("/no such file"); }) == "/no such file: cannot be opened");
}

TEST_CASE("safetensors: every truncation is refused") {
    const auto whole = good_file();
    CHECK(error_of_file(whole) == "no error");
    for (std::size_t size = 0; size < whole.size(); ++size) {
        CAPTURE(size);
        const std::vector<char> part(whole.begin(),
                                     whole.begin() + static_cast<std::ptrdiff_t>(size));
        CHECK(mentions(error_of_file(part), ""));
    }
    auto longer = whole;
    longer.push_back(0);
    CHECK(mentions(error_of_file(longer), "bytes that belong to no tensor"));
}

TEST_CASE("safetensors: lengths of the header that lie") {
    const std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();
    for (std::uint64_t length : {std::uint64_t{3}, std::uint64_t{1} << 32, std::uint64_t{1} << 63,
                                 largest - 8, largest - 7, largest}) {
        CAPTURE(length);
        CHECK(mentions(error_of_file(file_of(length, "{}", "")), "header: longer than the file"));
    }
    CHECK(mentions(error_of_file(file_of(0, "", "")), "header: "));
    CHECK(mentions(error_of_file(file_of(1, "{}", "")), "header: "));
}

TEST_CASE("safetensors: hostile headers") {
    const std::string two = bytes_of<float>({1, 2});
    const auto f32 = [](const std::string& shape, const std::string& offsets) {
        return "{" + entry("t", "F32", shape, offsets) + "}";
    };
    struct hostile {
        std::string header, message;
    };
    const hostile cases[] = {
        // Not JSON, or of another kind than expected.
        {"", "header: "},
        {"nonsense", "header: "},
        {"{} {}", "header: "},
        {"[]", "header: not a JSON object"},
        {"7", "header: not a JSON object"},
        {R"({"t":7})", "t: not a JSON object"},
        {R"({"t":{}})", "t: no 'dtype'"},
        {R"({"t":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", "t: no 'dtype'"},
        {R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", "t: no 'shape'"},
        {R"({"t":{"dtype":"F32","shape":[2]}})", "t: no 'data_offsets'"},
        {R"({"__metadata__":[]})", "__metadata__: "},
        {R"({"__metadata__":{"a":1}})", "__metadata__: a is not a string"},
        // JSON that is nested for ever, and names that come twice.
        {std::string(1000000, '['), "header: nested too deeply"},
        {R"({"t":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})",
         "header: nested too deeply"},
        {"{" + entry("t", "F32", "[1]", "[0,4]") + "," + entry("t", "F32", "[1]", "[4,8]") + "}",
         "t: named twice"},
        {R"({"t":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
         "dtype: named twice"},
        // Numbers.
        {"{" + entry("t", "F31", "[2]", "[0,8]") + "}", "t: unknown 'dtype'"},
        {f32("[-2]", "[0,8]"), "t: bad number in 'shape'"},
        {f32("[2.0]", "[0,8]"), "t: bad number in 'shape'"},
        {f32("[\"2\"]", "[0,8]"), "t: bad number in 'shape'"},
        {f32("[1e400]", "[0,8]"), "header: "},
        {f32("[18446744073709551616]", "[0,8]"), "t: bad number in 'shape'"},
        {f32("[2]", "[-8,0]"), "t: bad number in 'data_offsets'"},
        {f32("[2]", "[0]"), "t: not two 'data_offsets'"},
        {f32("[2]", "[0,8,8]"), "t: not two 'data_offsets'"},
        // 2^63, 2^32 * 2^32 and 2^62 * 4 bytes overflow to 0 or below; so would 0 * 2^63.
        {f32("[9223372036854775808]", "[0,8]"), "t: 'shape' overflows"},
        {f32("[4294967296,4294967296]", "[0,0]"), "t: 'shape' overflows"},
        {f32("[4611686018427387904]", "[0,0]"), "t: 'shape' overflows"},
        {f32("[0,9223372036854775808]", "[0,0]"), "t: 'shape' overflows"},
        // Places.
        {f32("[2]", "[8,0]"), "t: 'data_offsets' outside the file"},
        {f32("[3]", "[0,12]"), "t: 'data_offsets' outside the file"},
        {f32("[2]", "[18446744073709551608,18446744073709551615]"),
         "t: 'data_offsets' outside the file"},
        {f32("[1]", "[0,8]"), "t: 'data_offsets' do not fit"},
        {f32("[2,2]", "[0,8]"), "t: 'data_offsets' do not fit"},
        {f32("[1]", "[4,8]"), "t: leaves a hole before it"},
        {f32("[1]", "[0,4]"), "data: bytes that belong to no tensor"},
        {"{}", "data: bytes that belong to no tensor"},
        {"{" + entry("t", "F32", "[2]", "[0,8]") + "," + entry("u", "F32", "[2]", "[0,8]") + "}",
         "u: overlaps"},
        {"{" + entry("t", "F32", "[2]", "[0,8]") + "," + entry("u", "F32", "[1]", "[4,8]") + "}",
         "u: overlaps"},
    };
    CHECK(error_of_file(file_of(f32("[2]", "[0,8]"), two)) == "no error");
    for (const hostile& one : cases) {
        const std::string error = error_of_file(file_of(one.header, two));
        CAPTURE(one.message);
        CAPTURE(error);
        CHECK(mentions(error, one.message));
    }
}

#include <array>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/safetensors/safetensors_file.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
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
    CHECK(file.integers<std::uint8_t, 1>("flag")(0) == 7);
    CHECK(file.integers<std::int64_t, 2>("ids").extents() == std::array<index_t, 2>{0, 5});

    const const_tensor_ref<2> a = file.view<2>("a");
    CHECK(a.type() == element_type::f32);
    CHECK(a.extents() == std::array<index_t, 2>{2, 3});
    CHECK(a.is_contiguous());
    CHECK(element(a, {1, 2}) == 6);
    // No copy: it is shown where the bytes are.
    CHECK(a.data() == whole.bytes.data() + file.tensor("a").first);
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
        const auto a = file.view<2>("a");
        const safetensors_file moved = std::move(file);
        CHECK(moved.view<2>("a").data() == a.data());
        CHECK(element(a, {0, 1}) == 2);
        CHECK(moved.name() == path_text(path));
    }
}

namespace {

/// The bits of elements, the least and the largest number and minus 0 among them, and a signalling
/// NaN, which no arithmetic keeps: in f64 and f32 as well.
std::string odd_elements(element_type type) {
    switch (type) {
    case element_type::f64:
        return bytes_of<std::uint64_t>({0x3ff0000000000000, 0xc004000000000000, 1,
                                        0x7fefffffffffffff, 0x8000000000000000,
                                        0x7ff4000000000000});
    case element_type::f32:
        return bytes_of<std::uint32_t>(
            {0x3f800000, 0xc0200000, 1, 0x7f7fffff, 0x80000000, 0x7fa00000});
    case element_type::bf16:
        return bytes_of<std::uint16_t>({0x3f80, 0xc020, 0x0001, 0x7f7f, 0x8000, 0x7fa0});
    case element_type::f16:
        return bytes_of<std::uint16_t>({0x3c00, 0xc100, 0x0001, 0x7bff, 0x8000, 0x7d00});
    }
    return {};
}

/// A file of one tensor "t".
std::string file_of(element_type type, const std::string& shape, const std::string& data) {
    return safetensors_bytes("{" +
                                 header_entry("t", dtype_name(to_dtype(type)), shape,
                                              "[0," + std::to_string(data.size()) + "]") +
                                 "} ",
                             data);
}

} // namespace

TEST_CASE("safetensors: tensors are shown and copied as they are stored, bit by bit") {
    for (const element_type type : all_element_types) {
        CAPTURE(name_of(type));
        const std::string bits = odd_elements(type);
        const std::string bytes = file_of(type, "[6]", bits);
        for (const std::size_t shift : {std::size_t{0}, std::size_t{1}}) {
            // The data begin at a multiple of 8 or just after it.
            const memory whole(bytes, (8 - (bytes.size() - bits.size()) % 8) % 8 + shift);
            const safetensors_file file = whole.open();
            CHECK(file.is_aligned(file.tensor("t")) == (shift == 0));
            if (shift == 0) {
                const auto t = file.view<1>("t");
                CHECK(t.type() == type);
                CHECK(std::memcmp(t.data(), bits.data(), bits.size()) == 0);
                CHECK(element(t, {1}) == -2.5);
            } else {
                const auto refused = refuses(name, "'t'", [&] { (void)file.view<1>("t"); });
                CHECK(refused);
                CHECK(refused.message.find("`read` function copies") != std::string::npos);
            }
            for (const layout order : {layout::row_major, layout::padded, layout::reversed}) {
                guarded_tensor<2> same(type, {6, 1}, order);
                file.read("t", same.ref(), std::array<index_t, 1>{6});
                for (index_t i = 0; i < 6; ++i)
                    CHECK(std::memcmp(address_of(same.ref(), {i, 0}),
                                      bits.data() + static_cast<std::size_t>(i) * size_of(type),
                                      size_of(type)) == 0);
                CHECK(same.intact());
            }
        }
    }
}

TEST_CASE("safetensors: integers are copied from any place into every layout") {
    const std::vector<std::int32_t> values{1, -2, 3, 2147483647, -2147483647, 0};
    const memory whole(safetensors_bytes("{" + header_entry("i", "I32", "[2,3]", "[0,24]") + "}",
                                         bytes_of(values)),
                       1);
    CHECK(refuses(name, "'i'", [&] { (void)whole.open().integers<std::int32_t, 2>("i"); }));
    for (const layout order : all_layouts) {
        guarded_buffer<std::int32_t, 2> copy({2, 3}, order);
        whole.open().read_integers("i", copy.view());
        for (index_t i = 0; i < 6; ++i)
            CHECK(copy.view()(i / 3, i % 3) == values[static_cast<std::size_t>(i)]);
        CHECK(copy.intact());
    }
    guarded_buffer<std::uint32_t, 2> other({2, 3});
    guarded_buffer<std::int32_t, 2> wrong({3, 2});
    CHECK(refuses(
        name, "'i'", [&] { whole.open().read_integers("i", other.view()); }, other));
    CHECK(refuses(
        "safetensors_file::read_integers", "out",
        [&] { whole.open().read_integers("i", wrong.view()); }, wrong));
}

TEST_CASE("safetensors: what does not fit is not read") {
    const memory whole(good_file());
    const safetensors_file file = whole.open();
    guarded_tensor<2> out(element_type::f32, {2, 3}), wrong(element_type::f32, {3, 2});
    guarded_tensor<2> none(element_type::f64, {0, 5});
    CHECK(refuses(name, "'absent'", [&] { (void)file.view<1>("absent"); }));
    CHECK(refuses(name, "'a'", [&] { (void)file.view<1>("a"); }));
    CHECK(refuses(name, "'a'", [&] { (void)file.integers<std::int64_t, 2>("a"); }));
    const auto unknown = refuses(name, "'ids'", [&] { (void)file.view<2>("ids"); });
    CHECK(unknown);
    CHECK(unknown.message.find("F64, F32, F16 or BF16, got I64") != std::string::npos);
    CHECK(refuses(
        name, "'ids'", [&] { file.read("ids", none.ref()); }, none));
    for (const auto& bad : bad_as_output(out.ref()))
        CHECK(refuses(
            "safetensors_file::read", "out", [&] { file.read("a", bad.ref); }, out));
    CHECK(refuses(
        "safetensors_file::read", "out", [&] { file.read("a", wrong.ref()); }, wrong));
    CHECK(refuses(
        "safetensors_file::read", "out",
        [&] {
            file.read("a", out.ref().block(0, 0, 1), std::array<index_t, 2>{2, 3});
        },
        out));
    CHECK(refuses(
        name, "'a'",
        [&] {
            file.read("a", wrong.ref(), std::array<index_t, 2>{3, 2});
        },
        wrong));
    // The byte at which the tensor begins is named.
    const auto refused = refuses(name, "'a'", [&] { (void)file.view<3>("a"); });
    CHECK(refused.message.find("(byte 268)") != std::string::npos);
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
                if (stored.rank != 2 || !to_element_type(stored.type)) continue;
                tensor<double, 2> copy({stored.extents[0], stored.extents[1]});
                file.read<2>(key, copy.view());
            }
        } catch (const error&) {
            // And nothing else may be thrown.
        }
    }
}

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/io/safetensors/safetensors_file.hpp>
#include <mhr/io/safetensors/safetensors_writer.hpp>

#include "support/bad_tensors.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/error_check.hpp"
#include "support/file_bytes.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
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

} // namespace

TEST_CASE("safetensors_writer: files of the format's own serialiser are written to the byte") {
    const std::filesystem::path golden(MHR_GOLDEN_DEFAULT_DIR);
    int compared = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(golden)) {
        if (entry.path().filename() != "adapter_model.safetensors") continue;
        const safetensors_file file(entry.path());
        safetensors_writer writer;
        for (const auto& [key, value] : file.metadata())
            writer.set_metadata(key, value);
        for (const auto& [name, stored] : file.tensors())
            writer.add(file, name);
        CHECK(writer.bytes() == read_file(entry.path()));
        ++compared;
    }
    CHECK(compared == 3);
}

TEST_CASE("safetensors_writer: wide types first, then by name, the header padded to 8 bytes") {
    const std::vector<double> f64{1};
    const std::vector<float> f32{2};
    const std::vector<std::int64_t> i64{3};
    const std::vector<std::uint8_t> u8{4, 5, 6};
    const std::vector<mhr::bf16> halves{mhr::bf16(7.0F)};
    safetensors_writer writer;
    writer.set_metadata("b", "a \"quote\"\n");
    writer.set_metadata("a", "2");
    writer.add("z", const_tensor_ref<1>(f32.data(), {1}));
    writer.add_integers("u", tensor_view<const std::uint8_t, 2>(u8.data(), {3, 1}));
    writer.add("b", const_tensor_ref<1>(halves.data(), {1}));
    writer.add("a", const_tensor_ref<1>(f32.data(), {1}));
    writer.add("d", const_tensor_ref<1>(f64.data(), {1}));
    writer.add_integers("i", tensor_view<const std::int64_t, 1>(i64.data(), {1}));
    writer.add("e", const_tensor_ref<2>(nullptr, element_type::f64, {0, 4}));
    std::string header = R"({"__metadata__":{"a":"2","b":"a \"quote\"\n"},)" +
                         header_entry("i", "I64", "[1]", "[0,8]") + "," +
                         header_entry("d", "F64", "[1]", "[8,16]") + "," +
                         header_entry("e", "F64", "[0,4]", "[16,16]") + "," +
                         header_entry("a", "F32", "[1]", "[16,20]") + "," +
                         header_entry("z", "F32", "[1]", "[20,24]") + "," +
                         header_entry("b", "BF16", "[1]", "[24,26]") + "," +
                         header_entry("u", "U8", "[3,1]", "[26,29]") + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    CHECK(writer.bytes() ==
          safetensors_bytes(header, bytes_of(i64) + bytes_of(f64) + bytes_of(f32) + bytes_of(f32) +
                                        bytes_of(halves) + bytes_of(u8)));
}

TEST_CASE("safetensors_writer: tensors of every type and layout come back") {
    for (const element_type type : all_element_types)
        for (const layout order : all_layouts) {
            CAPTURE(name_of(type));
            CAPTURE(name_of(order));
            // Longer than the writer's runs, of a rank that is not read back as it was.
            guarded_tensor<3> values(type, {3, 2, 1100}, order);
            values.fill(random_source(3));
            safetensors_writer writer;
            writer.add("t", values.const_ref());
            writer.add("flat", values.const_ref(), std::array<index_t, 2>{6, 1100});
            const std::string bytes = writer.bytes();
            const safetensors_file file("memory", bytes.data(), bytes.size());
            guarded_tensor<3> t(type, {3, 2, 1100}), flat(type, {3, 2, 1100});
            file.read("t", t.ref());
            file.read("flat", flat.ref(), std::array<index_t, 2>{6, 1100});
            CHECK(compare_bitwise(t.ref(), values.ref()));
            CHECK(compare_bitwise(flat.ref(), values.ref()));
            CHECK(file.tensor("t").type == to_dtype(type));
        }
}

TEST_CASE("safetensors_writer: an empty file, and names that JSON escapes") {
    safetensors_writer nothing;
    CHECK(nothing.bytes() == safetensors_bytes("{}      "));

    const std::string name = "a \"name\"\t\x01\xc3\xa9\\";
    const std::vector<float> value{1};
    safetensors_writer writer;
    writer.add(name, const_tensor_ref<1>(value.data(), {1}));
    const std::string bytes = writer.bytes();
    CHECK(bytes.find(R"("a \"name\"\t\u0001)"
                     "\xc3\xa9"
                     R"(\\":{)") != std::string::npos);
    CHECK(safetensors_file("memory", bytes.data(), bytes.size()).contains(name));
}

TEST_CASE("safetensors_writer: a file is replaced at once, and views into the old one stay") {
    const temporary_folder folder;
    const auto path = folder.path() / "t.safetensors";
    const std::vector<float> first{1, 2}, second{3, 4};
    safetensors_writer writer;
    writer.add("t", const_tensor_ref<1>(first.data(), {2}));
    writer.write(path);
    const safetensors_file old(path);
    const auto view = old.view<1>("t");

    // From the mapped file over itself, and then another one.
    safetensors_writer same;
    same.add(old, "t");
    same.write(path);
    CHECK(read_file(path) == writer.bytes());
    safetensors_writer other;
    other.add("t", const_tensor_ref<1>(second.data(), {2}));
    other.write(path);
    CHECK(element(view, {1}) == 2);
    const safetensors_file replaced(path);
    CHECK(element(replaced.view<1>("t"), {1}) == 4);
    CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("safetensors_writer: what cannot be written leaves nothing behind") {
    const temporary_folder folder;
    safetensors_writer writer;
    CHECK(refuses("safetensors_writer", path_text(folder.path() / "no folder" / "t"),
                  [&] { writer.write(folder.path() / "no folder" / "t"); }));
    std::filesystem::create_directories(folder.path() / "taken" / "inside");
    CHECK(refuses("safetensors_writer", path_text(folder.path() / "taken"),
                  [&] { writer.write(folder.path() / "taken"); }));
    CHECK(files_in(folder.path()) == 1);
}

TEST_CASE("safetensors_writer: bad arguments") {
    constexpr const char* function = "safetensors_writer";
    const std::vector<float> value{1, 2};
    const const_tensor_ref<1> view(value.data(), {2});
    safetensors_writer writer;
    writer.add("t", view);
    const std::string before = writer.bytes();
    CHECK(refuses(function, "t", [&] { writer.add("t", view); }));
    const std::vector<double> wide{1};
    CHECK(refuses(function, "t", [&] {
        writer.add("t", const_tensor_ref<1>(wide.data(), {1})); // of another type
    }));
    CHECK(refuses(function, "__metadata__", [&] { writer.add("__metadata__", view); }));
    CHECK(refuses(function, "\\xff", [&] { writer.add("\xff", view); }));
    CHECK(refuses(function, "metadata", [&] { writer.set_metadata("a", "\xff"); }));
    CHECK(refuses(function, "metadata", [&] { writer.set_metadata("\xff", "a"); }));
    for (const auto& bad : bad_as_input(view, {0}))
        CHECK(refuses(function, "u", [&] { writer.add("u", bad.ref); }));
    CHECK(refuses(function, "u", [&] {
        writer.add_integers("u", tensor_view<const std::int32_t, 1>(nullptr, {2}));
    }));
    CHECK(refuses(function, "u", [&] { writer.add("u", view, std::array<index_t, 2>{2, 2}); }));
    CHECK(refuses(function, "u", [&] { writer.add("u", view, std::array<index_t, 2>{-1, -2}); }));
    CHECK(writer.bytes() == before);
}

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

#include <doctest/doctest.h>

#include <mhr/io/safetensors/dtype.hpp>

using namespace mhr;

TEST_CASE("dtype: names and sizes") {
    const std::string names[] = {"BOOL",    "U8",          "I8",          "F8_E5M2", "F8_E4M3",
                                 "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16",     "U16",
                                 "F16",     "BF16",        "I32",         "U32",     "F32",
                                 "C64",     "F64",         "I64",         "U64"};
    const std::size_t sizes[] = {1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8};
    for (std::size_t i = 0; i < std::size(names); ++i) {
        const auto type = dtype_named(names[i]);
        REQUIRE(type.has_value());
        CHECK(dtype_name(*type) == names[i]);
        CHECK(dtype_size(*type) == sizes[i]);
        CHECK(static_cast<std::size_t>(*type) == i);
    }
    CHECK(dtype_name(dtype::u64) == std::string("U64"));
    for (const char* other : {"", "F31", "f32", "F4", "F32 "})
        CHECK_FALSE(dtype_named(other).has_value());
}

TEST_CASE("dtype: element types are those of numbers with a fraction of 16 bits and more") {
    int known = 0;
    for (unsigned char i = 0; i <= static_cast<unsigned char>(dtype::u64); ++i) {
        const auto type = to_element_type(static_cast<dtype>(i));
        if (!type) continue;
        ++known;
        CHECK(to_dtype(*type) == static_cast<dtype>(i));
        CHECK(size_of(*type) == dtype_size(static_cast<dtype>(i)));
    }
    CHECK(known == 4);
    CHECK(to_element_type(dtype::f64) == element_type::f64);
    CHECK(to_element_type(dtype::f32) == element_type::f32);
    CHECK(to_element_type(dtype::bf16) == element_type::bf16);
    CHECK(to_element_type(dtype::f16) == element_type::f16);
    for (const dtype other : {dtype::i64, dtype::f8_e4m3, dtype::c64, dtype::u16, dtype::boolean})
        CHECK_FALSE(to_element_type(other).has_value());
}

TEST_CASE("dtype: integers of C++, by their size and sign") {
    CHECK(dtype_of_integer<std::int8_t>() == dtype::i8);
    CHECK(dtype_of_integer<std::uint8_t>() == dtype::u8);
    CHECK(dtype_of_integer<std::int16_t>() == dtype::i16);
    CHECK(dtype_of_integer<std::uint16_t>() == dtype::u16);
    CHECK(dtype_of_integer<std::int32_t>() == dtype::i32);
    CHECK(dtype_of_integer<const std::uint32_t>() == dtype::u32);
    CHECK(dtype_of_integer<long long>() == dtype::i64);
    CHECK(dtype_of_integer<std::size_t>() == (sizeof(std::size_t) == 8 ? dtype::u64 : dtype::u32));
}

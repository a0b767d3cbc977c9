#include <cstddef>
#include <cstdint>
#include <string>

#include <Eigen/Core>
#include <doctest/doctest.h>

#include <mhr/io/dtype.hpp>

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
    CHECK(is_floating(dtype::bf16));
    CHECK_FALSE(is_floating(dtype::i64));
    CHECK_FALSE(is_floating(dtype::f8_e4m3));
}

TEST_CASE("dtype: C++ types, whatever a host calls its 16-bit classes") {
    CHECK(dtype_of<double>() == dtype::f64);
    CHECK(dtype_of<const float>() == dtype::f32);
    CHECK(dtype_of<Eigen::half>() == dtype::f16);
    CHECK(dtype_of<Eigen::bfloat16>() == dtype::bf16);
#if defined(__FLT16_MAX__) && defined(__clang__)
    CHECK(dtype_of<_Float16>() == dtype::f16);
#endif
    CHECK(dtype_of<std::int8_t>() == dtype::i8);
    CHECK(dtype_of<std::uint8_t>() == dtype::u8);
    CHECK(dtype_of<std::int16_t>() == dtype::i16);
    CHECK(dtype_of<std::uint16_t>() == dtype::u16);
    CHECK(dtype_of<std::int32_t>() == dtype::i32);
    CHECK(dtype_of<std::uint32_t>() == dtype::u32);
    CHECK(dtype_of<long long>() == dtype::i64);
    CHECK(dtype_of<std::size_t>() == (sizeof(std::size_t) == 8 ? dtype::u64 : dtype::u32));
    CHECK_FALSE(dtype_of<bool>().has_value());
    CHECK_FALSE(dtype_of<std::byte>().has_value());
    CHECK_FALSE(dtype_of<long double>().has_value());
    struct other_half {
        explicit other_half(float) {}
        std::uint16_t bits = 1;
    };
    CHECK_FALSE(dtype_of<other_half>().has_value());
}

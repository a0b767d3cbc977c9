#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <Eigen/Core>

#include <mhr/core/element_type.hpp>
#include <mhr/core/sums.hpp>

#include "support/half_formats.hpp"

namespace {

// A host's own class, of the bits of bf16.
struct own_bf16 {
    std::uint16_t bits;
};
struct unknown {
    std::uint16_t bits;
};

} // namespace

template <>
struct mhr::element_type_of<own_bf16> : mhr::element_type_constant<mhr::element_type::bf16> {};

using namespace mhr;
using namespace mhr::test;

static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2 && alignof(bf16) == 2 && alignof(f16) == 2);
static_assert(std::is_trivially_copyable_v<bf16> && std::is_trivially_copyable_v<f16>);
static_assert(std::is_trivial_v<bf16> && std::is_trivial_v<f16>);
static_assert(std::is_standard_layout_v<bf16> && std::is_standard_layout_v<f16>);
// Conversions are asked for: rounding does not happen by accident.
static_assert(!std::is_convertible_v<float, bf16> && std::is_constructible_v<bf16, float>);
static_assert(!std::is_convertible_v<f16, float> && std::is_constructible_v<float, f16>);
static_assert(!std::is_constructible_v<bf16, f16> && !std::is_constructible_v<f16, bf16>);

static_assert(element_type_of_v<float> == element_type::f32);
static_assert(element_type_of_v<const double> == element_type::f64);
static_assert(element_type_of_v<bf16> == element_type::bf16);
static_assert(element_type_of_v<const f16> == element_type::f16);
static_assert(element_type_of_v<const own_bf16> == element_type::bf16);
static_assert(!unknown_element_type<unknown>::value);

static_assert(size_of(element_type::f32) == 4 && size_of(element_type::f64) == 8);
static_assert(size_of(element_type::bf16) == 2 && size_of(element_type::f16) == 2);

namespace {

template <class T>
T element_of(std::uint16_t bits) {
    static_assert(sizeof(T) == 2);
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, sizeof bits);
    return value;
}
template <class T>
std::uint16_t bits_of_element(const T& value) {
    static_assert(sizeof(T) == 2);
    std::uint16_t bits;
    std::memcpy(&bits, static_cast<const void*>(&value), sizeof bits);
    return bits;
}

// The class of the library beside that of Eigen.
struct bf16_classes : bf16_format {
    using T = bf16;
    using other = Eigen::bfloat16;
};
struct f16_classes : f16_format {
    using T = f16;
    using other = Eigen::half;
};

} // namespace

TEST_CASE("types have names and sizes, and others are not known") {
    const element_type all[] = {element_type::f32, element_type::f64, element_type::bf16,
                                element_type::f16};
    const char* const names[] = {"f32", "f64", "bf16", "f16"};
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(std::string(name_of(all[i])) == names[i]);
        CHECK(is_known(all[i]));
    }
    for (int number : {4, 5, 100, 255}) {
        const auto type = static_cast<element_type>(number);
        CHECK_FALSE(is_known(type));
        CHECK(std::string(name_of(type)) == "unknown");
    }
}

TEST_CASE("sums are of f64 where one of the factors is, else of f32") {
    const element_type all[] = {element_type::f32, element_type::f64, element_type::bf16,
                                element_type::f16};
    for (element_type a : all)
        for (element_type b : all) {
            const bool wide = a == element_type::f64 || b == element_type::f64;
            CHECK(sums_of(a, b) == (wide ? element_type::f64 : element_type::f32));
        }
}

TEST_CASE_TEMPLATE("every pattern is the number that Eigen and the format say", Format,
                   bf16_classes, f16_classes) {
    using T = typename Format::T;
    std::size_t wrong = 0;
    for (std::uint32_t pattern = 0; pattern < 0x10000; ++pattern) {
        const auto bits = static_cast<std::uint16_t>(pattern);
        const auto got = static_cast<float>(element_of<T>(bits));
        const auto of_eigen = static_cast<float>(element_of<typename Format::other>(bits));
        const int magnitude = bits & 0x7FFF;
        bool right = std::signbit(got) == (bits >= 0x8000);
        if (magnitude > Format::infinity)
            right = right && std::isnan(got) && std::isnan(of_eigen);
        else
            right = right && bits_of(got) == bits_of(of_eigen) &&
                    (magnitude == Format::infinity ? std::isinf(got)
                                                   : is_exactly(std::abs(static_cast<double>(got)),
                                                                magnitude_of<Format>(magnitude)));
        // And back: of NaN, the sign and that it is one.
        const std::uint16_t back = T(got).bits;
        if (magnitude > Format::infinity)
            right = right && (back & 0x7FFF) > Format::infinity && ((back ^ bits) & 0x8000) == 0;
        else
            right = right && back == bits;
        if (!right && wrong++ == 0) {
            CAPTURE(pattern);
            CHECK(got == of_eigen);
            CHECK(back == bits);
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("floats are rounded to the nearest, ties to even, as Eigen does", Format,
                   bf16_classes, f16_classes) {
    using T = typename Format::T;
    std::size_t wrong = 0;
    for (float value : floats_to_round<Format>()) {
        const std::uint16_t got = T(value).bits;
        const std::uint16_t of_eigen = bits_of_element(typename Format::other(value));
        const bool right = is_rounded<Format>(value, got) && (std::isnan(value) || got == of_eigen);
        if (!right && wrong++ == 0) {
            CAPTURE(value);
            CHECK(got == of_eigen);
            CHECK(is_rounded<Format>(value, got));
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE("some roundings, by hand") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const float infinity = std::numeric_limits<float>::infinity();
    // Ties.
    CHECK(bf16(1 + 0x1p-8F).bits == 0x3F80);
    CHECK(bf16(1 + 0x1.8p-7F).bits == 0x3F82);
    CHECK(bf16(1 + 0x1.02p-8F).bits == 0x3F81);
    CHECK(f16(1 + 0x1p-11F).bits == 0x3C00);
    CHECK(f16(1 + 0x1.8p-10F).bits == 0x3C02);
    CHECK(f16(1 + 0x1.004p-11F).bits == 0x3C01);
    CHECK(f16(0x1p-25F).bits == 0);
    CHECK(f16(0x1.000002p-25F).bits == 1);
    CHECK(f16(-0x1.8p-24F).bits == 0x8002);
    // The largest numbers, and what becomes infinite.
    CHECK(f16(65519.F).bits == 0x7BFF);
    CHECK(f16(65520.F).bits == 0x7C00);
    CHECK(f16(-1e30F).bits == 0xFC00);
    CHECK(bf16(std::numeric_limits<float>::max()).bits == 0x7F80);
    CHECK(bf16(0x1.FEp127F).bits == 0x7F7F);
    CHECK(bf16(-infinity).bits == 0xFF80);
    CHECK(f16(infinity).bits == 0x7C00);
    // Zeros keep their sign, NaN stays NaN even where its payload is cut off.
    CHECK(bf16(-0.F).bits == 0x8000);
    CHECK(f16(-0.F).bits == 0x8000);
    CHECK(std::isnan(static_cast<float>(bf16(nan))));
    CHECK(std::isnan(static_cast<float>(f16(nan))));
    CHECK(std::isnan(static_cast<float>(bf16(float_of(0x7F800001)))));
    CHECK(std::isnan(static_cast<float>(f16(float_of(0xFF800001)))));
}

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "support/scalar.hpp"
#include <mhr/core/sums.hpp>
#include <mhr/kernels/simd/half_vectors.hpp>

#include "support/architectures.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// The two formats: a sign, an exponent and a fraction.
struct bf16_format {
    static constexpr int fraction_bits = 7;
    static constexpr int bias = 127;
    static constexpr std::uint16_t infinity = 0x7F80;
    template <class Arch>
    using vectors = kernels::bf16_vectors<Arch>;
};
struct f16_format {
    static constexpr int fraction_bits = 10;
    static constexpr int bias = 15;
    static constexpr std::uint16_t infinity = 0x7C00;
    template <class Arch>
    using vectors = kernels::f16_vectors<Arch>;
};

std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// All 65536 patterns of 16 bits.
std::vector<std::uint16_t> all_patterns() {
    std::vector<std::uint16_t> patterns(1 << 16);
    for (std::size_t i = 0; i < patterns.size(); ++i)
        patterns[i] = static_cast<std::uint16_t>(i);
    return patterns;
}

// The vectors' results, for numbers that are padded to whole vectors with the last one.
template <class Format, class Arch>
std::vector<float> widened(std::vector<std::uint16_t> from) {
    constexpr auto width = static_cast<std::size_t>(kernels::lanes<float, Arch>);
    const std::size_t count = from.size();
    from.resize((count + width - 1) / width * width, from.back());
    std::vector<float> to(from.size());
    for (std::size_t i = 0; i < from.size(); i += width)
        Format::template vectors<Arch>::load(&from[i]).store_unaligned(&to[i]);
    to.resize(count);
    return to;
}
template <class Format, class Arch>
std::vector<std::uint16_t> rounded(std::vector<float> from) {
    constexpr auto width = static_cast<std::size_t>(kernels::lanes<float, Arch>);
    const std::size_t count = from.size();
    from.resize((count + width - 1) / width * width, from.back());
    std::vector<std::uint16_t> to(from.size());
    for (std::size_t i = 0; i < from.size(); i += width)
        Format::template vectors<Arch>::store(
            kernels::vector<float, Arch>::load_unaligned(&from[i]), &to[i]);
    to.resize(count);
    return to;
}

// The number that the bits of a magnitude mean, as the formats define it; infinity counts as the
// number that would follow the largest, from which IEEE 754 rounds to it.
template <class Format>
double magnitude_of(int bits) {
    static const std::vector<double> magnitudes = [] {
        constexpr int normal = 1 << Format::fraction_bits;
        std::vector<double> all;
        for (int i = 0; i <= Format::infinity; ++i) {
            const int exponent = std::max(i / normal, 1) - Format::bias - Format::fraction_bits;
            all.push_back(std::ldexp(i < normal ? i : normal + i % normal, exponent));
        }
        return all;
    }();
    return magnitudes[static_cast<std::size_t>(bits)];
}

// True if `bits` is the nearest to `value`: no neighbour is nearer, nor as near and even.
template <class Format>
bool is_rounded(float value, std::uint16_t bits) {
    const int magnitude = bits & 0x7FFF;
    if (std::isnan(value)) return magnitude > Format::infinity;
    if (std::signbit(value) != ((bits & 0x8000) != 0)) return false;
    if (std::isinf(value)) return magnitude == Format::infinity;
    if (magnitude > Format::infinity) return false;
    const auto distance = [&](int of) {
        return std::abs(std::abs(static_cast<double>(value)) - magnitude_of<Format>(of));
    };
    const auto beaten_by = [&](int other) {
        return distance(other) < distance(magnitude) ||
               (is_exactly(distance(other), distance(magnitude)) && magnitude % 2 != 0);
    };
    return (magnitude == 0 || !beaten_by(magnitude - 1)) &&
           (magnitude == Format::infinity || !beaten_by(magnitude + 1));
}

// Every number of the format, halfway to the next, and the floats next to both: where rounding,
// underflow and overflow change. And many others.
template <class Format>
std::vector<float> floats_to_round() {
    std::vector<float> values;
    const auto add = [&](double value) {
        const auto nearest = static_cast<float>(value);
        const float infinity = std::numeric_limits<float>::infinity();
        for (float number :
             {nearest, std::nextafter(nearest, infinity), std::nextafter(nearest, 0.F)})
            values.insert(values.end(), {number, -number});
    };
    for (int bits = 0; bits < Format::infinity; ++bits) {
        const double number = magnitude_of<Format>(bits);
        add(number);
        add((number + magnitude_of<Format>(bits + 1)) / 2);
    }
    // Infinity; numbers of NaN with a payload at either end; the largest and smallest floats.
    for (std::uint32_t bits : {0x7F800000U, 0x7F800001U, 0x7FC00000U, 0x7FFFFFFFU, 0x7F801FFFU,
                               0x7F7FFFFFU, 0x00800000U, 0x007FFFFFU, 0x00000001U})
        values.insert(values.end(), {float_of(bits), float_of(bits | 0x80000000U)});
    std::mt19937 random(5);
    for (int i = 0; i < 50000; ++i)
        values.push_back(float_of(static_cast<std::uint32_t>(random())));
    return values;
}

} // namespace

TEST_CASE("vectors are seen as others of the same bits") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t width = kernels::lanes<float, Arch>;
        alignas(64) std::int32_t bits[kernels::as_size(width)];
        alignas(64) float values[kernels::as_size(width)];
        kernels::vector_bits_as<std::int32_t>(kernels::vector<float, Arch>(-1.5F))
            .store_aligned(bits);
        kernels::vector_bits_as<float>(kernels::bits_vector<Arch>(0x40490FDB))
            .store_aligned(values);
        for (index_t i = 0; i < width; ++i) {
            CHECK(static_cast<std::uint32_t>(bits[i]) == bits_of(-1.5F));
            CHECK(bits_of(values[i]) == 0x40490FDB);
        }
    });
}

TEST_CASE("16-bit numbers are widened and narrowed, on every architecture") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t width = kernels::lanes<float, Arch>;
        for (int first : {0, 1, 0x7FFF - 3, 0x8000 - 5, 0xFFFF - 20}) {
            std::uint16_t numbers[kernels::as_size(width + 1)];
            for (index_t i = 0; i <= width; ++i)
                numbers[i] = static_cast<std::uint16_t>(first + i);
            alignas(64) std::int32_t wide[kernels::as_size(width)];
            kernels::load_16<Arch>(numbers).store_aligned(wide);
            for (index_t i = 0; i < width; ++i)
                CHECK(wide[i] == first + i);
            std::uint16_t narrow[kernels::as_size(width + 1)];
            narrow[width] = 0x1234;
            kernels::store_16<Arch>(kernels::load_16<Arch>(numbers), narrow);
            CHECK(std::equal(narrow, narrow + width, numbers));
            CHECK(narrow[width] == 0x1234); // nothing beyond is written
        }
    });
}

TEST_CASE_TEMPLATE("every 16-bit pattern is the number that its format defines", Format,
                   bf16_format, f16_format) {
    const std::vector<std::uint16_t> patterns = all_patterns();
    for_each_architecture([&](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        const std::vector<float> got = widened<Format, Arch>(patterns);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < patterns.size(); ++i) {
            const auto magnitude = static_cast<int>(i & 0x7FFF);
            const auto size = static_cast<double>(std::abs(got[i]));
            const bool right = magnitude > Format::infinity ? std::isnan(size)
                               : magnitude == Format::infinity
                                   ? std::isinf(size)
                                   : is_exactly(size, magnitude_of<Format>(magnitude));
            if (!right || std::signbit(got[i]) != (i >= 0x8000)) ++wrong;
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE_TEMPLATE("what was read is written back to the bit", Format, bf16_format, f16_format) {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        const auto back = rounded<Format, Arch>(widened<Format, Arch>(all_patterns()));
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < back.size(); ++i) {
            // Of NaN, the sign and that it is one.
            const bool nan = (i & 0x7FFF) > Format::infinity;
            const bool right =
                nan ? (back[i] & 0x8000) == (i & 0x8000) && (back[i] & 0x7FFF) > Format::infinity
                    : back[i] == i;
            if (!right) ++wrong;
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE_TEMPLATE("every float is rounded to the nearest, ties to even", Format, bf16_format,
                   f16_format) {
    const std::vector<float> values = floats_to_round<Format>();
    for_each_architecture([&](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        const std::vector<std::uint16_t> got = rounded<Format, Arch>(values);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < values.size(); ++i)
            if (!is_rounded<Format>(values[i], got[i]) && wrong++ == 0) {
                CAPTURE(values[i]);
                CAPTURE(got[i]);
                CHECK(is_rounded<Format>(values[i], got[i]));
            }
        CHECK(wrong == 0);
    });
}

TEST_CASE("the check of roundings reports wrong ones") {
    CHECK(is_rounded<f16_format>(1, 0x3C00));
    CHECK_FALSE(is_rounded<f16_format>(1, 0x3C01));
    CHECK_FALSE(is_rounded<f16_format>(1, 0xBC00));
    CHECK(is_rounded<f16_format>(1 + 0x1p-11F, 0x3C00)); // a tie
    CHECK_FALSE(is_rounded<f16_format>(1 + 0x1p-11F, 0x3C01));
    CHECK(is_rounded<f16_format>(1 + 0x1.8p-10F, 0x3C02));
    CHECK_FALSE(is_rounded<f16_format>(1 + 0x1.8p-10F, 0x3C01));
    CHECK(is_rounded<f16_format>(65519.F, 0x7BFF));
    CHECK(is_rounded<f16_format>(65520.F, 0x7C00));
    CHECK_FALSE(is_rounded<f16_format>(65520.F, 0x7BFF));
    CHECK(is_rounded<f16_format>(0x1p-25F, 0));
    CHECK(is_rounded<f16_format>(0x1.000002p-25F, 1));
    CHECK_FALSE(is_rounded<f16_format>(0x1.000002p-25F, 0));
    CHECK(is_rounded<f16_format>(-0.F, 0x8000));
    CHECK_FALSE(is_rounded<f16_format>(-0.F, 0));
    CHECK_FALSE(is_rounded<bf16_format>(std::numeric_limits<float>::quiet_NaN(), 0x7F80));
}

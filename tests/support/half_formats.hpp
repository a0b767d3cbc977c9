#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <mhr/core/sums.hpp>

#include "support/random_tensor.hpp"

// The two formats of 16 bits, bf16 and f16, as their definitions say: an oracle for classes, runs
// and vectors that convert them.

namespace mhr {
namespace test {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// All 65536 patterns of 16 bits, as a host has them that knows no class for them.
inline std::vector<std::uint16_t> all_patterns() {
    std::vector<std::uint16_t> patterns(1 << 16);
    for (std::size_t i = 0; i < patterns.size(); ++i)
        patterns[i] = static_cast<std::uint16_t>(i);
    return patterns;
}

// A sign, an exponent and a fraction.
struct bf16_format {
    static constexpr int fraction_bits = 7;
    static constexpr int bias = 127;
    static constexpr int infinity = 0x7F80;
};
struct f16_format {
    static constexpr int fraction_bits = 10;
    static constexpr int bias = 15;
    static constexpr int infinity = 0x7C00;
};

// The number that the bits of a magnitude mean; infinity counts as the number that would follow the
// largest, from which IEEE 754 rounds to it.
template <class Format>
double magnitude_of(int bits) {
    static const std::vector<double> magnitudes = [] {
        constexpr int normal = 1 << Format::fraction_bits;
        std::vector<double> all;
        for (int i = 0; i <= Format::infinity; ++i) {
            const int exponent = (std::max)(i / normal, 1) - Format::bias - Format::fraction_bits;
            all.push_back(std::ldexp(i < normal ? i : normal + i % normal, exponent));
        }
        return all;
    }();
    return magnitudes[static_cast<std::size_t>(bits)];
}

// True if `bits` is the nearest to `value`: no neighbour is nearer, nor as near and even. NaN keeps
// its sign.
template <class Format>
bool is_rounded(float value, std::uint16_t bits) {
    const int magnitude = bits & 0x7FFF;
    if (std::signbit(value) != ((bits & 0x8000) != 0)) return false;
    if (std::isnan(value)) return magnitude > Format::infinity;
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
// underflow and overflow change. Infinity, NaN with a payload at either end, the largest and the
// smallest floats. And many others.
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
    for (std::uint32_t bits : {0x7F800000U, 0x7F800001U, 0x7FC00000U, 0x7FFFFFFFU, 0x7F801FFFU,
                               0x7F7FFFFFU, 0x00800000U, 0x007FFFFFU, 0x00000001U})
        values.insert(values.end(), {float_of(bits), float_of(bits | 0x80000000U)});
    random_source random(5);
    for (int i = 0; i < 50000; ++i)
        values.push_back(float_of(random.bits()));
    return values;
}

} // namespace test
} // namespace mhr

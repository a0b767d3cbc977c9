#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/kernels/simd/half_vectors.hpp>

#include "support/architectures.hpp"
#include "support/half_formats.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class Format, class Arch>
using vectors = std::conditional_t<std::is_same_v<Format, bf16_format>, kernels::bf16_vectors<Arch>,
                                   kernels::f16_vectors<Arch>>;

// The vectors' results, for numbers that are padded to whole vectors with the last one.
template <class Format, class Arch>
std::vector<float> widened(std::vector<std::uint16_t> from) {
    constexpr auto width = static_cast<std::size_t>(kernels::lanes<float, Arch>);
    const std::size_t count = from.size();
    from.resize((count + width - 1) / width * width, from.back());
    std::vector<float> to(from.size());
    for (std::size_t i = 0; i < from.size(); i += width)
        vectors<Format, Arch>::load(&from[i]).store_unaligned(&to[i]);
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
        vectors<Format, Arch>::store(kernels::vector<float, Arch>::load_unaligned(&from[i]),
                                     &to[i]);
    to.resize(count);
    return to;
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
            // A NaN stays one, of the same sign.
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

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/simd/conversion.hpp>

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/guarded_buffer.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using bf16 = Eigen::bfloat16;
using half = Eigen::half;

template <class T>
std::uint16_t bits_of(const T& value) {
    static_assert(sizeof(T) == 2);
    std::uint16_t bits;
    std::memcpy(&bits, static_cast<const void*>(&value), sizeof bits);
    return bits;
}

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

// A 16-bit type that only its own conversions understand: a count of 1/256.
struct fixed_point {
    std::int16_t count = 0;
    explicit fixed_point(float value = 0)
        : count(static_cast<std::int16_t>(std::lround(value * 256))) {}
    explicit operator float() const { return static_cast<float>(count) / 256; }
};

// A host's own class of a known format, as every host has one.
struct own_bf16 {
    std::uint16_t bits = 0;
    own_bf16() = default;
    explicit own_bf16(float value) : bits(bits_of(bf16(value))) {}
    explicit operator float() const { return float_of(static_cast<std::uint32_t>(bits) << 16); }
};

// All 65536 values of a 16-bit type, in the order of their bits.
template <class T>
std::vector<T> all_values() {
    std::vector<T> values(1 << 16);
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        std::memcpy(static_cast<void*>(&values[i]), &bits, sizeof bits);
    }
    return values;
}

// The dense runs, which are what converts by bits.
template <class T>
std::vector<float> widened(const std::vector<T>& values) {
    std::vector<float> result(values.size());
    detail::read_run(values.data(), 1, static_cast<index_t>(values.size()), result.data());
    return result;
}
template <class T>
std::vector<T> rounded(const std::vector<float>& values) {
    std::vector<T> result(values.size());
    detail::write_run(values.data(), static_cast<index_t>(values.size()), result.data(), 1);
    return result;
}

template <class T>
constexpr std::uint16_t bits_of_infinity = std::is_same_v<T, bf16> ? 0x7F80 : 0x7C00;

} // namespace

TEST_CASE("the format of a class is told from its values") {
    using detail::format;
    CHECK(detail::format_of<bf16>() == format::bf16);
    CHECK(detail::format_of<half>() == format::f16);
    CHECK(detail::format_of<own_bf16>() == format::bf16);
    CHECK(detail::format_of<fixed_point>() == format::other);
    CHECK(detail::format_of<float>() == format::other);
    CHECK(detail::format_of<double>() == format::other);
}

TEST_CASE_TEMPLATE("every 16-bit value is read as the class itself reads it", T, bf16, half) {
    const std::vector<T> values = all_values<T>();
    const std::vector<float> got = widened(values);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const auto want = static_cast<float>(values[i]);
        const bool same = std::isnan(want) ? std::isnan(got[i]) : bits_of(got[i]) == bits_of(want);
        if (!same && wrong++ == 0) {
            CAPTURE(i);
            CHECK(got[i] == want);
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("what was read is written back to the bit", T, bf16, half) {
    const std::vector<T> values = all_values<T>();
    const std::vector<T> back = rounded<T>(widened(values));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        const bool nan = (i & 0x7FFF) > bits_of_infinity<T>;
        const std::uint16_t got = bits_of(back[i]);
        // Of NaN, the sign and that it is one.
        const bool good =
            nan ? (got & 0x8000) == (i & 0x8000) && (got & 0x7FFF) > bits_of_infinity<T> : got == i;
        if (!good) ++wrong;
    }
    CHECK(wrong == 0);
}

namespace {

enum class stepping { dense, apart, backwards, none };

// `count` elements with a stride, in memory that shows what else is touched.
template <class T>
struct run {
    guarded_buffer<T, 2> memory;
    tensor_view<T, 1> view;

    run(index_t count, stepping steps)
        : memory({steps == stepping::none ? 1 : count, 1}, steps == stepping::apart ? layout::padded
                                                           : steps == stepping::backwards
                                                               ? layout::reversed
                                                               : layout::row_major) {
        const auto column = memory.view().slice(1, 0);
        view = {column.data(), {count}, {steps == stepping::none ? 0 : column.stride(0)}};
    }
};

template <class Arch, class A, class T>
void check_runs() {
    random_source random(11);
    for (index_t count = 0; count <= 50; ++count)
        for (stepping steps :
             {stepping::dense, stepping::apart, stepping::backwards, stepping::none}) {
            CAPTURE(count);
            CAPTURE(static_cast<int>(steps));
            run<T> input(count, steps);
            random.fill(input.view, 10);
            run<A> read(count, stepping::dense);
            detail::read_run<Arch>(static_cast<const T*>(input.view.data()), input.view.stride(0),
                                   count, read.view.data());
            tensor<A, 1> want({count});
            transform(input.view, want.view(), [](const T& value) { return load<A>(value); });
            CHECK((count == 0 || compare_bitwise(read.view, want.view())));
            CHECK(read.memory.intact());
            if (steps == stepping::none) continue;

            random.fill(read.view, 10);
            run<T> output(count, steps);
            detail::write_run<Arch>(static_cast<const A*>(read.view.data()), count,
                                    output.view.data(), output.view.stride(0));
            // What was read back: fixed_point has no ==.
            tensor<A, 1> got({count});
            transform(output.view, got.view(), [](const T& value) { return load<A>(value); });
            transform(read.view, want.view(),
                      [](const A& value) { return load<A>(store<T>(value)); });
            CHECK((count == 0 || compare_bitwise(got.view(), want.view())));
            CHECK(output.memory.intact());
        }
}

} // namespace

TEST_CASE_TEMPLATE("runs of every length and stride", T, float, bf16, half, fixed_point, own_bf16) {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(Arch::name());
        check_runs<Arch, float, T>();
    });
}

namespace {

template <class Arch, detail::format Format, class T>
bool loads_as_it_reads() {
    constexpr index_t width = detail::lanes<float, Arch>;
    std::vector<T> values(width + 1);
    for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = T(static_cast<float>(i) * 0.375F - 2.F);
    for (index_t first : {0, 1}) {
        float loaded[detail::as_size(width)], read[detail::as_size(width)];
        detail::load_lanes<float, Arch, Format>(values.data() + first).store_unaligned(loaded);
        detail::read_run<Arch>(static_cast<const T*>(values.data()) + first, 1, width, read);
        if (!std::equal(loaded, loaded + width, read) ||
            detail::is_exactly(loaded[width - 1], loaded[0]))
            return width == 1;
    }
    return true;
}

} // namespace

TEST_CASE("lanes are loaded from every format") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        using detail::format;
        CAPTURE(Arch::name());
        CHECK(loads_as_it_reads<Arch, format::other, float>());
        CHECK(loads_as_it_reads<Arch, format::bf16, bf16>());
        CHECK(loads_as_it_reads<Arch, format::bf16, own_bf16>());
        CHECK(loads_as_it_reads<Arch, format::f16, half>());
    });
}

TEST_CASE_TEMPLATE("runs of every length and stride, for sums in double", T,
                   MHR_TEST_STORAGE_TYPES) {
    check_runs<default_arch, double, T>();
}

TEST_CASE("no memory is needed where there is nothing") {
    float* const nothing = nullptr;
    half* const nowhere = nullptr;
    detail::read_run(static_cast<const float*>(nothing), 1, 0, nothing);
    detail::read_run(static_cast<const half*>(nowhere), 1, 0, nothing);
    detail::read_run(static_cast<const half*>(nowhere), 3, 0, nothing);
    detail::write_run(static_cast<const float*>(nothing), 0, nowhere, 1);
    detail::write_run(static_cast<const float*>(nothing), 0, nowhere, -1);
    CHECK(nothing == nullptr);
}

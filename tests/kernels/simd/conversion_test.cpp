#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/simd/conversion.hpp>

#include "support/architectures.hpp"
#include "support/comparison.hpp"
#include "support/element_access.hpp"
#include "support/guarded_tensor.hpp"
#include "support/half_formats.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class A, class Arch>
std::vector<A> widened(element_type type, const std::vector<std::uint16_t>& bits) {
    std::vector<A> result(bits.size());
    kernels::read_run<Arch>(type, bits.data(), 1, static_cast<index_t>(bits.size()), result.data());
    return result;
}
template <class Arch, class A>
std::vector<std::uint16_t> rounded(element_type type, const std::vector<A>& values) {
    std::vector<std::uint16_t> result(values.size());
    kernels::write_run<Arch>(values.data(), static_cast<index_t>(values.size()), type,
                             result.data(), 1);
    return result;
}

constexpr element_type halves[] = {element_type::bf16, element_type::f16};

int infinity_of(element_type type) {
    return type == element_type::bf16 ? 0x7F80 : 0x7C00;
}

float as_the_class_reads(element_type type, std::uint16_t bits) {
    const std::uint16_t wide[4] = {bits}; // GCC cannot tell that no f64 is read
    return static_cast<float>(read_element(type, wide));
}
std::uint16_t as_the_class_rounds(element_type type, double value) {
    std::uint16_t wide[4] = {};
    write_element(value, type, wide);
    return wide[0];
}

template <class A, class Arch>
void check_all_patterns() {
    const std::vector<std::uint16_t> patterns = all_patterns();
    for (element_type type : halves) {
        CAPTURE(std::string(name_of(type)));
        const std::vector<A> values = widened<A, Arch>(type, patterns);
        const std::vector<std::uint16_t> back = rounded<Arch>(type, values);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < patterns.size(); ++i) {
            const float want = as_the_class_reads(type, patterns[i]);
            const auto got = static_cast<float>(values[i]);
            const bool right = std::isnan(want)
                                   // A NaN stays one, of the same sign.
                                   ? std::isnan(got) && (back[i] & 0x8000) == (i & 0x8000) &&
                                         (back[i] & 0x7FFF) > infinity_of(type)
                                   : bits_of(got) == bits_of(want) && back[i] == i;
            if (!right) ++wrong;
        }
        CHECK(wrong == 0);
    }
}

} // namespace

TEST_CASE("every 16-bit value is read as its class reads it, and written back to the bit") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        check_all_patterns<float, Arch>();
        check_all_patterns<double, Arch>();
    });
}

TEST_CASE("dense runs are rounded as single elements are") {
    // Numbers of all sizes, ties and their neighbours, infinity and NaN.
    std::vector<float> values{0.F, -0.F, 65519.F, 65520.F, 0x1p-25F, 0x1.000002p-25F, 0x1.FFp127F};
    for (std::uint32_t bits : {0x7F800000U, 0xFF800000U, 0x7F800001U, 0x7FC00000U, 0xFFFFFFFFU})
        values.push_back(float_of(bits));
    random_source random(5);
    for (int i = 0; i < 20001; ++i) {
        const auto bits = random.bits();
        values.push_back(float_of(bits));
        values.push_back(float_of(bits & 0xFFFFF000U));
        values.push_back(float_of(bits & 0xFFFF8000U));
    }
    for_each_architecture([&](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        for (element_type type : halves) {
            CAPTURE(std::string(name_of(type)));
            const std::vector<double> wide(values.begin(), values.end());
            const auto got = rounded<Arch>(type, values);
            const auto got_from_double = rounded<Arch>(type, wide);
            std::size_t wrong = 0;
            for (std::size_t i = 0; i < values.size(); ++i) {
                const std::uint16_t want = as_the_class_rounds(type, wide[i]);
                const auto is_right = [&](std::uint16_t bits) {
                    return std::isnan(values[i]) ? (bits & 0x7FFF) > infinity_of(type)
                                                 : bits == want;
                };
                if (!is_right(got[i]) || !is_right(got_from_double[i])) ++wrong;
            }
            CHECK(wrong == 0);
        }
    });
}

namespace {

enum class stepping { dense, apart, backwards, none };

// `count` elements with a stride, in memory that shows what else is touched.
struct run {
    guarded_tensor<2> memory;
    tensor_ref<1> elements;

    run(element_type type, index_t count, stepping steps)
        : memory(type, {steps == stepping::none ? 1 : count, 1},
                 steps == stepping::apart       ? layout::padded
                 : steps == stepping::backwards ? layout::reversed
                                                : layout::row_major) {
        const tensor_ref<1> column = memory.ref().slice(1, 0);
        elements = {column.data(), type, {count}, {steps == stepping::none ? 0 : column.stride(0)}};
    }
};

template <class Arch, class A>
void check_runs(element_type type) {
    random_source random(11);
    constexpr element_type sums = element_type_of_v<A>;
    for (index_t count = 0; count <= 50; ++count)
        for (stepping steps :
             {stepping::dense, stepping::apart, stepping::backwards, stepping::none}) {
            CAPTURE(count);
            CAPTURE(static_cast<int>(steps));
            run input(type, count, steps);
            input.memory.fill(random, -10, 10);
            run read(sums, count, stepping::dense);
            A* const values = static_cast<A*>(read.elements.data());
            kernels::read_run<Arch>(type, input.elements.data(), input.elements.stride(0), count,
                                    values);
            const tensor<A, 1> want = values_as<A>(input.elements);
            CHECK((count == 0 || compare_bitwise(const_tensor_ref<1>(read.elements),
                                                 const_tensor_ref<1>(want.const_view()))));
            CHECK(read.memory.intact());
            CHECK(input.memory.intact());
            if (steps == stepping::none) continue;

            read.memory.fill(random, -10, 10);
            run output(type, count, steps);
            kernels::write_run<Arch>(static_cast<const A*>(values), count, type,
                                     output.elements.data(), output.elements.stride(0));
            run rounded(type, count, stepping::dense);
            for (index_t i = 0; i < count; ++i)
                set_element(rounded.elements, {i}, static_cast<double>(values[i]));
            CHECK((count == 0 || compare_bitwise(output.elements, rounded.elements)));
            CHECK(output.memory.intact());
        }
}

} // namespace

TEST_CASE("runs of every length, stride and type") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        for (element_type type : all_element_types) {
            CAPTURE(std::string(name_of(type)));
            if (type != element_type::f64) check_runs<Arch, float>(type);
            check_runs<Arch, double>(type);
        }
    });
}

namespace {

template <class Arch, class A, class T>
bool loads_as_it_reads() {
    constexpr index_t width = kernels::lanes<A, Arch>;
    constexpr auto size = kernels::as_size(width);
    std::vector<T> values;
    for (index_t i = 0; i <= width; ++i)
        values.push_back(T(static_cast<float>(i) * 0.375F - 2.F));
    for (index_t first : {0, 1}) {
        A loaded[size], read[size];
        kernels::load_lanes<A, Arch>(values.data() + first).store_unaligned(loaded);
        kernels::read_run<Arch>(element_type_of_v<T>, values.data() + first, 1, width, read);
        const bool ascend = width == 1 || loaded[0] < loaded[width - 1];
        if (!std::equal(loaded, loaded + width, read) || !ascend) return false;
    }
    return true;
}

} // namespace

TEST_CASE("lanes are loaded from every type that has vectors") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        CHECK(loads_as_it_reads<Arch, float, float>());
        CHECK(loads_as_it_reads<Arch, float, bf16>());
        CHECK(loads_as_it_reads<Arch, float, f16>());
        CHECK(loads_as_it_reads<Arch, double, double>());
    });
}

TEST_CASE("a type is made known to the compiler, unless it is wider than the sums") {
    for (element_type type : all_element_types) {
        int calls = 0;
        const auto look = [&](auto* null) {
            CHECK(null == nullptr);
            CHECK(element_type_of_v<std::remove_pointer_t<decltype(null)>> == type);
            ++calls;
        };
        kernels::with_type<double>(type, look);
        CHECK(calls == 1);
        kernels::with_type<float>(type, look);
        CHECK(calls == (type == element_type::f64 ? 1 : 2));
    }
}

TEST_CASE("no memory is needed where there is nothing") {
    float* const nothing = nullptr;
    double* const none = nullptr;
    for (element_type type : all_element_types)
        for (index_t stride : {1, 3, -1}) {
            if (type != element_type::f64) {
                kernels::read_run<default_arch>(type, nullptr, stride, 0, nothing);
                kernels::write_run<default_arch>(static_cast<const float*>(nothing), 0, type,
                                                 nullptr, stride);
            }
            kernels::read_run<default_arch>(type, nullptr, stride, 0, none);
            kernels::write_run<default_arch>(static_cast<const double*>(none), 0, type, nullptr,
                                             stride);
        }
    CHECK(nothing == nullptr);
}

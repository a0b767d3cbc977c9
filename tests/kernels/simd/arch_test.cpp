#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/kernels/simd/arch.hpp>

#include "support/architectures.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

struct terms {
    double a, b, c;
};

// The vectors' result for each of the terms, from lanes that all hold something else.
template <class A, class Arch>
std::vector<A> multiply_adds(const std::vector<terms>& all) {
    using V = kernels::vector<A, Arch>;
    using kernels::multiply_add; // or it is found with the class
    constexpr auto width = static_cast<std::size_t>(kernels::lanes<A, Arch>);
    std::vector<A> results;
    for (std::size_t first = 0; first < all.size(); first += width) {
        alignas(64) std::array<A, width> a{}, b{}, c{};
        for (std::size_t i = 0; i < width && first + i < all.size(); ++i) {
            a[i] = static_cast<A>(all[first + i].a);
            b[i] = static_cast<A>(all[first + i].b);
            c[i] = static_cast<A>(all[first + i].c);
        }
        alignas(64) std::array<A, width> result;
        multiply_add(V::load_aligned(a.data()), V::load_aligned(b.data()),
                     V::load_aligned(c.data()))
            .store_aligned(result.data());
        results.insert(results.end(), result.begin(), result.end());
    }
    results.resize(all.size());
    return results;
}

// 32-bit Arm has vectors of f32 alone.
template <class Arch>
constexpr bool has_f64_vectors = !std::is_same_v<Arch, xsimd::neon>;

template <class A>
bool same_bits(A a, A b) {
    return std::memcmp(&a, &b, sizeof a) == 0;
}

// a b + c, rounded after each of the two.
template <class A>
A in_two_roundings(A a, A b, A c) {
    volatile A product = a * b; // a compiler may not contract through it
    return product + c;
}

} // namespace

static_assert(std::is_same_v<default_arch, xsimd::default_arch>);

TEST_CASE("lanes are as many as fill a register") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t floats = kernels::lanes<float, Arch>;
        constexpr index_t doubles = kernels::lanes<double, Arch>;
        CHECK(doubles == (has_f64_vectors<Arch> ? floats / 2 : 1));
        CHECK((floats == 4 || floats == 8 || floats == 16));
        CHECK(sizeof(kernels::vector<float, Arch>) == sizeof(float) * floats);
        CHECK(sizeof(kernels::vector<double, Arch>) == sizeof(double) * doubles);
        // Pieces have 16 bytes, of which longer vectors are multiples.
        constexpr index_t piece = kernels::lanes<float, kernels::piece_arch<Arch>>;
        CHECK(piece == 4);
        CHECK(floats % piece == 0);
        CHECK(kernels::lanes<double, kernels::piece_arch<Arch>> == (has_f64_vectors<Arch> ? 2 : 1));
    });
}

TEST_CASE("where there are no vectors, one number is a vector") {
    CHECK(kernels::lanes<float, without_vectors> == 1);
    CHECK(kernels::lanes<double, without_vectors> == 1);
    CHECK(std::is_same_v<kernels::piece_arch<without_vectors>, without_vectors>);
}

// Types of architectures are declared everywhere. Those of the same instructions have vectors of
// several lengths in some versions, each with intrinsics of its own.
TEST_CASE("an architecture has the intrinsics of its length of vectors alone") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr index_t bytes = kernels::lanes<float, Arch> * 4;
        constexpr int kinds = int(kernels::is_sse2<Arch>) + int(kernels::is_avx<Arch>) +
                              int(kernels::is_avx512<Arch>) + int(kernels::is_neon<Arch>);
        CHECK(kinds <= 1);
        if (kernels::is_sse2<Arch> || kernels::is_neon<Arch>) CHECK(bytes == 16);
        if (kernels::is_avx<Arch> || kernels::is_avx2<Arch>) CHECK(bytes == 32);
        if (kernels::is_avx512<Arch>) CHECK(bytes == 64);
    });
#if defined(XSIMD_WITH_SSE2) && XSIMD_WITH_SSE2
    // What derives from one, and has vectors of another length.
    struct derived : xsimd::sse2 {};
    CHECK_FALSE(kernels::is_sse2<derived>);
    CHECK_FALSE(kernels::is_sse2<without_vectors>);
#endif
}

TEST_CASE("32 registers with AVX-512 and 64-bit ARM, else 16") {
    for_each_architecture([](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        constexpr bool many =
            kernels::is_avx512<Arch> || std::is_base_of_v<xsimd::neon64, default_arch>;
        CHECK(kernels::has_32_registers<Arch> == many);
    });
}

TEST_CASE_TEMPLATE("multiply_add rounds once where the architecture can", A,
                   MHR_TEST_ACCUMULATORS) {
    const A epsilon = std::numeric_limits<A>::epsilon();
    const A largest = std::numeric_limits<A>::max();
    // What two roundings lose, or make infinite.
    std::vector<terms> all{{1 + epsilon, 1 - epsilon, -1},
                           {largest, 2, -largest},
                           {-largest, -2, -largest},
                           {1 + epsilon, 1 + epsilon, -1 - 2 * epsilon}};
    for (const terms& t : all) {
        const A a = static_cast<A>(t.a);
        const A b = static_cast<A>(t.b);
        const A c = static_cast<A>(t.c);
        CHECK_FALSE(same_bits(std::fma(a, b, c), in_two_roundings(a, b, c)));
    }
    all.insert(all.end(), {{2, 3, 4}, {0, 5, -0.0}, {-0.0, 5, -0.0}, {-3, 0.25, 7}});
    random_source random(3);
    for (int i = 0; i < 1000; ++i)
        all.push_back({random.uniform(-1, 1), random.uniform(-1, 1), random.uniform(-1, 1)});

    for_each_architecture_and_none([&](auto arch) {
        using Arch = decltype(arch);
        CAPTURE(std::string(Arch::name()));
        const std::vector<A> got = multiply_adds<A, Arch>(all);
        int wrong = 0;
        for (std::size_t i = 0; i < all.size(); ++i) {
            const A a = static_cast<A>(all[i].a);
            const A b = static_cast<A>(all[i].b);
            const A c = static_cast<A>(all[i].c);
            const bool right =
                same_bits(got[i], std::fma(a, b, c)) ||
                (!fuses_multiply_add<Arch> && same_bits(got[i], in_two_roundings(a, b, c)));
            if (!right) ++wrong;
        }
        CHECK(wrong == 0);
    });
}

TEST_CASE("unroll calls with constants, in order") {
    std::vector<index_t> calls;
    kernels::unroll<4>([&](auto i) {
        constexpr index_t constant = i; // or this does not compile
        calls.push_back(constant);
    });
    CHECK(calls == std::vector<index_t>{0, 1, 2, 3});
    kernels::unroll<0>([&](auto i) { calls.push_back(i); });
    CHECK(calls.size() == 4);
}

TEST_CASE("an address that is fetched need not be readable") {
    const int here = 1;
    for (std::uintptr_t address :
         {std::uintptr_t(0), std::uintptr_t(3), reinterpret_cast<std::uintptr_t>(&here),
          std::numeric_limits<std::uintptr_t>::max()}) {
        kernels::prefetch<kernels::cache::l1>(address);
        kernels::prefetch<kernels::cache::l2>(address);
        kernels::prefetch_lines<kernels::cache::l1, 3 * kernels::cache_line + 1>(address);
    }
    CHECK(here == 1);
}

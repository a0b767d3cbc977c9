#include <mhr/core/random.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

#include <doctest/doctest.h>

#include "support/comparison.hpp"
#include "support/guarded_tensor.hpp"
#include "support/stuck_engine.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// An engine of two values, which are no 0 and 1.
struct coin {
    using result_type = int;
    static constexpr int min() { return 5; }
    static constexpr int max() { return 6; }
    int operator()() { return 5 + (++calls % 3 == 1 ? 1 : 0); }
    int calls = 0;
};

// 0 .. 4 has two fair bits; 4 must be drawn again.
struct five {
    using result_type = unsigned;
    static constexpr unsigned min() { return 0; }
    static constexpr unsigned max() { return 4; }
    unsigned operator()() { return sequence[next++]; }
    std::array<unsigned, 5> sequence{4, 3, 4, 4, 1};
    std::size_t next = 0;
};

} // namespace

TEST_CASE("bits are drawn from the highest down, and no more often than needed") {
    coin thirds; // 1 0 0 1 0 0 1
    CHECK(draw_bits(thirds, 7) == 0b1001001);
    CHECK(thirds.calls == 7);
    stuck_engine<std::uint32_t, 0, 0xffffffffU, 0xa0000000U> words;
    CHECK(draw_bits(words, 64) == 0xa0000000a0000000U);
    CHECK(draw_bits(words, 3) == 5); // the upper ones: the lower are the weak ones
    CHECK(words.calls == 3);
    stuck_engine<std::uint64_t, 0, ~std::uint64_t{0}, 0xf000000000000001U> word;
    CHECK(draw_bits(word, 64) == 0xf000000000000001U);
    CHECK(word.calls == 1);
}

TEST_CASE("draws beyond the largest power of two are rejected") {
    five engine;
    CHECK(draw_bits(engine, 4) == 0b1101);
    CHECK(engine.next == 5);
}

TEST_CASE("a uniform number is the middle of its step") {
    stuck_engine<std::uint32_t, 0, 0xffffffffU, 0> low;
    stuck_engine<std::uint32_t, 0, 0xffffffffU, 0xffffffffU> high;
    CHECK(draw_uniform<float, 7>(low) == 0x1p-8F);
    CHECK(draw_uniform<float, 7>(high) == 1 - 0x1p-8F);
    CHECK(draw_uniform<double, 52>(low) == 0x1p-53);
    CHECK(draw_uniform<double, 52>(high) == 1 - 0x1p-53);
}

TEST_CASE("symmetric numbers are the same for every type and layout, but for their rounding") {
    std::mt19937_64 plain(5);
    guarded_tensor<2> want(element_type::f64, {3, 4});
    for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < 4; ++j)
            set_element(want.ref(), {i, j}, 0.5 * (2 * draw_uniform<double, 52>(plain) - 1));
    for (element_type type : all_element_types)
        for (layout order : all_layouts) {
            CAPTURE(std::string(mhr::name_of(type)));
            CAPTURE(name_of(order));
            std::mt19937_64 engine(5);
            guarded_tensor<2> got(type, {3, 4}, order), rounded(type, {3, 4});
            draw_symmetric(engine, 0.5, got.ref());
            for_each_position(want.extents(), [&](const position<2>& at) {
                set_element(rounded.ref(), at, element(want.ref(), at));
            });
            CHECK(compare_bitwise(got.ref(), rounded.ref()));
            CHECK(got.intact());
            CHECK(engine == plain);
        }
}

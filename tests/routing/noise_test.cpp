#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/noise.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// The first four numbers from a fresh engine.
template <class T, class Engine>
std::vector<double> first_draws() {
    Engine engine(1);
    guarded_buffer<T, 1> values({4});
    draw_uniforms(engine, values.view());
    CHECK(values.intact());
    return {load<double>(values(0)), load<double>(values(1)), load<double>(values(2)),
            load<double>(values(3))};
}

std::vector<double> fractions(const std::vector<std::uint64_t>& numerators, int bits) {
    std::vector<double> result;
    for (std::uint64_t numerator : numerators)
        result.push_back(std::ldexp(static_cast<double>(numerator), -bits));
    return result;
}

// An engine that gives the same value always, and counts how often it was asked.
template <class R, R Low, R High, R Value>
struct stuck_engine {
    using result_type = R;
    static constexpr R min() { return Low; }
    static constexpr R max() { return High; }
    R operator()() {
        ++calls;
        return Value;
    }
    int calls = 0;
};

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

template <class T, class Engine>
double stuck_draw() {
    Engine engine;
    T value{};
    draw_uniforms(engine, tensor_view<T, 1>(&value, {1}));
    return load<double>(value);
}

template <class T, class Low, class High>
void check_ends() {
    const double bits = std::is_same_v<T, double> ? 52 : std::is_same_v<T, float> ? 23 : 7;
    const double half_step = std::exp2(-bits - 1);
    CHECK(stuck_draw<T, Low>() == half_step);
    CHECK(stuck_draw<T, High>() == 1 - half_step);
    CHECK(stuck_draw<T, Low>() > 0);
    CHECK(stuck_draw<T, High>() < 1);
}

} // namespace

// Computed once by an independent implementation of the engines, from the formula
// (k + 1/2) / 2^n. They must not change: hosts reproduce training runs with them.
TEST_CASE("the first numbers are those of every platform and every later version") {
    CHECK(first_draws<double, std::mt19937_64>() ==
          fractions({1205853608176909, 1228645356299039, 4064182545636553, 189369414526649}, 53));
    CHECK(first_draws<float, std::mt19937_64>() ==
          fractions({2246077, 2288531, 7570129, 352729}, 24));
    CHECK(first_draws<Eigen::half, std::mt19937_64>() == fractions({35, 35, 115, 5}, 8));
    CHECK(first_draws<Eigen::bfloat16, std::mt19937_64>() == fractions({35, 35, 115, 5}, 8));

    // Two draws of 32 bits for each f64.
    CHECK(first_draws<double, std::mt19937>() ==
          fractions({3756200235624689, 6488106205042563, 1030253451673, 2723169681012771}, 53));
    CHECK(first_draws<float, std::mt19937>() ==
          fractions({6996469, 16729985, 12085039, 15645717}, 24));
    CHECK(first_draws<Eigen::half, std::mt19937>() == fractions({107, 255, 185, 239}, 8));

    // 1 .. 2^31 - 2 is no power of two: 30 bits a draw, the values beyond are rejected.
    CHECK(first_draws<double, std::minstd_rand>() ==
          fractions({404919534767, 3417147139548129, 4736096425929883, 5352119572697515}, 53));
    CHECK(first_draws<float, std::minstd_rand>() ==
          fractions({755, 2853215, 6364933, 13354945}, 24));
    CHECK(first_draws<Eigen::bfloat16, std::minstd_rand>() == fractions({1, 43, 97, 203}, 8));
}

TEST_CASE_TEMPLATE("0 and 1 are never drawn, not even from an engine that is stuck", T,
                   MHR_TEST_STORAGE_TYPES) {
    constexpr std::uint64_t all = std::numeric_limits<std::uint64_t>::max();
    check_ends<T, stuck_engine<std::uint64_t, 0, all, 0>,
               stuck_engine<std::uint64_t, 0, all, all>>();
    check_ends<T, stuck_engine<std::uint32_t, 0, 0xffffffffU, 0>,
               stuck_engine<std::uint32_t, 0, 0xffffffffU, 0xffffffffU>>();
    check_ends<T, stuck_engine<std::uint32_t, 0, 1, 0>, stuck_engine<std::uint32_t, 0, 1, 1>>();
    // Minima that are not 0, and ranges as small as minimum and maximum allow.
    check_ends<T, stuck_engine<int, -8, 7, -8>, stuck_engine<int, -8, 7, 7>>();
    check_ends<T, stuck_engine<std::uint8_t, 3, 4, 3>, stuck_engine<std::uint8_t, 3, 4, 4>>();
}

TEST_CASE("bits are drawn from the highest down, and no more often than needed") {
    coin thirds; // 1 0 0 1 0 0 1
    CHECK(detail::draw_bits(thirds, 7) == 0b1001001);
    CHECK(thirds.calls == 7);
    stuck_engine<std::uint32_t, 0, 0xffffffffU, 0xa0000000U> words;
    CHECK(detail::draw_bits(words, 64) == 0xa0000000a0000000U);
    CHECK(detail::draw_bits(words, 3) == 5); // the upper ones: the lower are the weak ones
    CHECK(words.calls == 3);
    stuck_engine<std::uint64_t, 0, ~std::uint64_t{0}, 0xf000000000000001U> word;
    CHECK(detail::draw_bits(word, 64) == 0xf000000000000001U);
    CHECK(word.calls == 1);
}

TEST_CASE("draws beyond the largest power of two are rejected") {
    five engine;
    CHECK(detail::draw_bits(engine, 4) == 0b1101);
    CHECK(engine.next == 5);
}

TEST_CASE_TEMPLATE("mean and variance are those of uniform numbers", T, MHR_TEST_STORAGE_TYPES) {
    constexpr index_t count = 50000;
    std::mt19937_64 engine(3);
    std::vector<T> values(count);
    draw_uniforms(engine, tensor_view<T, 1>(values.data(), {count}));
    double sum = 0;
    double squares = 0;
    double product = 0; // of neighbours, which must not depend on each other
    double previous = 0;
    for (const T& value : values) {
        const double centred = load<double>(value) - 0.5;
        sum += centred;
        squares += centred * centred;
        product += centred * previous;
        previous = centred;
    }
    // Five standard deviations of each estimate; the seed is fixed.
    CHECK(std::abs(sum / count) < 5 * std::sqrt(1.0 / 12 / count));
    CHECK(std::abs(squares / count - 1.0 / 12) < 5 * std::sqrt(1.0 / 180 / count));
    CHECK(std::abs(product / count) < 5 * (1.0 / 12) / std::sqrt(count));
}

TEST_CASE("numbers come in order of positions, whatever the layout") {
    const auto draw = [](guarded_buffer<float, 3>& buffer) {
        std::mt19937_64 engine(7);
        draw_uniforms(engine, buffer.view());
        CHECK(buffer.intact());
        return engine();
    };
    guarded_buffer<float, 3> want({3, 4, 5});
    const std::uint64_t next = draw(want);
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        guarded_buffer<float, 3> got({3, 4, 5}, order);
        CHECK(draw(got) == next);
        CHECK(compare_bitwise(got.view(), want.view()));
    }
    CHECK_FALSE(compare_bitwise(want.view().slice(0, 0), want.view().slice(0, 1)));
}

TEST_CASE("an empty view takes nothing from the engine") {
    std::mt19937_64 engine(1);
    draw_uniforms(engine, tensor_view<float, 3>());
    draw_uniforms(engine, tensor_view<float, 2>(nullptr, {4, 0}));
    CHECK(engine == std::mt19937_64(1));
}

TEST_CASE("bad views are refused before anything is drawn") {
    std::mt19937_64 engine(1);
    guarded_buffer<float, 2> buffer({3, 4});
    float* const data = buffer.view().data();
    auto* const misaligned =
        static_cast<float*>(static_cast<void*>(reinterpret_cast<unsigned char*>(data) + 1));
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    for (const tensor_view<float, 2>& bad : {
             tensor_view<float, 2>(nullptr, {3, 4}),
             tensor_view<float, 2>(misaligned, {3, 4}),
             tensor_view<float, 2>(data, {3, 4}, {0, 1}),
             tensor_view<float, 2>(data, {3, 4}, {4, 0}),
             tensor_view<float, 2>(data, {3, 4}, {1, 1}),
             tensor_view<float, 2>(data, {-1, 4}),
             tensor_view<float, 2>(data, {3, -4}),
             tensor_view<float, 2>(data, {3, 4}, {largest, 1}),
         }) {
        CAPTURE(to_text(bad.extents()));
        CAPTURE(to_text(bad.strides()));
        CHECK(refuses(
            "draw_uniforms", "uniforms", [&] { draw_uniforms(engine, bad); }, buffer));
    }
    CHECK(engine == std::mt19937_64(1));
}

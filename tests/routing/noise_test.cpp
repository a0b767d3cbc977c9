#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/noise.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/stuck_engine.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// The first four numbers from a fresh engine.
template <class Engine>
std::vector<double> first_draws(element_type type) {
    Engine engine(1);
    guarded_tensor<1> values(type, {4});
    draw_uniforms(engine, values.ref());
    CHECK(values.intact());
    return values_as<double>(values.ref()).values();
}

std::vector<double> fractions(const std::vector<std::uint64_t>& numerators, int bits) {
    std::vector<double> result;
    for (std::uint64_t numerator : numerators)
        result.push_back(std::ldexp(static_cast<double>(numerator), -bits));
    return result;
}

template <class Engine>
double stuck_draw(element_type type) {
    Engine engine;
    guarded_tensor<1> value(type, {1});
    draw_uniforms(engine, value.ref());
    return element(value.ref(), {0});
}

template <class Low, class High>
void check_ends(element_type type) {
    const double bits = type == element_type::f64 ? 52 : type == element_type::f32 ? 23 : 7;
    const double half_step = std::exp2(-bits - 1);
    CHECK(stuck_draw<Low>(type) == half_step);
    CHECK(stuck_draw<High>(type) == 1 - half_step);
    CHECK(stuck_draw<Low>(type) > 0);
    CHECK(stuck_draw<High>(type) < 1);
}

} // namespace

// Computed once by an independent implementation of the engines, from the formula
// (k + 1/2) / 2^n. They must not change: hosts reproduce training runs with them.
TEST_CASE("the first numbers are those of every platform and every later version") {
    CHECK(first_draws<std::mt19937_64>(element_type::f64) ==
          fractions({1205853608176909, 1228645356299039, 4064182545636553, 189369414526649}, 53));
    CHECK(first_draws<std::mt19937_64>(element_type::f32) ==
          fractions({2246077, 2288531, 7570129, 352729}, 24));
    CHECK(first_draws<std::mt19937_64>(element_type::f16) == fractions({35, 35, 115, 5}, 8));
    CHECK(first_draws<std::mt19937_64>(element_type::bf16) == fractions({35, 35, 115, 5}, 8));

    // Two draws of 32 bits for each f64.
    CHECK(first_draws<std::mt19937>(element_type::f64) ==
          fractions({3756200235624689, 6488106205042563, 1030253451673, 2723169681012771}, 53));
    CHECK(first_draws<std::mt19937>(element_type::f32) ==
          fractions({6996469, 16729985, 12085039, 15645717}, 24));
    CHECK(first_draws<std::mt19937>(element_type::f16) == fractions({107, 255, 185, 239}, 8));

    // 1 .. 2^31 - 2 is no power of two: 30 bits a draw, the values beyond are rejected.
    CHECK(first_draws<std::minstd_rand>(element_type::f64) ==
          fractions({404919534767, 3417147139548129, 4736096425929883, 5352119572697515}, 53));
    CHECK(first_draws<std::minstd_rand>(element_type::f32) ==
          fractions({755, 2853215, 6364933, 13354945}, 24));
    CHECK(first_draws<std::minstd_rand>(element_type::bf16) == fractions({1, 43, 97, 203}, 8));
}

TEST_CASE("0 and 1 are never drawn, not even from an engine that is stuck") {
    constexpr std::uint64_t all = std::numeric_limits<std::uint64_t>::max();
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        check_ends<stuck_engine<std::uint64_t, 0, all, 0>,
                   stuck_engine<std::uint64_t, 0, all, all>>(type);
        check_ends<stuck_engine<std::uint32_t, 0, 0xffffffffU, 0>,
                   stuck_engine<std::uint32_t, 0, 0xffffffffU, 0xffffffffU>>(type);
        check_ends<stuck_engine<std::uint32_t, 0, 1, 0>, stuck_engine<std::uint32_t, 0, 1, 1>>(
            type);
        // Minima that are not 0, and ranges as small as minimum and maximum allow.
        check_ends<stuck_engine<int, -8, 7, -8>, stuck_engine<int, -8, 7, 7>>(type);
        check_ends<stuck_engine<std::uint8_t, 3, 4, 3>, stuck_engine<std::uint8_t, 3, 4, 4>>(type);
    }
}

TEST_CASE("mean and variance are those of uniform numbers") {
    for (element_type type : all_element_types) {
        CAPTURE(std::string(mhr::name_of(type)));
        constexpr index_t count = 50000;
        std::mt19937_64 engine(3);
        guarded_tensor<1> drawn(type, {count});
        draw_uniforms(engine, drawn.ref());
        const auto numbers = values_as<double>(drawn.ref());
        double sum = 0;
        double squares = 0;
        double product = 0; // of neighbours, which must not depend on each other
        double previous = 0;
        for (double value : numbers.values()) {
            const double centred = value - 0.5;
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
}

TEST_CASE("numbers come in order of positions, whatever the layout") {
    const auto draw = [](guarded_buffer<float, 3>& buffer) {
        std::mt19937_64 engine(7);
        draw_uniforms<3>(engine, buffer.view());
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
    draw_uniforms<3>(engine, {});
    draw_uniforms<2>(engine, {static_cast<float*>(nullptr), {4, 0}});
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
            "draw_uniforms", "uniforms", [&] { draw_uniforms<2>(engine, bad); }, buffer));
    }
    CHECK(engine == std::mt19937_64(1));
}

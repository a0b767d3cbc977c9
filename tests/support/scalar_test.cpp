#include <cmath>
#include <limits>
#include <type_traits>

#include <doctest/doctest.h>

#include "support/scalar.hpp"

#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

// A storage type of another size, as block-quantised hosts might have one.
struct tenths {
    signed char value;
    explicit operator float() const { return static_cast<float>(value) / 10; }
};

} // namespace

template <>
struct mhr::test::accumulator<tenths> {
    using type = float;
};

static_assert(std::is_same_v<accumulator_t<float>, float>);
static_assert(std::is_same_v<accumulator_t<double>, double>);
static_assert(std::is_same_v<accumulator_t<long double>, long double>);
static_assert(std::is_same_v<accumulator_t<Eigen::half>, float>);
static_assert(std::is_same_v<accumulator_t<const Eigen::bfloat16>, float>);
static_assert(std::is_same_v<accumulator_t<Eigen::half, Eigen::bfloat16>, float>);
static_assert(std::is_same_v<accumulator_t<Eigen::half, const double, float>, double>);
static_assert(std::is_same_v<accumulator_t<tenths, Eigen::half>, float>);

TEST_CASE("load widens exactly") {
    CHECK(load<double>(0.1F) == static_cast<double>(0.1F));
    CHECK(load<float>(0.1) == 0.1F);
    CHECK(load<double>(static_cast<Eigen::half>(0.333F)) == 0.3330078125);
    CHECK(load<double>(static_cast<Eigen::bfloat16>(0.333F)) == 0.33203125);
    CHECK(load<long double>(static_cast<Eigen::half>(-2.5F)) == -2.5L);
    CHECK(load<float>(tenths{-5}) == -0.5F);
}

TEST_CASE("store rounds once, to the nearest, ties to even") {
    // Halfway between 1 and the next number, and just above.
    CHECK(store<Eigen::bfloat16>(1 + 0x1p-8F) == static_cast<Eigen::bfloat16>(1.F));
    CHECK(load<float>(store<Eigen::bfloat16>(1 + 0x1.01p-8F)) == 1 + 0x1p-7F);
    CHECK(load<float>(store<Eigen::bfloat16>(1 + 0x1.8p-7F)) == 1 + 0x1p-6F);
    CHECK(store<Eigen::half>(1 + 0x1p-11F) == static_cast<Eigen::half>(1.F));
    CHECK(load<float>(store<Eigen::half>(1 + 0x1.01p-11F)) == 1 + 0x1p-10F);
    CHECK(store<float>(1 + 0x1p-24) == 1.F);
    CHECK(store<float>(1 + 0x1.01p-24) == 1 + 0x1p-23F);
    CHECK(store<double>(0.1) == 0.1);
}

TEST_CASE_TEMPLATE("load and store keep what the type can hold", T, MHR_TEST_STORAGE_TYPES) {
    using A = accumulator_t<T>;
    for (A value : {A(0), A(-0.0), A(1), A(-1.5), A(0x1p-14), A(1024)}) {
        const A back = load<A>(store<T>(value));
        CHECK(back == value);
        CHECK(std::signbit(back) == std::signbit(value));
    }
    CHECK(std::isinf(load<A>(store<T>(std::numeric_limits<A>::infinity()))));
    CHECK(std::isnan(load<A>(store<T>(std::numeric_limits<A>::quiet_NaN()))));
}

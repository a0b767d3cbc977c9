#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <mhr/routing/annealing.hpp>
#include <mhr/routing/router.hpp>

#include "support/error_check.hpp"

using namespace mhr;
using namespace mhr::test;

TEST_CASE("annealing falls as a quarter of a cosine over the last steps") {
    for (index_t step = 0; step <= 90; ++step)
        CHECK(annealing_at(step, 100, 10) == 1);
    for (index_t n = 0; n <= 10; ++n)
        CHECK(annealing_at(90 + n, 100, 10) ==
              doctest::Approx(std::cos(static_cast<double>(n) * std::acos(-1.0) / 20))
                  .epsilon(1e-14));
    CHECK(annealing_at(95, 100, 10) == doctest::Approx(std::sqrt(0.5)).epsilon(1e-14));
    CHECK(annealing_at(100, 100, 10) < 1e-16);
    CHECK(annealing_at(100, 100, 10) >= 0); // as routing_rule wants it
    for (index_t step = 91; step <= 100; ++step)
        CHECK(annealing_at(step, 100, 10) < annealing_at(step - 1, 100, 10));
}

TEST_CASE("step 0 is not annealed, steps of 0 are no annealing") {
    CHECK(annealing_at(0, 10, 10) == 1);
    CHECK(annealing_at(1, 10, 10) < 1);
    CHECK(annealing_at(0, 0, 0) == 1);
    CHECK(annealing_at(0, 0, 5) == 1);
    CHECK(annealing_at(10, 10, 0) == 1);
    // More than there are steps: the start is cut off.
    CHECK(annealing_at(1, 10, 18) == doctest::Approx(std::cos(std::acos(-1.0) / 4)).epsilon(1e-14));
    CHECK(annealing_at(10, 10, 18) < 1e-16);
    constexpr index_t largest = std::numeric_limits<index_t>::max();
    CHECK(annealing_at(largest, largest, largest) < 1e-16);
    CHECK(annealing_at(1, largest, largest) == doctest::Approx(1));
}

TEST_CASE("every value is one that a rule accepts") {
    for (index_t steps : {1, 2, 7, 100})
        for (index_t step = 0; step <= 100; ++step) {
            const double annealing = annealing_at(step, 100, steps);
            CHECK(annealing >= 0);
            CHECK(annealing <= 1);
        }
}

TEST_CASE("steps outside of the training are refused") {
    for (index_t step : {index_t{-1}, index_t{11}, std::numeric_limits<index_t>::max(),
                         std::numeric_limits<index_t>::min()})
        CHECK(refuses("annealing_at", "step", [&] { (void)annealing_at(step, 10, 5); }));
    CHECK(refuses("annealing_at", "step", [] { (void)annealing_at(0, -1, 5); }));
    for (index_t steps : {index_t{-1}, std::numeric_limits<index_t>::min()})
        CHECK(
            refuses("annealing_at", "annealing_steps", [&] { (void)annealing_at(3, 10, steps); }));
}

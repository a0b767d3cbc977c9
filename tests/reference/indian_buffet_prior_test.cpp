#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/indian_buffet_prior.hpp>

using namespace mhr;

namespace {

using real = long double;
using list = std::vector<real>;

real harmonic(int n) {
    real sum = 0;
    for (int i = 1; i <= n; ++i)
        sum += 1 / static_cast<real>(i);
    return sum;
}

} // namespace

TEST_CASE("the oracle of the Indian buffet prior, by hand") {
    const auto prior = [](const list& users, const list& new_columns, real concentration) {
        return static_cast<double>(
            reference::indian_buffet_prior(users, new_columns, concentration));
    };
    CHECK(prior({}, {}, 3) == 0);
    // Nobody uses anything: alpha H_N.
    CHECK(prior({}, {0, 0}, 3) == doctest::Approx(4.5).epsilon(1e-15));
    // One task with three columns: Poisson(2), e^-2 2^3 / 3!.
    CHECK(prior({1, 1, 1}, {3}, 2) ==
          doctest::Approx(2 - std::log(8.0) + std::log(6.0)).epsilon(1e-15));
    // Three tasks, columns of 1, 2 and 3 users: (N - u)! (u - 1)! / N! = 1/3, 1/6, 1/3.
    CHECK(prior({1, 2, 3}, {1, 2, 0}, 1) ==
          doctest::Approx(11.0 / 6 + std::log(2.0) + std::log(54.0)).epsilon(1e-15));
}

TEST_CASE("its derivative by a number of users is a difference of harmonic numbers") {
    for (int users : {1, 2, 4, 7}) {
        const auto prior_at = [&](real u) {
            return reference::indian_buffet_prior<real>({3, u}, list(7, 1), 2);
        };
        const real step = 1e-4L;
        const real slope = (prior_at(users + step) - prior_at(users - step)) / (2 * step);
        const real want = harmonic(7 - users) - harmonic(users - 1);
        CHECK(std::abs(slope - want) < 1e-7L);
    }
}

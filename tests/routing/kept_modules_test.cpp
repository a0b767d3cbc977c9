#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/kept_modules.hpp>

#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/random_tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

std::vector<bool> kept_of(index_t kept, const std::vector<float>& s) {
    const auto at = [&](index_t m) { return s[static_cast<std::size_t>(m)]; };
    const auto chosen =
        routing_details::largest_modules<float>(kept, static_cast<index_t>(s.size()), at);
    std::vector<bool> result;
    for (index_t m = 0; m < static_cast<index_t>(s.size()); ++m)
        result.push_back(chosen.has(m, at(m)));
    return result;
}

} // namespace

TEST_CASE("the largest are kept, of equal ones the first") {
    CHECK(kept_of(1, {1, 3, 2}) == std::vector<bool>{false, true, false});
    CHECK(kept_of(2, {1, 3, 2}) == std::vector<bool>{false, true, true});
    CHECK(kept_of(2, {2, 2, 2}) == std::vector<bool>{true, true, false});
    CHECK(kept_of(2, {-1, -3, -2}) == std::vector<bool>{true, false, true});
    CHECK(kept_of(3, {2, 1}) == std::vector<bool>{true, true});
    if (is_fast_math) return;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(kept_of(1, {nan, 1, 2}) == std::vector<bool>{true, false, true});
    CHECK(kept_of(2, {nan, nan, 2}) == std::vector<bool>{true, true, true});
}

TEST_CASE("as many are kept as are asked for, and none is larger") {
    random_source random(7);
    for (index_t kept = 1; kept <= 9; ++kept)
        for (int repeat = 0; repeat < 20; ++repeat) {
            std::vector<float> s;
            for (int m = 0; m < 9; ++m)
                s.push_back(static_cast<float>(random.integer(5)));
            const auto got = kept_of(kept, s);
            index_t count = 0;
            for (std::size_t m = 0; m < s.size(); ++m) {
                count += got[m];
                for (std::size_t n = 0; n < s.size(); ++n)
                    if (got[m] && !got[n]) CHECK((s[m] > s[n] || (!(s[m] < s[n]) && m < n)));
            }
            CHECK(count == kept);
        }
}

TEST_CASE("less than one module is refused") {
    const auto check = [](index_t kept) {
        argument_checks checks("f");
        routing_details::check_kept(checks, kept);
        checks.raise();
    };
    CHECK_NOTHROW(check(1));
    CHECK(refuses("f", "normaliser.kept", [&] { check(0); }));
    CHECK(refuses("f", "normaliser.kept", [&] { check(-3); }));
}

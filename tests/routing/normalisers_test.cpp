// By hand and at the edges; every normaliser against the oracle is in router_rules_test.cpp.

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/routing/normalisers.hpp>

#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/part_checks.hpp"
#include "support/random_tensor.hpp"
#include "support/scalar_types.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

template <class A>
constexpr A quiet_nan = std::numeric_limits<A>::quiet_NaN();
template <class A>
constexpr A infinity = std::numeric_limits<A>::infinity();

template <class A>
std::size_t at(const std::vector<A>&, index_t m) {
    return static_cast<std::size_t>(m);
}

template <class A>
routing_shape shape_of(const std::vector<A>& s, index_t heads) {
    return {heads, static_cast<index_t>(s.size())};
}

// Each module must be put once.
template <class A, class Normaliser>
std::vector<A> weights_of(const Normaliser& normaliser, const std::vector<A>& s,
                          index_t heads = 1) {
    std::vector<A> w(s.size());
    std::vector<int> times(s.size());
    normaliser.template forward<A>(
        shape_of(s, heads), [&](index_t m) { return s[at(s, m)]; },
        [&](index_t m, A weight) {
            w[at(w, m)] = weight;
            ++times[at(s, m)];
        });
    CHECK(times == std::vector<int>(s.size(), 1));
    return w;
}

// Modules without a gradient are left at `none`.
template <class A, class Normaliser>
std::vector<A> gradient_of(const Normaliser& normaliser, const std::vector<A>& s,
                           const std::vector<A>& d_w, index_t heads = 1, A none = 0) {
    std::vector<A> d_s(s.size(), none);
    normaliser.template backward<A>(
        shape_of(s, heads), [&](index_t m) { return s[at(s, m)]; },
        [&](index_t m) { return d_w[at(d_w, m)]; }, [&](index_t m, A d) { d_s[at(d_s, m)] = d; });
    return d_s;
}

template <class A>
comparison near(const std::vector<A>& got, const std::vector<double>& want, double roundings = 8) {
    const auto n = static_cast<index_t>(want.size());
    return compare(tensor_view<const A, 1>(got.data(), {static_cast<index_t>(got.size())}),
                   tensor_view<const double, 1>(want.data(), {n}), within<A>(roundings));
}

template <class A>
bool all_nan(const std::vector<A>& values) {
    for (A value : values)
        if (!std::isnan(value)) return false;
    return !values.empty();
}

} // namespace

TEST_CASE_TEMPLATE("sum: by hand", A, MHR_TEST_ACCUMULATORS) {
    const sum_normaliser sum;
    const double divisor = 2 + 1e-12;
    CHECK(near(weights_of<A>(sum, {0.5, 0.25, 0.25, 1}),
               {0.5 / divisor, 0.25 / divisor, 0.25 / divisor, 1 / divisor}));
    // d_w = (8, 0, 0, 0): its mean by w is 2.
    const double mean = 4 / divisor;
    CHECK(near(gradient_of<A>(sum, {0.5, 0.25, 0.25, 1}, {8, 0, 0, 0}),
               {(8 - mean) / divisor, -mean / divisor, -mean / divisor, -mean / divisor}));
    CHECK(near(weights_of<A>(sum, {1}), {1 / (1 + 1e-12)}, 1));
    CHECK(weights_of<A>(sum, {}).empty());
    // The epsilon is added, and not a bound.
    CHECK(near(weights_of<A>(sum, {A(1e-12), A(2e-12)}), {0.25, 0.5}));
}

TEST_CASE_TEMPLATE("sum: gates that are all 0", A, MHR_TEST_ACCUMULATORS) {
    CHECK(weights_of<A>(sum_normaliser{}, {0, 0, 0}) == std::vector<A>{0, 0, 0});
    CHECK(near(gradient_of<A>(sum_normaliser{}, {0, 0, 0}, {1, -2, 0.5}), {1e12, -2e12, 5e11}));
}

TEST_CASE_TEMPLATE("detached when off: no gradient where all gates are 0, else that of the other",
                   A, MHR_TEST_ACCUMULATORS) {
    const auto check = [](const auto& normaliser, std::vector<A> off, std::vector<A> on) {
        const detached_when_off_normaliser detached{normaliser};
        const std::vector<A> d_w{1, -2, A(0.5)};
        const std::vector<A> none(3, 77); // is left alone
        CHECK(weights_of(detached, off) == weights_of(normaliser, off));
        CHECK(weights_of(detached, on) == weights_of(normaliser, on));
        CHECK(gradient_of<A>(detached, off, d_w, 1, 77) == none);
        CHECK(gradient_of<A>(detached, on, d_w) == gradient_of<A>(normaliser, on, d_w));
    };
    // The only one that is on is the first, one between, and the last.
    check(sum_normaliser{}, {0, 0, 0}, {1, 0, 0});
    check(sum_normaliser{}, {0, 0, 0}, {0, 1, 0});
    check(sum_normaliser{}, {0, A(-0.0), 0}, {0, 0, A(1e-30)});
    check(l2_normaliser{}, {0, 0, A(-0.0)}, {0, A(-1e-3), 0});
    check(l2_normaliser{}, {0, 0, 0}, {0, 0, A(1e-20)}); // short, but not off
    check(average_correction_normaliser{}, {0, 0, 0}, {0, 1, 1});
    check(softmax_normaliser{2}, {0, 0, 0}, {0, 1, 2});
    CHECK(gradient_of<A>(detached_when_off_normaliser{sum_normaliser{}}, {}, {}).empty());
}

TEST_CASE_TEMPLATE("detached when off: a gate that is no number is not off" * needs_non_finite(), A,
                   MHR_TEST_ACCUMULATORS) {
    const detached_when_off_normaliser detached{sum_normaliser{}};
    CHECK(all_nan(gradient_of<A>(detached, {0, quiet_nan<A>, 0}, {1, 1, 1})));
    // Not even the gradient of the weights is looked at where a head is off.
    CHECK(gradient_of<A>(detached, {0, 0}, {quiet_nan<A>, infinity<A>}) == std::vector<A>{0, 0});
}

TEST_CASE_TEMPLATE("a gate of 0: what its weight would do is in no other gradient" *
                       needs_non_finite(),
                   A, MHR_TEST_ACCUMULATORS) {
    const auto others = [](const auto& normaliser) {
        const std::vector<A> s{A(0.5), A(0), A(0.25)};
        const std::vector<A> d_w{A(1), quiet_nan<A>, A(-2)}, finite{A(1), A(0), A(-2)};
        const auto d_s = gradient_of(normaliser, s, d_w);
        const auto want = gradient_of(normaliser, s, finite);
        CHECK(std::isnan(d_s[1]));
        CHECK(d_s[0] == want[0]);
        CHECK(d_s[2] == want[2]);
    };
    others(sum_normaliser{});
    others(average_correction_normaliser{});
    others(l2_normaliser{});
}

TEST_CASE_TEMPLATE("average correction: sqrt(heads / modules), whatever the sum", A,
                   MHR_TEST_ACCUMULATORS) {
    const average_correction_normaliser correction;
    CHECK(near(weights_of<A>(correction, {1, 0.5, 0, 0.25}, 1), {0.5, 0.25, 0, 0.125}));
    CHECK(near(weights_of<A>(correction, {1, 0.5, 0, 0.25}, 16), {2, 1, 0, 0.5}));
    CHECK(near(weights_of<A>(correction, {1, 0.5, 0}, 2),
               {std::sqrt(2.0 / 3), std::sqrt(2.0 / 3) / 2, 0}));
    CHECK(near(gradient_of<A>(correction, {1, 0.5, 0, 0.25}, {1, -2, 3, 0}, 1), {0.5, -1, 1.5, 0}));
    CHECK(near(gradient_of<A>(correction, {1, 0.5, 0, 0.25}, {1, -2, 3, 0}, 16), {2, -4, 6, 0}));
}

TEST_CASE_TEMPLATE("L2: by hand", A, MHR_TEST_ACCUMULATORS) {
    const l2_normaliser l2;
    CHECK(near(weights_of<A>(l2, {3, -4, 0}), {0.6, -0.8, 0}));
    CHECK(near(gradient_of<A>(l2, {3, -4, 0}, {1, 0, 1}), {0.128, 0.096, 0.2}, 16));
    CHECK(weights_of<A>(l2, {}).empty());
    if (is_fast_math) return; // which makes multiplications of divisions
    CHECK(weights_of<A>(l2, {A(-7)}) == std::vector<A>{-1});
    CHECK(gradient_of<A>(l2, {A(-7)}, {3}) == std::vector<A>{0}); // a sign has no gradient
}

TEST_CASE_TEMPLATE("L2: logits of every size", A, MHR_TEST_ACCUMULATORS) {
    const l2_normaliser l2;
    for (double size : {1e-11, 1e-6, 1.0, 1e15, 1e25, 1e30, 1e37}) {
        if (is_fast_math && size > 1e30) continue; // whose gradients are no normal numbers
        CAPTURE(size);
        const std::vector<A> s{static_cast<A>(3 * size), static_cast<A>(-4 * size), 0};
        CHECK(near(weights_of<A>(l2, s), {0.6, -0.8, 0}, 12));
        CHECK(near(gradient_of<A>(l2, s, {1, 0, 1}),
                   {0.128 * 5 / (5 * size), 0.096 * 5 / (5 * size), 0.2 * 5 / (5 * size)}, 24));
    }
}

TEST_CASE_TEMPLATE("L2: below a length of 1e-12 the divisor stays", A, MHR_TEST_ACCUMULATORS) {
    const l2_normaliser l2;
    CHECK(weights_of<A>(l2, {0, 0, 0}) == std::vector<A>{0, 0, 0});
    CHECK(near(gradient_of<A>(l2, {0, 0, 0}, {1, -2, 0}), {1e12, -2e12, 0}));
    CHECK(near(weights_of<A>(l2, {A(1e-30), 0}), {1e-18, 0}));
    CHECK(near(gradient_of<A>(l2, {A(1e-30), 0}, {3, -4}), {3e12, -4e12}));
    CHECK(near(weights_of<A>(l2, {A(3e-13), A(4e-13)}), {0.3, 0.4}));
    CHECK(near(gradient_of<A>(l2, {A(3e-13), A(4e-13)}, {1, 0}), {1e12, 0}));
    // Each is below it, and the length is not.
    CHECK(near(weights_of<A>(l2, {A(9e-13), A(-9e-13)}), {std::sqrt(0.5), -std::sqrt(0.5)}));
    CHECK(near(gradient_of<A>(l2, {A(9e-13), A(-9e-13)}, {1, 0}),
               {0.5 / (9e-13 * std::sqrt(2.0)), 0.5 / (9e-13 * std::sqrt(2.0))}, 16));
    // The smallest numbers there are.
    constexpr A least = std::numeric_limits<A>::denorm_min();
    CHECK(std::isfinite(weights_of<A>(l2, {least, least})[0]));
    CHECK(near(gradient_of<A>(l2, {least, least}, {1, 2}), {1e12, 2e12}));
}

TEST_CASE_TEMPLATE("L2: what is no number shows" * needs_non_finite(), A, MHR_TEST_ACCUMULATORS) {
    CHECK(all_nan(weights_of<A>(l2_normaliser{}, {1, quiet_nan<A>, 2})));
    CHECK(all_nan(gradient_of<A>(l2_normaliser{}, {1, quiet_nan<A>, 2}, {1, 1, 1})));
    CHECK(std::isnan(weights_of<A>(l2_normaliser{}, {0, quiet_nan<A>, 0})[1]));
}

TEST_CASE_TEMPLATE("softmax: by hand", A, MHR_TEST_ACCUMULATORS) {
    const A ln3 = static_cast<A>(std::log(3.0));
    CHECK(near(weights_of<A>(softmax_normaliser{}, {0, ln3, ln3}), {1.0 / 7, 3.0 / 7, 3.0 / 7}));
    CHECK(near(gradient_of<A>(softmax_normaliser{}, {0, ln3, ln3}, {7, 0, 0}),
               {6.0 / 7, -3.0 / 7, -3.0 / 7}));
    CHECK(near(weights_of<A>(softmax_normaliser{2}, {0, ln3, 2 * ln3}), {0, 0.25, 0.75}));
    CHECK(near(gradient_of<A>(softmax_normaliser{2}, {0, ln3, 2 * ln3}, {9, 4, 0}),
               {0, 0.75, -0.75}, 16));
    CHECK(weights_of<A>(softmax_normaliser{1}, {0, ln3, 2}) == std::vector<A>{0, 0, 1});
    CHECK(gradient_of<A>(softmax_normaliser{1}, {0, ln3, 2}, {9, 4, 1}) == std::vector<A>{0, 0, 0});
    CHECK(weights_of<A>(softmax_normaliser{1}, {-5}) == std::vector<A>{1});
    CHECK(weights_of<A>(softmax_normaliser{}, {}).empty());
    CHECK(weights_of<A>(softmax_normaliser{2}, {}).empty());
}

TEST_CASE_TEMPLATE("softmax: of equal ones the first are kept", A, MHR_TEST_ACCUMULATORS) {
    const softmax_normaliser two{2};
    CHECK(near(weights_of<A>(two, {3, 3, 3, 3}), {0.5, 0.5, 0, 0}));
    CHECK(near(weights_of<A>(two, {1, 3, 3, 3}), {0, 0.5, 0.5, 0}));
    const double tail = 1 / (1 + std::exp(2.0));
    CHECK(near(weights_of<A>(two, {1, 3, 1, 1}), {tail, 1 - tail, 0, 0}));
    CHECK(near(weights_of<A>(two, {1, 1, 1, 3}), {tail, 0, 0, 1 - tail}));
    CHECK(near(weights_of<A>(softmax_normaliser{3}, {0, 0, 0, 0, 0}),
               {1.0 / 3, 1.0 / 3, 1.0 / 3, 0, 0}));
    CHECK(near(weights_of<A>(softmax_normaliser{1}, {A(-0.0), 0}), {1, 0})); // zeros are equal
    CHECK(near(weights_of<A>(softmax_normaliser{1}, {0, A(-0.0)}), {1, 0}));
}

TEST_CASE_TEMPLATE("softmax: keeping all, or more than there are, is no selection", A,
                   MHR_TEST_ACCUMULATORS) {
    random_source random(79);
    for (int i = 0; i < 50; ++i) {
        std::vector<A> s, d_w;
        for (int m = 0; m < 6; ++m) {
            s.push_back(static_cast<A>(random.uniform(-3, 3)));
            d_w.push_back(static_cast<A>(random.uniform(-1, 1)));
        }
        for (index_t kept : {index_t{6}, index_t{7}, std::numeric_limits<index_t>::max()}) {
            CHECK(weights_of(softmax_normaliser{kept}, s) == weights_of(softmax_normaliser{}, s));
            CHECK(gradient_of(softmax_normaliser{kept}, s, d_w) ==
                  gradient_of(softmax_normaliser{}, s, d_w));
        }
        CHECK(weights_of(softmax_normaliser{5}, s) != weights_of(softmax_normaliser{}, s));
    }
}

TEST_CASE_TEMPLATE("softmax: a shift of all logits changes nothing, weights sum to 1", A,
                   MHR_TEST_ACCUMULATORS) {
    random_source random(83);
    for (int i = 0; i < 200; ++i) {
        const auto modules = static_cast<std::size_t>(1 + random.integer(9));
        const softmax_normaliser softmax{1 + random.integer(9)};
        std::vector<A> s, shifted, d_w;
        // Multiples of 1/8 and a whole shift: no rounding.
        const auto shift = static_cast<A>(random.integer(2000) - 1000);
        for (std::size_t m = 0; m < modules; ++m) {
            s.push_back(static_cast<A>(random.integer(200) - 100) / 8);
            shifted.push_back(s.back() + shift);
            d_w.push_back(static_cast<A>(random.uniform(-1, 1)));
        }
        const auto w = weights_of(softmax, s);
        CHECK(weights_of(softmax, shifted) == w);
        const auto d_s = gradient_of(softmax, s, d_w);
        CHECK(gradient_of(softmax, shifted, d_w) == d_s);
        double sum = 0;
        double d_sum = 0; // so the gradient has no component along the shift
        index_t used = 0;
        for (std::size_t m = 0; m < modules; ++m) {
            sum += static_cast<double>(w[m]);
            d_sum += static_cast<double>(d_s[m]);
            used += w[m] > 0 ? 1 : 0;
        }
        CHECK(std::abs(sum - 1) < 16 * epsilon_of<A>());
        CHECK(std::abs(d_sum) < 16 * epsilon_of<A>());
        CHECK(used <= softmax.kept);
        CHECK(used >= 1);
    }
}

TEST_CASE_TEMPLATE("softmax: huge and infinite logits", A, MHR_TEST_ACCUMULATORS) {
    const std::vector<A> d_w{1, 2, 3, 4};
    for (A z : and_infinity<A>({A(1e4), A(1e30), std::numeric_limits<A>::max()})) {
        CAPTURE(z);
        for (index_t kept : {2, 3, 4}) {
            CAPTURE(kept);
            const softmax_normaliser softmax{kept};
            CHECK(near(weights_of<A>(softmax, {z, -z, z, -z}), {0.5, 0, 0.5, 0}));
            CHECK(near(gradient_of<A>(softmax, {z, -z, z, -z}, d_w), {-0.5, 0, 0.5, 0}));
            CHECK(near(weights_of<A>(softmax, {-z, z, -z, -z}), {0, 1, 0, 0}));
            CHECK(near(weights_of<A>(softmax, {-z, 0, -z, -z}), {0, 1, 0, 0}));
            const double equal = 1 / static_cast<double>(kept);
            const std::vector<double> first{equal, equal, kept > 2 ? equal : 0,
                                            kept > 3 ? equal : 0};
            CHECK(near(weights_of<A>(softmax, {z, z, z, z}), first));
            CHECK(near(weights_of<A>(softmax, {-z, -z, -z, -z}), first));
            for (A d : gradient_of<A>(softmax, {-z, -z, -z, -z}, d_w))
                CHECK(std::isfinite(d));
        }
        CHECK(near(weights_of<A>(softmax_normaliser{1}, {-z, -z, z, z}), {0, 0, 1, 0}));
    }
}

TEST_CASE_TEMPLATE("softmax: a NaN is kept, and shows" * needs_non_finite(), A,
                   MHR_TEST_ACCUMULATORS) {
    CHECK(all_nan(weights_of<A>(softmax_normaliser{}, {1, quiet_nan<A>, 2})));
    for (std::size_t where : {0U, 1U, 2U, 3U})
        for (index_t kept : {1, 2, 3}) {
            CAPTURE(where);
            CAPTURE(kept);
            std::vector<A> s{1, 4, 3, 2};
            s[where] = quiet_nan<A>;
            CHECK(std::isnan(weights_of(softmax_normaliser{kept}, s)[where]));
            CHECK(std::isnan(gradient_of<A>(softmax_normaliser{kept}, s, {1, 1, 1, 1})[where]));
        }
    const std::vector<A> nothing(3, quiet_nan<A>);
    CHECK(all_nan(weights_of(softmax_normaliser{}, nothing)));
    CHECK(all_nan(weights_of(softmax_normaliser{2}, nothing)));
}

TEST_CASE_TEMPLATE("softmax: modules that are not kept get no gradient, and give none", A,
                   MHR_TEST_ACCUMULATORS) {
    const std::vector<A> s{1, 4, 3, 2};
    // Not even looked at.
    const auto d =
        gradient_of<A>(softmax_normaliser{2}, s, {quiet_nan<A>, 1, 2, infinity<A>}, 1, 77);
    CHECK(d[0] == 77);
    CHECK(d[3] == 77);
    const auto alone = gradient_of<A>(softmax_normaliser{}, {4, 3}, {1, 2});
    CHECK(d[1] == alone[0]);
    CHECK(d[2] == alone[1]);
    CHECK(d[1] < 0);
}

TEST_CASE("kept is 1 or more") {
    for (index_t bad : {index_t{0}, index_t{-1}, std::numeric_limits<index_t>::min()})
        CHECK(refuses("f", "normaliser.kept", [&] { check_part(softmax_normaliser{bad}, 2, 3); }));
    CHECK(refuses("f", "normaliser.kept",
                  [&] { check_part(detached_when_off_normaliser{softmax_normaliser{0}}, 2, 3); }));
    CHECK_NOTHROW(check_part(detached_when_off_normaliser{softmax_normaliser{1}}, 2, 3));
    CHECK_NOTHROW(check_part(softmax_normaliser{1}, 2, 3));
    CHECK_NOTHROW(check_part(softmax_normaliser{}, 2, 3));
    CHECK_NOTHROW(check_part(softmax_normaliser{9}, 2, 3));
    CHECK_NOTHROW(check_part(sum_normaliser{}, 2, 3));
    CHECK_NOTHROW(check_part(average_correction_normaliser{}, 2, 3));
    CHECK_NOTHROW(check_part(l2_normaliser{}, 2, 3));
}

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/core/workspace.hpp>
#include <mhr/reference/indian_buffet_prior.hpp>
#include <mhr/routing/indian_buffet_prior.hpp>

#include "support/allocation_counter.hpp"
#include "support/bad_arguments.hpp"
#include "support/comparison.hpp"
#include "support/error_check.hpp"
#include "support/fast_math.hpp"
#include "support/guarded_buffer.hpp"
#include "support/guarded_tensor.hpp"
#include "support/random_tensor.hpp"
#include "support/tensor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using real = long double;

double prior_of(const const_tensor_ref<3>& logits, double concentration) {
    // Exactly what is asked for, full of ones.
    std::vector<std::byte> memory(indian_buffet_prior_workspace_size(logits.extent(0)),
                                  std::byte{0xff});
    return indian_buffet_prior_forward(logits, concentration,
                                       workspace(memory.data(), memory.size()));
}

// Who uses what, counted plainly; logits next to 0 are for tests of the gate.
struct allocation {
    std::vector<real> users;       // of the columns in use
    std::vector<real> new_columns; // of each task
    tensor<index_t, 2> column;     // [heads, modules]: the number among those in use, or -1
};

allocation allocate(const const_tensor_ref<3>& logits) {
    allocation result;
    result.new_columns.resize(static_cast<std::size_t>(logits.extent(0)));
    result.column = tensor<index_t, 2>({logits.extent(1), logits.extent(2)});
    for_each_position(result.column.extents(), [&](const position<2>& at) {
        index_t users = 0;
        for (index_t n = 0; n < logits.extent(0); ++n)
            if (element(logits, {n, at[0], at[1]}) > 0 && ++users == 1)
                result.new_columns[static_cast<std::size_t>(n)] += 1;
        result.column(at[0], at[1]) = users == 0 ? -1 : static_cast<index_t>(result.users.size());
        if (users > 0) result.users.push_back(static_cast<real>(users));
    });
    return result;
}

// The derivative by the number of users of one column, by central differences of the formula.
real derivative_by_users(const allocation& z, index_t column, real concentration) {
    const auto prior_at = [&](real distance) {
        auto users = z.users;
        users[static_cast<std::size_t>(column)] += distance;
        return reference::indian_buffet_prior(users, z.new_columns, concentration);
    };
    const real step = 0x1p-8L;
    const auto difference = [&](real d) { return prior_at(d) - prior_at(-d); };
    // Richardson, twice: the curvature of log Gamma(u) at 1 is not small.
    const auto slope = [&](real d) { return (8 * difference(d) - difference(2 * d)) / (12 * d); };
    return (16 * slope(step) - slope(2 * step)) / 15;
}

// Tasks come one by one: each takes what others took before with the probability of its share, and
// new columns as many as Poisson says. (Griffiths & Ghahramani 2011, the restaurant.)
real restaurant(const std::vector<std::vector<bool>>& z, real concentration) {
    real log_probability = 0;
    for (std::size_t n = 0; n < z.size(); ++n) {
        const real guests = static_cast<real>(n + 1);
        real fresh = 0;
        for (std::size_t k = 0; k < z[n].size(); ++k) {
            real before = 0;
            for (std::size_t other = 0; other < n; ++other)
                before += z[other][k] ? 1 : 0;
            if (before > 0)
                log_probability += std::log(z[n][k] ? before / guests : 1 - before / guests);
            else
                fresh += z[n][k] ? 1 : 0;
        }
        const real rate = concentration / guests;
        log_probability += fresh * std::log(rate) - rate - std::lgamma(fresh + 1);
    }
    return -log_probability;
}

} // namespace

TEST_CASE("the prior, by hand") {
    guarded_buffer<double, 3> logits({1, 1, 3});
    const auto set = [&](std::array<double, 3> values) {
        for (index_t m = 0; m < 3; ++m)
            logits(0, 0, m) = values[static_cast<std::size_t>(m)];
    };
    // One task: how many columns it uses is Poisson(2), e^-2 2^K / K!.
    set({-1, -1, -1});
    CHECK(prior_of(logits.view(), 2) == doctest::Approx(2).epsilon(1e-15));
    set({-1, 1, -1});
    CHECK(prior_of(logits.view(), 2) == doctest::Approx(2 - std::log(2)).epsilon(1e-15));
    set({1, 1, 1});
    CHECK(prior_of(logits.view(), 2) == doctest::Approx(2 - std::log(8) + std::log(6)));

    // Two tasks, one column that both use: H = 3/2, -log(0! 1! / 2!) = log 2.
    guarded_buffer<double, 3> two({2, 1, 1});
    two.fill(1);
    CHECK(prior_of(two.view(), 1) == doctest::Approx(1.5 + std::log(2)).epsilon(1e-15));
    // Its gradient by u is H_0 - H_1 = -1, times the slope of the sigmoid.
    guarded_buffer<double, 3> d_two({2, 1, 1});
    d_two.fill(10);
    two(1, 0, 0) = 3;
    indian_buffet_prior_backward(two.const_view(), 4, d_two.view());
    const auto slope = [](double z) { return 1 / (2 + std::exp(z) + std::exp(-z)); };
    CHECK(d_two(0, 0, 0) == doctest::Approx(10 - 4 * slope(1)).epsilon(1e-15));
    CHECK(d_two(1, 0, 0) == doctest::Approx(10 - 4 * slope(3)).epsilon(1e-15));
}

TEST_CASE("the prior is the probability of the restaurant, for every small allocation") {
    for (int tasks : {1, 2, 3, 4})
        for (int columns : {1, 2, 3}) {
            CAPTURE(tasks);
            CAPTURE(columns);
            int wrong = 0;
            int seen = 0;
            for (int code = 0; code < 1 << (tasks * columns); ++code) {
                std::vector<std::vector<bool>> z(static_cast<std::size_t>(tasks));
                tensor<double, 3> logits({tasks, 1, columns});
                for (int n = 0; n < tasks; ++n)
                    for (int k = 0; k < columns; ++k) {
                        const bool on = (code >> (n * columns + k) & 1) != 0;
                        z[static_cast<std::size_t>(n)].push_back(on);
                        logits(n, 0, k) = on ? 0.5 : -0.5;
                    }
                const auto got = prior_of(logits.view(), 3);
                const auto want = static_cast<double>(restaurant(z, 3));
                wrong += std::abs(got - want) < 1e-13 ? 0 : 1;
                ++seen;
            }
            CHECK(wrong == 0);
            CHECK(seen == 1 << (tasks * columns));
        }
}

TEST_CASE("the prior agrees with the formula in Gamma functions") {
    for (element_type type : all_element_types) {
        random_source random(113);
        for (layout order : all_layouts)
            for (const auto& extents :
                 {std::array<index_t, 3>{1, 1, 1}, {7, 3, 5}, {2, 1, 9}, {40, 2, 7}, {1, 4, 3}})
                for (double concentration : {0.01, 1.0, 3.0, 50.0}) {
                    CAPTURE(std::string(mhr::name_of(type)));
                    CAPTURE(name_of(order));
                    CAPTURE(extents[0]);
                    CAPTURE(concentration);
                    guarded_tensor<3> logits(type, extents, order);
                    const double low = random.uniform(-2, -0.2); // few users, or many
                    for_each_position(extents, [&](const position<3>& at) {
                        const double z = random.uniform(low, 1);
                        set_element(logits.ref(), at, z < 0 ? z - 0.1 : z + 0.1);
                    });
                    const allocation z = allocate(logits);
                    const real want = reference::indian_buffet_prior(
                        z.users, z.new_columns, static_cast<real>(concentration));
                    // Terms are added up that are up to log(N!) each.
                    const real terms = 1 + static_cast<real>(concentration) * 5 +
                                       static_cast<real>(z.users.size()) *
                                           (3 * std::lgamma(static_cast<real>(extents[0]) + 1) + 5);
                    CHECK(std::abs(static_cast<real>(prior_of(logits, concentration)) - want) <
                          16 * static_cast<real>(epsilon_of<double>()) * terms);

                    guarded_tensor<3> d_logits(type, extents, order);
                    d_logits.fill(random);
                    tensor<real, 3> d_want = values_as<real>(d_logits.ref());
                    tensor<real, 3> magnitudes = magnitudes_as<real>(d_logits.ref());
                    const double factor = -0.75;
                    indian_buffet_prior_backward(logits, factor, d_logits);
                    for_each_position(extents, [&](const position<3>& at) {
                        const index_t column = z.column(at[1], at[2]);
                        if (column < 0) return;
                        const real logit = static_cast<real>(element(logits.ref(), at));
                        const real slope = 1 / (2 + std::exp(logit) + std::exp(-logit));
                        const real d =
                            static_cast<real>(factor) * slope *
                            derivative_by_users(z, column, static_cast<real>(concentration));
                        element(d_want.view(), at) += d;
                        element(magnitudes.view(), at) += std::abs(d) + slope;
                    });
                    // The differences are good for ten digits.
                    const element_type sums = sums_of(type, type);
                    const double roundings = 8 + 1e-10 / precision_of(sums).epsilon;
                    CHECK(compare(d_logits.ref(), d_want.view(), magnitudes.view(),
                                  within(sums, roundings)));
                    CHECK(d_logits.intact());
                }
    }
}

TEST_CASE("forward and backward count the same users, whatever the type of the gradient") {
    // In f32 the sigmoid of this logit is 1/2, which is off; in f64 it is more.
    const float logit = 1e-9F;
    double d_logit = 5;
    indian_buffet_prior_backward({&logit, {1, 1, 1}}, 1, {&d_logit, {1, 1, 1}});
    CHECK(d_logit == 5);
    CHECK(prior_of({&logit, {1, 1, 1}}, 3) == 3);
    const double wide = 1e-9;
    CHECK(prior_of({&wide, {1, 1, 1}}, 3) == doctest::Approx(3 - std::log(3.0)));
}

TEST_CASE("thousands of tasks: factorials that no number holds") {
    guarded_buffer<float, 3> logits({3000, 1, 3}), d_logits({3000, 1, 3});
    logits.fill(-1);
    for (index_t n = 0; n < 3000; ++n) {
        if (n % 2 == 1) logits(n, 0, 0) = 1;
        if (n >= 1000) logits(n, 0, 1) = 1;
        logits(n, 0, 2) = 1; // all of them
    }
    const allocation z = allocate(logits.view());
    const real want = reference::indian_buffet_prior<real>(z.users, z.new_columns, 3);
    CHECK(prior_of(logits.const_view(), 3) ==
          doctest::Approx(static_cast<double>(want)).epsilon(1e-12));
    d_logits.fill(0);
    indian_buffet_prior_backward(logits.const_view(), 1, d_logits.view());
    const float slope = 0.19661193F; // of the sigmoid at +-1
    CHECK(d_logits(7, 0, 0) == doctest::Approx(slope / 1500).epsilon(1e-5)); // H_1500 - H_1499
    CHECK(d_logits(8, 0, 1) == doctest::Approx(-slope * 0.69239724).epsilon(1e-5));
    CHECK(d_logits(8, 0, 2) == doctest::Approx(-slope * 8.5834166).epsilon(1e-5)); // -H_2999
}

TEST_CASE("the order of modules, and of heads, plays no part; that of tasks, in new_n only") {
    random_source random(127);
    for (int i = 0; i < 30; ++i) {
        tensor<double, 3> logits({6, 2, 5}), modules({6, 2, 5}), heads({6, 2, 5}), tasks({6, 2, 5});
        random.fill(logits.view());
        const auto module = random.permutation(5);
        const auto task = random.permutation(6);
        for_each_position(logits.extents(), [&](const position<3>& at) {
            const double z = element(logits.view(), at);
            modules(at[0], at[1], module[static_cast<std::size_t>(at[2])]) = z;
            heads(at[0], 1 - at[1], at[2]) = z;
            tasks(task[static_cast<std::size_t>(at[0])], at[1], at[2]) = z;
        });
        const double want = prior_of(logits.view(), 3);
        CHECK(prior_of(modules.view(), 3) == doctest::Approx(want).epsilon(1e-14));
        CHECK(prior_of(heads.view(), 3) == doctest::Approx(want).epsilon(1e-14));
        // Columns alone count, not how they are cut into heads.
        CHECK(prior_of(tensor_view<const double, 3>(logits.view().data(), {6, 1, 10}), 3) == want);
        const auto without_new = [](const tensor<double, 3>& table) {
            double result = prior_of(table.view(), 3);
            for (real count : allocate(table.view()).new_columns)
                result -= static_cast<double>(std::lgamma(count + 1));
            return result;
        };
        CHECK(without_new(tasks) == doctest::Approx(without_new(logits)).epsilon(1e-13));
        CHECK(without_new(modules) == doctest::Approx(without_new(logits)).epsilon(1e-13));
        tensor<double, 3> d_logits({6, 2, 5}), d_modules({6, 2, 5}), d_tasks({6, 2, 5});
        indian_buffet_prior_backward(logits.const_view(), 1, d_logits.view());
        indian_buffet_prior_backward(modules.const_view(), 1, d_modules.view());
        indian_buffet_prior_backward(tasks.const_view(), 1, d_tasks.view());
        for_each_position(logits.extents(), [&](const position<3>& at) {
            const double d = element(d_logits.view(), at);
            CHECK(d_modules(at[0], at[1], module[static_cast<std::size_t>(at[2])]) == d);
            CHECK(d_tasks(task[static_cast<std::size_t>(at[0])], at[1], at[2]) == d);
        });
    }
}

TEST_CASE("columns that nobody uses cost nothing and get no gradient, to the byte") {
    guarded_buffer<float, 3> narrow({4, 1, 2}), wide({4, 1, 5}), d_wide({4, 1, 5});
    random_source random(131);
    random.fill(narrow.view());
    narrow(2, 0, 0) = 1;
    narrow(0, 0, 1) = 1;
    wide.fill(-0.5F);
    wide(1, 0, 3) = 0; // off, as the gate has it
    for (index_t n = 0; n < 4; ++n) {
        wide(n, 0, 1) = narrow(n, 0, 0);
        wide(n, 0, 4) = narrow(n, 0, 1);
    }
    CHECK(prior_of(wide.view(), 3) == prior_of(narrow.view(), 3));
    d_wide.fill(-0.0F); // adding 0 would make it +0
    indian_buffet_prior_backward(wide.const_view(), 1, d_wide.view());
    for (index_t n = 0; n < 4; ++n)
        for (index_t m : {0, 2, 3})
            CHECK((is_exactly(d_wide(n, 0, m), 0) &&
                   (is_fast_math || std::signbit(d_wide(n, 0, m)))));
    // Those who do not use a column in use do get one: they may join.
    narrow(1, 0, 0) = -1;
    wide(1, 0, 1) = -1;
    d_wide.fill(0);
    indian_buffet_prior_backward(wide.const_view(), 1, d_wide.view());
    CHECK(d_wide(1, 0, 1) != 0);
}

TEST_CASE("no tasks, no heads, no modules") {
    const auto of = [](const std::array<index_t, 3>& extents) {
        std::vector<float> values(8, 1.F);
        const tensor_view<float, 3> logits(values.data(), extents);
        indian_buffet_prior_backward(logits, 1, logits);
        return prior_of(logits, 3);
    };
    CHECK(of({0, 0, 0}) == 0);
    CHECK(of({0, 2, 3}) == 0);
    CHECK(of({1, 0, 3}) == 3);
    CHECK(of({1, 2, 0}) == 3);
    CHECK(of({4, 0, 0}) == doctest::Approx(3 * (1 + 1.0 / 2 + 1.0 / 3 + 1.0 / 4)));
    CHECK(prior_of(tensor_view<const float, 3>{}, 3) == 0);
}

TEST_CASE("inputs may repeat one element; gradients accumulate; nothing is allocated") {
    const float logit = 2;
    const tensor_view<const float, 3> repeated(&logit, {3, 2, 4}, {0, 0, 0});
    guarded_buffer<float, 3> full({3, 2, 4}), once({3, 2, 4}), twice({3, 2, 4});
    full.fill(2);
    CHECK(prior_of(repeated, 3) == prior_of(full.view(), 3));
    once.fill(0);
    twice.fill(0);
    indian_buffet_prior_backward(repeated, 1, once.view());
    indian_buffet_prior_backward(repeated, 1, twice.view());
    indian_buffet_prior_backward(repeated, 1, twice.view());
    CHECK(once(2, 1, 3) < 0);
    CHECK(twice(2, 1, 3) == 2 * once(2, 1, 3));

    owned_workspace memory(indian_buffet_prior_workspace_size(3));
    double value = 0;
    CHECK(allocations_of([&] {
              value = indian_buffet_prior_forward(repeated, 3, memory);
              indian_buffet_prior_backward(repeated, 1, once.view());
          }) == 0);
    CHECK(value == prior_of(full.view(), 3));
    // Memory of any alignment.
    std::vector<std::byte> more(indian_buffet_prior_workspace_size(3) + 1);
    CHECK(indian_buffet_prior_forward(repeated, 3, workspace(more.data() + 1, more.size() - 1)) ==
          value);
}

TEST_CASE("the prior refuses bad arguments by name, the gradient untouched") {
    guarded_buffer<float, 3> logits({3, 2, 4}), d_logits({3, 2, 4});
    logits.fill(1);
    const auto memory_of = [](index_t tasks) {
        return owned_workspace(indian_buffet_prior_workspace_size(tasks));
    };
    owned_workspace memory = memory_of(3);
    for (const auto& bad : bad_as_input(logits.view(), {0, 1, 2})) {
        CAPTURE(bad.what);
        CHECK(refuses("indian_buffet_prior_forward", "logits",
                      [&] { (void)indian_buffet_prior_forward(bad.view, 3, memory); }));
        CHECK(refuses(
            "indian_buffet_prior_backward", "logits",
            [&] { indian_buffet_prior_backward(bad.view, 1, d_logits.view()); }, d_logits));
    }
    for (const auto& bad : bad_as_output(d_logits.view())) {
        CAPTURE(bad.what);
        CHECK(refuses(
            "indian_buffet_prior_backward", "d_logits",
            [&] { indian_buffet_prior_backward(logits.view(), 1, bad.view); }, d_logits));
    }
    for (double bad : and_non_finite<double>({0.0, -0.0, -3.0})) {
        CAPTURE(bad);
        CHECK(refuses("indian_buffet_prior_forward", "concentration",
                      [&] { (void)indian_buffet_prior_forward(logits.view(), bad, memory); }));
    }
    CHECK(std::isfinite(indian_buffet_prior_forward(logits.view(), 1e-300, memory)));
    std::vector<std::byte> little(indian_buffet_prior_workspace_size(3) - 1);
    CHECK(refuses("indian_buffet_prior_forward", "workspace", [&] {
        (void)indian_buffet_prior_forward(logits.view(), 3,
                                          workspace(little.data(), little.size()));
    }));
    CHECK(refuses("indian_buffet_prior_forward", "workspace",
                  [&] { (void)indian_buffet_prior_forward(logits.view(), 3, workspace{}); }));
}

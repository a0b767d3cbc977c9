#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/combining.hpp>
#include <mhr/serving/combining/combine_matrices.hpp>

#include "support/allocation_counter.hpp"
#include "support/fast_math.hpp"
#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;

struct problem {
    static constexpr std::size_t count = 3;
    std::vector<std::unique_ptr<guarded_tensor<2>>> matrices{};
    std::vector<tensor<std::uint8_t, 2>> keep{};
    std::array<combined_matrix, count> list{};
    std::array<double, count> factors{0.75, -2, 1.5};
    guarded_tensor<2> result;
    std::array<index_t, 2> extents;

    problem(const std::array<index_t, 2>& shape, element_type type,
            layout order = layout::row_major)
        : result(type, shape, order), extents(shape) {
        random_source random(1);
        for (std::size_t i = 0; i < count; ++i) {
            matrices.push_back(std::make_unique<guarded_tensor<2>>(type, shape, order));
            // Multiples of 1/8: many are equal, many are 0, and sums are exact.
            transform_elements(matrices[i]->ref(),
                               [&](double) { return std::round(random.uniform(-8.49, 8.49)) / 8; });
            keep.emplace_back(shape);
            for (std::uint8_t& k : keep.back().values())
                k = static_cast<std::uint8_t>(3 * random.integer(2));
        }
        for (std::size_t i = 0; i < count; ++i)
            list[i] = {matrices[i]->const_ref(), factors[i], keep[i].const_view()};
    }
    [[nodiscard]] tensor_view<const combined_matrix, 1> view() const {
        return {list.data(), {static_cast<index_t>(count)}};
    }
    void run(const combining_rule& rule, executor_ref executor = {}) {
        owned_workspace scratch(combine_matrices_workspace_size(3, rule));
        combine_matrices(executor, view(), rule, result, scratch);
    }
    [[nodiscard]] tensor<wide, 2> want(const combining_rule& rule) const {
        tensor<wide, 3> all({3, extents[0], extents[1]});
        tensor<wide, 1> of({3});
        for (std::size_t i = 0; i < count; ++i) {
            const auto at = static_cast<index_t>(i);
            auto x = values_as<wide>(matrices[i]->const_ref());
            if (rule.pruned == pruning::magnitude)
                reference::prune_by_magnitude(rule.density, x.view());
            if (rule.pruned == pruning::mask)
                reference::prune_by_mask(rule.density, keep[i].const_view(), x.view());
            transform(x.view(), all.view().slice(0, at), [](wide value) { return value; });
            of(at) = static_cast<wide>(factors[i]);
        }
        tensor<wide, 2> sum(extents);
        reference::combine_matrices(all.const_view(), of.const_view(),
                                    static_cast<reference::election_kind>(rule.election),
                                    sum.view());
        return sum;
    }
};

std::vector<combining_rule> all_rules() {
    std::vector<combining_rule> rules;
    for (pruning pruned : {pruning::none, pruning::magnitude, pruning::mask})
        for (sign_election election :
             {sign_election::none, sign_election::total, sign_election::frequency})
            // Divided by the density of a mask, sums stay exact.
            for (double density : {pruned == pruning::mask ? 0.25 : 0.29, 0.5, 1.0})
                rules.push_back({pruned, density, election});
    rules.push_back({pruning::magnitude, 0, sign_election::total});
    return rules;
}

} // namespace

TEST_CASE("combined matrices agree with the oracle") {
    for (const combining_rule& rule : all_rules())
        for (element_type type : all_element_types)
            for (const std::array<index_t, 2>& extents :
                 {std::array<index_t, 2>{1, 1}, {10, 10}, {5, 513}, {700, 70}}) {
                CAPTURE(static_cast<int>(rule.pruned));
                CAPTURE(static_cast<int>(rule.election));
                CAPTURE(rule.density);
                CAPTURE(std::string(name_of(type)));
                CAPTURE(extents[1]);
                problem p(extents, type);
                p.run(rule);
                check_near(p.result, p.want(rule), sums_of(type, type), 8);
            }
}

TEST_CASE("every layout and executor gives the same bits, without allocating") {
    for (const combining_rule& rule : all_rules()) {
        problem want({37, 130}, element_type::f32);
        owned_workspace scratch(combine_matrices_workspace_size(3, rule));
        CHECK(allocations_of(
                  [&] { combine_matrices({}, want.view(), rule, want.result, scratch); }) == 0);
        for (layout order : all_layouts) {
            CAPTURE(name_of(order));
            problem got({37, 130}, element_type::f32, order);
            got.run(rule);
            CHECK(compare_bitwise(got.result.ref(), want.result.ref()));
            CHECK(got.result.intact());
        }
        for_each_executor([&](const executor_ref& executor, const std::string& name) {
            CAPTURE(name);
            problem got({37, 130}, element_type::f32);
            got.run(rule, executor);
            CHECK(compare_bitwise(got.result.ref(), want.result.ref()));
        });
    }
}

TEST_CASE("the memory of pruning does not depend on the size, and NaN is not lost") {
    CHECK(combine_matrices_workspace_size(3, {}) == 0);
    CHECK(combine_matrices_workspace_size(3, {pruning::magnitude, 0.5}) < (std::size_t(3) << 19U));
    if (is_fast_math) return;
    for (const combining_rule& rule : all_rules()) {
        if (rule.density < 0.1) continue;
        problem p({10, 10}, element_type::f32);
        set_element(p.matrices[1]->ref(), {3, 4}, std::numeric_limits<double>::quiet_NaN());
        p.keep[1](3, 4) = 1;
        p.run(rule);
        CHECK(std::isnan(element(p.result.ref(), {3, 4})));
        CHECK_FALSE(std::isnan(element(p.result.ref(), {3, 5})));
    }
}

TEST_CASE("bad arguments of combine_matrices are refused by name") {
    problem p({10, 10}, element_type::f32);
    const combining_rule masked{pruning::mask, 0.5};
    const auto refused = [&](const char* argument, const combining_rule& rule) {
        CHECK(refuses(
            "combine_matrices", argument, [&] { p.run(rule); }, p.result));
    };
    for (double density : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
        refused("rule.density", {pruning::none, density});
        refused("rule.density", {pruning::mask, density});
    }
    refused("rule.density", {pruning::mask, 0});
    refused("rule.density", {pruning::mask, 1e-50});
    CHECK_NOTHROW(p.run({pruning::none, 0}));
    refused("rule.pruned", {static_cast<pruning>(9)});
    refused("rule.election", {pruning::none, 1, static_cast<sign_election>(9)});
    CHECK(refuses("combine_matrices", "matrices",
                  [&] { combine_matrices({}, p.view().block(0, 0, 0), {}, p.result, {}); }));
    CHECK(refuses("combine_matrices", "workspace", [&] {
        combine_matrices({}, p.view(), {pruning::magnitude, 0.5}, p.result, {});
    }));
    CHECK(refuses("combine_matrices", "executor", [&] {
        combine_matrices(share_executor{0, 2}, p.view(), {}, p.result, {});
    }));
    check_bad_output("combine_matrices", "result", p.result.ref(), {0, 1},
                     [&](const auto& bad) { combine_matrices({}, p.view(), {}, bad, {}); });
    const auto good = p.list;
    for (const auto& bad : bad_as_input(p.list[2].matrix)) {
        CAPTURE(bad.what);
        p.list[2].matrix = bad.ref;
        refused("matrices", {});
    }
    p.list = good;
    for (double factor : {std::numeric_limits<double>::infinity(),
                          std::numeric_limits<double>::quiet_NaN(), -1e300}) {
        p.list[1].factor = factor;
        refused("matrices", {});
    }
    p.list = good;
    p.list[1].keep = p.list[1].keep.block(0, 0, 9);
    refused("matrices.keep", masked);
    CHECK_NOTHROW(p.run({pruning::mask, 1})); // no mask is read
}

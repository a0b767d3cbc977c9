#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/combining.hpp>
#include <mhr/serving/combining/combine_lora.hpp>

#include "support/allocation_counter.hpp"
#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;

struct problem {
    index_t in = 40, out = 30;
    std::vector<std::unique_ptr<guarded_tensor<2>>> memory{};
    std::vector<tensor<std::uint8_t, 2>> masks{};
    std::array<weighted_lora, 3> list{};
    index_t ranks = 0;

    problem(const std::array<index_t, 3>& rank_of, element_type type,
            layout order = layout::row_major) {
        const std::array<double, 3> weights{0.5, -0.25, 2}, scales{2, 0.5, -1.5};
        random_source random(1);
        const auto mask = [&](const std::array<index_t, 2>& extents) {
            masks.emplace_back(extents);
            for (std::uint8_t& k : masks.back().values())
                k = static_cast<std::uint8_t>(random.integer(2));
        };
        masks.reserve(6);
        for (std::size_t i = 0; i < 3; ++i) {
            const index_t rank = rank_of[i];
            memory.push_back(std::make_unique<random_guarded<2>>(
                type, std::array<index_t, 2>{in, rank}, 2 * i, order));
            memory.push_back(std::make_unique<random_guarded<2>>(
                type, std::array<index_t, 2>{rank, out}, 2 * i + 1, order));
            mask({in, rank});
            mask({rank, out});
            list[i] = {{memory[2 * i]->const_ref(), memory[2 * i + 1]->const_ref(), scales[i]},
                       weights[i],
                       masks[2 * i].const_view(),
                       masks[2 * i + 1].const_view()};
            ranks += rank;
        }
    }
    [[nodiscard]] tensor_view<const weighted_lora, 1> view() const { return {list.data(), {3}}; }
    [[nodiscard]] double c(std::size_t i) const { return list[i].weight * list[i].adapter.scale; }

    /// Returns the expected A, or B, as PEFT stores it.
    [[nodiscard]] tensor<wide, 2> want(const combining_rule& rule, bool of_a) const {
        // As PEFT stores them: [rank, in] and [out, rank].
        const auto of = [&](std::size_t i) {
            return (of_a ? list[i].adapter.a : list[i].adapter.b).transpose(0, 1);
        };
        const auto extents = of(0).extents();
        tensor<wide, 3> all({3, extents[0], extents[1]});
        tensor<wide, 1> factors({3});
        for (std::size_t i = 0; i < 3; ++i) {
            const auto at = static_cast<index_t>(i);
            auto x = values_as<wide>(of(i));
            const auto keep = (of_a ? list[i].keep_a : list[i].keep_b).transpose(0, 1);
            if (rule.pruned == pruning::magnitude)
                reference::prune_by_magnitude(rule.density, x.view());
            if (rule.pruned == pruning::mask)
                reference::prune_by_mask(rule.density, keep, x.view());
            transform(x.view(), all.view().slice(0, at), [](wide value) { return value; });
            const wide root = std::sqrt(std::abs(static_cast<wide>(c(i))));
            factors(at) = of_a && c(i) < 0 ? -root : root;
        }
        tensor<wide, 2> sum(extents), oriented({extents[1], extents[0]});
        reference::combine_matrices(all.const_view(), factors.const_view(),
                                    static_cast<reference::election_kind>(rule.election),
                                    sum.view());
        transform(sum.view().transpose(0, 1), oriented.view(), [](wide value) { return value; });
        return oriented;
    }
};

} // namespace

TEST_CASE("combined adapters agree with the oracle, with roots of the weights") {
    for (pruning pruned : {pruning::none, pruning::magnitude, pruning::mask})
        for (sign_election election :
             {sign_election::none, sign_election::total, sign_election::frequency})
            for (element_type type : all_element_types) {
                const combining_rule rule{pruned, 0.4, election};
                CAPTURE(static_cast<int>(pruned));
                CAPTURE(static_cast<int>(election));
                CAPTURE(std::string(name_of(type)));
                problem p({5, 5, 5}, type);
                guarded_tensor<2> a(type, {p.in, 5}), b(type, {5, p.out}, layout::padded);
                owned_workspace scratch(combine_lora_workspace_size(3, rule));
                CHECK(allocations_of([&] {
                          combine_lora({}, p.view(), rule, {a, b}, scratch);
                      }) == 0);
                check_near(a, p.want(rule, true), sums_of(type, type), 8);
                check_near(b, p.want(rule, false), sums_of(type, type), 8);
            }
}

TEST_CASE("concatenated adapters are exactly the weighted sum of their products") {
    for (layout order : all_layouts)
        for (element_type type : all_element_types) {
            problem p({3, 1, 7}, type, order);
            guarded_tensor<2> a(element_type::f64, {p.in, 11}), b(element_type::f64, {11, p.out});
            CHECK(allocations_of([&] { concatenate_lora({}, p.view(), {a, b}); }) == 0);
            index_t first = 0;
            for (std::size_t i = 0; i < 3; ++i) {
                const lora& adapter = p.list[i].adapter;
                for (index_t k = 0; k < adapter.a.extent(1); ++k, ++first) {
                    for (index_t row = 0; row < p.in; ++row)
                        CHECK(element(a.ref(), {row, first}) ==
                              p.c(i) * element(adapter.a, {row, k}));
                    for (index_t o = 0; o < p.out; ++o)
                        CHECK(element(b.ref(), {first, o}) == element(adapter.b, {k, o}));
                }
            }
            for (index_t nth : {2, 5}) {
                guarded_tensor<2> a2(element_type::f64, a.extents()),
                    b2(element_type::f64, b.extents());
                for_each_share(nth, [&](const executor_ref& executor) {
                    concatenate_lora(executor, p.view(), {a2, b2});
                });
                CHECK(compare_bitwise(a2.ref(), a.ref()));
                CHECK(compare_bitwise(b2.ref(), b.ref()));
            }
        }
}

TEST_CASE("the scale that PEFT applies after rsLoRA") {
    CHECK(scale_of_peft_with_rslora(4) == 2);
    CHECK(scale_of_peft_with_rslora(1) == 1);
}

TEST_CASE("bad arguments of combined adapters are refused by name") {
    problem p({5, 5, 5}, element_type::f32);
    guarded_tensor<2> a(element_type::f32, {p.in, 5}), b(element_type::f32, {5, p.out});
    guarded_tensor<2> long_a(element_type::f32, {p.in, 15}), long_b(element_type::f32, {15, p.out});
    const lora_matrices result{a, b}, joined{long_a, long_b};
    const combining_rule masked{pruning::mask, 0.5};
    const auto combine = [&](const combining_rule& rule) {
        owned_workspace scratch(combine_lora_workspace_size(3, rule));
        combine_lora({}, p.view(), rule, result, scratch);
    };
    const auto join = [&] { concatenate_lora({}, p.view(), joined); };
    const auto good = p.list;
    for (double weight : {std::numeric_limits<double>::infinity(),
                          std::numeric_limits<double>::quiet_NaN(), 1.7e308}) {
        p.list[2].weight = weight;
        CHECK(refuses(
            "combine_lora", "adapters.a, transposed", [&] { combine({}); }, a, b));
        CHECK(
            refuses("concatenate_lora", "adapters.weight, times the scale", join, long_a, long_b));
    }
    p.list = good;
    for (const auto& bad : bad_as_input(p.list[1].adapter.a)) {
        CAPTURE(bad.what);
        p.list[1].adapter.a = bad.ref;
        CHECK(refuses(
            "combine_lora", "adapters.a, transposed", [&] { combine({}); }, a, b));
    }
    p.list = good;
    for (const auto& bad : bad_as_input(p.list[1].adapter.b)) {
        CAPTURE(bad.what);
        p.list[1].adapter.b = bad.ref;
        CHECK(refuses(
            "combine_lora", "adapters.b, transposed", [&] { combine({}); }, a, b));
        CHECK(refuses("concatenate_lora", "adapters.b", join, long_a, long_b));
    }
    p.list = good;
    p.list[0].keep_b = {};
    CHECK(refuses(
        "combine_lora", "adapters.keep_b, transposed", [&] { combine(masked); }, a, b));
    p.list[0].keep_a = {};
    CHECK(refuses(
        "combine_lora", "adapters.keep_a, transposed", [&] { combine(masked); }, a, b));
    CHECK_NOTHROW(combine({}));
    p.list = good;
    CHECK(refuses("combine_lora", "workspace", [&] {
        combine_lora({}, p.view(), {pruning::magnitude, 0.5}, result, {});
    }));
    CHECK(refuses("combine_lora", "rule.density", [&] { combine({pruning::none, 2}); }));
    CHECK(refuses("combine_lora", "adapters",
                  [&] { combine_lora({}, p.view().block(0, 0, 0), {}, result, {}); }));
    CHECK(refuses("concatenate_lora", "adapters",
                  [&] { concatenate_lora({}, p.view().block(0, 0, 0), joined); }));
    CHECK(refuses(
        "concatenate_lora", "result.a", [&] { concatenate_lora({}, p.view(), result); }, a, b));
    check_bad_output("combine_lora", "result.a", result.a, {0, 1}, [&](const auto& bad) {
        combine_lora({}, p.view(), {}, {bad, result.b}, {});
    });
    check_bad_output("concatenate_lora", "result.b", joined.b, {1}, [&](const auto& bad) {
        concatenate_lora({}, p.view(), {joined.a, bad});
    });
}

#include <array>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/lora.hpp>
#include <mhr/reference/lora.hpp>

#include "support/allocation_counter.hpp"
#include "support/batches.hpp"
#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double; // of the oracle
using type = element_type;

/// Rows of adapters with a bias (0 and 3, of which two entries use 0), without (1), and of no task.
struct bias_problem {
    static constexpr index_t rows = 70, count = 4;
    static constexpr double scale = -0.75;
    batch_plan plan = plan_of(random_tasks(rows, 4, 2));
    std::array<index_t, 4> numbers{3, 0, 1, 0};
    random_guarded<2> y, d_y, biases, d_biases;
    std::vector<lora_bias> adapters{4};
    std::vector<tensor_ref<1>> gradients{4};

    bias_problem(index_t out, type of_rows, type of_biases, type of_gradients,
                 layout order = layout::row_major)
        : y(of_rows, {rows, out}, 1, order), d_y(of_rows, {rows, out}, 2, order),
          biases(of_biases, {count, out}, 3, order),
          d_biases(of_gradients, {count, out}, 4, order) {
        for (index_t n : {0, 3}) {
            adapters[static_cast<std::size_t>(n)] = {biases.const_ref().slice(0, n), scale};
            gradients[static_cast<std::size_t>(n)] = d_biases.ref().slice(0, n);
        }
    }
    [[nodiscard]] lora_bias_list list() const {
        return {adapters.data(), count, {numbers.data(), {4}}};
    }
    void run(executor_ref executor = {}) {
        CHECK(why_not({plan, executor}, list(), y).empty());
        lora_bias_forward({plan, executor}, list(), y);
        lora_bias_backward({plan, executor}, list(), d_y, gradients.data());
    }
    [[nodiscard]] tensor<index_t, 1> adapter_of_row() const {
        tensor<index_t, 1> result = entry_of_row(plan);
        for (index_t& number : result.values()) {
            if (number >= 0) number = numbers[static_cast<std::size_t>(number)];
            if (number == 1) number = -1;
        }
        return result;
    }
    /// Runs, and compares with the oracle.
    void check(type sums) {
        auto want = values_as<wide>(y.ref());
        auto d_want = values_as<wide>(d_biases.ref());
        const auto of_row = adapter_of_row();
        reference::lora_bias_forward<wide>(
            of_row.const_view(), values_as<wide>(biases.ref()).const_view(), scale, want.view());
        reference::lora_bias_backward<wide>(of_row.const_view(), scale,
                                            values_as<wide>(d_y.ref()).const_view(), d_want.view());
        run();
        check_near(y, want, sums, 2);
        // Two entries share an adapter, so that 16 bits round what may cancel afterwards, too.
        const bool is_rounded = size_of(d_biases.type()) == 2;
        check_near(d_biases, d_want, is_rounded ? d_biases.type() : sums, is_rounded ? 4 : 64);
    }
};

template <std::size_t Rank>
bool same_bits(const guarded_tensor<Rank>& got, const guarded_tensor<Rank>& want) {
    return static_cast<bool>(compare_bitwise(got.const_ref(), want.const_ref()));
}

} // namespace

TEST_CASE("a bias on B and its gradient agree with the oracle") {
    for (index_t out : {1, 7, 128, 261})
        for (type of_rows : all_element_types)
            for (type of_biases : all_element_types)
                for (type of_gradients : all_element_types)
                    for (layout order : all_layouts) {
                        CAPTURE(out);
                        CAPTURE(std::string(name_of(of_rows)));
                        CAPTURE(std::string(name_of(of_biases)));
                        CAPTURE(std::string(name_of(of_gradients)));
                        CAPTURE(name_of(order));
                        bias_problem(out, of_rows, of_biases, of_gradients, order).check(type::f32);
                    }
    bias_problem(261, type::f64, type::f64, type::f64).check(type::f64);
}

TEST_CASE("rows of no bias keep their bits, and absent gradients are not computed") {
    guarded_tensor<2> nan(type::bf16, {bias_problem::rows, 9}); // full of signalling NaN
    const snapshot before = nan.take_snapshot();
    const std::vector<lora_bias> none(4);
    bias_problem p(9, type::f32, type::f32, type::f32),
        untouched(9, type::f32, type::f32, type::f32), want(9, type::f32, type::f32, type::f32);
    lora_bias_forward({p.plan}, {none.data(), 4}, nan);
    CHECK(nan.unchanged_since(before));
    lora_bias_backward({p.plan}, p.list(), p.d_y, nullptr);
    CHECK(same_bits(p.d_biases, untouched.d_biases));
    want.run();
    p.gradients[0] = {};
    p.run();
    for (index_t n = 0; n < 4; ++n)
        CHECK(compare_bitwise(p.d_biases.const_ref().slice(0, n),
                              (n == 3 ? want : untouched).d_biases.const_ref().slice(0, n)));
}

TEST_CASE("a bias gives the same bits on every executor and in shares, without allocations") {
    bias_problem want(300, type::bf16, type::f32, type::f32);
    want.run();
    const auto check = [&](const auto& each) {
        bias_problem p(300, type::bf16, type::f32, type::f32);
        each([&](executor_ref executor) { p.run(executor); });
        CHECK(same_bits(p.y, want.y));
        CHECK(same_bits(p.d_biases, want.d_biases));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        check([&](const auto& call) { call(executor); });
    });
    check([](const auto& call) { for_each_share(3, call); });
    CHECK(allocations_of([&] {
              lora_bias_forward({want.plan}, want.list(), want.y);
              lora_bias_backward({want.plan}, want.list(), want.d_y, want.gradients.data());
          }) == 0);
}

TEST_CASE("bad biases are refused, with outputs untouched") {
    bias_problem p(6, type::f32, type::f32, type::f32);
    const auto both = [&](const char* argument, const lora_bias_list& list) {
        const auto outcome = refuses(
            "lora_bias_forward", argument, [&] { lora_bias_forward({p.plan}, list, p.y); }, p.y);
        CHECK(outcome);
        CHECK(why_not({p.plan}, list, p.y) == outcome.message);
        CHECK(refuses(
            "lora_bias_backward", argument,
            [&] { lora_bias_backward({p.plan}, list, p.d_y, p.gradients.data()); }, p.d_biases));
    };
    for (index_t bad : {-1, 4}) {
        auto numbers = p.numbers;
        numbers[3] = bad;
        both("adapters.adapter_of_entry", {p.adapters.data(), 4, {numbers.data(), {4}}});
    }
    both("adapters", {p.adapters.data(), 3});
    both("adapters", {p.adapters.data(), 5});
    both("adapters", {nullptr, 4});
    both("adapters", {nullptr, 4, {p.numbers.data(), {4}}});
    for (const auto& bad : bad_as_input(p.adapters[0].bias)) {
        if (bad.ref.absent()) continue; // that is an adapter without
        CAPTURE(bad.what);
        auto adapters = p.adapters;
        adapters[0].bias = bad.ref;
        both("adapters.bias", {adapters.data(), 4, {p.numbers.data(), {4}}});
    }
    check_bad_output("lora_bias_forward", "y", p.y.ref(), {1},
                     [&](const tensor_ref<2>& bad) { lora_bias_forward({p.plan}, p.list(), bad); });
    check_bad_input("lora_bias_backward", "d_y", p.d_y.const_ref(), {1},
                    [&](const const_tensor_ref<2>& bad) {
                        lora_bias_backward({p.plan}, p.list(), bad, p.gradients.data());
                    });
    for (const auto& bad : bad_as_output(p.gradients[3])) {
        if (bad.ref.absent()) continue; // not wanted
        CAPTURE(bad.what);
        auto gradients = p.gradients;
        gradients[3] = bad.ref;
        CHECK(refuses(
            "lora_bias_backward", "gradients",
            [&] { lora_bias_backward({p.plan}, p.list(), p.d_y, gradients.data()); }, p.d_biases));
    }
}

TEST_CASE("a batch without entries takes the adapters of an engine, and no numbers") {
    bias_problem p(6, type::f32, type::f32, type::f32),
        untouched(6, type::f32, type::f32, type::f32);
    batch_plan plan;
    plan.assign_single_task(bias_problem::rows, no_task);
    lora_bias_forward({plan}, {p.adapters.data(), 4, {nullptr, {0}}}, p.y);
    lora_bias_backward({plan}, {p.adapters.data(), 4, {nullptr, {0}}}, p.d_y, p.gradients.data());
    CHECK(same_bits(p.y, untouched.y));
    CHECK(same_bits(p.d_biases, untouched.d_biases));
}

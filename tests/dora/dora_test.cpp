#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/dora/dora.hpp>
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

/// A layer whose quotients are computed.
struct quotient_problem {
    random_guarded<2> base_weight, a, b;
    random_guarded<1> magnitude, quotient;
    double scale = -0.75;

    quotient_problem(index_t in, index_t out, index_t rank, type of_weight = type::f32,
                     type of_adapter = type::f32, layout order = layout::row_major)
        : base_weight(of_weight, {out, in}, 1, order), a(of_adapter, {in, rank}, 2, order),
          b(of_adapter, {rank, out}, 3, order), magnitude(of_adapter, {out}, 4, order),
          quotient(type::f32, {out}, 5, order) {
        // Far from a norm of 0, where the quotient would have no correct digit.
        transform_elements(base_weight.ref(),
                           [](double value) { return value < 0 ? value - 1 : value + 1; });
        transform_elements(b.ref(), [](double value) { return value / 8; });
    }
    [[nodiscard]] lora adapter() const { return {a.const_ref(), b.const_ref(), scale}; }
    void run(executor_ref executor = {}) {
        dora_quotient(executor, base_weight, adapter(), magnitude, quotient);
    }
    /// What the oracle finds, for these magnitudes.
    [[nodiscard]] tensor<wide, 1> want(const tensor<wide, 1>& magnitudes) {
        tensor<wide, 1> result(magnitudes.extents());
        reference::dora_quotient<wide>(values_as<wide>(base_weight.ref()).const_view(),
                                       values_as<wide>(a.ref()).const_view(),
                                       values_as<wide>(b.ref()).const_view(), wide(scale),
                                       magnitudes.const_view(), result.view());
        return result;
    }
};

/// Rows of LoRA (adapter 1), of DoRA (0 and 3, whose entries exchange their places) and of no task.
/// Two entries use adapter 0.
struct rows_problem {
    static constexpr index_t rows = 70, count = 4, entries = 4;
    index_t out;
    batch_plan plan = plan_of(random_tasks(rows, entries, 2));
    std::array<index_t, 4> numbers{3, 0, 1, 0};
    random_guarded<2> adapted, d_y, y, d_adapted, quotients, inverse_norms, d_magnitudes;
    std::vector<dora> adapters{4};
    std::vector<tensor_ref<1>> gradients{4};

    rows_problem(index_t features, type of_rows, type of_quotients, type of_gradients,
                 layout order = layout::row_major)
        : out(features), adapted(of_rows, {rows, out}, 1, order),
          d_y(of_rows, {rows, out}, 2, order), y(of_rows, {rows, out}, 3, order),
          d_adapted(of_gradients, {rows, out}, 4, order),
          quotients(of_quotients, {count, out}, 5, order),
          inverse_norms(of_quotients, {count, out}, 6, order),
          d_magnitudes(of_gradients, {count, out}, 7, order) {
        for (index_t n : {0, 3}) {
            const auto i = static_cast<std::size_t>(n);
            adapters[i] = {quotients.const_ref().slice(0, n),
                           inverse_norms.const_ref().slice(0, n)};
            gradients[i] = d_magnitudes.ref().slice(0, n);
        }
    }
    [[nodiscard]] dora_list list() const { return {adapters.data(), count, {numbers.data(), {4}}}; }
    void run(executor_ref executor = {}) {
        CHECK(why_not({plan, executor}, list(), adapted, y).empty());
        dora_forward({plan, executor}, list(), adapted, y);
        dora_backward({plan, executor}, list(), adapted, d_y, {d_adapted, gradients.data()});
    }
    /// The adapter of each row, with -1 for rows of LoRA, too.
    [[nodiscard]] tensor<index_t, 1> adapter_of_row() const {
        tensor<index_t, 1> result = entry_of_row(plan);
        for (index_t& number : result.values())
            if (number >= 0) number = numbers[static_cast<std::size_t>(number)];
        for (index_t& number : result.values())
            if (number == 1) number = -1;
        return result;
    }
};

template <std::size_t Rank>
bool same_bits(const guarded_tensor<Rank>& got, const guarded_tensor<Rank>& want) {
    return static_cast<bool>(compare_bitwise(got.const_ref(), want.const_ref()));
}

} // namespace

TEST_CASE("the quotient of DoRA agrees with the oracle, for every type, layout and awkward size") {
    const std::array<std::array<index_t, 3>, 6> sizes{
        {{1, 1, 1}, {7, 5, 2}, {131, 17, 3}, {128, 16, 16}, {257, 33, 19}, {3, 37, 40}}};
    for (const auto& size : sizes)
        for (type of_weight : all_element_types)
            for (type of_adapter : all_element_types)
                for (layout order : all_layouts) {
                    CAPTURE(size[0]);
                    CAPTURE(std::string(name_of(of_weight)));
                    CAPTURE(std::string(name_of(of_adapter)));
                    CAPTURE(name_of(order));
                    quotient_problem p(size[0], size[1], size[2], of_weight, of_adapter, order);
                    const auto want = p.want(values_as<wide>(p.magnitude.ref()));
                    p.run();
                    check_near(p.quotient, want, type::f32, 16);
                }
}

TEST_CASE("the quotient of f64 tensors is computed in f64") {
    for (int place : {0, 1, 2}) {
        quotient_problem p(131, 17, 5);
        random_guarded<2> weight(type::f64, {17, 131}, 11), a(type::f64, {131, 5}, 12),
            b(type::f64, {5, 17}, 13);
        random_guarded<1> quotient(type::f64, {17}, 14);
        const const_tensor_ref<2> w = place == 0 ? weight.const_ref() : p.base_weight.const_ref();
        const lora adapter{place == 1 ? a.const_ref() : p.a.const_ref(),
                           place == 2 ? b.const_ref() : p.b.const_ref(), 0.5};
        dora_quotient({}, w, adapter, {}, quotient); // of magnitudes of 1
        tensor<wide, 1> ones({17}), want({17});
        for (wide& one : ones.values())
            one = 1;
        reference::dora_quotient<wide>(
            values_as<wide>(w).const_view(), values_as<wide>(adapter.a).const_view(),
            values_as<wide>(adapter.b).const_view(), 0.5L, ones.const_view(), want.view());
        check_near(quotient, want, type::f64, 64);
    }
}

TEST_CASE("a row of zeros has the quotient that PEFT has, and spoils no other") {
    for (index_t row : {0, 15, 16}) {
        quotient_problem p(9, 18, 2), whole(9, 18, 2);
        whole.run();
        for (index_t i = 0; i < 9; ++i)
            set_element(p.base_weight.ref(), {row, i}, 0);
        for (index_t k = 0; k < 2; ++k)
            set_element(p.b.ref(), {k, row}, 0);
        set_element(p.magnitude.ref(), {row}, 2);
        p.run();
        CHECK(element(p.quotient.ref(), {row}) == std::numeric_limits<double>::infinity());
        for (index_t o = 0; o < 18; ++o)
            if (o != row)
                CHECK(element(p.quotient.ref(), {o}) == element(whole.quotient.ref(), {o}));
        set_element(p.magnitude.ref(), {row}, 0);
        p.run();
        CHECK(std::isnan(element(p.quotient.ref(), {row})));
    }
}

TEST_CASE("DoRA and its backward agree with the oracle, beside LoRA and rows of no task") {
    for (index_t out : {1, 7, 128, 261})
        for (type of_rows : all_element_types)
            for (type of_quotients : all_element_types)
                for (type of_gradients : {type::f32, type::f64, type::bf16})
                    for (layout order : {layout::row_major, layout::padded, layout::reversed,
                                         layout::column_major}) {
                        CAPTURE(out);
                        CAPTURE(std::string(name_of(of_rows)));
                        CAPTURE(std::string(name_of(of_quotients)));
                        CAPTURE(std::string(name_of(of_gradients)));
                        CAPTURE(name_of(order));
                        rows_problem p(out, of_rows, of_quotients, of_gradients, order);
                        const auto of_row = p.adapter_of_row();
                        const auto adapted = values_as<wide>(p.adapted.ref());
                        const auto quotients = values_as<wide>(p.quotients.ref());
                        const auto d_y = values_as<wide>(p.d_y.ref());
                        tensor<wide, 2> y(adapted.extents());
                        auto d_adapted = values_as<wide>(p.d_adapted.ref());
                        auto d_magnitudes = values_as<wide>(p.d_magnitudes.ref());
                        reference::dora_forward<wide>(of_row.const_view(), adapted.const_view(),
                                                      quotients.const_view(), y.view());
                        reference::dora_backward<wide>(
                            of_row.const_view(), adapted.const_view(), quotients.const_view(),
                            values_as<wide>(p.inverse_norms.ref()).const_view(), d_y.const_view(),
                            d_adapted.view(), d_magnitudes.view());
                        p.run();
                        check_near(p.y, y, type::f32, 2);
                        check_near(p.d_adapted, d_adapted, type::f32, 2);
                        // Sums over about 20 rows, of which a part cancels. Two entries share an
                        // adapter, so that 16 bits round what may cancel afterwards, too.
                        if (of_gradients == type::bf16)
                            check_near(p.d_magnitudes, d_magnitudes, type::bf16, 2);
                        else
                            check_near(p.d_magnitudes, d_magnitudes, type::f32, 64);
                    }
}

TEST_CASE("DoRA of f64 is computed in f64") {
    rows_problem p(19, type::f64, type::f64, type::f64);
    const auto adapted = values_as<wide>(p.adapted.ref());
    auto d_adapted = values_as<wide>(p.d_adapted.ref());
    auto d_magnitudes = values_as<wide>(p.d_magnitudes.ref());
    reference::dora_backward<wide>(p.adapter_of_row().const_view(), adapted.const_view(),
                                   values_as<wide>(p.quotients.ref()).const_view(),
                                   values_as<wide>(p.inverse_norms.ref()).const_view(),
                                   values_as<wide>(p.d_y.ref()).const_view(), d_adapted.view(),
                                   d_magnitudes.view());
    p.run();
    check_near(p.d_adapted, d_adapted, type::f64, 2);
    check_near(p.d_magnitudes, d_magnitudes, type::f64, 64);
}

TEST_CASE("DoRA in place gives the same bits, and does not touch rows of LoRA") {
    for (type of_rows : all_element_types) {
        rows_problem want(37, of_rows, type::f32, type::f32), p(37, of_rows, type::f32, type::f32);
        want.run();
        dora_forward({p.plan}, p.list(), p.adapted, p.adapted);
        CHECK(same_bits(p.adapted, want.y));
        guarded_tensor<2> nan(of_rows, {rows_problem::rows, 37}); // full of signalling NaN
        const snapshot before = nan.take_snapshot();
        const std::vector<dora> plain(4);
        dora_forward({p.plan}, {plain.data(), 4}, nan, nan);
        CHECK(nan.unchanged_since(before));
    }
}

TEST_CASE("absent gradients of DoRA are not computed, with the same bits in the others") {
    rows_problem want(37, type::f32, type::f32, type::f32), p(37, type::f32, type::f32, type::f32),
        untouched(37, type::f32, type::f32, type::f32);
    want.run();
    p.gradients[0] = {};
    p.adapters[0].inverse_norm = {}; // nobody looks at it
    dora_backward({p.plan}, p.list(), p.adapted, p.d_y, {{}, p.gradients.data()});
    CHECK(same_bits(p.d_adapted, untouched.d_adapted));
    for (index_t n = 0; n < 4; ++n)
        CHECK(compare_bitwise(p.d_magnitudes.const_ref().slice(0, n),
                              (n == 3 ? want : untouched).d_magnitudes.const_ref().slice(0, n)));
    p.adapted.fill(std::numeric_limits<double>::quiet_NaN()); // not read
    dora_backward({p.plan}, p.list(), p.adapted, p.d_y, {p.d_adapted});
    CHECK(same_bits(p.d_adapted, want.d_adapted));
}

TEST_CASE("DoRA gives the same bits on every executor and in shares, without allocations") {
    quotient_problem want(300, 100, 9);
    rows_problem want_rows(300, type::bf16, type::f32, type::f32);
    want.run();
    want_rows.run();
    const auto check = [&](const auto& each) {
        quotient_problem p(300, 100, 9);
        rows_problem rows(300, type::bf16, type::f32, type::f32);
        each([&](executor_ref executor) {
            p.run(executor);
            dora_forward({rows.plan, executor}, rows.list(), rows.adapted, rows.y);
            dora_backward({rows.plan, executor}, rows.list(), rows.adapted, rows.d_y,
                          {rows.d_adapted, rows.gradients.data()});
        });
        CHECK(same_bits(p.quotient, want.quotient));
        CHECK(same_bits(rows.y, want_rows.y));
        CHECK(same_bits(rows.d_adapted, want_rows.d_adapted));
        CHECK(same_bits(rows.d_magnitudes, want_rows.d_magnitudes));
    };
    for_each_executor([&](executor_ref executor, const std::string& name) {
        CAPTURE(name);
        check([&](const auto& call) { call(executor); });
    });
    check([](const auto& call) { for_each_share(3, call); });
    CHECK(allocations_of([&] {
              want.run();
              dora_forward({want_rows.plan}, want_rows.list(), want_rows.adapted, want_rows.y);
              dora_backward({want_rows.plan}, want_rows.list(), want_rows.adapted, want_rows.d_y,
                            {want_rows.d_adapted, want_rows.gradients.data()});
          }) == 0);
}

TEST_CASE("a batch without entries takes an empty list of DoRA") {
    rows_problem p(5, type::f32, type::f32, type::f32);
    batch_plan plan;
    plan.assign_single_task(rows_problem::rows, no_task);
    dora_forward({plan}, {nullptr, 0}, p.adapted, p.y);
    CHECK(same_bits(p.y, p.adapted));
    dora_backward({plan}, {nullptr, 0}, p.adapted, p.d_y, {});
}

TEST_CASE("bad arguments of the quotient are refused") {
    quotient_problem p(6, 4, 3);
    const char* const name = "dora_quotient";
    const auto refused = [&](const char* argument, auto&& call) {
        CHECK(refuses(name, argument, call, p.quotient));
    };
    check_bad_input(name, "adapter.a", p.a.const_ref(), {1}, [&](const const_tensor_ref<2>& bad) {
        dora_quotient({}, p.base_weight, {bad, p.b}, p.magnitude, p.quotient);
    });
    check_bad_input(name, "adapter.b", p.b.const_ref(), {}, [&](const const_tensor_ref<2>& bad) {
        dora_quotient({}, p.base_weight, {p.a, bad}, p.magnitude, p.quotient);
    });
    check_bad_input(name, "base_weight", p.base_weight.const_ref(), {0, 1},
                    [&](const const_tensor_ref<2>& bad) {
                        dora_quotient({}, bad, p.adapter(), p.magnitude, p.quotient);
                    });
    check_bad_input(name, "magnitude", p.magnitude.const_ref(), {},
                    [&](const const_tensor_ref<1>& bad) {
                        dora_quotient({}, p.base_weight, p.adapter(), bad, p.quotient);
                    });
    check_bad_output(name, "quotient", p.quotient.ref(), {}, [&](const tensor_ref<1>& bad) {
        dora_quotient({}, p.base_weight, p.adapter(), p.magnitude, bad);
    });
    refused("adapter.a", [&] {
        dora_quotient({}, p.base_weight.const_ref().transpose(0, 1), p.adapter(), {}, p.quotient);
    });
}

TEST_CASE("bad arguments of DoRA are refused, with outputs untouched") {
    rows_problem p(6, type::f32, type::f32, type::f32);
    const auto both = [&](const char* argument, const dora_list& list) {
        const auto outcome = refuses(
            "dora_forward", argument, [&] { dora_forward({p.plan}, list, p.adapted, p.y); }, p.y);
        CHECK(outcome);
        CHECK(why_not({p.plan}, list, p.adapted, p.y) == outcome.message);
        CHECK(refuses(
            "dora_backward", argument,
            [&] {
                dora_backward({p.plan}, list, p.adapted, p.d_y, {p.d_adapted, p.gradients.data()});
            },
            p.d_adapted, p.d_magnitudes));
    };
    for (index_t bad : {-1, 4}) {
        auto numbers = p.numbers;
        numbers[3] = bad;
        both("adapters.adapter_of_entry", {p.adapters.data(), 4, {numbers.data(), {4}}});
    }
    both("adapters.adapter_of_entry", {p.adapters.data(), 4, {p.numbers.data(), {3}}});
    both("adapters", {p.adapters.data(), 3});
    both("adapters", {p.adapters.data(), 5});
    both("adapters", {nullptr, 4});
    both("adapters", {nullptr, 4, {p.numbers.data(), {4}}});
    for (const auto& bad : bad_as_input(p.adapters[0].quotient)) {
        if (bad.ref.absent()) continue; // that is LoRA
        CAPTURE(bad.what);
        auto adapters = p.adapters;
        adapters[0].quotient = bad.ref;
        both("adapters.quotient", {adapters.data(), 4, {p.numbers.data(), {4}}});
    }
    check_bad_input(
        "dora_forward", "adapted", p.adapted.const_ref(), {1},
        [&](const const_tensor_ref<2>& bad) { dora_forward({p.plan}, p.list(), bad, p.y); });
    check_bad_output("dora_forward", "y", p.y.ref(), {}, [&](const tensor_ref<2>& bad) {
        dora_forward({p.plan}, p.list(), p.adapted, bad);
    });
    check_bad_input("dora_backward", "d_y", p.d_y.const_ref(), {},
                    [&](const const_tensor_ref<2>& bad) {
                        dora_backward({p.plan}, p.list(), p.adapted, bad, {p.d_adapted});
                    });
    check_bad_output("dora_backward", "gradients.adapted", p.d_adapted.ref(), {},
                     [&](const tensor_ref<2>& bad) {
                         dora_backward({p.plan}, p.list(), p.adapted, p.d_y, {bad});
                     });
    const auto magnitudes_refused = [&](const char* argument) {
        CHECK(refuses(
            "dora_backward", argument,
            [&] {
                dora_backward({p.plan}, p.list(), p.adapted, p.d_y,
                              {p.d_adapted, p.gradients.data()});
            },
            p.d_adapted, p.d_magnitudes));
    };
    const tensor_ref<1> good = p.gradients[3];
    for (const auto& bad : bad_as_output(good)) {
        if (bad.ref.absent()) continue; // not wanted
        CAPTURE(bad.what);
        p.gradients[3] = bad.ref;
        magnitudes_refused("gradients.magnitudes");
    }
    p.gradients[3] = good;
    p.adapters[3].inverse_norm = {};
    magnitudes_refused("adapters.inverse_norm");
}

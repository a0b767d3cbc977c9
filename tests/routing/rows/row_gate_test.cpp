#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/reference/row_routing.hpp>
#include <mhr/routing/rows/row_gate.hpp>

#include "support/allocation_counter.hpp"
#include "support/row_checks.hpp"
#include "support/thread_executor.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

using wide = long double;

struct sizes {
    index_t rows, features, modules;
};
// Round the 24 rows of a part, the 48 of a sum and the 512 features of a part.
constexpr sizes shapes[] = {{0, 3, 2},     {1, 1, 1},   {2, 7, 3},    {24, 65, 16},
                            {25, 513, 17}, {49, 31, 5}, {97, 1030, 2}};

struct problem {
    random_guarded<2> x, gate;
    random_guarded<1> bias;
    guarded_tensor<2> logits;
    random_guarded<2> d_logits, d_x, d_gate;
    random_guarded<1> d_bias;

    problem(const sizes& s, element_type stored, element_type sums,
            layout order = layout::row_major)
        : x(stored, {s.rows, s.features}, 1, order),
          gate(stored, {s.features, s.modules}, 2, order), bias(stored, {s.modules}, 3, order),
          logits(sums, {s.rows, s.modules}, order), d_logits(sums, {s.rows, s.modules}, 4, order),
          d_x(stored, x.extents(), 5, order), d_gate(stored, gate.extents(), 6, order),
          d_bias(stored, {s.modules}, 7, order) {}

    [[nodiscard]] row_gate parameters() const { return {gate.const_ref(), bias.const_ref()}; }
    [[nodiscard]] row_gate_gradients gradients() { return {d_x, d_gate, d_bias}; }
    void run(executor_ref executor = {}) {
        row_gate_forward(executor, parameters(), x, logits);
        // NaN, whatever the type: what was not written is not read.
        std::vector<unsigned char> memory(
            row_gate_backward_workspace_size(parameters(), gradients(), logits.type()), 0xFF);
        row_gate_backward(executor, parameters(), x, d_logits, gradients(),
                          {memory.data(), memory.size()});
    }
    void check() {
        tensor<wide, 2> want(logits.extents());
        const auto wx = values_as<wide>(x.ref());
        const auto wg = values_as<wide>(gate.ref());
        const auto wd = values_as<wide>(d_logits.ref());
        const auto wb = values_as<wide>(bias.ref());
        auto want_x = values_as<wide>(d_x.ref());
        auto want_gate = values_as<wide>(d_gate.ref());
        auto want_bias = values_as<wide>(d_bias.ref());
        reference::row_gate_forward(wx.const_view(), wg.const_view(), wb.const_view(), want.view());
        reference::row_gate_backward(wx.const_view(), wg.const_view(), wd.const_view(),
                                     want_x.view(), want_gate.view(), want_bias.view());
        run();
        const element_type sums = logits.type();
        const auto near = [&](auto& got, const auto& exact, index_t terms) {
            if (exact.values().empty()) return;
            check_near(got, exact, sums, 4 + static_cast<double>(terms) / 2);
        };
        near(logits, want, x.extents()[1]);
        near(d_x, want_x, logits.extents()[1]);
        near(d_gate, want_gate, x.extents()[0]);
        near(d_bias, want_bias, x.extents()[0]);
    }
};

} // namespace

TEST_CASE("the row gate agrees with the oracle, forward and backward") {
    for (const sizes& s : shapes)
        for (const element_type sums : sum_types)
            for (const element_type stored : all_element_types) {
                if (stored == element_type::f64 && sums == element_type::f32) continue;
                CAPTURE(s.rows);
                CAPTURE(s.features);
                CAPTURE(std::string(name_of(stored)));
                CAPTURE(std::string(name_of(sums)));
                problem(s, stored, sums).check();
            }
}

TEST_CASE("the row gate works in every layout, on every executor, to the same bits") {
    const sizes s{97, 1030, 17};
    problem want(s, element_type::bf16, element_type::f32);
    CHECK(allocations_of([&] { row_gate_forward({}, want.parameters(), want.x, want.logits); }) ==
          0);
    want.run();
    const auto check = [&](problem& got) {
        CHECK(compare_bitwise(got.logits.ref(), want.logits.ref()));
        CHECK(compare_bitwise(got.d_x.ref(), want.d_x.ref()));
        CHECK(compare_bitwise(got.d_gate.ref(), want.d_gate.ref()));
        CHECK(compare_bitwise(got.d_bias.ref(), want.d_bias.ref()));
    };
    for (layout order : all_layouts) {
        CAPTURE(name_of(order));
        problem got(s, element_type::bf16, element_type::f32, order);
        got.run();
        check(got);
    }
    for_each_executor([&](const executor_ref& executor, const std::string& name) {
        CAPTURE(name);
        problem got(s, element_type::bf16, element_type::f32);
        got.run(executor);
        check(got);
    });
    // A row alone is what it is among others.
    guarded_tensor<2> alone(element_type::f32, {1, s.modules});
    row_gate_forward({}, want.parameters(), want.x.ref().block(0, 30, 1), alone);
    CHECK(compare_bitwise(alone.ref(), want.logits.ref().block(0, 30, 1)));
}

TEST_CASE("a gate without a bias, and gradients that are not wanted") {
    const sizes s{25, 30, 3};
    problem p(s, element_type::f32, element_type::f32),
        all(s, element_type::f32, element_type::f32);
    all.run();
    p.bias.fill(0);
    row_gate_forward({}, p.parameters(), p.x, p.logits);
    guarded_tensor<2> without(element_type::f32, p.logits.extents());
    row_gate_forward({}, {p.gate.const_ref()}, p.x, without);
    CHECK(compare_bitwise(without.ref(), p.logits.ref()));
    CHECK(row_gate_backward_workspace_size(p.parameters(), {p.d_x}) == 0);
    row_gate_backward({}, p.parameters(), p.x, p.d_logits, {p.d_x}, {});
    CHECK(compare_bitwise(p.d_x.ref(), all.d_x.ref()));
    CHECK_FALSE(compare_bitwise(p.d_gate.ref(), all.d_gate.ref()));
    row_gate_backward({}, p.parameters(), p.x, p.d_logits, {{}, {}, p.d_bias}, {});
    CHECK(compare_bitwise(p.d_bias.ref(), all.d_bias.ref()));
}

TEST_CASE("bad arguments of the row gate are refused by name") {
    problem p({25, 30, 3}, element_type::f32, element_type::f32);
    const auto forward = [&](const row_gate& gate, const const_tensor_ref<2>& x,
                             const tensor_ref<2>& logits) {
        row_gate_forward({}, gate, x, logits);
    };
    const row_gate gate = p.parameters();
    const const_tensor_ref<2> x = p.x;
    const tensor_ref<2> logits = p.logits;
    const char* name = "row_gate_forward";
    check_bad_input(name, "x", x, {0, 1}, [&](const auto& bad) { forward(gate, bad, logits); });
    check_bad_input(name, "gate.matrix", gate.matrix, {1},
                    [&](const auto& bad) { forward({bad}, x, logits); });
    check_bad_input(name, "gate.bias", gate.bias, {}, [&](const auto& bad) {
        forward({gate.matrix, bad}, x, logits);
    });
    for (const auto& bad : bad_as_output(logits)) {
        CAPTURE(bad.what);
        if (bad.what == "no type [25, 3] strides [3, 1]") continue;
        const auto outcome = refuses(
            name, "logits", [&] { forward(gate, x, bad.ref); }, p.logits);
        CHECK(outcome);
        CHECK(why_not(gate, x, bad.ref) == outcome.message);
    }
    CHECK(why_not(gate, x, logits).empty());
    guarded_tensor<2> x64(element_type::f64, {25, 30}), half(element_type::bf16, {25, 3});
    CHECK(refuses(name, "x", [&] { forward(gate, x64.const_ref(), logits); }));
    CHECK(refuses(name, "logits", [&] { forward(gate, x, half); }));

    owned_workspace scratch(row_gate_backward_workspace_size(gate, p.gradients()));
    const auto backward = [&](const const_tensor_ref<2>& d_logits,
                              const row_gate_gradients& gradients, const workspace& memory) {
        row_gate_backward({}, gate, x, d_logits, gradients, memory);
    };
    const char* back = "row_gate_backward";
    const row_gate_gradients good = p.gradients();
    check_bad_input(back, "d_logits", p.d_logits.const_ref(), {},
                    [&](const auto& bad) { backward(bad, good, scratch); });
    const auto absent = [](const auto& tensor) { return tensor.absent(); };
    check_bad_output(back, "gradients.x", good.x, {}, [&](const auto& bad) {
        REQUIRE_FALSE(absent(bad));
        backward(p.d_logits, {bad, good.matrix, good.bias}, scratch);
    });
    check_bad_output(back, "gradients.matrix", good.matrix, {}, [&](const auto& bad) {
        backward(p.d_logits, {good.x, bad, good.bias}, scratch);
    });
    check_bad_output(back, "gradients.bias", good.bias, {}, [&](const auto& bad) {
        backward(p.d_logits, {good.x, good.matrix, bad}, scratch);
    });
    CHECK(refuses(
        back, "workspace", [&] { backward(p.d_logits, good, {}); }, p.d_x, p.d_gate));
}

#include <cstddef>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/core/sums.hpp>
#include <mhr/lora/lora.hpp>
#include <mhr/lora/output_mixed_lora.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/output_mixed_lora_page.hpp"
#include "support/contract/rank_sums.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const output_mixed_lora_page page;
constexpr contract_sizes usual{21, 3, 1, 4, 5, 7, 3};

void check_within(const tensor_ref<2>& got, const tensor_ref<2>& want, element_type sums,
                  double roundings) {
    auto ones = values_as<double>(want);
    for (double& value : ones.values())
        value = 1;
    CHECK(compare(got, values_as<double>(want).view(), ones.view(), within(sums, roundings)));
}

} // namespace

TEST_CASE("LoRA with mixed outputs keeps the contract") {
    check_contract(page);
}

TEST_CASE("several heads, and ranks that share the layer, are refused by name") {
    refusal_check check(page, call_options{}.with({21, 3, 1, 4, 6, 8, 3}));
    adapter_call& call = check.call();
    arguments given = call.given();
    given["inventory.a"] = given["inventory.a"].slice(0, 0).split(1, 2).transpose(0, 1);
    given["inventory.b"] =
        given["inventory.b"].slice(0, 0).split(2, 2).transpose(1, 2).transpose(0, 1);
    const tensor_ref<3> w = given.get<3>("layer.weights");
    given.set("layer.weights", tensor_ref<3>(w.data(), w.type(), {w.extent(0), 2, w.extent(2)},
                                             {w.stride(0), 0, w.stride(2)}));
    check.bad_arguments("layer.a", given, true, true);

    arguments empty = call.given();
    empty["inventory.a"] = empty["inventory.a"].block(0, 0, 0);
    check.bad_arguments("inventory.a", empty, true, true);

    rank_sum sum;
    const batch rows{call.plan, {}, sum};
    const auto outcome = refuses(call, page.forward_name(), "batch.sum_over_ranks",
                                 [&] { page.forward(rows, call.given()); });
    CHECK(outcome);
    CHECK(page.why_not(rows, call.given()) == outcome.message);
    CHECK(refuses(call, page.backward_name(), "batch.sum_over_ranks",
                  [&] { page.backward(rows, call.given(), call.scratch()); }));
    CHECK(sum.calls == 0);
}

TEST_CASE("y of 16 bits is rounded once, not once for each module") {
    // 64 modules, each of which adds 1/4 of a step of y: rounded one by one, all would be lost.
    adapter_call call(page, call_options{}
                                .with({1, 1, 1, 64, 1, 1, 1})
                                .with_tasks({0})
                                .of(element_type::bf16)
                                .scaled(0x1p-9));
    for (const tensor_spec& spec : call.specs)
        call[spec.name].fill(1);
    call.run();
    CHECK(element(call["y"].ref(), {0, 0, 0, 0}) == 1.125);
    CHECK(element(call["gradients.x"].ref(), {0, 0, 0, 0}) == 1.125);
}

TEST_CASE("gradients of modules are rounded once, not once for each task") {
    std::vector<std::int64_t> tasks;
    for (int task = 0; task < 64; ++task)
        tasks.push_back(task);
    adapter_call call(page, call_options{}
                                .with({64, 64, 1, 1, 1, 1, 1})
                                .with_tasks(tasks)
                                .of(element_type::bf16)
                                .scaled(0x1p-9));
    for (const tensor_spec& spec : call.specs)
        call[spec.name].fill(1);
    call.run();
    CHECK(element(call["gradients.a"].ref(), {0, 0, 0, 0}) == 1.125);
    CHECK(element(call["gradients.b"].ref(), {0, 0, 0, 0}) == 1.125);
}

TEST_CASE("it equals one LoRA of rank modules * rank") {
    const contract_sizes s{20, 3, 1, 4, 9, 70, 5};
    adapter_call call(page,
                      call_options{}.with(s).of(element_type::f64).with_sums(element_type::f64));
    adapter_call other(page, call.options);
    const index_t rank = s.modules * s.rank;
    const index_t entries = call.plan.entries();
    // The modules beside each other in a, below each other in b, the weights in b.
    guarded_tensor<3> a(element_type::f64, {entries, s.in, rank});
    guarded_tensor<3> b(element_type::f64, {entries, rank, s.out});
    guarded_tensor<2> hidden(element_type::f64, {s.rows, rank});
    const arguments given = other.given();
    const routed_lora layer = layer_of(given);
    for_each_position<4>({entries, s.modules, s.in, s.rank}, [&](const position<4>& at) {
        set_element(a.ref(), {at[0], at[2], at[1] * s.rank + at[3]},
                    element(layer.a, {0, at[1], at[2], at[3]}));
    });
    for_each_position<4>({entries, s.modules, s.rank, s.out}, [&](const position<4>& at) {
        set_element(b.ref(), {at[0], at[1] * s.rank + at[2], at[3]},
                    element(layer.weights, {at[0], 0, at[1]}) *
                        element(layer.b, {0, at[1], at[2], at[3]}));
    });
    const lora_list adapters(a, b, given.scale);
    std::vector<std::byte> memory(
        lora_backward_workspace_size({other.plan}, adapters, element_type::f64));
    lora_forward({other.plan}, adapters, given.get<2>("x"), given.get<2>("y"), {hidden});
    lora_backward({other.plan}, adapters, given.get<2>("x"), given.get<2>("d_y"), {hidden},
                  {given.get<2>("gradients.x"), {}}, {memory.data(), memory.size()});
    call.run();
    for (const char* name : {"y", "gradients.x"})
        check_within(call.given().get<2>(name), given.get<2>(name), element_type::f64, 50);
}

TEST_CASE("one module of weight 1 is LoRA, to the last bit") {
    contract_sizes s = usual;
    s.modules = 1;
    s.rank = 16;
    // A scale of a power of two may be applied anywhere.
    const call_options options =
        call_options{}.with(s).with_tasks(std::vector<std::int64_t>(21, 0)).scaled(0.5);
    adapter_call call(page, options), other(page, options);
    call["layer.weights"].fill(1);
    call.run();
    const arguments given = other.given();
    const lora_state state{given.get<3>("state.hidden").slice(1, 0)};
    const lora adapter{given.get<4>("inventory.a").slice(0, 0).slice(0, 0),
                       given.get<4>("inventory.b").slice(0, 0).slice(0, 0), 0.5};
    const lora_matrices gradients{given.get<4>("gradients.a").slice(0, 0).slice(0, 0),
                                  given.get<4>("gradients.b").slice(0, 0).slice(0, 0)};
    std::vector<std::byte> memory(lora_backward_workspace_size({other.plan}, adapter));
    lora_forward({other.plan}, adapter, given.get<2>("x"), given.get<2>("y"), state);
    lora_backward({other.plan}, adapter, given.get<2>("x"), given.get<2>("d_y"), state,
                  {given.get<2>("gradients.x"), gradients}, {memory.data(), memory.size()});
    for (const char* name : {"y", "state.hidden", "gradients.x", "gradients.a", "gradients.b"}) {
        CAPTURE(std::string(name));
        CHECK(same_bits(call, other, name));
    }
}

TEST_CASE("it is routed LoRA where each task has one module, and only there") {
    const routed_lora_page routed_page;
    for (bool is_mixture : {false, true}) {
        adapter_call call(page, call_options{}.with(usual));
        adapter_call routed(routed_page, call.options);
        for (adapter_call* each : {&call, &routed}) {
            any_tensor weights = (*each)["layer.weights"].ref();
            (*each)["layer.weights"].fill(is_mixture ? 0.25 : 0);
            for (index_t g = 0; !is_mixture && g < each->plan.entries(); ++g)
                set_element(weights, {0, g, 0, (g + 1) % usual.modules}, 1);
            each->forward();
        }
        CHECK(same_bits(call, routed, "y").ok == !is_mixture);
        if (!is_mixture) continue;
        tensor<double, 4> ones(call["y"].extents());
        for (double& value : ones.values())
            value = 1;
        CHECK_FALSE(compare(call["y"].const_ref(),
                            values_as<double>(routed["y"].const_ref()).view(), ones.view(),
                            within(element_type::f32, 1e4)));
    }
}

TEST_CASE("a module of weight 0 is not read, but its weight has a gradient") {
    adapter_call spoilt(page, call_options{}.with(usual)), want(page, spoilt.options);
    adapter_call before(page, spoilt.options);
    const index_t entries = want.plan.entries();
    for (adapter_call* each : {&spoilt, &want})
        for (index_t g = 0; g < entries; ++g)
            for (index_t m : {1, 3})
                set_element((*each)["layer.weights"].ref(), {0, g, 0, m}, 0);
    want["gradients.weights"].fill(0);
    want.run();
    // No gradient of those modules, one of their weights.
    for (index_t m : {1, 3}) {
        for (const char* name : {"gradients.a", "gradients.b"})
            CHECK(compare_bitwise(want[name].ref().block(1, m, 1),
                                  before[name].ref().block(1, m, 1)));
        for (index_t g = 0; g < entries; ++g)
            CHECK(element(want["gradients.weights"].ref(), {0, g, 0, m}) != 0);
    }
    // Without that gradient neither pass reads them.
    const auto spoil = [&](const char* name, index_t m) {
        transform_elements(spoilt[name].ref().block(1, m, 1),
                           [](double) { return std::numeric_limits<double>::quiet_NaN(); });
    };
    spoil("inventory.a", 1);
    spoil("inventory.b", 3);
    arguments given = spoilt.given();
    given.leave_out("gradients.weights");
    spoilt.forward();
    page.backward({spoilt.plan}, given, spoilt.scratch());
    for (const char* name : {"y", "state.hidden", "gradients.x", "gradients.a", "gradients.b"}) {
        CAPTURE(std::string(name));
        CHECK(same_bits(spoilt, want, name));
    }
}

TEST_CASE("negative weights subtract what positive ones add") {
    adapter_call call(page, call_options{}.with(usual)), negated(page, call.options);
    for (adapter_call* each : {&call, &negated})
        (*each)["y"].fill(0);
    transform_elements(negated["layer.weights"].ref(), [](double weight) { return -weight; });
    call.forward();
    negated.forward();
    transform_elements(negated["y"].ref(), [](double value) { return 0 - value; });
    CHECK(same_bits(call, negated, "y"));
}

TEST_CASE("a weight that is NaN spoils its task, and no other") {
    adapter_call call(page, call_options{}.with(usual)), want(page, call.options);
    set_element(call["layer.weights"].ref(), {0, 1, 0, 2},
                std::numeric_limits<double>::quiet_NaN());
    call.forward();
    want.forward();
    const auto entries = entry_of_row(call.plan);
    for (index_t row = 0; row < usual.rows; ++row) {
        const double got = element(call["y"].ref(), {0, 0, row, 0});
        const double usually = element(want["y"].ref(), {0, 0, row, 0});
        CHECK(is_exactly(got, usually) == (entries(row) != 1));
    }
}

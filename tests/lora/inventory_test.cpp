#include <array>
#include <vector>

#include <doctest/doctest.h>

#include <mhr/lora/inventory.hpp>
#include <mhr/lora/mixing.hpp>

#include "support/adapter_contract.hpp"
#include "support/contract/mixing_pages.hpp"

using namespace mhr;
using namespace mhr::test;

namespace {

const mix_lora_page mixing;
const average_lora_page averaging;

} // namespace

TEST_CASE("mixing LoRA keeps the contract") {
    check_contract(mixing);
}
TEST_CASE("the average of LoRA keeps the contract") {
    check_contract(averaging);
}

TEST_CASE("the sizes of an inventory") {
    adapter_call call(mixing);
    const lora_shape shape =
        shape_of({call["inventory.a"].const_ref(), call["inventory.b"].const_ref()});
    CHECK(shape.heads == 2);
    CHECK(shape.modules == 4);
    CHECK(shape.in_features == 10);
    CHECK(shape.out_features == 14);
    CHECK(shape.rank == 3);
}

TEST_CASE("mixing and its gradients are those of both matrices") {
    adapter_call call(mixing), want(mixing);
    call.run();
    const arguments given = want.given();
    const index_t heads = want.options.sizes.heads;
    const auto of_a = [&](const char* name) { return given.get<3>(name).split(1, heads); };
    const auto of_b = [&](const char* name) {
        return given.get<3>(name).split(2, heads).transpose(1, 2);
    };
    const tensor_ref<3> weights = given.get<3>("weights");
    const tensor_ref<3> d_weights = given.get<3>("gradients.weights");
    mix_forward({}, weights, given.get<4>("inventory.a"), of_a("mixed.a"));
    mix_forward({}, weights, given.get<4>("inventory.b"), of_b("mixed.b"));
    mix_backward({}, weights, given.get<4>("inventory.a"), of_a("d_a"),
                 {given.get<4>("gradients.a"), d_weights});
    mix_backward({}, weights, given.get<4>("inventory.b"), of_b("d_b"),
                 {given.get<4>("gradients.b"), d_weights});
    check_same_results(call, want);
}

TEST_CASE("the average is the mixture of equal weights, to the last bit") {
    contract_sizes sizes;
    sizes.modules = 7; // 1/7 is rounded
    const call_options options =
        call_options{}.with(sizes).with_tasks(std::vector<std::int64_t>(21, 0));
    adapter_call average(averaging, options), mixture(mixing, options);
    const arguments given = mixture.given();
    mixture["weights"].fill(1.F / 7);
    for (const char* name : {"inventory.a", "inventory.b", "d_a", "d_b"})
        copy_elements(average[name].ref(), // of as many elements
                      name[0] == 'd' ? given.get<3>(name).prepend_axis() : mixture[name].ref());
    copy_elements(average["d_inventory.a"].ref(), mixture["gradients.a"].ref());
    copy_elements(average["d_inventory.b"].ref(), mixture["gradients.b"].ref());
    average.run();
    mixture.run();
    CHECK(compare_bitwise(average["average.a"].const_ref(), mixture["mixed.a"].const_ref()));
    CHECK(compare_bitwise(average["average.b"].const_ref(), mixture["mixed.b"].const_ref()));
    CHECK(
        compare_bitwise(average["d_inventory.a"].const_ref(), mixture["gradients.a"].const_ref()));
    CHECK(
        compare_bitwise(average["d_inventory.b"].const_ref(), mixture["gradients.b"].const_ref()));
}

TEST_CASE("an inventory without heads, and matrices that do not fit together, are refused") {
    const call_options none = call_options{}.with({3, 1, 0, 3, 4, 5, 2});
    refusal_check mixed(mixing, none);
    mixed.bad_arguments("inventory.a", mixed.call().given(), true, true);
    refusal_check averaged(averaging, none);
    averaged.bad_arguments("inventory.a", averaged.call().given(), true, false);
    averaged.bad_arguments("d_inventory.a", averaged.call().given(), false, true);
    arguments b_alone = averaged.call().given();
    b_alone.leave_out("d_inventory.a");
    averaged.bad_arguments("d_inventory.b", b_alone, false, true);
}
